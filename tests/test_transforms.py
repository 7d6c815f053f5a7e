"""Bounds compose: jit, vmap, grad, sharding, Flax both ways, perturbed parameters, lp balls."""
import functools

import chex
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import box_around, contains, holds, is_interval, samples
from flax import nnx
from interpreted import interpreted

import ibpjax
from ibpjax import Interval, crown, ibp, lbp, linf_ball, lp_ball, nn

KEY = jax.random.key(0)


class Net(nnx.Module):
  """Convolution, stock batch norm, dropout, residual, pooling: a small NNX network."""

  def __init__(self, rngs):
    self.conv, self.mix = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs), nnx.Conv(4, 4, (3, 3), rngs=rngs)
    self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(.5, rngs=rngs)
    self.out = nnx.Linear(16, 3, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    x = nnx.max_pool(nnx.leaky_relu(self.mix(x)) + x, (2, 2), (2, 2))
    return self.out(self.drop(x.reshape(x.shape[0], -1)))


class LinenNet(linen.Module):
  @linen.compact
  def __call__(self, x, train=False):
    x = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Conv(4, (3, 3), strides=2)(x)))
    x = linen.avg_pool(x, (2, 2), (1, 1)).reshape(x.shape[0], -1)
    return linen.Dense(3)(linen.sigmoid(linen.tanh(linen.Dense(8)(x))))


IMAGES = jax.random.normal(KEY, (4, 8, 8, 1))


def nnx_net():
  net = Net(nnx.Rngs(0))
  net(IMAGES)  # moves the running averages away from 0 and 1
  net.eval()
  return net


def check(bounds, f, box, relative=1e-5):
  values = interpreted(jax.vmap(f))(samples(box, 300))
  assert holds(bounds, values, relative)
  middle = shrunk_to_nothing(bounds)
  assert not holds(middle, values, 1e-7)


def shrunk_to_nothing(bounds):
  return jax.tree.map(lambda b: Interval(b.centre, b.centre), bounds, is_leaf=is_interval)


class Variants(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_bound_is_the_same_compiled_and_not(self):
    """Alone finds a method that looks at values where there are some, and goes another way."""
    w, x = jnp.asarray([[1., -2.], [.5, 1.]]), jnp.asarray([.3, -.2])
    for method in (ibp, lbp, crown, ibpjax.zonotope):
      bound = self.variant(method(lambda x: jax.nn.relu(w @ x)))(linf_ball(x, .5))
      expected = interpreted(method(lambda x: jax.nn.relu(w @ x)))(linf_ball(x, .5))
      chex.assert_trees_all_close((bound.lower, bound.upper), (expected.lower, expected.upper), atol=1e-6)


def test_nnx_module_as_argument_closure_and_split_merge():
  net, box = nnx_net(), box_around(IMAGES, .05)
  graphdef, state = nnx.split(net)
  argument = interpreted(ibp(lambda m, x: m(x)))(net, box)
  jitted = jax.jit(ibp(lambda m, x: m(x)))(net, box)
  closure = interpreted(ibp(net))(box)
  merged = jax.jit(ibp(lambda s, x: nnx.merge(graphdef, s)(x)))(state, box)
  for other in (jitted, closure, merged):
    np.testing.assert_allclose(argument.lower, other.lower, rtol=1e-4, atol=1e-5)
  check(argument, net, box)


def test_nnx_module_in_training_mode_inside_of_a_closure_says_what_to_do():
  net = Net(nnx.Rngs(0))
  with pytest.raises(Exception, match='trace level') as e:
    ibp(net)(box_around(IMAGES, .05))
  assert 'model.eval()' in ''.join(e.value.__notes__)


@pytest.mark.usefixtures('promotion')
def test_linen_apply():
  net = LinenNet()
  variables = net.init(KEY, IMAGES)
  box = box_around(IMAGES, .05)
  bounds = interpreted(ibp(net.apply))(variables, box)
  check(bounds, lambda x: net.apply(variables, x), box)


@pytest.mark.usefixtures('promotion')
def test_linen_batch_statistics_of_the_clean_batch_enter_as_known_values():
  net = LinenNet()
  variables = net.init(KEY, IMAGES)
  _, updated = net.apply(variables, IMAGES, train=True, mutable=['batch_stats'])
  box = box_around(IMAGES, .05)
  bounds = interpreted(ibp(net.apply))(variables | updated, box)
  check(bounds, lambda x: net.apply(variables | updated, x), box)


def test_a_batch_by_vmap_equals_a_batch_inside_and_a_loop():
  net, box = nnx_net(), box_around(IMAGES, .05)
  one = ibpjax.batched(lambda m, x: m(x))
  inside = interpreted(ibp(lambda m, x: m(x)))(net, box)
  mapped = interpreted(jax.vmap(ibp(one), (None, 0)))(net, box)
  loop = [interpreted(ibp(one))(net, Interval(box.lower[i], box.upper[i])) for i in range(4)]
  for i in range(4):
    np.testing.assert_allclose(inside.lower[i], loop[i].lower, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mapped.upper[i], loop[i].upper, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('elide', [False, True])
def test_sharded_equals_local(elide):
  net, box = nnx_net(), box_around(IMAGES, .05)
  bound = jax.jit(jax.vmap(ibp(ibpjax.batched(lambda m, x: m(x)), elide=elide), (None, 0)))
  local = bound(net, box)
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.device_put(box, jax.NamedSharding(mesh, jax.P('data')))
  sharded = bound(net, spread)
  assert len(sharded.lower.sharding.device_set) == 2
  np.testing.assert_allclose(local.lower, sharded.lower, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('method', [ibp, crown, functools.partial(lbp, round_outward=True)])
def test_bounds_under_pmap_are_those_under_vmap(method):
  ws, box = random_weights(0), box_around(jnp.linspace(-1, 1, 8, dtype=jnp.float32).reshape(2, 4), .1)
  bound = method(mlp)
  mapped, spread = interpreted(jax.vmap(bound, (None, 0)))(ws, box), jax.pmap(bound, in_axes=(None, 0))(ws, box)
  assert len(spread.lower.sharding.device_set) == 2
  np.testing.assert_allclose(mapped.lower, spread.lower, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(mapped.upper, spread.upper, rtol=1e-5, atol=1e-6)


def test_certificates_under_pmap_are_those_of_the_batch():
  ws, xs = random_weights(0), jnp.linspace(0, 1, 16, dtype=jnp.float32).reshape(2, 2, 4)
  labels = interpreted(jax.vmap(jax.vmap(lambda x: jnp.argmax(mlp(ws, x)))))(xs)
  spread = jax.pmap(lambda xs, labels: ibpjax.certify(mlp, ws, xs, labels, .01))(xs, labels)
  whole = ibpjax.certify(mlp, ws, xs.reshape(4, 4), labels.ravel(), .01)
  np.testing.assert_allclose(spread.lower.reshape(whole.lower.shape), whole.lower, rtol=1e-5, atol=1e-6)
  assert spread.verified.any()


def mlp(ws, x, act=jax.nn.relu):
  for w in ws[:-1]:
    x = act(w @ x + .1)
  return ws[-1] @ x


def random_weights(seed, dtype=None):
  keys = jax.random.split(jax.random.key(seed), 3)
  return [jax.random.normal(k, s, dtype) / 2 for k, s in zip(keys, [(5, 4), (5, 5), (3, 5)])]


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('elide', [False, True])
@pytest.mark.parametrize('act', [jax.nn.relu, jnp.tanh, jax.nn.softplus, jax.nn.leaky_relu, jnp.abs, jnp.square,
                                 lambda x: jnp.where(x > .2, x, 2 * x), lambda x: x * jnp.exp(x) / (2 + jnp.abs(x))])
def test_gradients_equal_finite_differences(act, elide):
  x, direction = jnp.array([.3, -.2, .5, .9]), random_weights(9, jnp.float64)

  def loss(t, eps):
    ws = [a + t * b for a, b in zip(random_weights(1, jnp.float64), direction)]
    bounds = ibp(lambda ws, x: mlp(ws, x, act), elide=elide)(ws, box_around(x, eps))
    return (bounds.lower * jnp.arange(1., 4)).sum() - (bounds.upper * jnp.arange(2., 5)).sum()

  both, at, h = interpreted(jax.value_and_grad(loss, (0, 1))), (.05, .2), 1e-6
  _, slopes = both(*at)
  for i, slope in enumerate(slopes):
    plus, minus = (tuple(v + s * h * (i == j) for j, v in enumerate(at)) for s in (1, -1))
    np.testing.assert_allclose(slope, (both(*plus)[0] - both(*minus)[0]) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize('elide', [False, True])
def test_gradients_are_finite_on_dead_units_ties_and_at_radius_zero(elide):
  dead = [jnp.zeros((5, 4)), -jnp.ones((5, 5)), jnp.ones((3, 5))]
  for ws in (dead, random_weights(0)):
    for eps in (0., .1):
      loss = lambda ws, e: ibp(mlp, elide=elide)(ws, box_around(jnp.zeros(4), e)).lower.sum()
      gradient = interpreted(jax.grad(loss, (0, 1)))(ws, eps)
      assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))


def test_the_gradient_at_a_tie_is_that_of_relu():
  got = jax.grad(lambda z: ibp(jax.nn.relu)(Interval(z, z)).lower)(jnp.float32(0.))
  assert got == jax.grad(jax.nn.relu)(0.) == 0.


@pytest.mark.usefixtures('x64')
def test_gradients_through_batch_norm_statistics_equal_finite_differences():
  xs = jax.random.normal(KEY, (6, 4), jnp.float64)
  norm = nn.BatchNorm(5)
  norm = jax.tree.map(lambda v: v.astype(jnp.float64), norm)

  def loss(w):
    stats = norm.statistics(xs @ w)
    bounds = ibp(lambda w, stats, x: jax.nn.relu(norm(x @ w, stats)) ** 2)(w, stats, box_around(xs, .1))
    return (bounds.lower + 2 * bounds.upper).sum()

  w = jax.random.normal(jax.random.key(1), (4, 5), jnp.float64)
  d = jax.random.normal(jax.random.key(2), (4, 5), jnp.float64)
  both = interpreted(jax.value_and_grad(loss))
  difference = (both(w + 1e-6 * d)[0] - both(w - 1e-6 * d)[0]) / 2e-6
  np.testing.assert_allclose(np.vdot(both(w)[1], d), difference, rtol=1e-6)


def test_gradients_through_straight_through_weights_equal_plain_jax():
  def quantised(w):
    return w + jax.lax.stop_gradient(jnp.round(w * 4) / 4 - w)

  class Quantised(linen.Module):
    @linen.compact
    def __call__(self, x):
      w = self.param('w', linen.initializers.normal(1.), (4, 3))
      return linen.relu(x @ quantised(w)) + x @ jax.lax.stop_gradient(w)

  x = jnp.array([[.3, -.2, .5, .9]])
  net = Quantised()
  variables = net.init(KEY, x)
  got = interpreted(jax.grad(lambda v: ibp(net.apply)(v, Interval(x, x)).upper.sum()))(variables)
  want = interpreted(jax.grad(lambda v: net.apply(v, x).sum()))(variables)
  np.testing.assert_allclose(got['params']['w'], want['params']['w'], rtol=1e-5)
  assert np.any(np.asarray(want['params']['w']))


def test_parameters_may_be_perturbed_too():
  net = nn.mlp((5,), input_shape=(4,), classes=3, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(net)
  x = jnp.ones((1, 4)) / 2
  f = lambda p, x: nnx.merge(graphdef, p)(x)
  boxes = jax.tree.map(lambda p: box_around(p, .01), params)
  bounds = interpreted(ibp(f))(boxes, box_around(x, .1))
  rng = np.random.default_rng(0)
  for _ in range(200):
    draw = lambda b: b.lower + b.width * rng.choice([0., rng.uniform(), 1.], b.shape).astype(np.float32)
    value = f(jax.tree.map(draw, boxes, is_leaf=is_interval), draw(box_around(x, .1)))
    assert bool(jnp.all((value >= bounds.lower - 1e-6) & (value <= bounds.upper + 1e-6)))
  assert contains(bounds, interpreted(ibp(f))(params, box_around(x, .1)))
  assert bounds.width.max() < 1.


@pytest.mark.usefixtures('x64')
def test_jacobian_of_a_relu_network_is_bounded():
  ws = random_weights(3, jnp.float64)
  f = jax.jacrev(lambda x: mlp(ws, x))
  x = jnp.array([.3, -.2, .5, .9])
  for radius in (1e-4, .05, .5):
    box = box_around(x, radius)
    bounds = interpreted(ibp(f))(box)
    assert holds(bounds, interpreted(jax.vmap(f))(samples(box, 600)))
  assert bounds.width.max() > .1  # some unit switched
  tiny = interpreted(ibp(f))(box_around(x, 1e-9))
  np.testing.assert_allclose(tiny.lower, f(x), atol=1e-9)


@pytest.mark.usefixtures('x64')
def test_jacobian_of_a_convolutional_network_is_bounded():
  net = nnx_net()
  net = jax.tree.map(lambda v: v.astype(jnp.float64) if v.dtype == jnp.float32 else v, net)
  f = jax.jacrev(lambda x: nn.flatten(jax.nn.relu(net.mix(jax.nn.relu(net.conv(x[None])))))[0, :3])
  box = box_around(IMAGES[0].astype(jnp.float64), .02)
  bounds = interpreted(ibp(f))(box)
  values = jax.lax.map(f, samples(box, 100))
  assert holds(bounds, values)
  assert bounds.width.max() > 0


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('p', [1., 1.5, 2., 4., np.inf])
@pytest.mark.parametrize('elide', [False, True])
def test_lp_balls_use_the_dual_norm_in_the_first_affine_map(p, elide):
  ws, x, eps = random_weights(3, jnp.float64), jnp.array([.3, -.2, .5, .9]), .3
  ball = lp_ball(x, eps, p)
  exact = interpreted(ibp(lambda x: ws[0] @ x + 1., elide=elide))(ball)
  q = 1. if p == np.inf else np.inf if p == 1 else p / (p - 1)
  reach = eps * np.linalg.norm(np.asarray(ws[0]), q, axis=1)
  np.testing.assert_allclose(exact.lower, ws[0] @ x + 1 - reach, rtol=1e-10)
  np.testing.assert_allclose(exact.upper, ws[0] @ x + 1 + reach, rtol=1e-10)
  rng = np.random.default_rng(0)
  d = rng.normal(size=(3000, 4)) * (rng.uniform(size=(3000, 4)) < .6)
  d = eps * d / np.maximum(np.linalg.norm(d, p, axis=1, keepdims=True), 1e-9)
  values = interpreted(jax.vmap(lambda x: mlp(ws, x)))(x[None] + d)
  deep = interpreted(ibp(lambda x: mlp(ws, x), elide=elide))(ball)
  assert holds(deep, values)
  assert contains(interpreted(ibp(lambda x: mlp(ws, x), elide=elide))(linf_ball(x, eps)), deep)


def test_elision_merges_margins_with_the_last_layer():
  net = nn.mlp((20, 20), input_shape=(6,), classes=4, rngs=nnx.Rngs(0))
  x, label = jnp.linspace(0, 1, 6), jnp.int32(2)
  f = lambda net, x: ibpjax.margins(net(x[None])[0], label)
  plain, elided = interpreted(ibp(f))(net, linf_ball(x, .1)), interpreted(ibp(f, elide=True))(net, linf_ball(x, .1))
  assert bool(jnp.all(elided.lower > plain.lower + .1 * plain.width))
  check(elided, lambda x: f(net, x), linf_ball(x, .1))
  last = net.layers[-1]
  hidden = interpreted(ibp(lambda x: nn.Sequential(list(net.layers)[:-1])(x[None])[0]))(linf_ball(x, .1))
  rows = np.stack([last.kernel[:, 2] - last.kernel[:, j] for j in (0, 1, 3)])
  bias = np.stack([last.bias[2] - last.bias[j] for j in (0, 1, 3)])
  by_hand = rows @ hidden.centre + bias - np.abs(rows) @ hidden.radius
  np.testing.assert_allclose(elided.lower, by_hand, rtol=1e-4, atol=1e-5)


def test_a_weight_of_zero_still_has_a_gradient():
  """ReZero, LayerScale and zero-initialised batch norm start there."""
  box = Interval(jnp.full(1, .9), jnp.full(1, 1.1))
  loss = lambda w: ibp(lambda x: jax.nn.relu(x + w * jnp.tanh(x)))(box).lower.sum()
  assert float(interpreted(jax.grad(loss))(0.)) == pytest.approx(float(jnp.tanh(.9)), rel=1e-5)
  both = lambda l: ibp(lambda x, y: x * y)(Interval(l, l + 1), Interval(jnp.full(1, 2.), jnp.full(1, 3.))).upper.sum()
  assert float(interpreted(jax.grad(both))(jnp.zeros(1))[0]) == pytest.approx(3.)
