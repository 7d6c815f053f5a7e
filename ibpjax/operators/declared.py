"""Declared Lipschitz constants: for layers of which a theorem knows more than bounds of their parts."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_NAME = 'lipschitz_at_most_'
_DECLARED: dict[str, tuple[float, Callable]] = {}  # name -> constant and function


def lipschitz_at_most(constant: float) -> Callable[[Callable], Callable]:
  """Decorator: declares that `fn(x, *known)` lengthens differences of `x` by at most `constant`, in l2 norms.

  For layers of which that is a theorem and no bound of their parts would find it, as 1-Lipschitz residual blocks.
  Lipschitz bounds take its word where `fn` itself is called, x alone is perturbed and one array returned; of what
  transformations make of it (a batch over weights, a gradient), and in all other bounds, they look inside.
  """
  if not 0 <= constant < np.inf:
    raise ValueError(f'constant is {constant}; it is finite and >= 0')

  def declare(fn: Callable) -> Callable:
    def called(*args):
      return fn(*args)
    called.__name__ = f'{_NAME}{len(_DECLARED)}'
    _DECLARED[called.__name__] = float(constant), fn
    return functools.update_wrapper(jax.jit(called), fn, assigned=('__doc__',), updated=())
  return declare


def declared_constant(params: dict[str, Any]) -> float | None:
  """The constant of a call of a declared function, by the parameters of its equation; None of any other call."""
  if params['name'] not in _DECLARED:
    return None
  constant, fn = _DECLARED[params['name']]
  closed = params['jaxpr']
  if closed.consts:
    return None
  try:  # transformed functions keep their names, but are other programs
    own = jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in closed.in_avals))
  except Exception:  # another number of arguments; closed over what is gone
    return None
  return constant if str(own.jaxpr) == str(closed.jaxpr) and not own.consts else None
