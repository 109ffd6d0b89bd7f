"""Latency: one sample, when to stop, and what disturbed it."""
