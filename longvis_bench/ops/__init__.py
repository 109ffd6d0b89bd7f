"""Kernels that the native backbones share, each with a slow reference that its backends must equal."""
