"""Validity: whether a model's outputs are correct, and how much time the check may take."""
