"""Advice from rows and from shapes: which size and batch fit into a memory, and which model to take."""
