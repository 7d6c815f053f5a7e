"""Experiment binaries: run them from the repository root, e.g. `python -m experiments.train`."""
