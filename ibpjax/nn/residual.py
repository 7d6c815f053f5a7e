"""The residual networks of Shi et al. 2021, with batch normalisation after every affine layer but the last."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from ibpjax.nn.batch_norm import BatchNorm
from ibpjax.nn.models import Activation, activation_layer, conv, dense
from ibpjax.nn.sequential import Residual, Sequential, flatten


def wide_resnet8(*, input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 8,
                 activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """Wide ResNet-8: three blocks of two 3x3 convolutions, one hidden layer of 512; 21 547 882 parameters on CIFAR-10.

  Args:
    width: the blocks have 16, 32 and 64 times as many channels; 10 is the variant for TinyImageNet.

  Source: Shi et al. 2021, section 4.
  """
  net = _Built(input_shape, activation, rngs)
  net.convolve(16, 3, 1)
  for channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
    net.block([(channels, 3, stride, 1), (channels, 3, 1, 1)])
  return net.classifier(512, classes)


def resnext(*, input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, stem: int = 64, bottleneck: int = 32,
            blocks: int = 1, activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """ResNeXt of cardinality 2: three stages of bottleneck blocks, one hidden layer of 512; 17 611 018 on CIFAR-10.

  Args:
    stem: channels of the first convolution; 16 in the variant for TinyImageNet.
    bottleneck: channels of each of the two groups in the first stage, and then twice as many a stage; 8 there.
    blocks: of each stage; 2 there.

  Source: Shi et al. 2021, section 4.
  """
  net = _Built(input_shape, activation, rngs)
  net.convolve(stem, 3, 1)
  for channels, first in ((2 * bottleneck, 1), (4 * bottleneck, 2), (8 * bottleneck, 2)):
    for stride in (first, *[1] * (blocks - 1)):
      net.block([(channels, 1, 1, 1), (channels, 3, stride, 2), (2 * channels, 1, 1, 1)])
  return net.classifier(512, classes)


class _Built:
  """Layers of a network so far, and the shape of the images that come out of them."""

  def __init__(self, shape: tuple[int, int, int], activation: Activation, rngs: nnx.Rngs):
    self.layers: list[Any] = []
    self.shape, self.activation, self.rngs = shape, activation, rngs

  def convolve(self, channels: int, size: int, stride: int, groups: int = 1) -> None:
    """A convolution, normalised and activated."""
    self.layers += self._normalised(self.shape, channels, size, stride, groups)
    self._activate(channels, stride)

  def block(self, convs: Sequence[tuple[int, int, int, int]]) -> None:
    """Convolutions (channels, size, stride, groups) around which there is a short cut: a convolution of size 1 if the
    shape changes. An activation follows the sum."""
    before, outer, self.layers = self.shape, self.layers, []
    *most, last = convs
    for each in most:
      self.convolve(*each)
    layers = [*self.layers, *self._normalised(self.shape, *last)]
    channels, stride = last[0], math.prod(stride for _, _, stride, _ in convs)
    same = stride == 1 and channels == before[-1]
    self.layers = [*outer, Residual(layers, () if same else self._normalised(before, channels, 1, stride, 1))]
    self._activate(channels, last[2])

  def classifier(self, hidden: int, classes: int) -> Sequential:
    """The network, with a hidden layer and logits."""
    height, width, channels = self.shape
    return Sequential([*self.layers, flatten, dense(height * width * channels, hidden, self.rngs), BatchNorm(hidden),
                       activation_layer(self.activation, (hidden,)), dense(hidden, classes, self.rngs)])

  def _normalised(self, shape: tuple[int, ...], channels: int, size: int, stride: int, groups: int) -> list[Any]:
    return [*conv(shape[-1], channels, size, stride, size // 2, self.rngs, groups), BatchNorm(channels)]

  def _activate(self, channels: int, stride: int) -> None:
    height, width, _ = self.shape
    self.shape = (-(-height // stride), -(-width // stride), channels)
    self.layers.append(activation_layer(self.activation, self.shape))
