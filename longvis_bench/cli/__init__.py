"""The command line: one file per command, which parses options, calls the package and prints results."""
