"""Layers that images go through, and networks of them: what windows and local forms are tested on."""
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

AXES = ('NHWC', 'HWIO', 'NHWC')


def weights(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[:-1])))


def conv(x, seed, size=3, strides=(1, 1), padding='VALID', features=2, **kwargs):
  """A convolution of one image (height, width, channels), with a bias."""
  groups = kwargs.get('feature_group_count', 1)
  kernel = weights(seed, size, size, x.shape[-1] // groups, features)
  return lax.conv_general_dilated(x[None], kernel, strides, padding, dimension_numbers=AXES, **kwargs)[0] + weights(
      seed + 1, 1, 1, features)


def channels_first(x, seed):
  """The same in the order (batch, channels, height, width)."""
  kernel = weights(seed, 2, x.shape[-1], 3, 3)
  y = lax.conv_general_dilated(x.transpose(2, 0, 1)[None], kernel, (2, 1), 'SAME')
  return jnp.squeeze(y + weights(seed, 1, 2, 1, 1), 0).transpose(1, 2, 0)


def pooled(x, seed):
  return lax.reduce_window(x, 0., lax.add, (2, 3, 1), (1, 2, 1), [(1, 0), (1, 1), (0, 0)]) / 6


def gated(x, seed):
  known = weights(seed, *x.shape)
  return jnp.where(known > 0, x * known, 1 - x / (2 + known))


# What an image (height, width, channels) goes through, with seeds for weights.
LAYERS = {
    'conv': lambda x, i: conv(x, i),
    'same': lambda x, i: conv(x, i, padding='SAME', features=3),
    'strided': lambda x, i: conv(x, i, 2, (2, 1), [(1, 0), (2, 1)]),
    'far padded': lambda x, i: conv(x, i, 2, (2, 2), [(3, 1), (2, 4)]),
    'dilated': lambda x, i: conv(x, i, 2, rhs_dilation=(2, 1), padding=[(1, 1), (0, 1)]),
    'grouped': lambda x, i: conv(jnp.concatenate([x, x[::-1]], -1), i, feature_group_count=2, padding='SAME'),
    'transposed': lambda x, i: conv(x, i, lhs_dilation=(2, 2), padding=[(2, 1), (1, 2)]),
    'point': lambda x, i: conv(x, i, 1, (1, 2)),
    'channels first': channels_first,
    'relu': lambda x, i: jax.nn.relu(x),
    'tanh': lambda x, i: jnp.tanh(x - .2),
    'product': lambda x, i: x * jnp.tanh(x + 1),
    'max pool': lambda x, i: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (1, 1, 1), 'VALID'),
    'average pool': pooled,
    'frame of ones': lambda x, i: jnp.pad(x, ((1, 0), (0, 2), (0, 0)), constant_values=1.),
    'cropped': lambda x, i: lax.pad(x, 0., [(-1, 0, 0), (0, -1, 0), (0, 0, 0)]),
    'residual': lambda x, i: x + conv(jax.nn.relu(conv(x, i, padding='SAME')), i, padding='SAME', features=x.shape[-1]),
    'short cut': lambda x, i: conv(x, i, 1, (2, 2), 'SAME') + conv(jnp.abs(conv(x, i, padding='SAME')), i, 3, (2, 2),
                                                                   'SAME'),
    'beside': lambda x, i: jnp.concatenate([x, conv(x, i, padding='SAME'), weights(i, *x.shape)], -1),
    'below': lambda x, i: jnp.concatenate([x, jax.nn.relu(x)[:1]], 0),
    'gated': gated,
    'hidden': lambda x, i: x + weights(i, *x.shape) * jnp.sum(jax.nn.relu(x.reshape(1, -1) @ weights(i, x.size, 3))),
    'from the left': lambda x, i: x + weights(i, *x.shape) * (weights(i, x.size) @ jax.nn.relu(x.ravel() - .2)),
    'flat': lambda x, i: jax.nn.relu(x.ravel() + weights(i, x.size)).reshape(1, x.size)[0].reshape(x.shape),
    'by columns': lambda x, i: jnp.ravel(jax.nn.relu(x), order='F').reshape(x.shape),
    'square by columns': lambda x, i: lax.reshape(jax.nn.relu(x[:5, :5]), x[:5, :5].shape, (1, 0, 2)),
    'turned': lambda x, i: x.transpose(1, 0, 2),
    'dense': lambda x, i: x + weights(i, *x.shape) * jnp.sum(x * weights(i + 1, *x.shape)),
    'expanded': lambda x, i: jnp.expand_dims(x, (0, 2)).reshape(*x.shape, 1)[..., 0],
}


def image(seed=0, shape=(7, 6, 2)):
  return jnp.asarray(np.random.default_rng(seed).uniform(size=shape))


def between(name):
  """A layer between two convolutions."""
  def f(x):
    return conv(LAYERS[name](jax.nn.relu(conv(x, 1, padding='SAME')), 3), 5, 2, padding=[(1, 0), (0, 1)])
  return f


# Moved, padded and joined as others of them are: these wait for `make test-all`.
ALIKE = {'same', 'dilated', 'point', 'tanh', 'cropped', 'residual', 'below', 'from the left', 'by columns', 'expanded'}


SEEDS = st.integers(0, 9)
NETWORKS = st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), SEEDS), min_size=1, max_size=6)


def network(layers, seed):
  """(network, image): layers by name and seed, then a convolution."""
  def f(x):
    for name, i in layers:
      x = LAYERS[name](x, i)
    return conv(x, seed)
  x = image(seed, (9, 8, 1))
  try:
    size = jax.eval_shape(f, x).size
  except TypeError:  # an image has become too small for a layer
    hypothesis.reject()
  hypothesis.assume(0 < size < 400)
  return f, x


def same(one, other):
  """Asserts that two intervals are equal up to rounding in double precision."""
  np.testing.assert_allclose(one.lower, other.lower, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(one.upper, other.upper, rtol=1e-9, atol=1e-9)
