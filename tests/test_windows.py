"""Windows give what whole rows give, on every way that images are moved, padded, joined and convolved."""
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import holds, samples
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from ibpjax import crown, linf_ball, lp_ball
from ibpjax.program import trace
from ibpjax.windows import moving_axes

pytestmark = pytest.mark.usefixtures('x64')

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
    'turned': lambda x, i: x.transpose(1, 0, 2),
    'dense': lambda x, i: x + weights(i, *x.shape) * jnp.sum(x * weights(i + 1, *x.shape)),
    'expanded': lambda x, i: jnp.expand_dims(x, (0, 2)).reshape(*x.shape, 1)[..., 0],
}


def whole(f, box):
  """Bounds of each element by rows with a coefficient for every element."""
  shape = jax.eval_shape(f, box.centre).shape
  n = int(np.prod(shape))
  found = crown(f, intermediate='ibp', rows=jnp.eye(n).reshape(n, *shape))(box)
  return jax.tree.map(lambda a: a.reshape(shape), found)


def agree(f, box):
  one, other = jax.jit(lambda box: (crown(f, intermediate='ibp')(box), whole(f, box)))(box)
  np.testing.assert_allclose(one.lower, other.lower, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(one.upper, other.upper, rtol=1e-9, atol=1e-9)


def image(seed=0, shape=(7, 6, 2)):
  return jnp.asarray(np.random.default_rng(seed).uniform(size=shape))


@pytest.mark.parametrize('name', LAYERS)
def test_each_layer_between_two_convolutions(name):
  def f(x):
    return conv(LAYERS[name](jax.nn.relu(conv(x, 1, padding='SAME')), 3), 5, 2, padding=[(1, 0), (0, 1)])
  for set_ in (linf_ball(image(), .1), lp_ball(image(1), .2), lp_ball(image(2), .4, 1.)):
    agree(f, set_)


@given(st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(0, 9)), min_size=1, max_size=6),
       st.integers(0, 9))
@hypothesis.settings(max_examples=20)
def test_random_networks_of_images(layers, seed):
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
  box = linf_ball(x, .05)
  agree(f, box)
  points = samples(box, 50, seed)
  assert holds(jax.jit(crown(f))(box), jax.vmap(f)(points))


@pytest.mark.parametrize('axes', [('NWC', 'WIO', 'NWC'), ('NDHWC', 'DHWIO', 'NDHWC')])
def test_images_of_other_dimensions(axes):
  n = len(axes[0]) - 2

  def f(x):
    for seed, channels in ((1, 3), (2, 2)):
      kernel = weights(seed, *[2] * n, x.shape[-1], channels)
      x = lax.conv_general_dilated(jax.nn.relu(x)[None], kernel, [2] * n, 'SAME', dimension_numbers=axes)[0] - .1
    return x
  agree(f, linf_ball(image(shape=(*[6] * n, 1)) - .5, .1))


def test_images_seen_twice_and_kernels_that_are_perturbed():
  x, kernel = image(), weights(1, 3, 3, 2, 2)

  def f(x, kernel):
    y = lax.conv_general_dilated(x[None], kernel, (1, 1), 'SAME', dimension_numbers=AXES)[0]
    return conv(jax.nn.relu(y), 3)
  boxes = linf_ball(x, .02), linf_ball(kernel, .02)
  found = crown(f)(*boxes)
  points = [samples(b, 300, seed) for seed, b in enumerate(boxes)]
  assert holds(found, jax.vmap(f)(*points))
  agree(lambda x: conv(x, 1) + conv(x, 1)[::-1] + conv(x, 2), linf_ball(x, .1))


def test_windows_cost_a_fraction_of_whole_rows():
  """The work of bounding a convolution by windows and by whole rows, as XLA counts it."""
  def f(x):
    return conv(jax.nn.relu(conv(x, 1, features=8)), 3, features=8)
  box = linf_ball(image(shape=(24, 24, 1)), .1)
  program, _, _ = trace(f, (box,), {})
  assert moving_axes(program, program.outputs[0]) == (0, 1)

  def cost(g):
    return jax.jit(g).lower(box).compile().cost_analysis()['flops']
  # Loops over chunks are counted as one turn: all rows at a time, in both.
  by_windows = cost(crown(f, intermediate='ibp', chunk=10 ** 6))
  by_rows = cost(crown(f, intermediate='ibp', chunk=10 ** 6, rows=jnp.eye(20 * 20 * 8).reshape(-1, 20, 20, 8)))
  assert by_windows < by_rows / 20
