"""Memory: the measured peak, the peak of the tensors computed from shapes, workspaces and the allocator."""
