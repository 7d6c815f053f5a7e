"""Linear bounds: two affine functions of the inputs between which a function lies."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.program import Value
from ibpjax.core.sets import is_set, pytree
from ibpjax.engine.elements import width
from ibpjax.engine.forward import ForwardBounds
from ibpjax.engine.functional import LinearFunctional, element
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import named_as, prepare
from ibpjax.engine.scans import backward_pass
from ibpjax.methods.crown import by_passes
from ibpjax.methods.registry import given
from ibpjax.rules.slopes import Lines, adaptive
from ibpjax.xla.batching import over_rows


@pytree
class Affine:
  """An affine function of the perturbed arguments of a function.

  Attributes:
    coeffs: the positional arguments, each set of values replaced by an array of shape
      out.shape + its own shape, everything else by None.
    bias: array of shape out.shape.
  """
  coeffs: Any
  bias: Any

  def __call__(self, *args: Any) -> Any:
    """The value at arrays in the place of the sets; other arguments do not matter."""
    terms = jax.tree.map(lambda a, x: None if a is None else jnp.tensordot(a, x, jnp.ndim(x)), self.coeffs, args,
                         is_leaf=lambda a: a is None)
    return sum(jax.tree.leaves(terms), self.bias)


@pytree
class LinearBounds:
  """lower(*x) <= f(*x) <= upper(*x) for all x in the sets that they were computed for."""
  lower: Affine
  upper: Affine


def linear_bounds(f: Callable, *, method: str = 'crown', lines: Lines = adaptive,
                  chunk: int | None = None) -> Callable:
  """Affine functions of the inputs below and above `f`.

  The returned function takes the positional arguments of `f` with input sets (Intervals, balls, polytopes) in the
  place of arrays, and returns the tree of `f`'s result with LinearBounds for each array.

  Args:
    f: any JAX function of supported primitives, on one example.
    method: 'crown', 'crown-ibp', 'crown-lbp' or 'lbp'.
    lines, chunk: as in `crown`.

  Source: Lyu et al. 2021, section 2.2; Xu et al. 2020.
  """
  methods = {'crown': 'crown', 'crown-ibp': 'ibp', 'crown-lbp': 'lbp', 'lbp': 'lbp'}
  if method not in methods:
    raise ValueError(f'method is {method!r}; it is one of {", ".join(methods)}')

  def bounded(*args):
    prepared = prepare(f, args, {})
    program = prepared.program
    inside = given(f, methods[method], args, {}, lines=lines, intersect=False, round_outward=False)
    boxes = IntervalPass(program, prepared.inputs, lines=lines, tighten=by_passes(chunk), **inside)
    perturbed = [v for v in program.inputs if v.id in program.perturbed]

    def in_arguments(parts):
      leaves, tree = jax.tree.flatten(args, is_leaf=is_set)
      it = iter(parts)
      return jax.tree.unflatten(tree, [next(it) if is_set(x) else None for x in leaves])

    def bound(v):
      if v.id not in program.perturbed or v.dtype == jnp.bool_:
        raise TypeError(f'the function returns a {v.dtype}{list(v.shape)} that is boolean or does not depend on the '
                        'sets: it has no linear bounds; leave it out')
      found = _forward(boxes, v, perturbed) if method == 'lbp' else _backward(boxes, v, perturbed, chunk)
      return LinearBounds(*(Affine(in_arguments(a), b) for a, b in found))
    return prepared.result(map(bound, program.outputs))
  return named_as(f, bounded)


def _backward(boxes: IntervalPass, value: Value, inputs: list[Value], chunk: int | None) -> list[Any]:
  """(coefficients, bias) below and above, by passes to the inputs; a box where a pass ends earlier is in the bias."""
  back = backward_pass(boxes, value)

  def least(i, sign):
    found = back.back(element(value, i, sign))
    ends = dict(found.rows)
    a = [sign * ends.pop(v.id).coefficients if v.id in ends else jnp.zeros(v.shape, v.dtype) for v in inputs]
    return a, sign * back.concretise(LinearFunctional(ends, found.offset)).lower

  def shaped(found):
    a, bias = found
    return [x.reshape(*value.shape, *v.shape) for x, v in zip(a, inputs)], bias.reshape(value.shape)
  rows = jnp.arange(value.size)
  return [shaped(over_rows(functools.partial(least, sign=s), rows, width(back.program), chunk)) for s in (1, -1)]


def _forward(boxes: IntervalPass, value: Value, inputs: list[Value]) -> list[Any]:
  """(coefficients, bias) below and above, carried forward."""
  form = ForwardBounds(boxes, {}).of(value)

  def split(a):
    parts, start = [], 0
    for v in inputs:
      part = jnp.moveaxis(a[start:start + v.size], 0, -1)
      parts.append(part.reshape(*value.shape, *v.shape))
      start += v.size
    return parts
  return [(split(getattr(form.coefficients, end)), getattr(form.bias, end)) for end in ('lower', 'upper')]
