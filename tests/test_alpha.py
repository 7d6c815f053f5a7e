"""alpha-CROWN: sound at any slopes, never looser than its start, tighter where slopes can be exchanged."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import box_around, contains, holds, samples
from images import LAYERS, conv, image, same
from interpreted import interpreted
from networks import ACTIVATIONS, convolutional, dense, random_network, residual, shallow

from ibpjax import Interval, adaptive, alpha_crown, crown, ibp, linf_ball, lp_ball, tight
from ibpjax.engine.prepare import prepare
from ibpjax.methods.alpha_crown import SlopeBounds, _descend, _tightest, total_width

pytestmark = pytest.mark.usefixtures('x64')
ALL = ACTIVATIONS | {'tanh': jnp.tanh, 'product': lambda z: z * jnp.flip(jnp.maximum(z, .1))}
CASES = [(dense, 'relu'), (shallow, 'product'),
         *(pytest.param(*case, marks=pytest.mark.slow) for case in (
             (dense, 'product'), (residual, 'relu'), (convolutional, 'ramp')))]


def relu_network(params, x):
  return shallow(params, x, jax.nn.relu)


@pytest.mark.parametrize(('network', 'activation'), CASES)
def test_sound_and_never_looser_than_its_start(network, activation):
  def f(params, x):
    return network(params, x, ALL[activation])
  both = interpreted(lambda params, box: (alpha_crown(f, steps=8)(params, box), crown(f)(params, box)))
  values = interpreted(jax.vmap(f, (None, 0)))
  gained = []
  for seed in range(4):
    params, x = random_network(network, seed)
    box = box_around(x, (.05, .2, .5)[seed % 3])
    found, before = both(params, box)
    assert contains(before, found, 1e-12)
    assert holds(found, values(params, samples(box, 3000, seed)))
    gained.append(float(1 - found.width.sum() / before.width.sum()))
  assert max(gained) > .005


@pytest.mark.parametrize('most', [0, 1 << 22])
@pytest.mark.parametrize('activation', [jax.nn.relu, jnp.tanh])
def test_sound_at_any_slopes(activation, most, monkeypatch):
  monkeypatch.setattr('ibpjax.methods.alpha_crown._MOST_OWN', most)
  f = functools.partial(dense, activation=activation)
  rng = np.random.default_rng(0)
  params, x = random_network(dense, 1)
  box = box_around(x, .3)
  points = interpreted(jax.vmap(f, (None, 0)))(params, samples(box, 3000))
  prepared = prepare(f, (params, box), {})
  inputs, slopes = prepared.inputs, SlopeBounds(prepared.program, adaptive, None, {})
  (start, _), shares = interpreted(slopes.start)(inputs)
  run = interpreted(lambda shares: slopes.run(inputs, shares)[0])
  for low, high in ((0, 1), (0, 1), (-3, 4)):
    bounds = run(jax.tree.map(lambda t, low=low, high=high: jnp.asarray(rng.uniform(low, high, t.shape)), shares))
    assert holds(bounds, [points])
    assert not np.allclose(bounds[0].lower, start[0].lower)


def test_slopes_of_their_own_are_worth_more_than_shared_ones(monkeypatch):
  params, x = random_network(shallow, 0)
  box = box_around(x, .5)
  own = interpreted(alpha_crown(relu_network))(params, box)
  monkeypatch.setattr('ibpjax.methods.alpha_crown._MOST_OWN', 0)
  shared = interpreted(alpha_crown(relu_network))(params, box)
  assert own.width.sum() < .99 * shared.width.sum() < .99 * interpreted(crown(relu_network))(params, box).width.sum()


@pytest.mark.parametrize('layer', ['conv', pytest.param('residual', marks=pytest.mark.slow)])
def test_slopes_for_windows_give_what_slopes_for_whole_images_give(layer, monkeypatch):
  def f(x):
    return conv(jax.nn.relu(LAYERS[layer](jax.nn.relu(conv(x, 1)), 3)), 5, 2)
  box = linf_ball(image(), .3)
  prepared = prepare(f, (box,), {})

  def shares():
    _, found = jax.eval_shape(SlopeBounds(prepared.program, adaptive, None, {}).start, prepared.inputs)
    return sum(t.size for t in jax.tree.leaves(found))
  found, count = interpreted(alpha_crown(f, steps=4))(box), shares()
  assert float(found.width.sum()) < float(interpreted(crown(f))(box).width.sum())
  monkeypatch.setattr('ibpjax.methods.alpha_crown._by_windows', lambda *_: False)
  same(found, interpreted(alpha_crown(f, steps=4))(box))
  assert count < .8 * shares()


def test_an_objective_says_what_is_wanted():
  f = relu_network
  params, x = random_network(shallow, 3)
  box = box_around(x, .4)
  def low(bounds):
    return -jnp.minimum(bounds.lower, 1).sum()
  before, both, lower = (interpreted(m)(params, box) for m in (
      crown(f), alpha_crown(f, steps=50), alpha_crown(f, steps=50, objective=low)))
  assert low(lower) < low(both) < low(before)


def test_the_tightest_of_all_steps_counts():
  """At a rate at which the last step is far worse than the first."""
  params, x = random_network(shallow, 2)
  box = box_around(x, .4)
  wild = interpreted(alpha_crown(relu_network, steps=4, optimizer=optax.sgd(1e3)))(params, box)
  assert contains(interpreted(crown(relu_network))(params, box), wild, 1e-12)


def test_intermediate_bounds():
  params, x = random_network(shallow, 4)
  box = box_around(x, .4)
  bounds, inside = interpreted(alpha_crown(relu_network, intermediates=True))(params, box)
  start, before = interpreted(crown(relu_network, intermediates=True))(params, box)
  assert inside.bounds.keys() == before.bounds.keys()
  assert all(contains(before.bounds[i], inside.bounds[i], 1e-12) for i in before.bounds)
  by_ibp = interpreted(alpha_crown(relu_network, intermediate='ibp'))(params, box)
  assert contains(by_ibp, bounds, 1e-12)
  assert contains(interpreted(crown(relu_network, intermediate='ibp'))(params, box), by_ibp, 1e-12)
  assert contains(start, interpreted(alpha_crown(relu_network, intermediate=before))(params, box), 1e-12)


def test_transformations_compose():
  params, x = random_network(shallow, 3)
  boxes = linf_ball(jnp.stack([x, -x, 2 * x]), .3)
  method = alpha_crown(relu_network, steps=3, lines=tight, chunk=4)
  batched = interpreted(jax.vmap(method, (None, 0)))(params, boxes)
  one = interpreted(method)(params, Interval(boxes.lower[1], boxes.upper[1]))
  np.testing.assert_allclose(batched.lower[1], one.lower, rtol=1e-9)
  np.testing.assert_allclose(batched.upper[1], one.upper, rtol=1e-9)


def test_gradients_are_those_of_the_last_slopes():
  params, x = random_network(shallow, 3)
  box = box_around(x, .3)
  prepared = prepare(relu_network, (params, box), {})
  inputs, slopes = prepared.inputs, SlopeBounds(prepared.program, adaptive, None, {})
  leaves, tree = jax.tree.flatten(inputs, is_leaf=lambda v: isinstance(v, Interval))

  def of_slopes(w):
    best, shares = slopes.start(inputs)

    def loss(s):
      found = slopes.run(inputs, s)
      return total_width(found[0]), found
    shares, _ = _descend(loss, optax.adam(.25), 3, shares, best)
    return total_width(slopes.run(jax.tree.unflatten(tree, [w, *leaves[1:]]), shares)[0])

  def optimised(w):
    method = alpha_crown(relu_network, steps=3, optimizer=optax.adam(.25))
    return method([(w, params[0][1]), *params[1:]], box).width.sum()
  found = interpreted(jax.grad(optimised))(leaves[0])
  np.testing.assert_allclose(found, interpreted(jax.grad(of_slopes))(leaves[0]), rtol=1e-6, atol=1e-9)
  assert np.abs(found).max() > .1


@pytest.mark.parametrize('inside', [jax.nn.relu, pytest.param(jnp.tanh, marks=pytest.mark.slow)])
def test_balls_loops_and_functions_without_slopes(inside):
  params, x = random_network(shallow, 1)
  ball = lp_ball(x, .3, 2.)
  found = interpreted(alpha_crown(relu_network, steps=3))(params, ball)
  assert contains(interpreted(crown(relu_network))(params, ball), found, 1e-12)

  def loop(x):
    return jax.lax.scan(lambda c, _: (inside(c[::-1] + x), jax.nn.relu(c)), jax.nn.relu(x), length=3)
  box = box_around(x, .2)
  found = interpreted(alpha_crown(loop, steps=3))(box)
  assert contains(interpreted(crown(loop))(box), found, 1e-12)
  assert holds(found, interpreted(jax.vmap(loop))(samples(box, 2000)))
  affine = interpreted(alpha_crown(lambda x: (3 * x, x[0] - x[1])))(box)
  assert contains(affine, interpreted(ibp(lambda x: (3 * x, x[0] - x[1]), elide=True))(box), 1e-12)


def test_bad_arguments():
  with pytest.raises(ValueError, match='steps is 0'):
    alpha_crown(relu_network, steps=0)
  with pytest.raises(ValueError, match='intermediate is'):
    alpha_crown(relu_network, intermediate='interval')


def test_bounds_of_the_best_step_are_kept_to_the_last_bit():
  """Where the last step is worse by orders of magnitude, or infinite, the best must not be rounded beside it."""
  for last in (1e8, np.inf):
    for best in (3., 5.):
      bound = _tightest(Interval(jnp.float32(-last), jnp.float32(last)), Interval(jnp.float32(-best),
                                                                                        jnp.float32(best)))
      assert (float(bound.lower), float(bound.upper)) == (-best, best)
  def f(x):
    return jnp.exp(x[0]) + jnp.exp(-x[1]) - 1.
  l, u = (jnp.asarray(a, jnp.float32) for a in ([-48.01, -22.66], [13.77, 43.09]))
  for options in (dict(), dict(objective=lambda b: b.lower, round_outward=True)):
    bound = interpreted(alpha_crown(f, steps=6, **options))(Interval(l, u))
    assert float(bound.lower) <= float(jnp.exp(l[0]) + jnp.exp(-u[1]) - 1)


def test_casts_predicates_and_mixed_precisions():
  w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
  def f(x):
    y = jax.nn.relu(jax.nn.relu(w @ x).astype(jnp.bfloat16)).astype(jnp.float32)
    return y > 0, y, (y * 2).astype(jnp.bfloat16)
  box = box_around(jnp.asarray([.3, -.2, .1], jnp.float32), jnp.float32(.2))
  found, start = interpreted(alpha_crown(f, steps=2))(box), interpreted(crown(f))(box)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True):
    assert a.dtype == b.dtype
  assert contains(start[1], found[1], 1e-6)


@pytest.mark.parametrize('outputs', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_scans_in_chunks(outputs):
  w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
  def f(x):
    h, _ = jax.lax.scan(lambda c, _: (jax.nn.relu(c @ w - .1), None), jax.nn.relu(x), None, length=2)
    z = jax.nn.relu(h - .2)
    return [z - h, h[:1] * 3 - z[:1]][:outputs]
  box = box_around(jnp.asarray([.3, -.2, .1, .5]), .2)
  found = interpreted(alpha_crown(f, steps=1, chunk=1))(box)
  assert contains(interpreted(crown(f))(box), found, 1e-12)
