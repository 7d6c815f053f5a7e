"""Interval rules for products along axes, sorts and scatters of perturbed values."""
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ibpjax.core.products import times
from ibpjax.core.program import Equation, rebind, unsupported
from ibpjax.core.sets import Interval, as_interval, is_set


def ends(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """The rule of an increasing operation: run it on all lower and on all upper ends."""
  lower, upper = ([getattr(x, end) if is_set(x) else x for x in operands] for end in ('lower', 'upper'))
  return [Interval(l, u) for l, u in zip(rebind(eqn, *lower), rebind(eqn, *upper), strict=True)]


# -------------------------------------------------------------------------------------- products
def corners(x: Interval, y: Interval) -> Interval:
  """x * y for two boxes, exact. A product that vanishes or overflows says so: the next one may be by its inverse."""
  info = jnp.finfo(x.dtype)
  lows, highs = [], []
  for a, b in ((x.lower, y.lower), (x.lower, y.upper), (x.upper, y.lower), (x.upper, y.upper)):
    c = times(a, b)
    vanished = (c == 0) & (a != 0) & (b != 0)
    positive = (a > 0) == (b > 0)
    lows.append(jnp.where(c == jnp.inf, info.max, jnp.where(vanished & ~positive, -info.tiny, c)))
    highs.append(jnp.where(c == -jnp.inf, info.min, jnp.where(vanished & positive, info.tiny, c)))
  return Interval(functools.reduce(jnp.minimum, lows), functools.reduce(jnp.maximum, highs))


def reduce_prod(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """A product along axes. Products of independent boxes are exact and associative: taken in pairs."""
  x, = operands
  axes = tuple(map(int, eqn.params['axes']))
  rest = [i for i in range(x.ndim) if i not in axes]
  shape = eqn.outputs[0].shape

  def flat(a):
    return jnp.transpose(a, (*axes, *rest)).reshape(-1, *shape)
  x = Interval(flat(x.lower), flat(x.upper))
  if x.shape[0] == 0:
    return [as_interval(jnp.ones(shape, x.dtype))]
  while (n := x.shape[0]) > 1:
    half = n // 2
    pairs = corners(Interval(x.lower[:half], x.upper[:half]), Interval(x.lower[half:2 * half], x.upper[half:2 * half]))
    x = Interval(*(jnp.concatenate([p, e[2 * half:]]) for p, e in ((pairs.lower, x.lower), (pairs.upper, x.upper))))
  return [Interval(x.lower[0], x.upper[0])]


def cumprod(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """Products of all leading parts, each exact."""
  x, = operands
  return [lax.associative_scan(corners, x, reverse=eqn.params['reverse'], axis=eqn.params['axis'])]


# ------------------------------------------------------------------------------------------ sorts
def sort(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """Sorted values increase in every value: exact on the ends. What is carried along may land anywhere."""
  first, *carried = operands
  axis = eqn.params['dimension']
  first = as_interval(first)
  out = [Interval(jnp.sort(first.lower, axis), jnp.sort(first.upper, axis))]
  for x in map(as_interval, carried):
    low, high = x.lower.min(axis, keepdims=True), x.upper.max(axis, keepdims=True)
    out.append(Interval(jnp.broadcast_to(low, x.shape), jnp.broadcast_to(high, x.shape)))
  return out


def top_k(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """The k greatest values, exact on the ends; their positions may be any."""
  x, = operands
  lower, _ = rebind(eqn, x.lower)
  upper, position = rebind(eqn, x.upper)
  last = x.shape[eqn.params['axis']] - 1
  return [Interval(lower, upper), Interval(jnp.zeros_like(position), jnp.full_like(position, last))]


# --------------------------------------------------------------------------------------- scatters
def _scattered(scatter: Any, eqn: Equation, into: Any, indices: Any, updates: Any) -> Any:
  params = {k: eqn.params[k] for k in ('dimension_numbers', 'indices_are_sorted', 'unique_indices', 'mode')}
  numbers = params.pop('dimension_numbers')
  return scatter(into, indices, updates, numbers, **params)


def scatter(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """Overwriting at known positions. Where a position is written twice, either write may be the one that stays."""
  x, indices, updates = operands
  x, updates = as_interval(x), as_interval(updates)
  if eqn.params['update_jaxpr'] is not None:  # x.at[i].apply(f)
    raise unsupported(eqn, 'applies a function where it writes. Write x.at[i].set(f(x[i])) instead')
  depth = len(eqn.params['dimension_numbers'].scatter_dims_to_operand_dims)
  if eqn.params['unique_indices'] or indices.size <= depth:
    return ends(eqn, operands)
  written = _scattered(lax.scatter_max, eqn, jnp.zeros(x.shape, jnp.int32), indices,
                       jnp.ones(updates.shape, jnp.int32)) > 0
  low = _scattered(lax.scatter_min, eqn, jnp.full_like(x.lower, jnp.inf), indices, updates.lower)
  high = _scattered(lax.scatter_max, eqn, jnp.full_like(x.upper, -jnp.inf), indices, updates.upper)
  return [Interval(jnp.where(written, low, x.lower), jnp.where(written, high, x.upper))]


def scatter_mul(eqn: Equation, operands: Sequence[Any]) -> list[Interval] | None:
  """Multiplication at known positions by known numbers: of each element by the product that meets it."""
  x, indices, updates = operands
  if is_set(updates):
    return None
  def product(scatter, updates):
    return _scattered(scatter, eqn, jnp.ones(x.shape, x.dtype), indices, updates)
  factor, info = product(lax.scatter_mul, updates), jnp.finfo(x.dtype)
  vanished = (factor == 0) & (product(lax.scatter_min, jnp.abs(updates)) > 0)
  unknown = ~jnp.isfinite(factor)  # an overflow, perhaps of factors whose product is moderate
  factor = Interval(jnp.where(unknown, -jnp.inf, jnp.where(vanished, -info.tiny, factor)),
                    jnp.where(unknown, jnp.inf, jnp.where(vanished, info.tiny, factor)))
  return [corners(x, factor)]


def scatter_sub(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """Subtraction at known positions."""
  x, indices, updates = operands
  x, updates = as_interval(x), as_interval(updates)
  return [Interval(rebind(eqn, x.lower, indices, updates.upper)[0], rebind(eqn, x.upper, indices, updates.lower)[0])]


def count(eqn: Equation) -> int:
  """The number of elements that one element of the result is made of."""
  if 'axes' in eqn.params:
    return int(np.prod([eqn.inputs[0].shape[i] for i in eqn.params['axes']], dtype=np.int64))
  return eqn.inputs[0].shape[eqn.params['axis']] if 'axis' in eqn.params else eqn.inputs[-1].size
