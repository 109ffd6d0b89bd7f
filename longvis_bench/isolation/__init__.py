"""One process per cell: forked, watched, ended, and its end classified."""
