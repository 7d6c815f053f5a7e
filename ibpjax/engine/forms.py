"""Forms: two affine functions of the inputs, one below a value and one above it, and how they are pushed forward.

As long as each element of a value depends on a window of one input only, its form has coefficients for this
window alone: what a convolution of an image needs instead of the whole image.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation
from ibpjax.core.sets import Interval, around, centre_radius, pytree
from ibpjax.engine import patches
from ibpjax.engine.patches import Patch, Slide, Span
from ibpjax.rules import affine
from ibpjax.xla.materialize import materialize

_MOST_TAPS = 64  # terms of an unrolled sum over a kernel


@pytree
class Form:
  """Two affine functions of the inputs, one below a value and one above it.

  Attributes:
    coefficients: ends (inputs, *shape), a coefficient for each element of all perturbed inputs.
      As in all intervals of forms, `lower` belongs to the function below; it may be the greater.
    bias: ends of the shape of the value.
  """
  coefficients: Interval
  bias: Interval

  def dense(self) -> Form:
    """The form itself, as it has coefficients for the whole inputs."""
    return self


@pytree
class PatchForm:
  """A form whose every element rests on one window of the only perturbed input.

  Attributes:
    coefficients: ends (*window, *places); 0 where a window reaches beyond the input. The places
      are the elements of the value in order, in the shape of a value from which it was reshaped.
    bias: ends of the shape of the value.
    spans: for each axis of the input, how its windows move along an axis of the places; None where they cover it.
    shape: the shape of the input.
  """
  coefficients: Interval
  bias: Interval
  spans: tuple[Span | None, ...] = dataclasses.field(metadata=dict(static=True))
  shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))

  @property
  def window(self) -> tuple[int, ...]:
    return self.coefficients.lower.shape[:len(self.shape)]

  @property
  def places(self) -> tuple[int, ...]:
    return self.coefficients.lower.shape[len(self.shape):]

  def moving(self) -> list[int]:
    """The axes of the places along which windows move."""
    return sorted({s.axis for s in self.spans if s is not None})

  def covering(self, axis: int) -> PatchForm:
    """The same form, with windows that cover an axis of the input."""
    span, n, rank = self.spans[axis], self.shape[axis], len(self.shape)
    if span is None:
      return self
    count = self.places[span.axis]
    index = np.arange(n)[:, None] - (span.stride * np.arange(count) + span.offset)
    inside = (index >= 0) & (index < self.window[axis])

    def spread(a):
      a = jnp.moveaxis(a, (axis, rank + span.axis), (0, 1))
      mask = jnp.asarray(inside).reshape(*inside.shape, *(1,) * (a.ndim - 2))
      if len(a) > 1:
        a = a[np.clip(index, 0, len(a) - 1), np.arange(count)]
      return jnp.moveaxis(jnp.where(mask, a, 0), (0, 1), (axis, rank + span.axis))
    spans = tuple(None if i == axis else s for i, s in enumerate(self.spans))
    return dataclasses.replace(self, coefficients=jax.tree.map(spread, self.coefficients), spans=spans)

  def dense(self) -> Form:
    """The form with coefficients for the whole input."""
    whole = self
    for axis in range(len(self.shape)):
      whole = whole.covering(axis)
    return Form(jax.tree.map(lambda a: a.reshape(-1, *self.bias.shape), whole.coefficients), self.bias)

  def over_elements(self, f: Callable[[Patch, Any], Any], end: str) -> Any:
    """`f(window, bias)`, a scalar, for each element of the value: an array of its shape.

    Args:
      f: a function of a row on the input and a scalar.
      end: 'lower' or 'upper': which of the two functions it is given.
    """
    rank, shape = len(self.shape), self.places
    moving = self.moving()
    counts = tuple(shape[i] for i in moving)
    spans = tuple(s and dataclasses.replace(s, axis=moving.index(s.axis)) for s in self.spans)
    a = jnp.moveaxis(getattr(self.coefficients, end), range(rank), range(-rank, 0))
    a, bias = (jnp.moveaxis(x, moving, range(len(moving))) for x in (a, getattr(self.bias, end).reshape(shape)))
    a = a.reshape(int(np.prod(counts)), -1, *self.window)

    def at(i, a, bias):
      position = jnp.unravel_index(i, counts) if counts else ()
      return jax.vmap(lambda a, bias: f(Patch(a, position, spans, self.shape), bias))(a, bias)
    found = jax.vmap(at)(jnp.arange(len(a)), a, bias.reshape(a.shape[:2]))
    return jnp.moveaxis(found.reshape(bias.shape), range(len(moving)), moving).reshape(self.bias.shape)


def identity(shape: tuple[int, ...], dtype: Any) -> PatchForm:
  """The form of the input itself."""
  one, zero = jnp.ones((*(1 for _ in shape), *shape), dtype), jnp.zeros(shape, dtype)
  spans = tuple(Span(i, n) if n > 1 else None for i, n in enumerate(shape))
  return PatchForm(Interval(one, one), Interval(zero, zero), spans, shape)


def push_local(eqn: Equation, operands: Sequence[Any], perturbed: Sequence[bool], forms: Sequence[PatchForm],
               bias: Interval) -> Form | PatchForm | None:
  """The form of the result of an affine equation, by local forms; None where it needs whole ones.

  Args:
    eqn: an affine equation.
    operands: its known operands; anything in the place of the perturbed ones.
    perturbed: which operands are perturbed.
    forms: those of the perturbed operands.
    bias: the image of the biases.
  """
  slots = [i for i, p in enumerate(perturbed) if p]
  (out,), first = eqn.outputs, forms[0]

  def push(*xs):
    return affine.push_forward(eqn, operands, dict(zip(slots, xs)))[0]
  if eqn.primitive in patches.ELEMENTWISE:
    return elementwise(push, forms, bias)
  if eqn.primitive is P.dot_general_p:
    return _contracted(eqn, slots[0], operands[1 - slots[0]], first, bias)
  if slots != [0]:
    return None
  axis_of, laid = patches.axes_moved(eqn), first.places == first.bias.shape
  if not (laid and axis_of is not None) and _in_order(eqn, axis_of):
    return dataclasses.replace(first, bias=bias)
  if not laid:
    return None
  if (slid := patches.sliding(eqn)) is not None:
    return _slid(eqn, operands, first, bias, *slid)
  if eqn.primitive is P.pad_p:
    config = eqn.params['padding_config']
    if any(inner for _, _, inner in config):
      return None
    spans = [s and dataclasses.replace(s, offset=s.offset - s.stride * config[s.axis][0], count=out.shape[s.axis])
             for s in first.spans]
    return dataclasses.replace(_over_window(push, [first], bias), spans=tuple(spans))
  if axis_of is not None:
    for i, s in enumerate(first.spans):
      if s is not None and s.axis not in axis_of:
        first = first.covering(i)
    spans = [s and dataclasses.replace(s, axis=axis_of.index(s.axis)) for s in first.spans]
    return dataclasses.replace(_over_window(push, [first], bias), spans=tuple(spans))
  return None


def _in_order(eqn: Equation, axis_of: Sequence[int | None] | None) -> bool:
  """Whether an equation leaves all elements in their order, so that it leaves the places as they are."""
  kept = [i for i in axis_of or [] if i is not None]
  return eqn.primitive is P.reshape_p or (bool(kept) and kept == sorted(kept))


def elementwise(push: Callable[..., Interval], forms: Sequence[PatchForm], bias: Interval) -> PatchForm | None:
  """The form of what is computed element by element, by what that does to coefficients; None as in `push_local`."""
  if any(f.bias.shape != bias.shape for f in forms) or (laid := _aligned(forms)) is None:
    return None
  return _over_window(push, laid, bias)


def _over_window(push: Callable[..., Interval], forms: Sequence[PatchForm], bias: Interval) -> PatchForm:
  """Forms on common windows, pushed forward coefficient by coefficient."""
  flat = [jax.tree.map(lambda a, f=f: a.reshape(-1, *f.bias.shape), f.coefficients) for f in forms]
  places = forms[0].places if forms[0].bias.shape == bias.shape else bias.shape
  found = jax.tree.map(lambda a: a.reshape(*forms[0].window, *places), jax.vmap(push)(*flat))
  return dataclasses.replace(forms[0], coefficients=found, bias=bias)


def _aligned(forms: Sequence[PatchForm]) -> list[PatchForm] | None:
  """The same forms on common windows; None where windows move in different ways."""
  if len({(f.places, *(s and (s.axis, s.stride) for s in f.spans)) for f in forms}) > 1:
    return None
  offsets = [[0 if s is None else s.offset for s in f.spans] for f in forms]
  begin = np.min(offsets, 0)
  end = np.max([np.add(o, f.window) for o, f in zip(offsets, forms)], 0)

  def widened(f, offset):
    config = [*zip((offset - begin).tolist(), (end - offset - f.window).tolist()), *[(0, 0)] * len(f.places)]
    spans = tuple(s and dataclasses.replace(s, offset=int(b)) for s, b in zip(f.spans, begin))
    return dataclasses.replace(f, coefficients=jax.tree.map(lambda a: _padded(a, config), f.coefficients), spans=spans)
  return [widened(f, np.asarray(o)) for f, o in zip(forms, offsets)]


def _slid(eqn: Equation, operands: Sequence[Any], form: PatchForm, bias: Interval, slides: Sequence[Slide],
          beside: dict[int, int]) -> PatchForm | None:
  """Through a convolution or a sum over windows: a sum over the taps of the kernel."""
  p, (out,), rank, ndim = eqn.params, eqn.outputs, len(form.shape), form.bias.ndim
  convolves = eqn.primitive is P.conv_general_dilated_p
  if any(s.base != 1 for s in slides) or int(np.prod([s.size for s in slides])) > _MOST_TAPS:
    return None
  axes = list(range(ndim))
  if convolves:
    if p['batch_group_count'] != 1 or p['feature_group_count'] != 1:
      return None
    numbers = p['dimension_numbers']
    mixed = numbers.lhs_spec[1]
    axes = [i for i in axes if i != mixed] + [mixed]  # where products with the kernel leave them
    for i, span in enumerate(form.spans):
      if span is not None and span.axis == mixed:
        form = form.covering(i)
  along = {s.before: s for s in slides}
  after = beside | {s.before: s.after for s in slides}

  def moved(span):
    out_axis = after[span.axis]
    moved = dataclasses.replace(span, axis=out_axis, count=out.shape[out_axis])
    if (s := along.get(span.axis)) is not None:
      return dataclasses.replace(moved, stride=span.stride * s.stride, offset=span.offset - span.stride * s.padding[0])
    return moved

  slide_of = [None if span is None else along.get(span.axis) for span in form.spans]
  steps = [s.dilation * span.stride if span and s else 0 for span, s in zip(form.spans, slide_of)]  # from tap to tap
  window = [n + step * (s.size - 1) if s else n for n, step, s in zip(form.window, steps, slide_of)]

  def seen(axis, tap):
    """What one tap sees of an axis of the value."""
    if (s := along.get(axis)) is None:
      return slice(None)
    first = tap[slides.index(s)] * s.dilation
    return slice(first, first + (out.shape[s.after] - 1) * s.stride + 1, s.stride)

  def run(a, kernel):
    a = _padded(a, [(0, 0)] * rank + [along[i].padding if i in along else (0, 0) for i in range(ndim)])
    total: Any = None
    for tap in np.ndindex(*(s.size for s in slides)):
      term = a[(..., *(seen(i, tap) for i in range(ndim)))]
      if kernel is not None:
        term = lax.dot_general(term, kernel[tap], (((rank + mixed,), (0,)), ((), ())), precision=p['precision'],
                               preferred_element_type=p['preferred_element_type'])
      total = jnp.zeros((*window, *term.shape[rank:]), term.dtype) if total is None else total
      start = [step * tap[slides.index(s)] if s else 0 for step, s in zip(steps, slide_of)]
      total = _added_at(total, (*start, *(0 for _ in range(ndim))), term)
    order = [next(axes.index(i) for i in after if after[i] == j) for j in range(ndim)]
    return jnp.transpose(total, (*range(rank), *(rank + i for i in order)))

  if convolves:
    kernel = jnp.transpose(operands[1], (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    centre, radius = centre_radius(form.coefficients)
    coefficients = around(*materialize((run(centre, kernel), run(radius, jnp.abs(kernel)))))
  else:
    coefficients = jax.tree.map(lambda a: run(a, None), form.coefficients)
  return PatchForm(coefficients, bias, tuple(s and moved(s) for s in form.spans), form.shape)


def _contracted(eqn: Equation, slot: int, weight: Any, form: PatchForm, bias: Interval) -> Form | None:
  """Through a product that sums over all places: the windows of each place times its weights, then added up."""
  p, rank = eqn.params, len(form.shape)
  summed, _ = p['dimension_numbers']
  own, other = summed[slot], summed[1 - slot]
  if any(n > 1 and i not in own for i, n in enumerate(form.bias.shape)) or 0 in (*form.bias.shape, *bias.shape):
    return None
  order = [j for _, j in sorted(zip(own, other))]
  weight = jnp.transpose(weight, (*order, *(i for i in range(weight.ndim) if i not in order)))
  weight = weight.reshape(*form.places, -1)
  moving = form.moving()
  inner = [i for i in range(len(form.places)) if i not in moving]
  numbers = (([rank + i for i in inner], inner), ([rank + i for i in moving], moving))

  def run(a, weight):
    a = lax.dot_general(a, weight, numbers, p['precision'], p['preferred_element_type'])  # (*positions, *window, sums)
    for i, span in enumerate(form.spans):
      if span is not None:
        a = _added_up(a, moving.index(span.axis), len(moving) + i, span, form.shape[i])
    return a.reshape(-1, *bias.shape)
  centre, radius = centre_radius(form.coefficients)
  return Form(around(*materialize((run(centre, weight), run(radius, jnp.abs(weight))))), bias)


def _added_up(a: Any, positions: int, along: int, span: Span, size: int) -> Any:
  """Windows summed over their positions, each where it lies: an axis of windows becomes one of a whole input."""
  count, width = a.shape[positions], a.shape[along]
  shape = list(a.shape)
  shape[positions], shape[along] = count + (width - 1) // span.stride, span.stride
  total = jnp.zeros(shape, a.dtype)
  for k in range(width):
    start = [0] * a.ndim
    start[positions], start[along] = divmod(k, span.stride)
    total = _added_at(total, start, lax.slice_in_dim(a, k, k + 1, axis=along))
  total = jnp.moveaxis(total, (positions, along), (0, 1))
  total = total.reshape(-1, *total.shape[2:])
  low = span.offset
  total = _padded(total, [(low, size - low - len(total)), *[(0, 0)] * (total.ndim - 1)])
  return jnp.moveaxis(total[None], (0, 1), (positions, along))


def _added_at(total: Any, start: Sequence[int], term: Any) -> Any:
  """An array with another one added to a part of it."""
  here = lax.slice(total, start, np.add(start, term.shape))
  return lax.dynamic_update_slice(total, here + term, start)


def _padded(a: Any, config: Sequence[tuple[int, int]]) -> Any:
  return lax.pad(a, jnp.zeros((), a.dtype), [(low, high, 0) for low, high in config])
