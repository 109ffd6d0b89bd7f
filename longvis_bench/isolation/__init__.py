"""One process per cell: fork or spawn it, watch it, kill it at its limits, and classify how it ended."""
