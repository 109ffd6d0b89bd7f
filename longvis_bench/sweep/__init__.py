"""A sweep: its configuration, its plan, its execution, and the files that it writes."""
