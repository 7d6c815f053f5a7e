"""LiResNet: linear residual blocks with rearranging activations between them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.nn.initializers import orthogonal

from ibpjax.nn.lipschitz_layers import AOL, SLL, ConvResidual, LinearResidual, NormalisedHead, min_max
from ibpjax.nn.models import dense
from ibpjax.nn.normalise import Normalise
from ibpjax.nn.sequential import Sequential, flatten
from ibpjax.xla.window_products import as_convolution

# How each kind is made, of so many channels, in a network of so many; with what stands behind it.
BLOCKS: dict[str, Callable[[int, int, nnx.Rngs], list[Any]]] = {
    'linear': lambda width, depth, rngs: [LinearResidual(width, scale=depth ** -.5, rngs=rngs), min_max],
    'conventional': lambda width, depth, rngs: [ConvResidual(width, rngs=rngs), min_max],
    'sll': lambda width, depth, rngs: [SLL(width, rngs=rngs)],
    'aol': lambda width, depth, rngs: [AOL(width, width, rngs=rngs), min_max]}


def liresnet(depth: int = 12, width: int = 256, *, input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10,
             hidden: int | None = None, neck: int = 4, block: str = 'linear', rngs: nnx.Rngs) -> Sequential:
  """LiResNet: a stem, linear residual blocks, a neck of windows, a hidden layer, rows of norm 1; MinMax between them.

  The stem makes a map of about 16 x 16: windows of 5 at strides of 2 for images of up to 40 pixels, of 7 at strides of
  4 up to 100, and beyond that windows that do not overlap, of round(sqrt(width / 3)) pixels.

  Args:
    depth: linear residual blocks.
    width: their channels, even.
    input_shape: (height, width, channels) of one image, in [0, 1]; a half is subtracted.
    classes: number of logits.
    hidden: units of the hidden layer; default 512, or 2048 for images of more than 100 pixels.
    neck: side of the windows of the neck, which do not overlap.
    block: 'linear', or in the same places for comparison 'conventional' (`ConvResidual`), 'sll' or 'aol'.
    rngs: NNX random streams.

  Source: Hu et al. 2023, as released; stem and neck start orthogonal.
  """
  side, channels = input_shape[0], input_shape[2]
  if block not in BLOCKS:
    raise ValueError(f'block is {block!r}; it is one of {", ".join(BLOCKS)}')
  if width % 2:
    raise ValueError(f'width is {width}: MinMax pairs channels, so that it is even')
  size, stride, padding = _stem(side, width)
  over = [(n + 2 * padding - size) // stride + 1 for n in input_shape[:2]]
  if min(over) < neck:
    raise ValueError(f'the stem makes maps of {over[0]} x {over[1]}, smaller than the windows of the neck: '
                     f'set neck to at most {min(over)}')
  hidden = (2048 if side > 100 else 512) if hidden is None else hidden
  layers: list[Any] = [Normalise((.5,) * channels, (1.,) * channels),
                       _conv(channels, width, size, stride, padding, rngs), min_max]
  for _ in range(depth):
    layers += BLOCKS[block](width, depth, rngs)
  features = 2 * width * (over[0] // neck) * (over[1] // neck)
  layers += [_conv(width, 2 * width, neck, neck, 0, rngs), min_max, flatten, dense(features, hidden, rngs), min_max,
             NormalisedHead(hidden, classes, rngs=rngs)]
  return Sequential(layers)


def _stem(side: int, width: int) -> tuple[int, int, int]:
  """(size, stride, padding) of the stem for images of a side."""
  if side <= 40:
    return 5, 2, 2
  if side <= 100:
    return 7, 4, 3
  patch = round((width / 3) ** .5)
  return patch, patch, 0


def _conv(channels: int, features: int, size: int, stride: int, padding: int, rngs: nnx.Rngs) -> nnx.Conv:
  by = as_convolution if size == stride and not padding else jax.lax.conv_general_dilated
  return nnx.Conv(channels, features, (size, size), strides=stride, padding=((padding, padding),) * 2,
                  kernel_init=orthogonal(), bias_init=jax.nn.initializers.zeros, conv_general_dilated=by, rngs=rngs)
