"""The command line: one file a subcommand, flags and printing."""
