"""What makes XLA right and quick; each says which jaxlib and why, and can be deleted."""
