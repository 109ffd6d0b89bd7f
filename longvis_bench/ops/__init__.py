"""Kernels the native backbones share: each with a plain reference and the backends that must equal it."""
