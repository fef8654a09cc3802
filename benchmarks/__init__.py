"""Benchmarks of fdpass_c: `python -m benchmarks --help`, from the root of the project."""
