"""Windows give what whole rows give, on every way that images are moved, padded, joined and convolved."""
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import holds, samples, waiting
from hypothesis import given
from images import ALIKE, AXES, LAYERS, NETWORKS, SEEDS, between, conv, image, network, same, weights
from interpreted import interpreted
from jax import lax

from ibpjax import crown, linf_ball, lp_ball
from ibpjax.core.program import trace
from ibpjax.engine.patches import moving_axes

pytestmark = pytest.mark.usefixtures('x64')

def whole(f, box):
  """Bounds of each element by rows with a coefficient for every element."""
  shape = jax.eval_shape(f, box.centre).shape
  n = int(np.prod(shape))
  found = crown(f, intermediate='ibp', rows=jnp.eye(n).reshape(n, *shape))(box)
  return jax.tree.map(lambda a: a.reshape(shape), found)


def agree(f, box):
  one, other = interpreted(lambda box: (crown(f, intermediate='ibp')(box), whole(f, box)))(box)
  same(one, other)


@pytest.mark.parametrize('name', waiting(LAYERS, ALIKE))
def test_each_layer_between_two_convolutions(name):
  agree(between(name), linf_ball(image(), .1))


@pytest.mark.parametrize('name', ['strided', *(pytest.param(n, marks=pytest.mark.slow) for n in ('residual', 'dense'))])
def test_balls(name):
  for set_ in (lp_ball(image(1), .2), lp_ball(image(2), .4, 1.)):
    agree(between(name), set_)


@given(NETWORKS, SEEDS)
@hypothesis.settings(max_examples=max(hypothesis.settings.default.max_examples // 10, 1))
def test_random_networks_of_images(layers, seed):
  f, x = network(layers, seed)
  box = linf_ball(x, .05)
  agree(f, box)
  points = samples(box, 50, seed)
  assert holds(interpreted(crown(f))(box), interpreted(jax.vmap(f))(points))


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
  found = interpreted(crown(f))(*boxes)
  points = [samples(b, 300, seed) for seed, b in enumerate(boxes)]
  assert holds(found, interpreted(jax.vmap(f))(*points))
  agree(lambda x: conv(x, 1) + conv(x, 1)[::-1] + conv(x, 2), linf_ball(x, .1))


def test_windows_cost_a_fraction_of_whole_rows():
  """The work of bounding a convolution by windows and by whole rows, as XLA counts it."""
  def f(x):
    return conv(jax.nn.relu(conv(x, 1, features=8)), 3, features=8)
  box = linf_ball(image(shape=(24, 24, 1)), .1)
  program, _, _ = trace(f, (box,), {})
  assert moving_axes(program, program.outputs[0]) == (0, 1)

  def cost(g):
    return jax.jit(g).lower(box).cost_analysis()['flops']
  # Loops over chunks are counted as one turn: all rows at a time, in both.
  by_windows = cost(crown(f, intermediate='ibp', chunk=10 ** 6))
  by_rows = cost(crown(f, intermediate='ibp', chunk=10 ** 6, rows=jnp.eye(20 * 20 * 8).reshape(-1, 20, 20, 8)))
  assert by_windows < by_rows / 20
