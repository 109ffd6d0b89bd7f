"""The selective scan as one torch operator with a backend per device and package."""
