"""By name, the methods that bound intermediate values for others: what `intermediate=` takes beside 'crown'."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ibpjax.core.sets import Intermediates
from ibpjax.methods.ibp import ibp
from ibpjax.methods.lbp import lbp
from ibpjax.methods.zonotope import zonotope

# name -> (a transformation that takes `intermediates=True`, those of the caller's options that are handed on to it)
INTERMEDIATE: dict[str, tuple[Callable[..., Callable], tuple[str, ...]]] = {
    'ibp': (ibp, ('round_outward',)),
    'lbp': (lbp, ('lines', 'intersect', 'round_outward')),
    'zonotope': (zonotope, ('intersect', 'round_outward')),
}


def checked_intermediate(intermediate: Any) -> None:
  """Raises if no method has the name, or if it is neither a method nor bounds."""
  if not isinstance(intermediate, str | Intermediates) and not callable(intermediate):
    raise TypeError(f'intermediate is {type(intermediate).__name__}; it is the name of a method, Intermediates, or a '
                    'transformation that returns them')
  if isinstance(intermediate, str) and intermediate != 'crown' and intermediate not in INTERMEDIATE:
    raise ValueError(f'intermediate is {intermediate!r}; it is one of crown, {", ".join(INTERMEDIATE)}, Intermediates, '
                     'or a transformation that returns them')


def given(f: Callable, intermediate: Any, args: tuple, kwargs: dict, **options: Any) -> dict[str, Any]:
  """What an interval pass is told of the bounds of intermediate values that another method finds, or the caller.

  Args:
    f: the function.
    intermediate: as in `crown`.
    args, kwargs: the arguments of `f`.
    **options: arguments for the method, if it is given by its name and takes them.
  """
  if isinstance(intermediate, Intermediates):
    return dict(given=intermediate, intersect_given=True)
  if intermediate == 'crown':
    return dict(given=None)
  if isinstance(intermediate, str):
    method, taken = INTERMEDIATE[intermediate]
    return dict(given=method(f, intermediates=True, **{name: options[name] for name in taken})(*args, **kwargs)[1])
  remedy = 'a transformation called with intermediates=True returns (bounds, Intermediates), as ibpjax.ibp does'
  name = getattr(intermediate, '__name__', repr(intermediate))
  try:
    transformed = intermediate(f, intermediates=True)
  except TypeError as e:
    raise TypeError(f'intermediate={name} cannot return the bounds of intermediate values ({e}): {remedy}') from e
  found = transformed(*args, **kwargs)
  if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Intermediates)):
    raise TypeError(f'intermediate={name} returned {type(found).__name__}: {remedy}')
  return dict(given=found[1])
