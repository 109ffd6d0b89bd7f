"""A model's values: reading untrusted files, matching names, choosing a file for a cell."""
