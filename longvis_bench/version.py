"""The version of this package, stored with every run."""

__version__ = "0.2.0"
