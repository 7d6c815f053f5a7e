"""Window rows: linear functionals of a patch of an image, which stays a patch through convolutions.

A row on one element of a convolution's output rests on a patch of its input. Kept as a patch, it costs
a small product, where the whole image would cost a hundred times as much. The rows of all positions
differ in where their windows lie and in nothing else: the equations on a window are those of the
program with other shapes, so that the rules for affine equations pull windows back as they are.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.products import dot
from ibpjax.core.program import Equation, Program, Value
from ibpjax.core.sets import pytree
from ibpjax.primitives import table
from ibpjax.rules import affine

# Affine operations that act on each element by itself.
ELEMENTWISE = frozenset({P.add_p, P.add_jaxvals_p, P.sub_p, P.neg_p, P.mul_p, P.div_p, P.select_n_p, P.copy_p,
                          P.convert_element_type_p})


@dataclasses.dataclass(frozen=True)
class Span:
  """Where windows lie along one axis of a value: the one at position i starts at stride * i + offset.

  Attributes:
    axis: which of the positions counts.
    count: how many positions there are.
  """
  axis: int
  count: int
  stride: int = 1
  offset: int = 0


@pytree
class Patch:
  """A linear functional that rests on one window of a value; 0 where the window reaches beyond the value.

  Attributes:
    coefficients: one for each element of the window.
    position: scalars, one for each axis along which windows move.
    spans: for each axis of the value, where its windows lie; None for an axis that they cover.
    shape: the shape of the value.
  """
  coefficients: Any
  position: tuple[Any, ...]
  spans: tuple[Span | None, ...] = dataclasses.field(metadata=dict(static=True))
  shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))

  size = property(lambda self: self.coefficients.size)

  def overhang(self) -> list[tuple[int, int]]:
    """How far windows reach beyond the value, before it and after it, on each axis."""
    return [(0, 0) if s is None else (max(0, -s.offset), max(0, s.stride * (s.count - 1) + s.offset + n - whole))
            for s, n, whole in zip(self.spans, self.coefficients.shape, self.shape)]

  def start(self) -> list[Any]:
    """The first index of the window on each axis, counted from where the overhang begins."""
    return [jnp.zeros((), jnp.int32) if s is None else
            (s.stride * self.position[s.axis] + max(s.offset, 0)).astype(jnp.int32) for s in self.spans]

  def cut(self, x: Any, beyond: Any = 1) -> Any:
    """The part of an array of the shape of the value that the window covers, `beyond` where it reaches beyond."""
    padded = lax.pad(x, jnp.asarray(beyond, x.dtype), [(low, high, 0) for low, high in self.overhang()])
    return lax.dynamic_slice(padded, self.start(), self.coefficients.shape)

  def within(self) -> Patch:
    """The functional without what lies beyond the value."""
    a = self.coefficients
    for axis, (span, (low, high)) in enumerate(zip(self.spans, self.overhang())):
      if span is not None and (low or high):
        index = span.stride * self.position[span.axis] + span.offset + jnp.arange(a.shape[axis])
        inside = (index >= 0) & (index < self.shape[axis])
        a = jnp.where(jnp.expand_dims(inside, [i for i in range(a.ndim) if i != axis]), a, 0)
    return dataclasses.replace(self, coefficients=a)

  def dense(self) -> Any:
    """The coefficients of all elements of the value."""
    beyond = self.overhang()
    whole = jnp.zeros([n + low + high for n, (low, high) in zip(self.shape, beyond)], self.coefficients.dtype)
    whole = lax.dynamic_update_slice(whole, self.coefficients, self.start())
    return lax.slice(whole, [low for low, _ in beyond], [low + n for n, (low, _) in zip(self.shape, beyond)])

  def joined(self, other: Patch) -> Patch | None:
    """The sum with a functional of the same value at the same position, if their windows move alike."""
    offsets, stops = [], []
    for s, t, m, n in zip(self.spans, other.spans, self.coefficients.shape, other.coefficients.shape):
      if s is None or t is None:
        if s is not t:
          return None
        offsets.append((0, 0))
      elif (s.axis, s.stride) != (t.axis, t.stride):
        return None
      else:
        offsets.append((s.offset, t.offset))
      stops.append(max(offsets[-1][0] + m, offsets[-1][1] + n))
    total = sum(lax.pad(row.coefficients, jnp.zeros((), row.coefficients.dtype),
                        [(o[i] - min(o), stop - o[i] - n, 0)
                         for o, stop, n in zip(offsets, stops, row.coefficients.shape)])
                for i, row in enumerate((self, other)))
    spans = tuple(s and dataclasses.replace(s, offset=min(o)) for s, o in zip(self.spans, offsets))
    return dataclasses.replace(self, coefficients=total, spans=spans)


def moving_axes(program: Program, value: Value) -> tuple[int, ...]:
  """The axes of a value along which its elements see different windows: those of the convolution it comes from."""
  found: dict[int, tuple[int, ...]] = {}
  for eqn in program.equations:
    flags = [v.id in program.perturbed for v in eqn.inputs]
    if len(eqn.outputs) == 1 and table.is_affine(eqn, flags):
      out, = eqn.outputs
      seen = (_sliding(eqn, i, found.get(v.id, ())) for i, v in enumerate(eqn.inputs) if flags[i])
      axes = next(filter(None, seen), ())
      found[out.id] = tuple(i for i in axes if out.shape[i] > 1)
  return found.get(value.id, ())


def _sliding(eqn: Equation, slot: int, axes: tuple[int, ...]) -> tuple[int, ...]:
  """The axes of the result of an affine equation on which windows move, by those of one of its operands."""
  if eqn.primitive is P.conv_general_dilated_p:
    return tuple(eqn.params['dimension_numbers'].out_spec[2:]) if slot == 0 else ()
  if eqn.primitive is P.reduce_window_sum_p:
    return tuple(i for i, n in enumerate(eqn.params['window_dimensions']) if n > 1)
  if eqn.primitive in ELEMENTWISE or eqn.primitive is P.concatenate_p:
    return axes
  return tuple(i for i, source in enumerate(axes_moved(eqn) or ()) if source in axes)


def axes_moved(eqn: Equation) -> list[int | None] | None:
  """For an equation that only moves axes and adds or drops some of length 1: the old axis of each new one."""
  before, after = eqn.inputs[0].shape, eqn.outputs[0].shape
  match eqn.primitive:
    case P.transpose_p:
      return list(eqn.params['permutation'])
    case P.squeeze_p:
      return [i for i in range(len(before)) if i not in eqn.params['dimensions']]
    case P.broadcast_in_dim_p if int(np.prod(before)) == int(np.prod(after)):
      source = {new: old for old, new in enumerate(eqn.params['broadcast_dimensions'])}
      return [source.get(i) for i in range(len(after))]
    case P.reshape_p if [n for n in before if n != 1] == [n for n in after if n != 1]:
      rest = iter(i for i, n in enumerate(before) if n != 1)
      return [next(rest) if n != 1 else None for n in after]
  return None


def pull_back(eqn: Equation, operands: Sequence[Any], perturbed: Sequence[bool],
              row: Patch) -> tuple[list[Patch], Any] | None:
  """The pull-back of a window through an affine equation: windows on its perturbed operands, and an offset.

  None where the equation needs the whole row.
  """
  if eqn.primitive in ELEMENTWISE or eqn.primitive is P.concatenate_p:
    return _pull_beside(eqn, operands, perturbed, row)
  if perturbed[0] and (slid := sliding(eqn)) is not None:
    return _pull_sliding(eqn, operands, perturbed, row, *slid)
  if eqn.primitive is P.pad_p and perturbed[0]:
    return _pull_padded(eqn, operands, row)
  if (axis_of := axes_moved(eqn)) is not None:
    return _pull_moved(eqn, axis_of, row)
  return None


def on_windows(eqn: Equation, shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...], **params: Any) -> Equation:
  """An equation on operands of other shapes, whose result is what a row rests on."""
  inputs = tuple(dataclasses.replace(v, shape=s) for v, s in zip(eqn.inputs, shapes))
  out, = eqn.outputs
  return dataclasses.replace(eqn, inputs=inputs, params=eqn.params | params,
                             outputs=(dataclasses.replace(out, shape=shape),))


def _pull_beside(eqn: Equation, operands: Sequence[Any], perturbed: Sequence[bool],
                 row: Patch) -> tuple[list[Patch], Any] | None:
  """Through an equation whose operands lie beside each other or one upon the other."""
  moving = [i for i, s in enumerate(row.spans) if s is not None]
  if eqn.primitive is P.concatenate_p and eqn.params['dimension'] in moving:
    return None

  def over(v: Value) -> Patch:
    """A window on an operand, where the row has its own; an axis of length 1 is broadcast."""
    covered = {i for i in moving if v.shape[i] != row.shape[i]}
    shape = [row.coefficients.shape[i] if i in moving and i not in covered else n for i, n in enumerate(v.shape)]
    spans = tuple(None if i in covered else s for i, s in enumerate(row.spans))
    return Patch(jax.ShapeDtypeStruct(shape, row.coefficients.dtype), row.position, spans, v.shape)

  laid = [over(v) if v.shape else None for v in eqn.inputs]
  known = [x if p or w is None else w.cut(x) for x, p, w in zip(operands, perturbed, laid)]
  shapes = [() if w is None else w.coefficients.shape for w in laid]
  pulled, offset = affine.pull_back(on_windows(eqn, shapes, row.coefficients.shape), known, perturbed,
                                   [row.coefficients])
  into = [v for v, p in zip(eqn.inputs, perturbed) if p]
  return [dataclasses.replace(row, coefficients=a, shape=v.shape) for a, v in zip(pulled, into, strict=True)], offset


@dataclasses.dataclass(frozen=True)
class Slide:
  """How a convolution or a sum over windows slides along one axis.

  Attributes:
    before, after: the axis of its operand, and of its result.
    size, stride, padding, dilation: of the kernel along it.
    base: the dilation of the operand.
  """
  before: int
  after: int
  size: int
  stride: int
  padding: tuple[int, int]
  base: int
  dilation: int


def sliding(eqn: Equation) -> tuple[list[Slide], dict[int, int]] | None:
  """What a convolution or a sum over windows slides along, and its other axes: operand's -> result's."""
  p = eqn.params
  if eqn.primitive is P.conv_general_dilated_p:
    numbers = p['dimension_numbers']
    old, new = numbers.lhs_spec, numbers.out_spec
    sizes = [eqn.inputs[1].shape[i] for i in numbers.rhs_spec[2:]]
    slides = zip(old[2:], new[2:], sizes, p['window_strides'], p['padding'], p['lhs_dilation'], p['rhs_dilation'])
    return [Slide(*s) for s in slides], dict(zip(old[:2], new[:2]))
  if eqn.primitive is P.reduce_window_sum_p:
    axes = range(len(eqn.inputs[0].shape))
    slides = zip(axes, axes, p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'],
                 p['window_dilation'])
    return [Slide(*s) for s in slides], {}
  return None


def _pull_sliding(eqn: Equation, operands: Sequence[Any], perturbed: Sequence[bool], row: Patch,
                  slides: Sequence[Slide], beside: dict[int, int]) -> tuple[list[Patch], Any] | None:
  """Through a convolution or a sum over windows: the window grows by the kernel."""
  before = eqn.inputs[0]
  if eqn.params.get('batch_group_count', 1) != 1 or any(row.spans[j] is not None for j in beside.values()):
    return None
  spans: list[Span | None] = [None] * len(before.shape)
  shape = list(before.shape)
  paddings = []
  for s in slides:
    span = row.spans[s.after]
    paddings.append(s.padding if span is None else (0, 0))
    if span is not None:
      if s.base != 1:
        return None
      spans[s.before] = dataclasses.replace(span, stride=span.stride * s.stride,
                                            offset=span.offset * s.stride - s.padding[0])
      shape[s.before] = (row.coefficients.shape[s.after] - 1) * s.stride + (s.size - 1) * s.dilation + 1
  shapes = [tuple(shape), *(v.shape for v in eqn.inputs[1:])]
  local = on_windows(eqn, shapes, row.coefficients.shape, padding=tuple(paddings))
  (a,), offset = affine.pull_back(local, operands, perturbed, [row.coefficients])
  return [Patch(a, row.position, tuple(spans), before.shape).within()], offset


def _pull_padded(eqn: Equation, operands: Sequence[Any], row: Patch) -> tuple[list[Patch], Any] | None:
  """Through padding along the axes that windows move on: what lay on the padding is an offset."""
  config, before = eqn.params['padding_config'], eqn.inputs[0]
  if any((low, high, inner) != (0, 0, 0) and (s is None or inner)
         for (low, high, inner), s in zip(config, row.spans)):
    return None
  spans = tuple(s and dataclasses.replace(s, offset=s.offset - low) for s, (low, _, _) in zip(row.spans, config))
  pulled = dataclasses.replace(row, spans=spans, shape=before.shape).within()
  beyond = jnp.sum(jnp.where(pulled.coefficients == row.coefficients, 0, row.coefficients))
  return [pulled], dot(beyond, operands[1])


def _pull_moved(eqn: Equation, axis_of: Sequence[int | None], row: Patch) -> tuple[list[Patch], Any] | None:
  """Through a change of the order of axes, or of those of length 1."""
  before = eqn.inputs[0]
  spans: list[Span | None] = [None] * len(before.shape)
  shape = [1] * len(before.shape)
  for new, old in enumerate(axis_of):
    if old is None:
      if row.spans[new] is not None:
        return None
    else:
      spans[old], shape[old] = row.spans[new], row.coefficients.shape[new]
  order = [axis_of.index(old) for old in range(len(before.shape)) if old in axis_of]
  rest = [new for new, old in enumerate(axis_of) if old is None]
  a = jnp.transpose(row.coefficients, (*rest, *order)).reshape(shape)
  return [Patch(a, row.position, tuple(spans), before.shape)], jnp.zeros((), a.dtype)
