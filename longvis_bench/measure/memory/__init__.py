"""Memory: the measured peak, the tensors' peak by shapes, workspaces and the allocator."""
