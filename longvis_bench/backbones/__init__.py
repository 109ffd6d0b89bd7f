"""The backbones: one file a family, each with the factory its card names."""
