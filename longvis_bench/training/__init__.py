"""Training: one recipe for all families."""
