"""Training by linear bounds: mixtures with interval bounds, and loss fusion."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interpreted import interpreted

from ibpjax import batched, crown, ibp, linf_ball, margins, nn, training

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (16, 8, 8, 1))
LABELS = jnp.arange(16) % 4
EPS = .03
OBJECTIVES = {
    'crown-ibp': training.crown_objective,
    'crown-lbp': functools.partial(training.crown_objective, intermediate='lbp'),
    'fused': training.fused_objective,
}


def classifier(activation=jax.nn.relu):
  return nn.mlp((16, 12), input_shape=(8, 8, 1), classes=4, activation=activation, rngs=nnx.Rngs(0))


def convolutional():
  return nn.cnn7(width=2, input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0))


def loss_of(model, objective, eps=EPS):
  """The objective alone: (loss, metrics), on the stored statistics."""
  one = batched(lambda m, x: m(x))
  logits = model(IMAGES)
  return interpreted(lambda m: objective(one, m, logits, IMAGES, LABELS, eps, KEY))(model)


@pytest.mark.usefixtures('promotion')
@pytest.mark.parametrize(('make', 'name'), [
    *((classifier, name) for name in OBJECTIVES),
    pytest.param(convolutional, 'crown-ibp', marks=pytest.mark.slow),
    pytest.param(functools.partial(classifier, nn.ParamRamp), 'crown-ibp', marks=pytest.mark.slow)])
def test_training_lowers_the_loss(make, name):
  """With beta from 1 to 0, as published; gradients are numbers at every step."""
  eps = training.linear(EPS, 2, 20)
  objective = functools.partial(OBJECTIVES[name], beta=lambda e: 1 - e / EPS)
  model, optimizer = make(), optax.adam(1e-2)
  if nn.ramps(model):
    nn.calibrate(model, [IMAGES])
  graphdef, state = training.TrainState.create(model, optimizer)
  step = interpreted(functools.partial(training.train_step, graphdef=graphdef, optimizer=optimizer, eps=eps,
                                       kappa=lambda s: 0., objective=objective))
  history = []
  for i in range(40):
    state, metrics = step(state, (IMAGES, LABELS), jax.random.fold_in(KEY, i))
    history.append({k: float(v) for k, v in metrics.items()})
  assert all(np.isfinite(m['gradient_norm']) for m in history)
  assert history[-1]['robust'] < .8 * max(m['robust'] for m in history)
  assert all(m['robust'] >= m['natural'] - 1e-3 for m in history)
  np.testing.assert_allclose([history[i]['beta'] for i in (0, 12, 39)], [1, .5, 0], atol=1e-6)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_at_radius_zero_it_is_the_natural_loss(name):
  model = classifier()
  loss, _ = loss_of(model, functools.partial(OBJECTIVES[name], beta=lambda e: 1.), 0.)
  assert float(loss) == pytest.approx(float(training.natural_loss(model(IMAGES), LABELS)), rel=1e-5)


def test_a_mixture_is_of_bounds():
  model = classifier()
  one = lambda m, x, label: margins(m(x[None])[0], label)
  over = lambda method: interpreted(jax.vmap(method, (None, 0, 0)))(model, linf_ball(IMAGES, EPS, 0., 1.), LABELS).lower
  plain, linear, lbp = over(ibp(one, elide=True)), over(crown(one, intermediate='ibp')), over(
      crown(one, intermediate='lbp'))
  for intermediate, found in (('ibp', linear), ('lbp', lbp)):
    @interpreted
    def mixed(m, beta, intermediate=intermediate):
      return training.crown_objective(batched(lambda m, x: m(x)), m, m(IMAGES), IMAGES, LABELS, EPS, KEY,
                                      beta=lambda e: beta, intermediate=intermediate)
    for beta in (0., .25, 1.):
      loss, metrics = mixed(model, beta)
      lower = beta * found + (1 - beta) * plain
      assert float(loss) == pytest.approx(float(training.robust_loss(lower)), rel=1e-5)
      assert float(metrics['verified_error']) == pytest.approx(float(jnp.mean(lower.min(-1) <= 0)))


def test_losses_are_ordered():
  """Natural <= attacked <= CROWN-LBP <= CROWN-IBP, fused <= interval bounds, at a radius where all differ."""
  model = classifier()
  one = batched(lambda m, x: m(x))
  losses = {name: float(loss_of(model, functools.partial(o, beta=lambda e: 1.))[0]) for name, o in OBJECTIVES.items()}
  points, _ = training.pgd(one, model, IMAGES, LABELS, EPS, KEY, steps=20)
  attacked = float(training.natural_loss(model(points), LABELS))
  interval = float(loss_of(model, training.ibp_objective)[0])
  natural = float(training.natural_loss(model(IMAGES), LABELS))
  assert natural < attacked < losses['crown-lbp'] < losses['crown-ibp'] < interval
  assert attacked < losses['fused'] < interval
  unmixed = functools.partial(training.fused_objective, beta=lambda e: 0.)
  assert float(loss_of(model, unmixed)[0]) == pytest.approx(interval, rel=1e-5)


def test_fused_losses_do_not_overflow():
  model = classifier()
  model.layers[-1].kernel[...] *= 1e4
  for beta in (0., 1.):
    loss, _ = loss_of(model, functools.partial(training.fused_objective, beta=lambda e, b=beta: b))
    assert np.isfinite(loss)
    assert float(loss) > float(training.natural_loss(model(IMAGES), LABELS))


@pytest.mark.parametrize('name', OBJECTIVES)
def test_what_overflows_is_infinite_and_small_losses_stay_positive(name):
  objective = functools.partial(OBJECTIVES[name], beta=lambda e: 1.)
  model = classifier()
  model.layers[-1].kernel[...] *= 1e38
  assert not np.isnan(loss_of(model, objective)[0])

  def f(params, x):
    return params * x
  images, labels = jnp.full((1, 2), .5), jnp.zeros(1, int)
  for margin in (12., 17., 20.):
    params = jnp.array([2 * margin, 0.])
    loss, _ = objective(f, params, None, images, labels, jnp.asarray(1e-3), KEY)
    assert float(loss) >= max(0, np.log1p(np.exp(-margin)) - 1e-7)  # roundings of 1


@pytest.mark.parametrize('name', OBJECTIVES)
def test_low_precision(name):
  model = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, classifier())
  one = batched(lambda m, x: m(x))
  images = IMAGES.astype(jnp.bfloat16)
  objective = functools.partial(OBJECTIVES[name], beta=lambda e: .5, clip=(jnp.bfloat16(0), jnp.bfloat16(1)))
  loss, _ = interpreted(lambda m, eps: objective(one, m, None, images, LABELS, eps, KEY))(model, jnp.bfloat16(EPS))
  assert float(loss) > .5
