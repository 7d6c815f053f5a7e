"""The transformations, one a file."""
