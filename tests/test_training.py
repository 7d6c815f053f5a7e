"""Losses, schedules, batch norm and the training step, against numbers worked out elsewhere."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ibpjax import margins, nn, training


@pytest.mark.usefixtures('x64')
def test_smoothed_schedule_has_the_published_values():
  """Shi et al. 2021, released code: eps .03137, 391 steps an epoch, ramp of 80 epochs after one of warm-up."""
  eps = training.smoothed(.03137, 391, 80 * 391)
  golden = {0: 0., 391: 0., 782: 1.508173e-8, 4301: 1.508173e-4, 8211: 2.413077e-3, 16031: 1.206538e-2,
            31280: 3.088738e-2, 31671: .03137, 10 ** 6: .03137}
  for step, value in golden.items():
    assert float(eps(step)) == pytest.approx(value, rel=1e-6)
  bend = 391 + 20 * 391
  slopes = [float(eps(bend + h) - eps(bend + h - 1)) for h in (0, 1)]
  assert slopes[0] == pytest.approx(slopes[1], rel=1e-3)


def test_schedules_at_their_edges():
  for make in (training.linear, training.smoothed):
    flat, jump = make(.5, 0, 0), make(.5, 3, 0, initial=.1)
    assert float(flat(0)) == .5
    assert [float(jump(s)) for s in (2, 3)] == [pytest.approx(.1), .5]
    down = make(0., 2, 8, initial=1.)
    values = [float(down(s)) for s in range(14)]
    assert values == sorted(values, reverse=True)
    assert values[:3] == [1., 1., 1.]
    assert values[10:] == [0.] * 4
  line = training.linear(.4, 10, 50)
  assert float(line(35)) == pytest.approx(.2)
  for mid in (0., .5, 1.):
    values = [float(training.smoothed(1., 0, 4, mid=mid)(s)) for s in range(6)]
    assert np.all(np.isfinite(values))
    assert values[4:] == [1., 1.]


def test_robust_loss_is_the_cross_entropy_of_the_worst_logits():
  lower = jnp.array([[.5, -1., 2.], [30., 40., 50.]])
  by_hand = np.log(1 + np.exp(-np.array(lower)).sum(-1)).mean()
  assert float(training.robust_loss(lower)) == pytest.approx(by_hand, rel=1e-6)
  assert float(training.robust_loss(jnp.full((1, 3), -1e4))) == pytest.approx(1e4 + np.log(3), rel=1e-6)
  logits, labels = jnp.array([[2., -1., .5], [0., 1., 2.]]), jnp.array([0, 1])
  clean = jax.vmap(margins)(logits, labels)
  assert float(training.robust_loss(clean)) == pytest.approx(float(training.natural_loss(logits, labels)), rel=1e-6)


def test_published_parameter_counts():
  count = lambda model: sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  rngs, cifar = nnx.Rngs(0), (32, 32, 3)
  assert count(nn.dm_small(rngs=rngs)) == 828_806
  assert count(nn.dm_medium(rngs=rngs)) == 2_466_282
  assert count(nn.cnn7(input_shape=cifar, rngs=rngs)) == 17_192_650
  assert count(nn.cnn7(input_shape=(28, 28, 1), rngs=rngs)) == 13_259_338
  assert count(nn.cnn7(input_shape=cifar, batch_norm=False, rngs=rngs)) == 17_190_602
  assert count(nn.wk_small(rngs=rngs)) == 166_406


@pytest.mark.parametrize(('make', 'shape', 'logits'), [
    (nn.dm_small, (28, 28, 1), 10), (functools.partial(nn.dm_small, valid=True), (28, 28, 1), 10),
    (functools.partial(nn.dm_medium, valid=True), (32, 32, 3), 10), (nn.wk_small, (28, 28, 1), 10),
    (functools.partial(nn.mlp, (7, 5)), (8, 8, 1), 10), (functools.partial(nn.cnn7, width=2), (32, 32, 3), 10)])
def test_models_map_batches_to_logits(make, shape, logits):
  model = make(input_shape=shape, classes=logits, rngs=nnx.Rngs(0))
  assert model(jnp.ones((2, *shape))).shape == (2, logits)
  for layer in model.layers:
    if isinstance(layer, (nnx.Linear, nnx.Conv)):
      bound = float(np.prod(layer.kernel.shape[:-1]) ** -.5)
      assert .9 * bound < float(jnp.abs(layer.kernel[...]).max()) <= bound * 1.0001
      assert float(jnp.abs(layer.bias[...]).max()) <= bound * 1.0001


def test_batch_norm_equals_flax_on_its_batch_and_on_its_averages():
  x = jax.random.normal(jax.random.key(0), (16, 5, 5, 3)) * 3 + 1
  ours, flax = nn.BatchNorm(3, momentum=.9), nnx.BatchNorm(3, momentum=.9, rngs=nnx.Rngs(0))
  stats = ours.statistics(x)
  np.testing.assert_allclose(ours(x, stats), flax(x), rtol=1e-4, atol=1e-5)
  ours.record(stats)
  flax.eval()
  np.testing.assert_allclose(ours(x), flax(x), rtol=1e-4, atol=1e-4)


def step_of(model, optimizer=None, **kwargs):
  optimizer = optimizer or optax.sgd(.1)
  graphdef, state = training.TrainState.create(model, optimizer)
  options = dict(eps=lambda s: .02, kappa=lambda s: .3) | kwargs
  return jax.jit(functools.partial(training.train_step, graphdef=graphdef, optimizer=optimizer, **options)), state


IMAGES, LABELS = jax.random.uniform(jax.random.key(0), (16, 8, 8, 1)), jnp.arange(16) % 4


@pytest.mark.usefixtures('promotion')
@pytest.mark.parametrize('make', [functools.partial(nn.mlp, (16,)), functools.partial(nn.cnn7, width=2)])
def test_training_lowers_the_robust_loss_and_moves_the_averages(make):
  step, state = step_of(make(input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0)), optax.adam(1e-2))
  first = state
  history = []
  for _ in range(40):
    state, metrics = step(state, IMAGES, LABELS)
    history.append({k: float(v) for k, v in metrics.items()})
  assert all(np.isfinite(list(m.values())).all() for m in history)
  assert history[-1]['robust'] < .8 * history[0]['robust']
  assert history[0]['loss'] == pytest.approx(.3 * history[0]['natural'] + .7 * history[0]['robust'], rel=1e-5)
  assert all(m['robust'] >= m['natural'] - 1e-5 for m in history)
  assert all(m['verified_error'] >= m['error'] for m in history)
  assert int(state.step) == 40
  moved = [bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(first.averages), jax.tree.leaves(state.averages))]
  assert all(moved)


def test_the_step_is_a_pure_function():
  step, state = step_of(nn.mlp((16,), input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0)))
  one, two = step(state, IMAGES, LABELS), step(state, IMAGES, LABELS)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    np.testing.assert_array_equal(a, b)


def test_natural_training_is_radius_zero_and_weight_one():
  model = nn.mlp((16,), input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0))
  step, state = step_of(model, eps=lambda s: 0., kappa=lambda s: 1.)
  after, metrics = step(state, IMAGES, LABELS)
  gradient = jax.grad(lambda p: training.natural_loss(nnx.merge(nnx.graphdef(model), p)(IMAGES), LABELS))(state.params)
  want = jax.tree.map(lambda p, g: p - .1 * g, state.params, gradient)
  for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert float(metrics['robust']) == pytest.approx(float(metrics['natural']), rel=1e-5)


def test_stock_batch_norm_is_refused_with_the_remedy():
  model = nn.Sequential([nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))])
  with pytest.raises(TypeError, match=r'layers.1 is a flax.nnx.BatchNorm.*Use ibpjax.nn.BatchNorm'):
    training.TrainState.create(model, optax.sgd(.1))
