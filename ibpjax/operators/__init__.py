"""Programs as maximal affine maps with nonlinear operations between, and norms of these."""
