"""Datasets: what is known of each, where it lies, and how it is read."""
