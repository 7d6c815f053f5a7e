"""Small random networks: dense, residual and convolutional functions in float64, and a classifier."""
import jax
import jax.numpy as jnp
import numpy as np
from cases import ramp
from flax import nnx

from ibpjax import nn


def dense(params, x, activation):
  *layers, (last, bias) = params
  for w, b in layers:
    x = activation(w @ x + b)
  return last @ x + bias


def residual(params, x, activation):
  first, second, (last, bias) = params[:2], params[2:4], params[4]
  y = x + dense(first, x, activation)
  return last @ activation(y + dense(second, activation(y), activation)) + bias


def convolutional(params, x, activation):
  x = x.reshape(1, 6, 6, 1)
  *kernels, (last, bias) = params
  for (kernel, b), stride, padding in zip(kernels, (2, 1), ('SAME', 'VALID'), strict=True):
    x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    x = activation(x + b.reshape(1, 1, 1, -1))
  return last @ x.ravel() + bias


def shallow(params, x, activation):
  """A dense network of two hidden layers, where a third would only cost time."""
  return dense(params, x, activation)


# How parameters are applied: their shapes, and the size of the input.
NETWORKS = {dense: ([(6, 3), (6, 6), (5, 6), (2, 5)], 3), residual: ([(5, 4), (4, 5), (6, 4), (4, 6), (3, 4)], 4),
            convolutional: ([(3, 3, 1, 3), (2, 2, 3, 2), (3, 8)], 36)}
SHALLOW = [(6, 3), (5, 6), (2, 5)], 3
ACTIVATIONS = {'relu': jax.nn.relu, 'leaky relu': lambda z: jax.nn.leaky_relu(z, .1),
               'ramp': lambda z: ramp(z, jnp.full_like(z, .4))}


def random_network(network, seed):
  """(params, centre of the inputs)."""
  rng = np.random.default_rng(seed)
  shapes, size = SHALLOW if network is shallow else NETWORKS[network]
  def outputs(shape):
    return shape[-1] if len(shape) == 4 else shape[0]
  params = [(jnp.asarray(rng.normal(size=s) * (1.4 * outputs(s) / np.prod(s)) ** .5),
             jnp.asarray(.3 * rng.normal(size=outputs(s)))) for s in shapes]
  return params, jnp.asarray(rng.normal(size=size))


def classifier(side, features, batch_norm):
  """A model of (side, side, 1) images and three classes: one convolution, one hidden layer."""
  return nn.models.convolutional([(features, 3, 1, 1)], [6], input_shape=(side, side, 1), classes=3,
                                 batch_norm=batch_norm, rngs=nnx.Rngs(0))
