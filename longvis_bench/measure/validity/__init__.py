"""Validity: whether the outputs can be believed, and what finding out may cost."""
