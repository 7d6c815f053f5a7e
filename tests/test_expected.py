"""Training with expected tight bounds: the loss as released, and what shows that it is gamed."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import interpreted
from networks import classifier, dense

import ibpjax
from ibpjax import training
from ibpjax.training.attacks import pgd
from ibpjax.verification.expected import drops, expectations

f = functools.partial(dense, activation=jax.nn.relu)


def problem(seed, sizes=(4, 12, 9, 3), batch=6):
  rng = np.random.default_rng(seed)
  params = [(jnp.asarray(rng.normal(size=(m, n)) * (2 / n) ** .5), jnp.asarray(.1 * rng.normal(size=m)))
            for n, m in itertools.pairwise(sizes)]
  return params, jnp.asarray(rng.uniform(.2, .8, (batch, sizes[0]))), jnp.asarray(rng.integers(0, sizes[-1], batch))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('temperature', [1., 5., None])
def test_loss_is_that_of_the_released_code(temperature):
  """Term by term in NumPy: one sweep of interval bounds, masks from it, rows of the masked Jacobian."""
  params, images, labels = problem(0)
  eps, losses = .07, []
  for x, y in zip(np.asarray(images), np.asarray(labels)):
    l, u, jacobian = x - eps, x + eps, np.eye(4)
    for i, (w, b) in enumerate(map(np.asarray, layer) for layer in params):
      l, u = w @ (l + u) / 2 + b - abs(w) @ (u - l) / 2, w @ (l + u) / 2 + b + abs(w) @ (u - l) / 2
      jacobian = w @ jacobian
      if i < len(params) - 1:
        jacobian = (u > 0)[:, None] * jacobian
        l, u = np.maximum(l, 0), np.maximum(u, 0)
    z, radius = np.asarray(f(params, x)), eps * abs(jacobian).sum(1)
    v = z + radius
    v[y] = z[y] - radius[y]
    v = v if temperature is None else v / (temperature * abs(v).max())
    entropy = lambda z, y=y: np.log(np.exp(z).sum()) - z[y]
    losses.append(entropy(z) + 3 * entropy(v))
  logits = interpreted(jax.vmap(f, (None, 0)))(params, images)
  loss, metrics = interpreted(lambda *args: training.etb_objective(f, *args, None, weight=3., temperature=temperature))(
      params, logits, images, labels, eps)
  assert float(loss) == pytest.approx(np.mean(losses), rel=1e-9)
  assert float(metrics['natural_part']) == pytest.approx(float(training.natural_loss(logits, labels)))
  if temperature:  # normalised logits lie in [-1 / T, 1 / T]
    second, most = (float(loss - metrics['natural_part'])) / 3, np.log(1 + 2 * np.exp(2 / temperature))
    assert np.log(1 + 2 * np.exp(-2 / temperature)) <= second <= most


@pytest.mark.usefixtures('x64')
def test_gradients_go_through_the_map_and_not_through_masks():
  params, images, labels = problem(1)
  direction = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(0).normal(size=a.shape)), params)

  def loss(t, objective):
    moved = jax.tree.map(lambda a, d: a + t * d, params, direction)
    return objective(f, moved, jax.vmap(f, (None, 0))(moved, images), images, labels, .05, None)[0]
  for objective in (training.etb_objective, training.companion_objective):
    both, h = interpreted(jax.value_and_grad(functools.partial(loss, objective=objective))), 1e-6
    np.testing.assert_allclose(both(0.)[1], (both(h)[0] - both(-h)[0]) / (2 * h), rtol=1e-5)


def test_losses_are_finite_where_nothing_is_alive():
  params, images, labels = problem(2)
  dead = jax.tree.map(jnp.zeros_like, params)

  def loss(p, eps, objective):
    return objective(f, p, jax.vmap(f, (None, 0))(p, images), images, labels, eps, None)[0]
  for objective in (training.etb_objective, training.companion_objective):
    both = interpreted(jax.value_and_grad(functools.partial(loss, objective=objective)))
    for eps in (0., .1):
      assert all(np.isfinite(x).all() for x in jax.tree.leaves(both(dead, eps)))


@pytest.mark.usefixtures('x64')
def test_companion_loss_is_above_every_attacked_one_and_natural_at_radius_0():
  params, images, labels = problem(3)
  points, _ = pgd(f, params, images, labels, .1, jax.random.key(0))
  attacked = jax.vmap(lambda x, y: ibpjax.margins(f(params, x), y))(points, labels)
  loss = jax.jit(lambda eps: training.companion_objective(f, params, None, images, labels, eps, None)[0])
  assert float(loss(.1)) >= float(training.robust_loss(attacked))
  logits = interpreted(jax.vmap(f, (None, 0)))(params, images)
  assert float(loss(0.)) == pytest.approx(float(training.natural_loss(logits, labels)))


def test_certification_refuses_the_objective_and_not_the_companion():
  params, images, labels = problem(4)
  assert isinstance(training.etb_objective, training.UnsoundObjective)
  assert not isinstance(training.companion_objective, training.UnsoundObjective)
  with pytest.raises(TypeError, match='certifies nothing: expected tight bounds'):
    ibpjax.certify(f, params, images, labels, .1, method=training.etb_objective)


# -------------------------------------------------------------------------------------- guards
def linear(params, x):
  """Logits of three classes, of which the map is known: the second rises with |x_0| and the map does not see it."""
  w, bump = params
  return w @ x + jnp.array([0., 1., 0.]) * bump * (jax.nn.relu(x[0] - .5) + jax.nn.relu(.5 - x[0]))


@pytest.mark.usefixtures('x64')
def test_guards_see_a_network_that_games_the_bound():
  """relu(z) + relu(-z) = |z| has ETB radius 0: attacks lower margins by more than is expected."""
  w, xs, labels, eps = jnp.array([[1., 0.], [0., 0.], [-1., 0.]]) * .2, jnp.full((4, 2), .5), jnp.zeros(4, int), .1
  run = interpreted(functools.partial(expectations, linear))
  for bump, nan_to_unbounded in ((0., True), (8., False)):
    points = jnp.full((4, 2), .5).at[:, 0].add(-eps)
    found = run((w, jnp.asarray(bump)), xs, labels, eps, points)
    says = drops(found)
    assert (says['ratio'] >= 1 - 1e-9) == nan_to_unbounded
    assert (says['missed'] == 0) == nan_to_unbounded
    assert (says['false'] == 0) == nan_to_unbounded
    assert says['says'] == 1
    assert says['refuted'] == (0 if nan_to_unbounded else 1)  # the corner of the map is where the bump is highest
    assert np.all(found['chord'] <= found['attacked'] + 1e-9)
    assert np.all(found['mask'] <= found['attacked'] + 1e-9)


def test_rounding_refutes_nothing():
  """An affine network in float32: ETB is exact, its witness equal to it, and the attack finds nothing at radius 0."""
  rng = np.random.default_rng(0)
  w = jnp.asarray(rng.normal(size=(10, 784)), jnp.float32)
  xs, labels = jnp.asarray(rng.uniform(.2, .8, (50, 784)), jnp.float32), jnp.arange(50) % 10
  affine = lambda w, x: w @ x
  run = interpreted(functools.partial(expectations, affine))
  for eps in (0., .1):
    points, _ = pgd(affine, w, xs, labels, eps, jax.random.key(0), steps=5)
    says = drops(run(w, xs, labels, eps, points))
    assert says['refuted'] == says['missed'] == says['missed_centred'] == says['outside'] == 0
    assert says['ratio'] is None if not eps else says['ratio'] >= 1 - 1e-4


@pytest.mark.usefixtures('x64')
def test_slack_is_what_lies_between_expected_and_sound():
  params, images, labels = problem(5)
  points, _ = pgd(f, params, images, labels, .1, jax.random.key(0))
  found = interpreted(functools.partial(expectations, f))(params, images, labels, .1, points)
  for i, k in enumerate(found['expected'].argmin(-1)):
    assert float(found['slack'][i].sum()) == pytest.approx(float(found['expected'][i, k] - found['mask'][i, k]))
  assert found['slack'].shape == (6, 2)
  says = drops(found)
  assert says['ratio_mask'] > says['ratio_chord'] >= 1
  assert says['robust'] <= says['natural']
  assert all(v is not None and np.isfinite(v).all() for v in says.values())


def test_a_model_with_batch_norm_is_trained_and_watched():
  """The box of each example goes through the statistics of the batch as known values."""
  model = classifier(6, 2, True)
  images = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 6, 6, 1)), jnp.float32)
  labels = jnp.arange(8) % 3
  logits, batch = model.with_statistics(images)
  one = lambda params, x: params[0](x[None], params[1])[0]
  for objective in (training.etb_objective, training.companion_objective):
    loss, _ = interpreted(functools.partial(objective, one))((model, batch), logits, images, labels, .05, None)
    assert np.isfinite(loss)
