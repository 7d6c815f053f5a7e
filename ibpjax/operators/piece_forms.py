"""Which affine pieces are one convolution, and which: found by reading their equations, with the numbers in them."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Value
from ibpjax.engine.patches import axes_moved
from ibpjax.operators.pieces import AffineMap
from ibpjax.operators.spectral_convolutions import Convolution

_MOST = 4096  # channels of a form; maps of larger vectors are no convolutions worth having


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

  def whole(self, size: tuple[int, int]) -> bool:
    """Whether it mixes no places and has all of an image of that size, with zeros around it or not."""
    return self.kernel.shape[:2] == self.strides == (1, 1) and all(
        start <= 0 and start + n >= m for start, n, m in zip(self.start, self.size, size))


def as_convolution(piece: AffineMap) -> Convolution | None:
  """A piece that is one convolution, on images without batch. None for all else.

  Sums of convolutions with equal strides are one, so is a convolution with the identity beside it, and so are scales of
  channels before and after, and zeros around the image. Dense layers are convolutions of images of one pixel. Several
  values of a unit are channels beside each other.
  """
  for layout in _layouts(piece, piece.source.outputs[0]):
    images = _identities(piece.source.outputs, layout)
    if images is None:
      continue
    forms: dict[int, Form | None] = dict(images)
    size = next(iter(images.values())).size
    for eqn in piece.equations:
      if any(v.id in forms for v in eqn.inputs):  # and not of another unit alone
        forms |= zip((v.id for v in eqn.outputs), _formed(piece, eqn, forms, size), strict=True)
    ends = [forms.get(v.id) for v in piece.target.operands]
    if (whole := _beside([end for end in ends if end is not None])) is not None and all(ends):
      return _placed(whole, size)
  return None


def _placed(form: Form, size: tuple[int, int]) -> Convolution:
  """A form as a convolution of an image of a size; what no window sees of it is left out."""
  stops = [start + s * (n - 1) + k for start, s, n, k in zip(form.start, form.strides, form.size, form.kernel.shape)]
  seen = [min(n, stop) - max(start, 0) for n, start, stop in zip(size, form.start, stops)]
  padding = [(max(-start, 0), max(stop - n, 0)) for start, stop, n in zip(form.start, stops, size)]
  if min(seen) < 1:
    return Convolution(0 * form.kernel[:1, :1], (1, 1))
  return Convolution(form.kernel, (seen[0], seen[1]), form.strides, (padding[0], padding[1]))


def _layouts(piece: AffineMap, source: Value) -> list[tuple[str | None, ...]]:
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


def _is_vector(layout: tuple[str | None, ...]) -> bool:
  """Whether all axes are channels of one pixel; a number is such a vector."""
  return 'v' in layout or not layout


def _identities(values: Sequence[Value], layout: tuple[str | None, ...]) -> dict[int, Form] | None:
  """The forms of the outputs of a unit, by their ids: each some of the channels of one image."""
  sizes, channels = set(), list[int]()
  for v in values:
    if len(v.shape) != len(layout) or any(name is None and n != 1 for name, n in zip(layout, v.shape)):
      return None
    at = dict(h=1, w=1, c=v.size) if _is_vector(layout) else {name: n for name, n in zip(layout, v.shape) if name}
    sizes.add((at['h'], at['w']))
    channels.append(at['c'])
  if len(sizes) > 1 or sum(channels) > _MOST:
    return None
  eye, ends = np.eye(sum(channels)), np.cumsum(channels)
  return {v.id: Form(eye[None, None, :, end - n:end], (1, 1), (0, 0), next(iter(sizes)), layout)
          for v, n, end in zip(values, channels, ends)}


def _formed(piece: AffineMap, eqn: Equation, forms: dict[int, Form | None], size: tuple[int, int]) -> list[Form | None]:
  """The forms of the results of an equation, by those of its perturbed operands; `size` of the image they are of."""
  moving = [v for v in eqn.inputs if v.id in piece.program.perturbed]
  given = [form for v in moving if v.id in forms and (form := forms[v.id]) is not None]
  if len(given) < sum(v.id in forms for v in moving):
    return [None] * len(eqn.outputs)
  if eqn.key is lax.split_p:
    ends = np.cumsum(eqn.params['sizes'])
    return [_some_channels(given[0], eqn.params['axis'], end - n, end, eqn.inputs[0].shape)
            for n, end in zip(eqn.params['sizes'], ends)]
  if len(eqn.outputs) != 1:
    return [None] * len(eqn.outputs)
  if eqn.key is P.concatenate_p:
    along = given[0].layout[eqn.params['dimension']]
    vectors = all(f.kernel.shape[3] == v.shape[eqn.params['dimension']] for f, v in zip(given, eqn.inputs))
    fits = len(given) == len(eqn.inputs) and (along == 'c' or (along == 'v' and vectors))
    return [_beside(given) if fits else None]
  return [_of_one(piece, eqn, forms, given[0], size)]


def _some_channels(form: Form, axis: int, start: int, stop: int, shape: tuple[int, ...]) -> Form | None:
  """Channels from one to another, if the axis is that of channels."""
  if form.layout[axis] != 'c' and not (form.layout[axis] == 'v' and shape[axis] == form.kernel.shape[3]):
    return None
  return dataclasses.replace(form, kernel=form.kernel[..., start:stop])


def _beside(forms: Sequence[Form]) -> Form | None:
  """Forms of one image and of one size as channels beside each other."""
  if not forms or len({(f.strides, f.size, f.layout) for f in forms}) > 1:
    return None
  start, laid = _aligned(forms)
  return dataclasses.replace(forms[0], kernel=np.concatenate(laid, axis=3), start=start)


def _aligned(forms: Sequence[Form]) -> tuple[tuple[int, int], list[np.ndarray]]:
  """Where the first window begins that covers those of all forms, and their kernels in it."""
  first, second = (min(f.start[i] for f in forms) for i in range(2))
  stop = [max(f.start[i] + f.kernel.shape[i] for f in forms) for i in range(2)]
  laid = [np.pad(f.kernel, [*((f.start[i] - lo, stop[i] - f.start[i] - f.kernel.shape[i])
                              for i, lo in enumerate((first, second))), (0, 0), (0, 0)]) for f in forms]
  return (first, second), laid


def _of_one(piece: AffineMap, eqn: Equation, forms: dict[int, Form | None], form: Form, size: tuple[int, int],
            ) -> Form | None:
  """The form of the one result of an equation that does not put values beside each other."""
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
      return _convolved(piece, eqn, form, size)
    case P.slice_p if eqn.params['strides'] is None or max(eqn.params['strides']) == 1:
      before, starts, stops = eqn.inputs[0].shape, eqn.params['start_indices'], eqn.params['limit_indices']
      cut = [i for i, n in enumerate(before) if (starts[i], stops[i]) != (0, n)]
      return _some_channels(form, cut[0], starts[cut[0]], stops[cut[0]], before) if len(cut) == 1 else None
    case P.pad_p:
      return _padded(piece, eqn, form, size)
    case P.dot_general_p:
      return _contracted(piece, eqn, form)
    case P.transpose_p | P.squeeze_p | P.broadcast_in_dim_p | P.reshape_p:
      return _moved(eqn, form, out)
  return None


def _sum(a: Form, b: Form) -> Form | None:
  """The sum of two convolutions, if they take the same steps."""
  if (a.strides, a.size, a.layout) != (b.strides, b.size, b.layout):
    return None
  start, laid = _aligned((a, b))
  return dataclasses.replace(a, kernel=laid[0] + laid[1], start=start)


def _channels(piece: AffineMap, v: Value, layout: tuple[str | None, ...], shape: tuple[int, ...]) -> np.ndarray | None:
  """A known operand as one number for each channel, if it is the same at all places."""
  x = np.asarray(piece.known[v.id], np.float64)
  if x.ndim not in (0, len(shape)):
    return None
  x = np.broadcast_to(x, shape) if x.ndim else np.full(shape, x)
  if _is_vector(layout):
    return x.ravel()
  others = tuple(i for i, name in enumerate(layout) if name != 'c')
  least, greatest = x.min(others), x.max(others)
  return least if np.array_equal(least, greatest) else None


def _scaled(piece: AffineMap, eqn: Equation, form: Form) -> Form | None:
  slot = 0 if eqn.inputs[0].id in piece.program.perturbed else 1
  factors = _channels(piece, eqn.inputs[1 - slot], form.layout, eqn.inputs[slot].shape)
  if factors is None or (eqn.key is P.div_p and not factors.all()):
    return None
  return dataclasses.replace(form, kernel=form.kernel * (1 / factors if eqn.key is P.div_p else factors))


def _padded(piece: AffineMap, eqn: Equation, form: Form, size: tuple[int, int]) -> Form | None:
  """Zeros around a form that does not mix places and has the whole image."""
  config = {name: c for name, c in zip(form.layout, eqn.params['padding_config'])}
  others = [c for name, c in zip(form.layout, eqn.params['padding_config']) if name not in ('h', 'w')]
  zero = eqn.inputs[1].id not in piece.program.perturbed and not np.any(piece.known[eqn.inputs[1].id])
  if not zero or any(map(any, others)) or not {'h', 'w'} <= set(config) or not form.whole(size):
    return None
  (low, high, inner), (left, right, between) = config['h'], config['w']
  if inner or between or min(low, high, left, right) < 0:
    return None
  return dataclasses.replace(form, start=(form.start[0] - low, form.start[1] - left),
                             size=(form.size[0] + low + high, form.size[1] + left + right))


def _convolved(piece: AffineMap, eqn: Equation, form: Form, whole: tuple[int, int]) -> Form | None:
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
  if form.whole(whole):
    kernel = np.einsum('ic,abco->abio', form.kernel[0, 0], kernel)
    start = form.start[0] - lows[0], form.start[1] - lows[1]
    return Form(kernel, (strides[0], strides[1]), start, size, layout)
  if kernel.shape[:2] == (1, 1) and not any(q for pair in p['padding'] for q in pair):
    kernel = np.einsum('abic,co->abio', form.kernel, kernel[0, 0])
    steps = form.strides[0] * strides[0], form.strides[1] * strides[1]
    return Form(kernel, steps, form.start, size, layout)
  return None


@dataclasses.dataclass(frozen=True)
class Contraction:
  """A product of a perturbed value with known weights.

  Attributes:
    weights: (the contracted axes of the value in its own order, all others of the weights), float64.
    rest: the lengths of the axes of the value that are not contracted.
  """
  weights: np.ndarray
  rest: tuple[int, ...]


def contraction(piece: AffineMap, eqn: Equation) -> Contraction:
  """What a dot_general without batches multiplies its perturbed operand with."""
  slot = 0 if eqn.inputs[0].id in piece.program.perturbed else 1
  moving, known = eqn.inputs[slot], np.asarray(piece.known[eqn.inputs[1 - slot].id], np.float64)
  along, over = (eqn.params['dimension_numbers'][0][i] for i in (slot, 1 - slot))
  order = [over[along.index(i)] for i in sorted(along)]
  free = [i for i in range(known.ndim) if i not in over]
  count = int(np.prod([known.shape[i] for i in over]))
  return Contraction(known.transpose(*order, *free).reshape(count, -1),
                     tuple(n for i, n in enumerate(moving.shape) if i not in along))


def _contracted(piece: AffineMap, eqn: Equation, form: Form) -> Form | None:
  """A dense layer on the one pixel of a form: its whole value, contracted along all axes or the last one."""
  if eqn.params['dimension_numbers'][1][0] or form.size != (1, 1):
    return None
  by = contraction(piece, eqn)
  if int(np.prod(by.rest)) != 1:
    return None
  return dataclasses.replace(form, kernel=np.einsum('abic,co->abio', form.kernel, by.weights),
                             layout=('v',) * len(eqn.outputs[0].shape))


def _moved(eqn: Equation, form: Form, out: Value) -> Form | None:
  """Other orders of axes, and other axes of length 1; a value of one pixel may take any shape."""
  before = eqn.inputs[0].shape
  if _is_vector(form.layout):
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

