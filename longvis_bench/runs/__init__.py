"""A run on disk: its directory, lock, schema migrations, predictions, and merging."""
