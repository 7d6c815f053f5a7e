"""The regularizers of the warm-up: published values, edges, gradients; and the step that adds them."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interpreted import interpreted
from networks import classifier

from ibpjax import Interval, linf_ball, nn, training
from ibpjax.training.regularizers import balance, tightness, warm_up_regularizer

MIXED = Interval(jnp.array([[1., -3, -1], [.2, -2, -.5]]), jnp.array([[2., -1, 1], [.6, -1, .5]]))
INACTIVE = Interval(jnp.array([[.1, -3, -4]]), jnp.array([[.3, -1, -2]]))
UNSTABLE = Interval(-jnp.ones((2, 3)), jnp.ones((2, 3)))


@pytest.mark.parametrize(('layer', 'tight', 'balanced'), [
    (MIXED, .675676, 0.), (INACTIVE, .714286, .92), (UNSTABLE, .8, 0.)])
def test_published_values(layer, tight, balanced):
  """One layer, input radius .1 (Shi et al. 2021, released code)."""
  assert float(tightness([layer], .1)) == pytest.approx(tight, abs=1e-6)
  assert float(balance([layer])) == pytest.approx(balanced, abs=1e-6)


def test_layers_are_averaged():
  layers = [MIXED, INACTIVE, UNSTABLE]
  for loss in (balance, functools.partial(tightness, radius=.1)):
    assert float(loss(layers)) == pytest.approx(np.mean([float(loss([x])) for x in layers]), rel=1e-6)


@pytest.mark.parametrize('layer', [
    MIXED, INACTIVE, UNSTABLE, Interval(-2 * jnp.ones((2, 2)), -jnp.ones((2, 2))),
    Interval(jnp.ones((2, 2)), jnp.ones((2, 2))), Interval(jnp.zeros((2, 2)), jnp.zeros((2, 2))),
    Interval(jnp.array([1., -3.]), jnp.array([3., -1.]))])
def test_gradients_are_finite_and_point_down(layer):
  def loss(x):
    return tightness([x], .1) + balance([x])
  value, gradient = interpreted(jax.value_and_grad(loss))(layer)
  assert np.isfinite(jax.tree.leaves(gradient)).all()
  after = loss(jax.tree.map(lambda x, g: x - 1e-3 * g, layer, gradient))
  assert float(after) <= float(value) + 1e-6


def test_balance_draws_inactive_layers_towards_active():
  gradient = interpreted(jax.grad(lambda x: balance([x])))(INACTIVE)
  assert float(gradient.lower[0, 0]) < 0  # more in the active one lowers the loss


small = functools.partial(classifier, 5, 4, True)
IMAGES, LABELS, KEY = jax.random.uniform(jax.random.key(1), (6, 5, 5, 1)), jnp.arange(6) % 3, jax.random.key(2)
OPTIMIZER = optax.adam(1e-2)


def outcome(model, eps, **options):
  def f(params, x):
    return params[0](x[None], params[1])[0]

  @interpreted
  def run(model, eps):
    logits, stats = model.with_statistics(IMAGES)
    return training.ibp_objective(f, (model, stats), logits, IMAGES, LABELS, eps, KEY, **options)
  return run(model, eps)


def regularizer(tau=.5, std=1.):
  return functools.partial(warm_up_regularizer, weight=lambda eps: .5 * (1 - eps / .1), tau=tau, std=std)


def test_the_penalty_is_of_what_goes_into_the_activations():
  model = small()
  loss, metrics = outcome(model, .05, regularizer=regularizer())
  plain, _ = outcome(model, .05)
  assert float(loss) == pytest.approx(float(plain), rel=1e-6)
  _, stats = model.with_statistics(IMAGES)
  box, layers, given = linf_ball(IMAGES, .05, 0., 1.), [], iter(stats)
  for layer in model.layers:
    x = box.centre, box.radius
    if layer is jax.nn.relu:
      layers.append(box)
      box = Interval(jax.nn.relu(box.lower), jax.nn.relu(box.upper))
    elif isinstance(layer, nn.BatchNorm):
      s = next(given)
      scale = layer(jnp.ones_like(x[0]), s) - layer(jnp.zeros_like(x[0]), s)
      box = Interval(layer(x[0], s) - jnp.abs(scale) * x[1], layer(x[0], s) + jnp.abs(scale) * x[1])
    elif hasattr(layer, 'kernel'):
      centre = layer(x[0])
      graphdef, state = nnx.split(layer)
      positive = nnx.merge(graphdef, jax.tree.map(jnp.abs, state))
      radius = positive(x[1]) - positive(jnp.zeros_like(x[1]))
      box = Interval(centre - radius, centre + radius)
    else:
      box = jax.tree.map(layer, box)
  start = linf_ball(IMAGES, .05, 0., 1.).radius.mean()
  assert float(metrics['tightness']) == pytest.approx(float(tightness(layers, start)), rel=1e-4)
  assert float(metrics['balance']) == pytest.approx(float(balance(layers)), rel=1e-4, abs=1e-6)
  assert float(metrics['penalty']) == pytest.approx(
      .25 * float(metrics['tightness'] + metrics['balance']), rel=1e-6)
  assert float(metrics['active']) == pytest.approx(np.mean([float(jnp.mean(b.lower > 0)) for b in layers]), rel=1e-5)


def test_below_the_least_radius_the_loss_is_the_natural_one_and_the_penalty_has_a_gradient():
  """In float32 a box of radius 1e-9 is a point: its layers would have no radius, and tightness no gradient."""
  model = small()
  for eps in (0., 1e-9):
    loss, metrics = outcome(model, eps, regularizer=regularizer())
    _, stats = model.with_statistics(IMAGES)
    assert float(loss) == pytest.approx(float(training.natural_loss(model(IMAGES, stats), LABELS)), rel=1e-5)
    assert 0 < float(metrics['tightness']) < 1


def test_the_scale_of_the_input_is_taken_after_normalisation():
  tight = [float(outcome(small(), .05, regularizer=regularizer(std=std))[1]['tightness']) for std in (1., .25)]
  assert tight[1] < tight[0]


@pytest.mark.usefixtures('promotion')
@pytest.mark.parametrize('kappa', [0., .5])
def test_the_step_adds_the_penalty_whatever_kappa_is(kappa):
  graphdef, state = training.TrainState.create(small(), OPTIMIZER)
  step = interpreted(functools.partial(
      training.train_step, graphdef=graphdef, optimizer=OPTIMIZER, eps=lambda s: .05, kappa=lambda s: kappa,
      objective=functools.partial(training.ibp_objective, regularizer=regularizer())))
  _, metrics = step(state, (IMAGES, LABELS), KEY)
  mixture = kappa * metrics['natural'] + (1 - kappa) * metrics['robust']
  assert float(metrics['loss']) == pytest.approx(float(mixture + metrics['penalty']), rel=1e-5)
  assert float(metrics['penalty']) > .01


@pytest.mark.usefixtures('promotion')
def test_training_lowers_the_penalty():
  graphdef, state = training.TrainState.create(small(), OPTIMIZER)
  step = interpreted(functools.partial(
      training.train_step, graphdef=graphdef, optimizer=OPTIMIZER, eps=lambda s: 0., kappa=lambda s: 0.,
      objective=functools.partial(training.ibp_objective, regularizer=regularizer())))
  history = []
  for _ in range(40):
    state, metrics = step(state, (IMAGES, LABELS), KEY)
    history.append(float(metrics['penalty']))
  assert history[-1] < .9 * history[0]
