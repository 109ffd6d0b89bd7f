"""Latency: timing one iteration, deciding when to stop, and recording what disturbed the timing."""
