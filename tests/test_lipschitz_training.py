"""Lipschitz training: losses against worked numbers, estimates below bounds, radii that attacks cannot break."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interpreted import interpreted

from ibpjax import nn
from ibpjax.methods.lipschitz import LipschitzBound, lipschitz
from ibpjax.methods.lipschitz_estimates import lipschitz_estimate
from ibpjax.training import lipschitz_losses as losses
from ibpjax.training.attacks import pgd_l2_by_steps
from ibpjax.verification.radii import certified_lipschitz_radii, lipschitz_radii, logit_errors, verified_accuracy

pytestmark = pytest.mark.usefixtures('x64')
HEAD = np.array([[1., 0.], [0., 1.], [-.6, .8]])


def worked():
  """(logits, labels, pairs, eps) of the example: features of constant 2, rows (1, 0), (0, 1), (-.6, .8)."""
  pairs = 2 * jnp.linalg.norm(HEAD[:, None] - HEAD[None], axis=-1)
  return jnp.array([[2., 1.5, -3.]]), jnp.array([0]), pairs, .3


def test_worked_numbers():
  logits, labels, pairs, eps = worked()
  assert float(losses.emma_loss(logits, labels, pairs, eps)) == pytest.approx(.702953, abs=1e-6)
  np.testing.assert_allclose(losses.emma_logits(logits, labels, pairs, eps)[0], [0, 0, -3.926687], atol=1e-6)
  assert float(losses.bottom(logits, pairs, eps)[0]) == pytest.approx(2.348528, abs=1e-6)
  assert float(losses.gloro_loss(logits, labels, pairs, eps)) == pytest.approx(1.108645, abs=1e-6)
  trades = losses.gloro_trades_loss(logits, labels, pairs, eps)
  assert float(trades) == pytest.approx(.478262 + .630382, abs=2e-6)
  kl = lambda p, q: float(jnp.sum(jnp.exp(p) * (p - q)))
  with_bottom = jax.nn.log_softmax(jnp.append(logits[0], losses.bottom(logits, pairs, eps)))
  assert kl(jax.nn.log_softmax(logits[0]), with_bottom[:3]) == pytest.approx(.630382, abs=1e-6)
  fixed = np.array([0, -.5 + .848528, -5 + 1.073313])
  assert float(losses.margin_loss(logits, labels, pairs, eps)) == pytest.approx(np.log(np.exp(fixed).sum()), abs=1e-5)


def test_emma_gives_a_class_no_more_than_the_boundary_and_its_radius_no_gradient():
  logits, labels, pairs, _ = worked()
  for eps in (.01, .3, 10.):
    z = losses.emma_logits(logits, labels, pairs, eps)
    assert float(z.max()) <= 1e-12
  gradient = interpreted(jax.grad(lambda k: losses.emma_logits(logits, labels, k, .3)[0, 1]))(pairs)
  assert float(gradient[0, 1]) == pytest.approx(.589256 * .3, abs=1e-6)
  by_logits = interpreted(jax.jacobian(lambda z: losses.emma_logits(z, labels, pairs, .3)[0]))(logits)[:, 0]
  np.testing.assert_allclose(by_logits, [[0, 0, 0], [-1, 1, 0], [-1, 0, 1]])  # of the differences alone
  wrong = losses.emma_logits(logits, jnp.array([2]), pairs, .3)
  assert float(wrong[0, 0]) == pytest.approx(5 + .01 * .3 * float(pairs[2, 0]))


def test_annealing_counts_sure_examples_less():
  logits, labels = jnp.array([[9., 0., 0.]]), jnp.array([0])
  p = np.exp(7 / .75) / (np.exp(7 / .75) + 2)
  assert float(losses.annealed_loss(logits, labels)) == pytest.approx(.75 * (1 - p) ** 5 * -np.log(p), rel=1e-6)
  assert float(losses.annealed_loss(logits, labels)) < 1e-6 * float(losses.annealed_loss(0 * logits, labels))


def network(params, x):
  first, second, head = params
  x = jnp.maximum(first @ x, 0)
  a, b = jnp.split(x + second @ x, 2)
  return head @ jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b)])


def params_of(seed, head=3):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=s) / s[1] ** .5) for s in ((8, 5), (8, 8), (head, 8))]


def test_estimates_are_below_bounds_and_come_near():
  params, x = params_of(0), jnp.zeros(5)
  bound = lipschitz(network)(params, x)
  run = interpreted(lipschitz_estimate(network, steps=3))
  found, state = run(jax.random.key(0), params, x)
  previous = 0.
  for _ in range(60):
    assert previous * (1 - 1e-9) <= float(found.value) <= bound.value
    previous = float(found.value)
    found, state = run(state, params, x)
  assert previous == pytest.approx(bound.value, rel=1e-3)
  assert np.all(np.asarray(found.pairs) <= bound.pairs + 1e-12)
  np.testing.assert_allclose(found.pairs, bound.pairs, rtol=1e-3, atol=1e-12)


def test_derivatives_of_estimates_are_finite_differences():
  params, x = params_of(1), jnp.zeros(5)
  _, state = interpreted(lipschitz_estimate(network, steps=3000))(jax.random.key(0), params, x)
  direction = params_of(2)

  def value(t):
    moved = jax.tree.map(lambda a, d: a + t * d, params, direction)
    found, _ = lipschitz_estimate(network, steps=300)(state, moved, x)
    return found.value + found.pairs.sum()
  both, h = interpreted(jax.value_and_grad(value)), 1e-6
  np.testing.assert_allclose(both(0.)[1], (both(h)[0] - both(-h)[0]) / (2 * h), rtol=1e-5)
  zero = jax.tree.map(jnp.zeros_like, params)
  pairs = lambda p: lipschitz_estimate(network)(jax.random.key(0), p, x)[0].pairs.sum()
  gradient = interpreted(jax.grad(pairs))(zero)
  assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))


def trained_by_emma(f, params, xs, labels, eps, length):
  """The parameters of a network after so many steps of EMMA."""
  optimizer, estimate = optax.adam(1e-2), lipschitz_estimate(f, steps=5)

  @interpreted
  def run(params):
    def step(carry, _):
      params, moments, state = carry

      def loss(params):
        found, new = estimate(state, params, xs[0])
        return losses.emma_loss(jax.vmap(f, (None, 0))(params, xs), labels, found.pairs, eps), new
      gradient, state = jax.grad(loss, has_aux=True)(params)
      updates, moments = optimizer.update(gradient, moments)
      return (optax.apply_updates(params, updates), moments, state), None
    _, state = estimate(jax.random.key(0), params, xs[0])
    return jax.lax.scan(step, (params, optimizer.init(params), state), length=length)[0][0]
  return jax.tree.map(jnp.asarray, run(params))


def trained(seed=0):
  """(params, xs, labels) after a hundred steps of EMMA on three clouds of points."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(3, 5))
  labels = jnp.asarray(rng.integers(0, 3, 200))
  xs = jnp.asarray(centres[np.asarray(labels)] + .3 * rng.normal(size=(200, 5)))
  return trained_by_emma(network, params_of(seed), xs, labels, .2, 100), xs, labels


def attacked(f, params, xs, labels, radii, steps=60):
  """The least margin that gradient steps find within l2 balls, for each other class by itself."""
  def margin(x, y, other):
    z = f(params, x)
    return jnp.where(y == other, jnp.inf, z[y] - z[other])

  def one(x, y, r, other):
    def step(d, _):
      g = jax.grad(lambda d: f(params, x + d)[y] - f(params, x + d)[other])(d)
      d = d - .2 * r * g / jnp.maximum(jnp.linalg.norm(g), 1e-12)
      d = d * jnp.minimum(1, r / jnp.maximum(jnp.linalg.norm(d), 1e-12))
      return d, margin(x + d, y, other)
    return jax.lax.scan(step, jnp.zeros_like(x), length=steps)[1].min()
  each = jax.vmap(jax.vmap(one, (None, None, None, 0)), (0, 0, 0, None))
  return np.asarray(interpreted(each)(xs, labels, radii, jnp.arange(3)).min(1))


@pytest.mark.usefixtures('promotion')
def test_attacks_inside_of_radii_break_nothing():
  params, xs, labels = trained()
  logits = interpreted(jax.vmap(network, (None, 0)))(params, xs)
  radii, errors = certified_lipschitz_radii(network, params, xs, labels, lipschitz(network)(params, xs[0]))
  assert np.all(errors < 1e-12)
  sure = radii > 0
  assert sure.mean() > .9
  inside = np.where(sure, radii, 0)
  assert np.all(attacked(network, params, xs, labels, jnp.asarray(inside))[sure] > 0)
  accuracies = [verified_accuracy(radii, eps) for eps in (0, .05, .1, .2, .5)]
  assert accuracies == sorted(accuracies, reverse=True)
  assert accuracies[0] <= np.mean(np.asarray(logits.argmax(-1) == labels))
  assert verified_accuracy(radii, float(radii.max())) == 0  # strictly greater


def test_attacks_break_a_control_that_is_vulnerable():
  """A linear network, of which radii are exact: outside of them, by a twentieth, the same attack succeeds."""
  head = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
  linear = lambda head, x: head @ x
  xs = jnp.asarray(np.random.default_rng(1).normal(size=(200, 5)))
  logits = xs @ head.T
  labels = logits.argmax(-1)
  radii, _ = certified_lipschitz_radii(linear, head, xs, labels, lipschitz(linear)(head, xs[0]))
  assert np.all(attacked(linear, head, xs, labels, jnp.asarray(radii)) > 0)
  assert np.mean(attacked(linear, head, xs, labels, jnp.asarray(1.05 * radii)) <= 0) >= .95


def test_radii_of_ties_and_of_wrong_predictions_are_0():
  bound = LipschitzBound(1., np.ones((3, 3)) - np.eye(3), 'upper', 0., 0., ())
  logits = [[1., 1., 0.], [0., 1., 0.], [2., 1., 0.], [np.nan, 1., 0.]]
  found = lipschitz_radii(logits, [0, 0, 0, 0], bound, claimed_error=0.)
  np.testing.assert_allclose(found, [0, 0, 1, 0])
  assert found[2] < 1  # rounded down
  assert lipschitz_radii([[1., 1 - 1e-6, 0.]], [0], bound, claimed_error=1e-5)[0] == 0  # within the error of the logits
  constant = dataclasses.replace(bound, pairs=np.zeros((3, 3)))
  np.testing.assert_array_equal(lipschitz_radii([[2., 1., 0.], [1., 1., 1.]], [0, 0], constant, claimed_error=0.),
                                [np.inf, 0])


def test_what_certifies_nothing_is_refused():
  params, x = params_of(0), jnp.zeros(5)
  found, _ = lipschitz_estimate(network)(jax.random.key(0), params, x)
  with pytest.raises(TypeError, match='a LipschitzEstimate is a lower bound'):
    lipschitz_radii([[1., 0., 0.]], [0], found, claimed_error=0.)
  for kind in ('lower', 'probabilistic'):
    with pytest.raises(ValueError, match=f'the bound is {kind} and not upper'):
      lipschitz_radii([[1., 0., 0.]], [0], LipschitzBound(1., np.ones((3, 3)), kind, 0., 0., ()), claimed_error=0.)
  with pytest.raises(ValueError, match='no constants of pairs'):
    lipschitz_radii([[1., 0., 0.]], [0], LipschitzBound(1., None, 'upper', 0., 0., ()), claimed_error=0.)
  good = LipschitzBound(1., np.ones((3, 3)), 'upper', 0., 0., ())
  with pytest.raises(ValueError, match=r'labels lie in \[-1, 0\]'):
    lipschitz_radii(np.ones((2, 3)), [-1, 0], good, claimed_error=0.)
  np.testing.assert_allclose(lipschitz_radii([[2., 0., 0.]], [0], good, error=[.1]), [1.6])
  with pytest.raises(ValueError, match='error has shape'):
    lipschitz_radii([[2., 0., 0.]], [0], good, error=np.ones((1, 1)))
  with pytest.raises(ValueError, match='error is -1'):
    lipschitz_radii(np.ones((1, 3)), [0], good, claimed_error=-1)
  with pytest.raises(TypeError, match=r'jax.random.key\(seed\)'):
    lipschitz_estimate(network)(jax.random.PRNGKey(0), params, x)
  with pytest.raises(ValueError, match='logits have shape'):
    lipschitz_radii([[1., 0.]], [0], LipschitzBound(1., np.ones((3, 3)), 'upper', 0., 0., ()), claimed_error=0.)


def test_cancelling_logits_have_no_radius_that_exact_arithmetic_denies():
  """Finds an error that is guessed: here rounding moves a logit by .03, past the other one."""
  with jax.enable_x64(False):
    f = lambda _, x: jnp.stack([x[0], (x[1] + 1e6) - 1e6])
    x = jnp.array([[.52, .53], [9., .1]], jnp.float32)
    bound = LipschitzBound(1., 2 ** .5 * (1 - np.eye(2)), 'upper', 0., 0., ())
    radii, errors = certified_lipschitz_radii(f, None, x, [0, 0], bound)
    logits = interpreted(jax.vmap(f, (None, 0)))(None, x)
    assert errors[0] >= .03 / .53
    for found in (radii, lipschitz_radii(logits, [0, 0], bound, error=logit_errors(f, None, x, logits))):
      assert found[0] == 0
      assert 0 < found[1] <= 8.9 / 2 ** .5
    assert lipschitz_radii(logits, [0, 0], bound, claimed_error=1e-5)[0] > 0  # what a guess would have certified


def test_an_error_has_to_be_given():
  """Finds a default, and a number in the place of computed errors."""
  bound = LipschitzBound(1., np.ones((3, 3)), 'upper', 0., 0., ())
  for errors in ({}, dict(error=np.zeros(1), claimed_error=0.)):
    with pytest.raises(TypeError, match=r'give one of error=logit_errors.*claimed_error=.*certified_lipschitz_radii'):
      lipschitz_radii([[1., 0., 0.]], [0], bound, **errors)
  with pytest.raises(ValueError, match=r'error has shape .*claimed_error'):
    lipschitz_radii([[1., 0., 0.]], [0], bound, error=1e-5)
  with pytest.raises(ValueError, match='claimed_error has shape'):
    lipschitz_radii([[1., 0., 0.]], [0], bound, claimed_error=np.zeros(1))


def test_errors_are_those_of_what_a_function_closes_over_now():
  """Finds errors computed for a model as it was at the first call."""
  model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
  f = lambda _, x: model(x[None])[0]
  x = jnp.ones((2, 4), jnp.float32)
  before = f(None, x[0])
  assert np.all(logit_errors(f, None, x, jnp.stack([before] * 2)) < 1e-4)
  model.kernel[...] = 2 * model.kernel[...]
  assert np.all(logit_errors(f, None, x, jnp.stack([before] * 2)) > .1)


def test_one_class_and_no_examples_have_no_radii():
  """Finds infinite radii of one class, which nothing threatens, and the fraction of no example."""
  with pytest.raises(ValueError, match='one logit'):
    lipschitz_radii([[1.]], [0], LipschitzBound(1., np.zeros((1, 1)), 'upper', 0., 0., ()), claimed_error=0.)
  with pytest.raises(ValueError, match='no radii'):
    verified_accuracy(np.zeros(0), .1)


@pytest.mark.usefixtures('promotion')
def test_half_of_the_bound_is_refuted():
  """What these tests are for: a bound that is too small by half does not survive the Jacobians of the network."""
  params = trained()[0]
  bound = lipschitz(network)(params, jnp.zeros(5)).value
  xs = jnp.asarray(np.random.default_rng(0).normal(size=(500, 5)) * 2)
  reached = interpreted(jax.vmap(jax.jacobian(functools.partial(network, params))))(xs)
  norms = np.linalg.svd(np.asarray(reached), compute_uv=False).max(-1)
  assert bound / 2 < norms.max() <= bound


IMAGE = 8, 8, 1
GRAPHDEF, STATE = nnx.split(nn.liresnet(2, 4, input_shape=IMAGE, classes=3, hidden=8, neck=2, rngs=nnx.Rngs(0)))


def liresnet(state, x):
  return nnx.merge(GRAPHDEF, state)(x[None])[0]


def image_set(seed):
  """Three kinds of bars under noise, and which."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, 120)
  bars = np.zeros((3, *IMAGE))
  bars[0, 3:5], bars[1, :, 3:5], bars[2, 2:6, 2:6] = .5, .5, -.4
  return jnp.asarray(np.clip(.4 + bars[labels] + .05 * rng.normal(size=(120, *IMAGE)), 0, 1), jnp.float32), labels


@functools.cache
def trained_images():
  """Weights of a small LiResNet after sixty steps of EMMA on these."""
  return trained_by_emma(liresnet, STATE, *image_set(0), .5, 60)


@pytest.mark.usefixtures('promotion')
def test_bound_power_iteration_and_jacobians_in_order_before_and_after_training():
  """Each above the next; and half of the bound, once trained against it, is below what Jacobians reach."""
  xs, _ = image_set(1)
  for state, share in ((STATE, .3), (trained_images(), .5)):
    bound = lipschitz(liresnet)(state, xs[0])
    found, _ = interpreted(lipschitz_estimate(liresnet, steps=500))(jax.random.key(1), state, xs[0])
    jacobians = np.asarray(interpreted(jax.vmap(jax.jacobian(liresnet, 1), (None, 0)))(state, xs), np.float64)
    jacobians = jacobians.reshape(len(xs), 3, -1)
    reached = np.linalg.svd(jacobians, compute_uv=False).max()
    assert share * bound.value < reached <= float(found.value) <= bound.value <= 1.01 * float(found.value)
    across = np.linalg.norm(jacobians[:, :, None] - jacobians[:, None], axis=-1).max(0)
    assert np.all(across <= np.asarray(found.pairs) + 1e-6)
    assert np.all(np.asarray(found.pairs) <= bound.pairs + 1e-6)
  assert not np.allclose(STATE['layers'][1]['kernel'][...], trained_images()['layers'][1]['kernel'][...])


@pytest.mark.usefixtures('promotion')
def test_attacks_inside_of_radii_of_a_trained_convolutional_network_break_nothing():
  """At three times these radii, those of a third of the constants, they break, and so would have shown it."""
  (xs, labels), params = image_set(1), trained_images()
  logits = interpreted(jax.vmap(liresnet, (None, 0)))(params, xs)
  bound = lipschitz(liresnet)(params, xs[0])
  radii = lipschitz_radii(logits, labels, bound, error=logit_errors(liresnet, params, xs, logits))
  assert np.mean(radii > .1) > .8
  assert np.all(attacked(liresnet, params, xs, labels, jnp.asarray(radii, jnp.float32))[radii > 0] > 0)
  third = dataclasses.replace(bound, pairs=bound.pairs / 3)
  wrong = lipschitz_radii(logits, labels, third, claimed_error=0.)
  assert np.mean(attacked(liresnet, params, xs, labels, jnp.asarray(wrong, jnp.float32)) <= 0) >= .95


@pytest.mark.parametrize('scale', [1., 1e5])
def test_l2_attacks_stay_in_their_balls_and_break_what_can_be_broken(scale):
  """On a linear network, whose true radii are known, whatever the scale of its logits; each within its own radius."""
  rng = np.random.default_rng(0)
  head, xs = scale * jnp.asarray(rng.normal(size=(3, 20))), jnp.asarray(rng.uniform(.45, .55, size=(100, 20)))
  linear = lambda head, x: head @ (x - .5)
  logits = (xs - .5) @ head.T
  labels = logits.argmax(-1)
  radii, _ = certified_lipschitz_radii(linear, head, xs, labels, lipschitz(linear)(head, xs[0]))
  keys = jax.random.split(jax.random.key(0), 100)
  for share, broken in ((.999, 0.), (1.3, .95)):
    points, worst = pgd_l2_by_steps(linear, head, xs, labels, share * radii, keys, steps=30, restarts=2)
    assert np.all(np.linalg.norm(points - xs, axis=1) <= share * radii * (1 + 1e-9))
    assert np.mean(worst <= 0) >= broken
    if not broken:
      assert np.all(worst > 0)
  with pytest.raises(ValueError, match='outside'):
    pgd_l2_by_steps(linear, head, xs + 1, labels, .1, keys)
  with pytest.raises(ValueError, match='eps is -1'):
    pgd_l2_by_steps(linear, head, xs, labels, -1., keys)
