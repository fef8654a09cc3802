"""The commands of the command line, one in each module: add_parser describes a command, run carries
it out."""
