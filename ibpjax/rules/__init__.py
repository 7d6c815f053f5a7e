"""How each kind of row acts on boxes and on linear functions, and what rounding adds."""
