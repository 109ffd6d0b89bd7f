"""A sweep: its configuration, its plan, its execution, and the files it leaves."""
