"""Planes: two affine functions of its operands between which the result of an equation lies."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.products import dot, times
from ibpjax.core.program import rebind, trace
from ibpjax.core.sets import Interval, is_set
from ibpjax.rules import affine
from ibpjax.xla.select import select


@dataclasses.dataclass(frozen=True)
class LinearRelaxation:
  """One affine function below the result of an equation and one above.

  Attributes:
    low, high: intercepts, arrays of the shape of the result; infinite where nothing is known.
  """
  low: Any
  high: Any

  def pull(self, row: Any, up: Any) -> list[Any]:
    """The rows on the operands of `<row, result>`, with `below` for the elements that go `up`, `above` for others.

    The intercepts are left out.
    """
    raise NotImplementedError

  def push(self, xs: Sequence[Interval]) -> Interval:
    """The least of `below` and the greatest of `above`, each without its intercept, over boxes of the operands."""
    raise NotImplementedError

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    """A lower bound of `<rows[0], result>`: rows on the perturbed operands, and an offset."""
    row, = rows
    up = row > 0
    return self.pull(row, up), dot(row, select(up, self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Slopes(LinearRelaxation):
  """sum_i below[i] x_i + low <= out <= sum_i above[i] x_i + high, element by element.

  Attributes:
    below, above: a slope for each perturbed operand, arrays of the shape of the result.
  """
  below: tuple[Any, ...]
  above: tuple[Any, ...]

  def at(self, cut: Callable[[Any], Any]) -> Slopes:
    """The planes of some elements, which `cut` takes out of an array of the shape of the result."""
    return Slopes(*jax.tree.map(cut, (self.low, self.high, self.below, self.above)))

  def pull(self, row: Any, up: Any) -> list[Any]:
    return [row * select(up, b, a) for b, a in zip(self.below, self.above)]

  def push(self, xs: Sequence[Interval]) -> Interval:
    def least(slopes, lower, upper):
      return sum(times(jnp.maximum(s, 0), getattr(x, lower)) + times(jnp.minimum(s, 0), getattr(x, upper))
                 for s, x in zip(slopes, xs))
    return Interval(least(self.below, 'lower', 'upper'), least(self.above, 'upper', 'lower'))


@dataclasses.dataclass(frozen=True)
class Maps(LinearRelaxation):
  """below(*x) + low <= out <= above(*x) + high, where `below` and `above` are linear maps.

  Attributes:
    below, above: linear functions of the perturbed operands.
    operands: arrays of the shapes of these.
  """
  below: Callable[..., Any]
  above: Callable[..., Any]
  operands: tuple[Any, ...]

  def pull(self, row: Any, up: Any) -> list[Any]:
    if self.below is self.above:
      return list(jax.linear_transpose(self.below, *self.operands)(row))
    parts = [jax.linear_transpose(f, *self.operands)(jnp.where(part, row, 0))
             for f, part in ((self.below, up), (self.above, ~up))]
    return [a + b for a, b in zip(*parts)]

  def push(self, xs: Sequence[Interval]) -> Interval:
    return Interval(linear_image(self.below, xs).lower, linear_image(self.above, xs).upper)


def middle(planes: LinearRelaxation, xs: Sequence[Interval]) -> tuple[Callable[..., Any], Interval]:
  """A linear map between the two planes, and bounds of what it leaves of the result over boxes of the operands."""
  xs = [jax.tree.map(lambda a: a.astype(planes.low.dtype), x) if x.dtype == jnp.bool_ else x for x in xs]  # slopes 0
  if isinstance(planes, Slopes):
    apart = [a / 2 - b / 2 for a, b in zip(planes.above, planes.below)]
    off = Slopes(planes.low, planes.high, tuple(apart), tuple(apart)).push(xs).upper

    def push(*points):
      return sum(times(a / 2 + b / 2, x) for a, b, x in zip(planes.above, planes.below, points))
  elif isinstance(planes, Maps):
    if planes.below is planes.above:
      return planes.below, Interval(planes.low, planes.high)
    off = linear_image(lambda *points: (planes.above(*points) - planes.below(*points)) / 2, xs).upper

    def push(*points):
      return (planes.above(*points) + planes.below(*points)) / 2
  else:
    raise NotImplementedError(type(planes).__name__)
  off = jnp.maximum(off, 0) * (1 + 16 * jnp.finfo(off.dtype).eps)  # for planes that meet, 0
  return push, Interval(planes.low - off, planes.high + off)


def linear_image(f: Callable[..., Any], xs: Sequence[Interval]) -> Interval:
  """A linear map on intervals, equation by equation."""
  program, inputs, _ = trace(f, tuple(xs), {})
  env = program.environment(inputs)
  for eqn in program.equations:
    operands = [env[v.id] for v in eqn.inputs]
    out = affine.image(eqn, operands) if any(map(is_set, operands)) else rebind(eqn, *operands)
    env |= zip((v.id for v in eqn.outputs), out, strict=True)
  return env[program.outputs[0].id]
