"""Training: one recipe for every family."""
