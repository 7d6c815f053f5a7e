"""Local forms give what whole forms give, on every way that images are moved, padded, joined and convolved."""
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import holds, samples, waiting
from hypothesis import given
from images import ALIKE, LAYERS, NETWORKS, SEEDS, between, conv, image, network, same
from interpreted import interpreted
from jax import lax

from ibpjax import Interval, adaptive, lbp, linear_bounds, linf_ball, lp_ball, tight
from ibpjax.engine.forms import PatchForm
from ibpjax.engine.forward import ForwardBounds
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import prepare

pytestmark = pytest.mark.usefixtures('x64')


def whole(f, **options):
  """`lbp` of f with whole forms: there is a second input, which nothing depends on."""
  def with_another(x, other):
    return f(x) + 0 * other
  return lambda x: lbp(with_another, **options)(x, Interval(jnp.zeros(()), jnp.ones(())))


def agree(f, x, **options):
  one, other = interpreted(lambda x: (lbp(f, **options)(x), whole(f, **options)(x)))(x)
  same(one, other)


def form_of(f, box):
  """The form of what a function returns, as it is stored."""
  prepared = prepare(f, (box,), {})
  boxes = IntervalPass(prepared.program, prepared.inputs, lines=tight)
  return ForwardBounds(boxes, {}).stored(prepared.program.outputs[0])


# Of these layers windows stay windows.
LOCAL = ['conv', 'same', 'strided', 'far padded', 'dilated', 'point', 'channels first', 'relu', 'tanh', 'product',
         'average pool', 'frame of ones', 'cropped', 'residual', 'short cut', 'gated', 'flat', 'by columns', 'turned',
         'expanded']


@pytest.mark.parametrize('name', waiting(LAYERS, ALIKE))
def test_each_layer_between_two_convolutions(name):
  agree(between(name), linf_ball(image(), .1))


@pytest.mark.parametrize('name', ['strided', *(pytest.param(n, marks=pytest.mark.slow) for n in ('residual', 'dense'))])
def test_balls_and_options(name):
  f = between(name)
  for set_ in (lp_ball(image(1), .2), lp_ball(image(2), .4, 1.)):
    agree(f, set_)
  agree(f, linf_ball(image(), .1), round_outward=True)
  agree(f, linf_ball(image(), .1), elide=False)


@pytest.mark.parametrize('name', LAYERS)
def test_windows_are_kept(name):
  def f(x):
    return LAYERS[name](conv(x, 1, padding='SAME'), 3)
  box = linf_ball(image(shape=(20, 20, 2)), .01)
  form = jax.eval_shape(lambda box: form_of(f, box), box)
  assert isinstance(form, PatchForm) == (name in LOCAL)
  if name in LOCAL:
    assert max(form.window[:2]) <= 7


@given(NETWORKS, SEEDS)
@hypothesis.settings(max_examples=max(hypothesis.settings.default.max_examples // 10, 1))
def test_random_networks_of_images(layers, seed):
  f, x = network(layers, seed)
  box = linf_ball(x, .05)
  agree(f, box)
  points = samples(box, 50, seed)
  assert holds(interpreted(lbp(f))(box), jax.vmap(f)(points))


@pytest.mark.parametrize('axes', [('NWC', 'WIO', 'NWC'), ('NDHWC', 'DHWIO', 'NDHWC'), ('CWN', 'OWI', 'WNC')])
def test_images_of_other_dimensions(axes):
  n = len(axes[0]) - 2
  kernels = [jax.random.normal(jax.random.key(i), [dict(I=1 + 2 * i, O=3 - i).get(name, 2) for name in axes[1]])
             for i in range(2)]

  def f(x):
    for kernel in kernels:
      x = lax.conv_general_dilated(jax.nn.relu(x), kernel, [2] * n, 'SAME', dimension_numbers=axes) - .1
      x = jnp.transpose(x, [axes[2].index(name) for name in axes[0]])
    return x
  agree(f, linf_ball(image(shape=[dict(N=1, C=1).get(name, 6) for name in axes[0]]) - .5, .1))


def test_examples_beside_each_other_have_windows_of_their_own():
  """A batch in one array: no form has coefficients for another example."""
  def f(x):
    return jax.nn.relu(jax.vmap(lambda x: conv(x, 1))(x))
  x = linf_ball(jnp.stack([image(i) for i in range(3)]), .1)
  assert jax.eval_shape(lambda x: form_of(f, x), x).window[0] == 1
  agree(f, x)


def test_results_without_elements():
  bounds = interpreted(lbp(lambda x: conv(x, 1).reshape(-1) @ jnp.zeros((40, 0)), elide=False))(linf_ball(image(), .1))
  assert bounds.lower.shape == (0,)


def test_linear_bounds_are_those_of_whole_inputs():
  def f(x):
    return jax.nn.relu(conv(jax.nn.relu(conv(x, 1)), 2)).sum((0, 1))
  x = linf_ball(image(), .1)
  found, bounds = interpreted(lambda x: (linear_bounds(f, method='lbp')(x), lbp(f, elide=False, lines=adaptive)(x)))(x)
  points = samples(x, 300)
  truth = interpreted(jax.vmap(f))(points)
  assert (interpreted(jax.vmap(found.lower))(points) <= truth + 1e-9).all()
  assert (truth <= interpreted(jax.vmap(found.upper))(points) + 1e-9).all()
  for line, end, sign in ((found.lower, bounds.lower, 1), (found.upper, bounds.upper, -1)):
    spread = .1 * jnp.abs(line.coeffs[0]).sum((1, 2, 3))
    np.testing.assert_allclose(line(x.centre) - sign * spread, end, rtol=1e-9, atol=1e-9)


def test_windows_cost_a_fraction_of_whole_forms():
  """The work of bounding convolutions by local and by whole forms, as XLA counts it."""
  def f(x):
    return conv(jax.nn.relu(conv(x, 1, features=8)), 3, features=8)
  box = linf_ball(image(shape=(24, 24, 1)), .1)

  def cost(g):
    return jax.jit(g).lower(box).cost_analysis()['flops']
  assert cost(lbp(f, elide=False)) < cost(whole(f, elide=False)) / 10
