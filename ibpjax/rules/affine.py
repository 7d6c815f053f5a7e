"""Affine primitives by their kind: the image of a box, and the pull-back of a row."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.products import dot
from ibpjax.core.program import Equation, rebind
from ibpjax.core.row import CONTRACTED, SCALED, SIGNED
from ibpjax.core.sets import Interval, around, centre_radius
from ibpjax.primitives import table
from ibpjax.xla.convolutions import convolve
from ibpjax.xla.window_products import patches


def image(eqn: Equation, operands: Sequence[Any]) -> list[Interval]:
  """The image of a box under an affine equation: exact, per element of the result."""
  lower = [x.lower if isinstance(x, Interval) else x for x in operands]
  upper = [x.upper if isinstance(x, Interval) else x for x in operands]
  kind = table.of(eqn).affine
  if kind == SCALED:
    return [_scaled(eqn, operands)]
  if kind == CONTRACTED:
    return [_contracted(eqn, operands)]
  if kind == SIGNED:
    return [Interval(-upper[0], -lower[0]) if eqn.primitive is P.neg_p else
            Interval(lower[0] - upper[1], upper[0] - lower[1])]
  return [Interval(l, u) for l, u in zip(rebind(eqn, *lower), rebind(eqn, *upper), strict=True)]


def _scaled(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """x * c or x / c by the sign of c; 0 times an infinite end is 0, a division by 0 unknown."""
  slot = 0 if isinstance(operands[0], Interval) else 1
  x, c = operands[slot], operands[1 - slot]
  divides = eqn.primitive is P.div_p
  weight = jnp.where(c == 0, 1, c) if divides else c  # no 1/0, for the sake of gradients
  positive = c >= 0

  def run(end):
    if not divides:  # 0 times an infinite end; where both are finite, the gradient to the weight is kept
      end = jnp.where((c == 0) & ~jnp.isfinite(end), 0, end)
    return rebind(eqn, *([end, weight] if slot == 0 else [weight, end]))[0]

  lower, upper = run(_where(positive, x.lower, x.upper)), run(_where(positive, x.upper, x.lower))
  if divides:
    return Interval(jnp.where(c == 0, -jnp.inf, lower), jnp.where(c == 0, jnp.inf, upper))
  return Interval(lower, upper)


def _where(condition: Any, a: Any, b: Any) -> Any:
  """`jnp.where`, its condition broadcast as the primitives broadcast their operands."""
  return jnp.where(jnp.broadcast_to(condition, a.shape), a, b)


def _contracted(eqn: Equation, operands: Sequence[Any]) -> Interval:
  """Centre through the primitive, radius through it with |weights| (Lyu et al. 2021, 1.2)."""
  parts = [centre_radius(x) if isinstance(x, Interval) else (x, jnp.abs(x)) for x in operands]
  [centre] = run(eqn, *[c for c, _ in parts])
  [radius] = run(eqn, *[r for _, r in parts])
  return around(centre, radius)


def run(eqn: Equation, *operands: Any) -> list[Any]:
  """Runs one equation; convolutions without strides, and of windows apart, by some whose derivatives are fast."""
  p = eqn.params
  by: Callable
  if _is_plain(eqn) and set(p['window_strides']) == {1}:
    by = functools.partial(convolve, padding=p['padding'], precision=p['precision'], dtype=p['preferred_element_type'])
  elif _is_plain(eqn) and _apart(eqn):
    by = functools.partial(patches, precision=p['precision'])
  else:
    return rebind(_definite(eqn), *operands)
  (x, kernel), numbers = operands, p['dimension_numbers']
  (batch, features, *space), (out, into, *taps) = numbers.lhs_spec, numbers.rhs_spec
  found = by(jnp.transpose(x, (batch, *space, features)), jnp.transpose(kernel, (*taps, into, out)))
  return [jnp.transpose(found, _inverse((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])))]


def _apart(eqn: Equation) -> bool:
  """Whether the windows of a convolution of images touch and do not overlap, without padding."""
  p = eqn.params
  _, _, *taps = p['dimension_numbers'].rhs_spec
  return (len(taps) == 2 and tuple(eqn.inputs[1].shape[i] for i in taps) == tuple(p['window_strides'])
          and not any(map(any, p['padding'])) and p['preferred_element_type'] in (None, eqn.inputs[0].dtype))


def _definite(eqn: Equation) -> Equation:
  """Indices promised to be in bounds do in derivatives what they do in a run: gathers clamp, scatters drop."""
  modes = {P.gather_p: lax.GatherScatterMode.CLIP, P.scatter_add_p: lax.GatherScatterMode.FILL_OR_DROP}
  if eqn.primitive in modes and eqn.params['mode'] == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
    return dataclasses.replace(eqn, params=eqn.params | dict(mode=modes[eqn.primitive]))
  return eqn


def _known_terms(eqn: Equation, perturbed: Sequence[bool]) -> list[int]:
  """The known operands that are added to the perturbed ones or stand beside them."""
  if table.of(eqn).affine in table.WEIGHTED:
    return []
  return [i for i, v in enumerate(eqn.inputs) if not perturbed[i] and jnp.issubdtype(v.dtype, jnp.floating)]


def _fills(eqn: Equation) -> bool:
  return eqn.primitive is P.gather_p and eqn.params['mode'] == lax.GatherScatterMode.FILL_OR_DROP


def has_constant(eqn: Equation, perturbed: Sequence[bool]) -> bool:
  """Whether an affine equation is not linear in its perturbed operands."""
  return _fills(eqn) or bool(_known_terms(eqn, perturbed))


def _linear(eqn: Equation, operands: Sequence[Any], perturbed: Sequence[bool]) -> tuple[Equation, list[Any]]:
  """An affine equation without its constant part."""
  linear = list(operands)
  for i in _known_terms(eqn, perturbed):
    linear[i] = jnp.zeros_like(operands[i])
  return (dataclasses.replace(eqn, params=eqn.params | dict(fill_value=0)) if _fills(eqn) else eqn), linear


def push_forward(eqn: Equation, operands: Sequence[Any], coefficients: dict[int, Interval]) -> list[Interval]:
  """The image of coefficients under an affine equation: of what bounds its perturbed operands, one coefficient each.

  Args:
    eqn: an affine equation.
    operands: its known operands; anything in the place of the perturbed ones.
    coefficients: number of a perturbed operand -> its coefficients below and above, of its shape.
  """
  flags = [i in coefficients for i in range(len(operands))]
  linear, known = _linear(_definite(eqn), operands, flags)
  return image(linear, [coefficients.get(i, x) for i, x in enumerate(known)])


def push_linear(eqn: Equation, operands: Sequence[Any], coefficients: dict[int, Any]) -> list[Any]:
  """The image of arrays under the linear part of an affine equation: as `push_forward`, of points."""
  flags = [i in coefficients for i in range(len(operands))]
  linear, known = _linear(_definite(eqn), operands, flags)
  return run(linear, *(coefficients.get(i, x) for i, x in enumerate(known)))


def _pull_convolution(eqn: Equation, kernel: Any, row: Any) -> Any:
  """The pull-back of a row through a convolution: one without strides, to images whose blocks are channels.

  So there is no input full of zeros between the strides, without which XLA's CPU code is five times
  faster (jaxlib 0.10.2).
  """
  p, before = eqn.params, eqn.inputs[0].shape
  numbers, strides = p['dimension_numbers'], p['window_strides']
  (batch, features, *space), (out, into, *taps) = numbers.lhs_spec, numbers.rhs_spec
  n = len(strides)
  kernel = jnp.transpose(kernel, (*taps, into, out))
  row = jnp.transpose(row, (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))
  blocks = [-(-k // s) for k, s in zip(kernel.shape, strides)]
  zero = jnp.zeros((), kernel.dtype)
  ends = [(0, b * s - k, 0) for b, s, k in zip(blocks, strides, kernel.shape)]
  kernel = lax.pad(kernel, zero, [*ends, (0, 0, 0), (0, 0, 0)])
  # (b0 s0, b1 s1, into, out) -> (b0, b1, out, s0 s1 into), the blocks in reverse
  kernel = kernel.reshape(*(i for pair in zip(blocks, strides) for i in pair), *kernel.shape[n:])
  kernel = jnp.transpose(kernel, (*range(0, 2 * n, 2), 2 * n + 1, *range(1, 2 * n, 2), 2 * n))
  kernel = lax.rev(kernel, tuple(range(n))).reshape(*blocks, kernel.shape[n], -1)
  # From the first to the last block that meets the image, not only its padding.
  lows, sizes = [low for low, _ in p['padding']], [before[i] for i in space]
  first = [min(max(low // s, 0), b - 1) for low, s, b in zip(lows, strides, blocks)]
  last = [max(min(-(-(low + size) // s), c + b - 1), c, i)
          for low, size, s, b, c, i in zip(lows, sizes, strides, blocks, row.shape[1:], first)]
  around = [(b - 1 - i, j - c) for b, i, j, c in zip(blocks, first, last, row.shape[1:])]
  counts = [j - i for i, j in zip(first, last)]
  axes = tuple(range(1, n + 1))
  pulled = convolve(row, kernel, around, p['precision'], p['preferred_element_type'])
  # (batch, c0, c1, s0 s1 into) -> (batch, c0 s0, c1 s1, into), without what the padding added
  pulled = pulled.reshape(len(row), *counts, *strides, -1)
  order = (0, *(i for pair in zip(axes, range(n + 1, 2 * n + 1)) for i in pair), 2 * n + 1)
  pulled = jnp.transpose(pulled, order).reshape(len(row), *(c * s for c, s in zip(counts, strides)), -1)
  cut = ((i * s - low, low + size - j * s, 0) for i, j, s, low, size in zip(first, last, strides, lows, sizes))
  pulled = lax.pad(pulled, zero.astype(pulled.dtype), [(0, 0, 0), *cut, (0, 0, 0)])
  return jnp.transpose(pulled, _inverse((batch, *space, features)))


def _inverse(permutation: Sequence[int]) -> list[int]:
  return [permutation.index(i) for i in range(len(permutation))]


def _is_plain(eqn: Equation) -> bool:
  """Whether an equation is a convolution over an image, without dilation and groups."""
  p = eqn.params
  return eqn.primitive is P.conv_general_dilated_p and set(
      (*p['lhs_dilation'], *p['rhs_dilation'])) == {p['feature_group_count'] * p['batch_group_count']} == {1}


def pull_back(eqn: Equation, operands: Sequence[Any], perturbed: Sequence[bool],
              rows: Sequence[Any]) -> tuple[list[Any], Any]:
  """The pull-back of a row: sum_i <rows[i], outputs[i]> as rows on the perturbed operands, and an offset.

  Args:
    eqn: an affine equation.
    operands: its known operands; anything in the place of the perturbed ones.
    perturbed: which operands are perturbed.
    rows: one array of the shape of each output.

  Returns:
    One array of the shape of each perturbed operand, in order, and the scalar constant part.
  """
  slots = [i for i, p in enumerate(perturbed) if p]
  eqn = _definite(eqn)

  def fill(xs, rest):
    put = dict(zip(slots, xs))
    return [put.get(i, x) for i, x in enumerate(rest)]

  zeros = [jnp.zeros(eqn.inputs[i].shape, eqn.inputs[i].dtype) for i in slots]
  offset: Any = jnp.zeros((), rows[0].dtype)
  if has_constant(eqn, perturbed):  # x + b, concatenate([x, b]), ...: affine, not linear
    offset = sum(map(dot, rows, rebind(eqn, *fill(zeros, operands))), offset)
  linear, operands = _linear(eqn, operands, perturbed)
  if perturbed[0] and _is_plain(linear):
    return [_pull_convolution(linear, operands[1], rows[0])], offset
  # linear_transpose refuses nonlinear primitives; vjp would silently linearise them.
  transpose = jax.linear_transpose(lambda *xs: rebind(linear, *fill(xs, operands)), *zeros)
  return list(transpose(list(rows))), offset
