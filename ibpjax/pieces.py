"""Affine pieces: a program as 1-Lipschitz operations with maximal affine maps between them."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax import affine
from ibpjax.program import Equation, Program, Value, rebind, source_line, unsupported
from ibpjax.spectral_convolutions import Convolution
from ibpjax.windows import axes_moved

# Elementwise functions of one array: their greatest slopes.
SLOPES = {P.abs_p: 1., P.tanh_p: 1., P.sin_p: 1., P.cos_p: 1., P.logistic_p: .25, P.erf_p: 2 / np.pi ** .5,
          P.clamp_p: 1., P.stop_gradient_p: 1.}
_EXTREMES = (P.max_p, P.min_p)


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
  """A nonlinear operation: (operands) -> (outputs), both stacked, changes by at most `constant` times as much.

  The input of a program is a unit without operands, its outputs are the operands of a unit without outputs.
  """
  operands: tuple[Value, ...]
  outputs: tuple[Value, ...]
  constant: float
  name: str
  line: str = ''


@dataclasses.dataclass(frozen=True)
class Piece:
  """The linear part of an affine map between two units."""
  program: Program
  known: dict[int, Any]
  source: Unit
  target: Unit
  equations: tuple[Equation, ...]

  def __call__(self, *xs: Any) -> tuple[Any, ...]:
    """What the operands of the target change by, where the outputs of the source change by `xs`."""
    zeros = tuple(jnp.zeros(v.shape, v.dtype) for v in self.source.outputs)
    return jax.jvp(self._affine, zeros, tuple(jnp.asarray(x, v.dtype) for x, v in zip(xs, self.source.outputs)))[1]

  def stacked(self, xs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The map as a function of one argument."""
    return self(*xs)

  def _affine(self, *xs: Any) -> tuple[Any, ...]:
    env = dict(zip((v.id for v in self.source.outputs), xs, strict=True))

    def read(v: Value) -> Any:
      if v.id in self.program.perturbed:
        return env[v.id] if v.id in env else jnp.zeros(v.shape, v.dtype)
      return self.known[v.id]
    for eqn in self.equations:
      out = rebind(eqn, *map(read, eqn.inputs))
      env |= zip((v.id for v in eqn.outputs), out, strict=True)
    return tuple(map(read, self.target.operands))

  def matrix(self) -> np.ndarray:
    """The whole matrix (all operands of the target, all outputs of the source), in float64."""
    with jax.enable_x64(True):
      wide = _in_float64(self)
      into = [jax.ShapeDtypeStruct(v.shape, np.float64) for v in self.source.outputs]
      out = [jax.ShapeDtypeStruct(v.shape, np.float64) for v in self.target.operands]
      if sum(v.size for v in self.target.operands) < sum(v.size for v in self.source.outputs):
        pull = jax.linear_transpose(lambda *xs: wide(*xs), *into)
        return _columns(lambda *rows: pull(tuple(rows)), out).T
      return _columns(wide, into)


def _columns(apply: Any, into: Sequence[Any]) -> np.ndarray:
  """The matrix of a linear function of arrays, 256 columns at a time."""
  sizes = [int(np.prod(v.shape, dtype=np.int64)) for v in into]

  def column(flat):
    parts = jnp.split(flat, [int(i) for i in np.cumsum(sizes)[:-1]])
    return jnp.concatenate([x.ravel() for x in apply(*(p.reshape(v.shape) for p, v in zip(parts, into)))])
  run = jax.jit(jax.vmap(column, out_axes=1))
  eye = np.eye(sum(sizes))
  return np.concatenate([np.asarray(run(eye[:, i:i + 256].T)) for i in range(0, sum(sizes), 256)], axis=1)


def _in_float64(piece: Piece) -> Piece:
  """The same map on arrays of float64."""
  def wide(v: Value) -> Value:
    return dataclasses.replace(v, dtype=np.dtype(np.float64)) if jnp.issubdtype(v.dtype, jnp.floating) else v

  def wider(eqn: Equation) -> Equation:
    params = dict(eqn.params)
    for name in ('preferred_element_type', 'new_dtype'):
      if params.get(name) is not None and jnp.issubdtype(params[name], jnp.floating):
        params[name] = np.dtype(np.float64)
    return dataclasses.replace(eqn, params=params, inputs=tuple(map(wide, eqn.inputs)),
                               outputs=tuple(map(wide, eqn.outputs)))
  known = {i: jnp.asarray(x, jnp.float64) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x
           for i, x in piece.known.items()}
  source, target = (dataclasses.replace(u, operands=tuple(map(wide, u.operands)), outputs=tuple(map(wide, u.outputs)))
                    for u in (piece.source, piece.target))
  return Piece(piece.program, known, source, target, tuple(map(wider, piece.equations)))


def units(program: Program) -> list[Unit]:
  """The nonlinear operations of a program in order, the input first and the outputs last.

  max(a, b) and min(a, b) of the same two values are one unit: together they only exchange elements.

  Raises:
    NotImplementedError: an operation that is neither affine nor known to be Lipschitz; names it and the line.
  """
  found = [Unit((), tuple(v for v in program.inputs if v.id in program.perturbed), 1., 'input')]
  pairs: dict[tuple[int, ...], int] = {}
  for eqn in program.equations:
    flags = [v.id in program.perturbed for v in eqn.inputs]
    if not any(flags) or affine.is_affine(eqn, flags):
      continue
    moving = tuple(v for v, p in zip(eqn.inputs, flags) if p)
    key = tuple(sorted(v.id for v in moving))
    if eqn.key in _EXTREMES and len(key) == 2 and key in pairs:
      at = pairs.pop(key)
      found[at] = dataclasses.replace(found[at], outputs=(*found[at].outputs, *eqn.outputs), name='max and min')
      continue
    if eqn.key in _EXTREMES and len(key) == 2 and key[0] != key[1]:
      pairs[key] = len(found)
    found.append(Unit(moving, eqn.outputs, constant(eqn, flags), eqn.name, source_line(eqn)))
  return [*found, Unit(tuple(v for v in program.outputs if v.id in program.perturbed), (), 1., 'output')]


def constant(eqn: Equation, flags: Sequence[bool]) -> float:
  """By how much a nonlinear operation may lengthen the difference of two arguments, stacked."""
  match eqn.key:
    case P.max_p | P.min_p:
      return 1.
    case P.sort_p if len(eqn.inputs) == 1:
      return 1.
    case P.reduce_max_p | P.reduce_min_p:
      return 1.
    case P.reduce_window_max_p | P.reduce_window_min_p if max(eqn.params['base_dilation']) == 1:
      return overlaps(eqn) ** .5
    case p if p in SLOPES and sum(flags) == 1 and (p is not P.clamp_p or flags[1]):
      return SLOPES[p]
  raise unsupported(eqn, 'has no Lipschitz constant here. Write it with affine operations, maxima, minima, absolute '
                         'values, sorts, pooling by maxima, tanh, sigmoid, sin, cos, erf')


def overlaps(eqn: Equation) -> int:
  """The greatest number of windows that an element lies in."""
  window, strides, dilation = (eqn.params[k] for k in ('window_dimensions', 'window_strides', 'window_dilation'))
  return int(np.prod([-(-n // s) if d == 1 else n for n, s, d in zip(window, strides, dilation)]))


def pieces(program: Program, known: dict[int, Any], ordered: Sequence[Unit]) -> dict[int, list[Piece]]:
  """Number of a unit -> the affine maps into its operands, one from each unit that these depend on directly."""
  maker = {v.id: eqn for eqn in program.equations for v in eqn.outputs}
  owner = {v.id: i for i, unit in enumerate(ordered) for v in unit.outputs}
  found = dict[int, list[Piece]]()
  for i, target in enumerate(ordered):
    if not target.operands:
      continue
    passed, ends = set[int](), set[int]()
    stack = [v.id for v in target.operands]
    while stack:
      at = stack.pop()
      if at in owner:
        ends.add(owner[at])
      elif id(maker[at]) not in passed:
        passed.add(id(maker[at]))
        stack += [v.id for v in maker[at].inputs if v.id in program.perturbed]
    equations = tuple(eqn for eqn in program.equations if id(eqn) in passed)
    found[i] = [Piece(program, known, ordered[j], target, equations) for j in sorted(ends)]
  return found


# ------------------------------------------------------------------------------ as convolutions
@dataclasses.dataclass(frozen=True, eq=False)
class Form:
  """A value as one convolution of the output of a unit, an image (height, width, channels) after moves of axes.

  Attributes:
    kernel: (height, width, in, out), float64.
    strides: of it.
    start: where the window of the first result begins, on both axes; negative ones begin on the padding.
    size: (height, width) of the value.
    layout: for each axis of the value: 'h', 'w', 'c', or None for one of length 1.
  """
  kernel: np.ndarray
  strides: tuple[int, int]
  start: tuple[int, int]
  size: tuple[int, int]
  layout: tuple[str | None, ...]

  @property
  def pointwise(self) -> bool:
    return self.kernel.shape[:2] == self.strides == (1, 1) and self.start == (0, 0)


def as_convolution(piece: Piece) -> Convolution | None:
  """A piece that is one convolution, on images without batch. None for all else.

  Sums of convolutions with equal strides are one, so is a convolution with the identity beside it, and so are scales of
  channels before and after. Dense layers are convolutions of images of one pixel.
  """
  if len(piece.source.outputs) != 1 or len(piece.target.operands) != 1:
    return None
  source, target = piece.source.outputs[0], piece.target.operands[0]
  for layout in _layouts(piece, source):
    image = _identity(source, layout)
    forms: dict[int, Form | None] = {source.id: image}
    for eqn in piece.equations:
      if not any(v.id in forms for v in eqn.inputs):  # of another unit
        continue
      out = _formed(piece, eqn, forms)
      forms |= dict.fromkeys((v.id for v in eqn.outputs), out)
    if (form := forms.get(target.id)) is not None:
      return _placed(form, image.size)
  return None


def _placed(form: Form, size: tuple[int, int]) -> Convolution:
  """A form as a convolution of an image of a size; what no window sees of it is left out."""
  stops = [start + s * (n - 1) + k for start, s, n, k in zip(form.start, form.strides, form.size, form.kernel.shape)]
  seen = [min(n, stop) - max(start, 0) for n, start, stop in zip(size, form.start, stops)]
  padding = [(max(-start, 0), max(stop - n, 0)) for start, stop, n in zip(form.start, stops, size)]
  if min(seen) < 1:
    return Convolution(0 * form.kernel[:1, :1], (1, 1))
  return Convolution(form.kernel, (seen[0], seen[1]), form.strides, (padding[0], padding[1]))


def _layouts(piece: Piece, source: Value) -> list[tuple[str | None, ...]]:
  """How the axes of the source may be meant: as convolutions use them, and as one vector."""
  rank, found = len(source.shape), list[tuple[str | None, ...]]()
  for eqn in piece.equations:
    if eqn.key is P.conv_general_dilated_p and eqn.inputs[0].id == source.id and rank == 4:
      batch, channel, *space = eqn.params['dimension_numbers'].lhs_spec
      if source.shape[batch] == 1:
        names = {channel: 'c', **dict(zip(space, 'hw'))}
        found.append(tuple(names.get(i) for i in range(rank)))
  if rank in (3, 4) and not found and source.shape[:-3] in ((), (1,)):
    found.append(tuple([None] * (rank - 3) + ['h', 'w', 'c']))
  return [*found, ('v',) * rank]


def _identity(v: Value, layout: tuple[str | None, ...]) -> Form:
  if 'v' in layout:  # all axes are channels of one pixel
    return Form(np.eye(v.size)[None, None], (1, 1), (0, 0), (1, 1), layout)
  at = {name: n for name, n in zip(layout, v.shape) if name}
  return Form(np.eye(at['c'])[None, None], (1, 1), (0, 0), (at['h'], at['w']), layout)


def _formed(piece: Piece, eqn: Equation, forms: dict[int, Form | None]) -> Form | None:
  """The form of the result of an equation, by those of its perturbed operands."""
  moving = [v for v in eqn.inputs if v.id in piece.program.perturbed]
  given = [forms[v.id] for v in moving if v.id in forms]
  if len(eqn.outputs) != 1 or any(form is None for form in given):
    return None
  form, = given[:1]
  assert form is not None
  out = eqn.outputs[0]
  match eqn.key:
    case P.add_p | P.sub_p | P.add_jaxvals_p:
      signs = (1, -1 if eqn.key is P.sub_p else 1)
      parts = [(sign, forms[v.id]) for sign, v in zip(signs, eqn.inputs)
               if v.id in piece.program.perturbed and v.id in forms]
      total: Form | None = None
      for sign, part in parts:
        assert part is not None
        part = dataclasses.replace(part, kernel=sign * part.kernel)
        total = part if total is None else _sum(total, part)
        if total is None:
          return None
      return total
    case P.neg_p:
      return dataclasses.replace(form, kernel=-form.kernel)
    case P.copy_p | P.convert_element_type_p:
      return form
    case P.mul_p | P.div_p:
      return _scaled(piece, eqn, form)
    case P.conv_general_dilated_p:
      return _convolved(piece, eqn, form)
    case P.dot_general_p:
      return _contracted(piece, eqn, form)
    case P.transpose_p | P.squeeze_p | P.broadcast_in_dim_p | P.reshape_p:
      return _moved(eqn, form, out)
  return None


def _sum(a: Form, b: Form) -> Form | None:
  """The sum of two convolutions, if they take the same steps."""
  if (a.strides, a.size, a.layout) != (b.strides, b.size, b.layout):
    return None
  start = tuple(map(min, a.start, b.start))
  stop = [max(s + k, t + m) for s, k, t, m in zip(a.start, a.kernel.shape, b.start, b.kernel.shape)]
  laid = [np.pad(f.kernel, [*((s - lo, hi - s - k) for s, k, lo, hi in zip(
      f.start, f.kernel.shape, start, stop)), (0, 0), (0, 0)]) for f in (a, b)]
  return dataclasses.replace(a, kernel=laid[0] + laid[1], start=(start[0], start[1]))


def _channels(piece: Piece, v: Value, layout: tuple[str | None, ...], shape: tuple[int, ...]) -> np.ndarray | None:
  """A known operand as one number for each channel, if it is the same at all places."""
  x = np.asarray(piece.known[v.id], np.float64)
  if x.ndim not in (0, len(shape)):
    return None
  x = np.broadcast_to(x, shape) if x.ndim else np.full(shape, x)
  if 'v' in layout:
    return x.ravel()
  others = tuple(i for i, name in enumerate(layout) if name != 'c')
  least, greatest = x.min(others), x.max(others)
  return least if np.array_equal(least, greatest) else None


def _scaled(piece: Piece, eqn: Equation, form: Form) -> Form | None:
  slot = 0 if eqn.inputs[0].id in piece.program.perturbed else 1
  factors = _channels(piece, eqn.inputs[1 - slot], form.layout, eqn.inputs[slot].shape)
  if factors is None or (eqn.key is P.div_p and not factors.all()):
    return None
  return dataclasses.replace(form, kernel=form.kernel * (1 / factors if eqn.key is P.div_p else factors))


def _convolved(piece: Piece, eqn: Equation, form: Form) -> Form | None:
  """A convolution of a form: of one that does not mix places; or one that itself does not."""
  p = eqn.params
  dilated = max(*p['lhs_dilation'], *p['rhs_dilation'], p['feature_group_count'], p['batch_group_count']) > 1
  if dilated or len(p['window_strides']) != 2 or eqn.inputs[1].id in piece.program.perturbed:
    return None
  numbers = p['dimension_numbers']
  names = {numbers.lhs_spec[1]: 'c', **dict(zip(numbers.lhs_spec[2:], 'hw'))}
  if form.layout != tuple(names.get(i) for i in range(4)):
    return None
  out, into, *taps = numbers.rhs_spec
  kernel = np.asarray(piece.known[eqn.inputs[1].id], np.float64).transpose(*taps, into, out)
  strides, lows = tuple(p['window_strides']), [low for low, _ in p['padding']]
  after = {numbers.out_spec[1]: 'c', **dict(zip(numbers.out_spec[2:], 'hw'))}
  layout, shape = tuple(after.get(i) for i in range(4)), eqn.outputs[0].shape
  size = shape[numbers.out_spec[2]], shape[numbers.out_spec[3]]
  if form.pointwise:
    kernel, start = np.einsum('ic,abco->abio', form.kernel[0, 0], kernel), (-lows[0], -lows[1])
    return Form(kernel, (strides[0], strides[1]), start, size, layout)
  if kernel.shape[:2] == (1, 1) and not any(q for pair in p['padding'] for q in pair):
    kernel = np.einsum('abic,co->abio', form.kernel, kernel[0, 0])
    steps = form.strides[0] * strides[0], form.strides[1] * strides[1]
    return Form(kernel, steps, form.start, size, layout)
  return None


def _contracted(piece: Piece, eqn: Equation, form: Form) -> Form | None:
  """A dense layer on the one pixel of a form: its whole value, contracted along all axes or the last one."""
  (left, right), (batch, _) = eqn.params['dimension_numbers']
  slot = 0 if eqn.inputs[0].id in piece.program.perturbed else 1
  moving, known = eqn.inputs[slot], np.asarray(piece.known[eqn.inputs[1 - slot].id], np.float64)
  along, over = (left, right) if slot == 0 else (right, left)
  rest = [n for i, n in enumerate(moving.shape) if i not in along]
  if batch or form.size != (1, 1) or int(np.prod(rest)) != 1:
    return None
  free = [i for i in range(known.ndim) if i not in over]
  # axes of the contraction in the order of the value
  order = [over[along.index(i)] for i in sorted(along)]
  weights = known.transpose(*order, *free).reshape(moving.size, -1)
  return Form(np.einsum('abic,co->abio', form.kernel, weights), form.strides, form.start, form.size,
              ('v',) * len(eqn.outputs[0].shape))


def _moved(eqn: Equation, form: Form, out: Value) -> Form | None:
  """Other orders of axes, and other axes of length 1; a value of one pixel may take any shape."""
  before = eqn.inputs[0].shape
  if 'v' in form.layout:
    kept = eqn.key is P.reshape_p or eqn.key is P.squeeze_p or (
        eqn.key is P.broadcast_in_dim_p and int(np.prod(before)) == out.size)
    if eqn.key is P.transpose_p:  # of vectors: another order of channels
      order = np.arange(out.size).reshape(before).transpose(eqn.params['permutation']).ravel()
      return dataclasses.replace(form, kernel=form.kernel[..., order], layout=('v',) * len(out.shape))
    return dataclasses.replace(form, layout=('v',) * len(out.shape)) if kept else None
  moved = axes_moved(eqn)
  if moved is None:
    return None
  layout = tuple(None if old is None else form.layout[old] for old in moved)
  return dataclasses.replace(form, layout=layout) if {'h', 'w', 'c'} <= set(layout) else None

