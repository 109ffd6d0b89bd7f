"""A model's weights: reading untrusted files, matching tensors with the model, choosing a file for a cell."""
