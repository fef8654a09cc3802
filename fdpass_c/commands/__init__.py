"""The commands of the command line, one a module: add_parser describes it, run does it."""
