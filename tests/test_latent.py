"""TAPS, STAPS, IBP-R, smoothing over weights; objectives that bound nothing are refused by certification."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import box_around, samples
from flax import nnx
from interpreted import interpreted
from networks import classifier

from ibpjax import certify, ibp, linf_ball, margins, training
from ibpjax.training.latent import attacked_inside, pulled
from ibpjax.training.regularizers import instability
from ibpjax.training.step import _perturbed

IMAGES, LABELS, KEY = jax.random.uniform(jax.random.key(1), (6, 6, 6, 1)), jnp.arange(6) % 3, jax.random.key(2)
EPS = .1


def parameters(batch_norm=True):
  model = classifier(6, 3, batch_norm)
  return model, model.with_statistics(IMAGES)[1]


def f(params, x):
  return params[0](x[None], params[1])[0]


@pytest.mark.parametrize(('point', 'low', 'high'), [(1., 0., 1.), (.75, 0., .5), (.5, 0., 0.), (.1, .8, 0.)])
def test_published_gradients_of_points(point, low, high):
  """In the box [0, 1] (Mao et al. 2023)."""
  value, pull = jax.vjp(pulled, *map(jnp.float32, (point, 0, 1)))
  assert value == jnp.float32(point)
  assert [float(g) for g in pull(jnp.float32(1))] == pytest.approx([0, low, high], abs=1e-6)


def test_points_of_boxes_without_width_have_gradients():
  _, pull = jax.vjp(pulled, *[jnp.ones(2)] * 3)
  assert all(np.isfinite(g).all() for g in pull(jnp.ones(2)))


@pytest.mark.parametrize('activations', [1, 2])
def test_halves_are_the_model(activations):
  first, rest = training.halves(activations)
  params = parameters()
  h = first(params, IMAGES[0])
  assert (h >= 0).all()
  assert h.shape == ((6, 6, 3), (6,))[activations - 1]
  np.testing.assert_allclose(rest(params, h), f(params, IMAGES[0]), rtol=1e-5, atol=1e-6)
  stored = params[0], None
  np.testing.assert_allclose(rest(stored, first(stored, IMAGES[0])), f(stored, IMAGES[0]), rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match='the model has 2 activations and cannot be cut after 3'):
    training.halves(3)[0](params, IMAGES[0])


def test_through_one_layer_attacks_find_the_bounds_and_their_gradients():
  """The rest is affine: the least margin is at the corner that interval arithmetic takes."""
  params, box = parameters(), linf_ball(IMAGES, EPS, 0., 1.)
  graphdef, state = nnx.split(params[0])

  def total(method, state):
    params_ = nnx.merge(graphdef, state), params[1]
    return jnp.square(method(params_)).sum(), method(params_)

  def attacked(params):
    return attacked_inside(*training.halves(2), params, box, LABELS, KEY, 10)

  def bounded(params):
    one = lambda params, x, y: margins(f(params, x), y)
    return jax.vmap(ibp(one, elide=True), (None, 0, 0))(params, box, LABELS).lower
  (_, found), slope = interpreted(jax.value_and_grad(functools.partial(total, attacked), has_aux=True))(state)
  (_, bound), gradient = interpreted(jax.value_and_grad(functools.partial(total, bounded), has_aux=True))(state)
  np.testing.assert_allclose(found, bound, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), slope, gradient)


def test_attacks_inside_lie_between_attacks_and_bounds():
  params, box = parameters(), linf_ball(IMAGES, EPS, 0., 1.)
  one = lambda params, x, y: margins(f(params, x), y)
  bound = interpreted(jax.vmap(ibp(one, elide=True), (None, 0, 0)))(params, box, LABELS).lower
  found = interpreted(lambda params: attacked_inside(*training.halves(1), params, box, LABELS, KEY, 20))(params)
  assert (found >= bound - 1e-5).all()
  assert (found > bound + .01).any()
  for i in range(6):
    values = interpreted(jax.vmap(one, (None, 0, None)))(params, samples(box_around(IMAGES[i], EPS), 300), LABELS[i])
    assert (found[i] <= values.min(0) + 1e-5).all()


def outcome(objective, **kwargs):
  """(loss, metrics, gradient norm) of an objective."""
  params = parameters()
  graphdef, state = nnx.split(params[0])

  def loss(state):
    model = nnx.merge(graphdef, state)
    logits, stats = model.with_statistics(IMAGES)
    return objective(f, (model, stats), logits, IMAGES, LABELS, EPS, KEY, **kwargs)
  (value, metrics), gradient = interpreted(jax.value_and_grad(loss, has_aux=True))(state)
  return float(value), {k: float(v) for k, v in metrics.items()}, gradient


def test_taps_is_a_product_whose_first_factor_pulls_harder():
  cut, lower = training.halves(1), outcome(training.ibp_objective)[0]
  (value, seen, one), (same, _, five) = (
      outcome(functools.partial(training.taps_objective, cut=cut, weight=w)) for w in (1., 5.))
  inside = value / lower
  assert value == pytest.approx(same, rel=1e-5)
  assert .3 * lower < inside < .9 * lower
  assert 0 <= seen['attacked_inside_error'] <= seen['bounds_error'] <= 1
  plain = outcome(training.ibp_objective)[2]
  # value = a b: its gradient is w b a' + a b', and b' is that of interval bounds
  jax.tree.map(lambda g1, g5, b: np.testing.assert_allclose(g5 - inside * b, 5 * (g1 - inside * b), rtol=1e-2,
                                                            atol=1e-3), one, five, plain)
  before, seen, gradient = outcome(functools.partial(training.taps_objective, cut=cut, until=.2))
  assert before == pytest.approx(lower, rel=1e-5)
  assert seen['attacked_inside_error'] == seen['bounds_error']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, plain)


def test_staps_uses_small_boxes():
  objective = functools.partial(training.taps_objective, cut=training.halves(1))
  small, whole = (outcome(functools.partial(objective, share=s), points=IMAGES)[0] for s in (.3, 1.))
  assert small < .8 * whole == pytest.approx(.8 * outcome(objective)[0], rel=1e-4)


def test_instability_of_relus():
  bounds = [box_around(jnp.array([[0., 1., -2.]]), jnp.array([[1., 3., 1.]]))]  # [-1, 1], [-2, 4], [-3, -1]
  assert float(instability(bounds)) == pytest.approx(1 * 1 + 2 * 4 + 0)
  points = jnp.clip(IMAGES + EPS, 0, 1)
  attacked = outcome(training.adversarial_objective, points=points)
  none, some = (outcome(functools.partial(training.ibp_r_objective, weight=w), points=points) for w in (0., 3.))
  assert none[0] == pytest.approx(attacked[0], rel=1e-5)
  assert some[0] == pytest.approx(attacked[0] + 1.5 * some[1]['instability'], rel=1e-5)
  model, stats = parameters()
  one = lambda params, x: f(params, x)
  over = interpreted(jax.vmap(ibp(one, intermediates=True), (None, 0)))
  _, inside = over((model, stats), linf_ball(IMAGES, EPS, 0., 1.))
  by_hand = sum(float((-b.lower.clip(max=0) * b.upper.clip(min=0)).sum()) for b in inside.bounds.values()) / 6
  assert some[1]['instability'] == pytest.approx(by_hand, rel=1e-4)
  assert some[1]['attacked_error'] <= some[1]['verified_error']


@pytest.mark.usefixtures('promotion')
def test_losses_are_smoothed_over_weights():
  optimizer = optax.sgd(.1)
  graphdef, state = training.TrainState.create(classifier(6, 3, True), optimizer)
  step = functools.partial(training.train_step, graphdef=graphdef, optimizer=optimizer, eps=lambda s: .03,
                           kappa=lambda s: .5)
  batch = IMAGES, LABELS
  after, metrics = interpreted(functools.partial(step, weight_noise=.2, weight_samples=3))(state, batch, KEY)
  losses, moves = [], []
  for noise, _ in jax.random.split(jax.random.split(KEY, 3)[1], (3, 2)):
    moved = training.TrainState(_perturbed(state.params, noise, .2), state.batch_stats, state.opt_state, state.step)
    new, seen = interpreted(step)(moved, batch, KEY)
    losses.append(float(seen['loss']))
    moves.append(jax.tree.map(lambda a, b: a - b, new.params, moved.params))
  assert len(set(losses)) == 3
  assert float(metrics['loss']) == pytest.approx(np.mean(losses), rel=1e-5)
  mean = jax.tree.map(lambda *m: sum(m) / 3, *moves)
  plain, _ = interpreted(step)(state, batch, KEY)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.batch_stats, plain.batch_stats)
  jax.tree.map(lambda a, b, m: np.testing.assert_allclose(a - b, m, rtol=1e-3, atol=1e-5), after.params, state.params,
               mean)
  noise = jax.tree.map(lambda a, b: float((a - b).std() / jnp.maximum(b.std(), 1e-9)),
                       _perturbed(state.params, KEY, .2), state.params)
  assert all(n < .5 for n in jax.tree.leaves(noise))


@pytest.mark.parametrize('objective', [
    training.sabr_objective, functools.partial(training.sabr_objective, share=.4), training.taps_objective])
def test_certification_refuses_objectives_that_bound_nothing(objective):
  assert isinstance(training.sabr_objective, training.UnsoundObjective)
  with pytest.raises(TypeError, match=r'certifies nothing: .* Certificates can be'):
    certify(f, parameters(), IMAGES, LABELS, .1, method=objective)
  assert 'verified_error' not in str(outcome(functools.partial(training.sabr_objective, share=.4), points=IMAGES)[1])
