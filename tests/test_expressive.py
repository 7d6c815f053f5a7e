"""SABR, MTL-IBP, CC-IBP and Exp-IBP: published values, their ends, their order; gradients and training."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interpreted import interpreted
from networks import classifier

from ibpjax import linf_ball, training

IMAGES, LABELS, KEY = jax.random.uniform(jax.random.key(1), (8, 6, 6, 1)), jnp.arange(8) % 3, jax.random.key(2)
MIXED = dict(mtl=training.mtl_objective, cc=training.cc_objective, exp=training.exp_objective)


def small(batch_norm=False):
  return classifier(6, 3, batch_norm)


def outcome(objective, eps=.1, model=None, **attack):
  """(loss, metrics, gradient) of an objective; of one of attacks, at the points of one with the options given."""
  graphdef, state = nnx.split(small() if model is None else model)

  def loss(state):
    model = nnx.merge(graphdef, state)
    logits, stats = model.with_statistics(IMAGES)
    f = lambda params, x: params[0](x[None], params[1])[0]
    points = dict(points=training.attacked(f, (model, stats), IMAGES, LABELS, eps, KEY, **attack)) if attack else {}
    return objective(f, (model, stats), logits, IMAGES, LABELS, eps, KEY, **points)
  (value, metrics), gradient = interpreted(jax.value_and_grad(loss, has_aux=True))(state)
  return float(value), {k: float(v) for k, v in metrics.items()}, gradient


@pytest.mark.parametrize(('x', 'point', 'box'), [(.5, .6, (.52, .6)), (.05, 0., (0., .06)), (.5, .5, (.46, .54))])
def test_published_small_boxes(x, point, box):
  """eps .1, a share of .4 (Müller et al. 2023)."""
  found = training.small_box(linf_ball(jnp.array([x]), .1, 0., 1.), jnp.array([point]), .4)
  np.testing.assert_allclose([found.lower[0], found.upper[0]], box, atol=1e-6)


@pytest.mark.parametrize('share', [0., .3, 1.])
def test_small_boxes_lie_inside(share):
  box = linf_ball(IMAGES, .2, 0., 1.)
  points = box.lower + box.width * jax.random.uniform(KEY, IMAGES.shape)
  found = training.small_box(box, points, share)
  assert (found.lower >= box.lower).all()
  assert (found.upper <= box.upper).all()
  np.testing.assert_allclose(found.width, share * box.width, atol=1e-6)


@pytest.mark.parametrize('name', MIXED)
def test_ends_are_adversarial_training_and_interval_bounds(name):
  attack = dict(steps=3, step=.5)
  bound, seen, slope = outcome(functools.partial(MIXED[name], alpha=1.), **attack)
  want, own, gradient = outcome(training.ibp_objective)
  assert bound == pytest.approx(want, rel=1e-5)
  assert seen['verified_error'] == own['verified_error']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, gradient)
  reached, seen, slope = outcome(functools.partial(MIXED[name], alpha=0.), **attack)
  want, own, gradient = outcome(training.adversarial_objective, **attack)
  assert reached == pytest.approx(want, rel=1e-5)
  assert seen['attacked_error'] == own['attacked_error']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, gradient)


def test_losses_are_ordered():
  """Exp-IBP is a geometric mean and MTL-IBP the arithmetic one; CC-IBP, a convex loss of a mean, lies below that."""
  loss = {name: outcome(functools.partial(f, alpha=.4), steps=1, step=10.)[0] for name, f in MIXED.items()}
  attacked = outcome(training.adversarial_objective, steps=1, step=10.)[0]
  bound = outcome(training.ibp_objective)[0]
  assert attacked < loss['exp'] < loss['mtl'] < bound
  assert attacked < loss['cc'] < loss['mtl']


def test_sabr_lies_between_attacks_and_interval_bounds():
  shares = [outcome(functools.partial(training.sabr_objective, share=s), steps=8)[0] for s in (0., .3, .6, 1.)]
  assert shares == sorted(shares)
  assert shares[-1] == pytest.approx(outcome(training.ibp_objective)[0], rel=1e-5)
  assert shares[0] == pytest.approx(outcome(training.adversarial_objective, steps=8)[0], rel=1e-5)
  assert shares[0] < .95 * shares[-1]


def test_attacks_may_go_further_than_the_box():
  near, far = (outcome(functools.partial(training.mtl_objective, alpha=0.), steps=2, scale=s)[0] for s in (1., 2.))
  assert far > near


@pytest.mark.parametrize('name', ['sabr', *MIXED])
@pytest.mark.parametrize('eps', [0., .1])
def test_with_regularizers_and_batch_norm(name, eps):
  objective = functools.partial(training.sabr_objective, share=.5) if name == 'sabr' else functools.partial(
      MIXED[name], alpha=.5)
  regularizer = functools.partial(training.warm_up_regularizer, weight=lambda eps: .5)
  loss, metrics, gradient = outcome(functools.partial(objective, regularizer=regularizer), eps, small(True), steps=2)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  assert metrics['penalty'] > 0
  if not eps:
    logits, _ = small(True).with_statistics(IMAGES)
    assert loss == pytest.approx(float(training.natural_loss(logits, LABELS)), rel=1e-4)


def test_losses_of_nothing_have_gradients():
  """Where a network is certain, Exp-IBP has powers of 0."""
  def objective(model_f, params, logits, images, labels, eps, key, points):
    def certain(params, x):
      return 1e6 * jnp.eye(3)[0] + 0 * model_f(params, x)
    return training.exp_objective(certain, params, logits, images, labels * 0, eps, key, points=points, alpha=.5)
  _, metrics, gradient = outcome(objective, 0., steps=1)
  assert metrics['verified_error'] == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.usefixtures('promotion')
@pytest.mark.parametrize('objective', [
    functools.partial(training.sabr_objective, share=.4), functools.partial(training.cc_objective, alpha=.3)])
def test_training_lowers_the_loss(objective):
  optimizer = optax.adam(1e-2)
  graphdef, state = training.TrainState.create(small(), optimizer)
  step = jax.jit(functools.partial(training.train_step, graphdef=graphdef, optimizer=optimizer, eps=lambda s: .03,
                                   kappa=lambda s: 0., objective=objective, attack=training.attacked))
  history = []
  for i in range(30):
    state, metrics = step(state, (IMAGES, LABELS), jax.random.key(i))
    history.append(float(metrics['loss']))
  assert history[-1] < .9 * history[0]
