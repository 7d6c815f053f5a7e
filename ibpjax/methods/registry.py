"""By name, the methods that bound intermediate values for others: what `intermediate=` takes beside 'crown'."""
from __future__ import annotations

from collections.abc import Callable

from ibpjax.methods.ibp import ibp
from ibpjax.methods.lbp import lbp

# name -> (a transformation that takes `intermediates=True`, those of the caller's options that are handed on to it)
INTERMEDIATE: dict[str, tuple[Callable[..., Callable], tuple[str, ...]]] = {
    'ibp': (ibp, ('round_outward',)),
    'lbp': (lbp, ('lines', 'intersect', 'round_outward')),
}
