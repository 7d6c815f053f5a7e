"""The networks of the certified-training papers, by the names the papers use.

All take batches (batch, height, width, channels), or (batch, features) for `mlp`, and return
logits. Weights and biases start from U(+-1/sqrt(fan_in)), as published.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from ibpjax.nn.batch_norm import BatchNorm
from ibpjax.nn.initializers import bias_uniform, fan_in_uniform
from ibpjax.nn.pad import Pad
from ibpjax.nn.sequential import Sequential, flatten


def dense(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
  """A fully connected layer, initialised as published."""
  return nnx.Linear(features_in, features_out, kernel_init=fan_in_uniform, bias_init=bias_uniform(features_in),
                    rngs=rngs)


def conv(channels_in: int, channels_out: int, size: int, stride: int, padding: int, rngs: nnx.Rngs,
         groups: int = 1) -> list[nnx.Module]:
  """A square convolution with the same explicit padding on all sides, initialised as published.

  Padding that makes an image larger than it was is a layer of its own, as far as it does: XLA's CPU
  code for the gradient of the kernel is ten times slower if the convolution does it (jaxlib 0.10.2).
  On GPUs XLA joins the two again.
  """
  inside = min(padding, (size - 1) // 2) if stride == 1 else padding
  layer = nnx.Conv(channels_in, channels_out, (size, size), strides=stride, padding=((inside, inside),) * 2,
                   feature_group_count=groups, kernel_init=fan_in_uniform,
                   bias_init=bias_uniform(size * size * channels_in // groups), rngs=rngs)
  return [Pad(padding - inside), layer] if padding > inside else [layer]


# A function of an array, or a class of layers that takes the shape of one example's neurons.
Activation = Callable[..., Any]


def activation_layer(activation: Activation, shape: tuple[int, ...]) -> Callable:
  """What stands after an affine layer of so many neurons: a function, or a layer made for their shape."""
  made = activation.func if isinstance(activation, functools.partial) else activation
  return activation(shape) if isinstance(made, type) else activation


def convolutional(convs: Sequence[tuple[int, int, int, int]], hidden: Sequence[int], *,
                  input_shape: tuple[int, int, int], classes: int, activation: Activation = jax.nn.relu,
                  batch_norm: bool = False, rngs: nnx.Rngs) -> Sequential:
  """Convolutions, then dense layers, an activation after each but the last.

  Args:
    convs: (channels, kernel size, stride, padding) of each convolution.
    hidden: widths of the hidden dense layers.
    input_shape: (height, width, channels) of one image.
    classes: number of logits.
    activation: an elementwise function, or a class of layers such as `ParamRamp` (or a `functools.partial` of it).
    batch_norm: put BatchNorm before every activation.
    rngs: NNX random streams.
  """
  layers: list[Any] = []
  height, width, channels = input_shape

  def activate(*shape):
    layers.extend([BatchNorm(shape[-1])] if batch_norm else [])
    layers.append(activation_layer(activation, shape))

  for features, size, stride, padding in convs:
    layers += conv(channels, features, size, stride, padding, rngs)
    height, width = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
    if height < 1 or width < 1:
      raise ValueError(f'images of {input_shape[0]}x{input_shape[1]} are too small for this network: a {size}x{size} '
                       'convolution has no room. Use padding, or mlp')
    channels = features
    activate(height, width, channels)
  layers.append(flatten)
  features_in = height * width * channels
  for features in hidden:
    layers.append(dense(features_in, features, rngs))
    activate(features)
    features_in = features
  layers.append(dense(features_in, classes, rngs))
  return Sequential(layers)


def mlp(hidden: Sequence[int] = (256, 256), *, input_shape: tuple[int, ...] = (28, 28, 1), classes: int = 10,
        activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """A multilayer perceptron on the flattened input."""
  layers: list[Any] = [flatten]
  features_in = int(np.prod(input_shape))
  for features in hidden:
    layers += [dense(features_in, features, rngs), activation_layer(activation, (features,))]
    features_in = features
  return Sequential([*layers, dense(features_in, classes, rngs)])


def dm_small(*, input_shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10, valid: bool = False,
             activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """DM-small: two convolutions, one hidden layer of 100; 828 806 parameters on MNIST.

  Args:
    valid: no padding (Gowal et al. 2018) in the place of padding 2 (Lyu et al. 2021).
    activation: as in `convolutional`.
  """
  pad = 0 if valid else 2
  return convolutional([(16, 4, 2, pad), (32, 4, 1, pad)], [100], input_shape=input_shape, classes=classes,
                       activation=activation, rngs=rngs)


def dm_medium(*, input_shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10, valid: bool = False,
              activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """DM-medium: four convolutions, two hidden layers of 512; 2 466 282 parameters on MNIST.

  Args:
    valid: no padding (Gowal et al. 2018) in the place of 1 and 2 (Lyu et al. 2021).
  """
  one, two = (0, 0) if valid else (1, 2)
  return convolutional([(32, 3, 1, one), (32, 4, 2, two), (64, 3, 1, one), (64, 4, 2, two)], [512, 512],
                       input_shape=input_shape, classes=classes, activation=activation, rngs=rngs)


def wk_small(*, input_shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10,
             activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """The small network of Wong and Kolter (2018): two strided convolutions, one hidden layer of 100."""
  return convolutional([(16, 4, 2, 1), (32, 4, 2, 1)], [100], input_shape=input_shape, classes=classes,
                       activation=activation, rngs=rngs)


def cnn7(*, input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 64,
         last_stride: int = 1, batch_norm: bool = True, activation: Activation = jax.nn.relu,
         rngs: nnx.Rngs) -> Sequential:
  """CNN-7: five 3x3 convolutions, one hidden layer of 8 * width; 17 192 650 parameters on CIFAR-10.

  Args:
    width: channels of the first two convolutions; the others have twice as many.
    last_stride: of the last convolution; 2 is the variant for TinyImageNet, of 17 290 120 parameters.
    batch_norm: before every activation (Shi et al. 2021). Without it this is `dm_large`.
  """
  return _cnn(2, 3, width, last_stride, input_shape=input_shape, classes=classes, batch_norm=batch_norm,
              activation=activation, rngs=rngs)


def cnn5(*, input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 64,
         activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """`cnn7` with one convolution less before and one less after the image is halved."""
  return _cnn(1, 2, width, input_shape=input_shape, classes=classes, batch_norm=True, activation=activation, rngs=rngs)


def cnn9(*, input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 64,
         activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """`cnn7` with one convolution more before and one more after the image is halved."""
  return _cnn(3, 4, width, input_shape=input_shape, classes=classes, batch_norm=True, activation=activation, rngs=rngs)


def _cnn(before: int, after: int, width: int, last_stride: int = 1, hidden: int | None = None,
         **kwargs: Any) -> Sequential:
  """Convolutions of `width` channels, then of twice as many, of which the first halves the image."""
  strides = [1] * before + [2] + [1] * (after - 2) + [last_stride]
  return convolutional([(width if i < before else 2 * width, 3, stride, 1) for i, stride in enumerate(strides)],
                       [8 * width if hidden is None else hidden], **kwargs)


def dm_large(*, input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 64,
             hidden: int | None = None, activation: Activation = jax.nn.relu, rngs: nnx.Rngs) -> Sequential:
  """DM-large (Gowal et al. 2018): `cnn7` without batch normalisation; 17 190 602 parameters on CIFAR-10.

  Args:
    hidden: units of the dense layer; default 8 * width. 200 is the network that Alsubaihi et al. trained, of 6 963 554
      parameters.
  """
  return _cnn(2, 3, width, hidden=hidden, input_shape=input_shape, classes=classes, batch_norm=False,
              activation=activation, rngs=rngs)
