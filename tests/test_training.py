"""Losses, schedules, batch norm and the training step, against numbers worked out elsewhere."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interpreted import interpreted

from ibpjax import ibp, linf_ball, margins, nn, training
from ibpjax.runs import directory


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


@pytest.mark.usefixtures('x64')
def test_weights_follow_the_radius():
  """kappa = 1 - (eps / eps_max)(1 - kappa_end), beta likewise (Lyu et al. 2021); lambda_0 (1 - eps / eps_max) (Shi).

  MNIST of Lyu et al.: 235 batches an epoch, eps 0 in 10 epochs, linear to .4 in the next 50.
  """
  eps = training.linear(.4, 10 * 235, 50 * 235)
  kappa, beta = training.tied(eps, .4, 1., .5), training.tied(eps, .4, 1., 0.)
  for epoch, radius in ((0, 0.), (10, 0.), (20, .08), (35, .2), (60, .4), (200, .4)):
    assert float(eps(epoch * 235)) == pytest.approx(radius)
    assert float(kappa(epoch * 235)) == pytest.approx(1 - radius / .4 / 2)
    assert float(beta(epoch * 235)) == pytest.approx(1 - radius / .4)
  eps = training.smoothed(.03137, 391, 80 * 391)  # Shi et al., CIFAR-10: lambda_0 = .5
  weight = training.tied(eps, .03137, .5, 0.)
  for step, radius in ((0, 0.), (4301, 1.508173e-4), (8211, 2.413077e-3), (16031, 1.206538e-2), (31671, .03137)):
    assert float(weight(step)) == pytest.approx(.5 * (1 - radius / .03137), rel=1e-6)
  assert float(training.tied(lambda s: 0., 0., 1., .3)(7)) == pytest.approx(.3)
  rate = optax.piecewise_constant_schedule(5e-4, {130 * 235: .1, 190 * 235: .1})
  assert [float(rate(e * 235)) for e in (0, 129, 131, 191)] == [pytest.approx(v) for v in (5e-4, 5e-4, 5e-5, 5e-6)]


def test_robust_loss_is_the_cross_entropy_of_the_worst_logits():
  lower = jnp.array([[.5, -1., 2.], [30., 40., 50.]])
  by_hand = np.log(1 + np.exp(-np.array(lower)).sum(-1)).mean()
  assert float(training.robust_loss(lower)) == pytest.approx(by_hand, rel=1e-6)
  assert float(training.robust_loss(jnp.full((1, 3), -1e4))) == pytest.approx(1e4 + np.log(3), rel=1e-6)
  logits, labels = jnp.array([[2., -1., .5], [0., 1., 2.]]), jnp.array([0, 1])
  clean = interpreted(jax.vmap(margins))(logits, labels)
  assert float(training.robust_loss(clean)) == pytest.approx(float(training.natural_loss(logits, labels)), rel=1e-6)


TINY = dict(input_shape=(64, 64, 3), classes=200)


@pytest.mark.parametrize(('model', 'parameters'), [
    (nn.dm_small, 828_806), (functools.partial(nn.dm_small, valid=True), 329_606), (nn.dm_medium, 2_466_282),
    (nn.wk_small, 166_406), (functools.partial(nn.cnn7, input_shape=(32, 32, 3)), 17_192_650),
    (functools.partial(nn.cnn7, input_shape=(28, 28, 1)), 13_259_338),
    (functools.partial(nn.dm_large, input_shape=(32, 32, 3)), 17_190_602),
    (functools.partial(nn.dm_large, input_shape=(28, 28, 1)), 13_257_290),
    (functools.partial(nn.dm_large, input_shape=(32, 32, 3), hidden=200), 6_963_554),
    (functools.partial(nn.dm_large, input_shape=(28, 28, 1), hidden=200), 5_426_402),
    (nn.wide_resnet8, 21_547_882), (functools.partial(nn.wide_resnet8, input_shape=(28, 28, 1)), 17_615_434),
    (functools.partial(directory.MODELS['wide_resnet8_tiny'], **TINY), 91_424_776), (nn.resnext, 17_611_018),
    (functools.partial(directory.MODELS['resnext_tiny'], **TINY), 16_981_960),
    (functools.partial(directory.MODELS['cnn7_tiny'], **TINY), 17_290_120),
    (functools.partial(nn.mlp, (100,) * 3), 99_710), (functools.partial(nn.mlp, (100,) * 5), 119_910)])
def test_published_parameter_counts(model, parameters):
  shapes = nnx.eval_shape(lambda: nnx.state(model(rngs=nnx.Rngs(0)), nnx.Param))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize(('make', 'shape', 'logits'), [
    (nn.dm_small, (28, 28, 1), 10), (functools.partial(nn.dm_small, valid=True), (28, 28, 1), 10),
    (functools.partial(nn.dm_medium, valid=True), (32, 32, 3), 10), (nn.wk_small, (28, 28, 1), 10),
    (functools.partial(nn.mlp, (7, 5)), (8, 8, 1), 10), (functools.partial(nn.cnn7, width=2), (32, 32, 3), 10),
    (functools.partial(nn.cnn5, width=2), (9, 9, 1), 3), (functools.partial(nn.cnn9, width=2), (9, 9, 1), 3),
    (functools.partial(nn.resnext, stem=4, bottleneck=2, blocks=2), (9, 9, 1), 3)])
def test_models_map_batches_to_logits(make, shape, logits):
  model = make(input_shape=shape, classes=logits, rngs=nnx.Rngs(0))
  assert jax.eval_shape(lambda x: model(x), jnp.ones((2, *shape))).shape == (2, logits)
  for layer in model.flat():
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


def step_of(model, optimizer=None, run=interpreted, **kwargs):
  optimizer = optimizer or optax.sgd(.1)
  graphdef, state = training.TrainState.create(model, optimizer)
  options = dict(eps=lambda s: .02, kappa=lambda s: .3) | kwargs
  return run(functools.partial(training.train_step, graphdef=graphdef, optimizer=optimizer, **options)), state


KEY = jax.random.key(1)
IMAGES, LABELS = jax.random.uniform(jax.random.key(0), (16, 8, 8, 1)), jnp.arange(16) % 4


@pytest.mark.usefixtures('promotion')
@pytest.mark.parametrize('make', [functools.partial(nn.mlp, (16,)), functools.partial(nn.cnn7, width=2)])
def test_training_lowers_the_robust_loss_and_moves_the_averages(make):
  step, state = step_of(make(input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0)), optax.adam(1e-2))
  first = state
  history = []
  for _ in range(40):
    state, metrics = step(state, (IMAGES, LABELS), KEY)
    history.append({k: float(v) for k, v in metrics.items()})
  assert all(np.isfinite(list(m.values())).all() for m in history)
  assert history[-1]['robust'] < .8 * history[0]['robust']
  assert history[0]['loss'] == pytest.approx(.3 * history[0]['natural'] + .7 * history[0]['robust'], rel=1e-5)
  assert all(m['robust'] >= m['natural'] - 1e-5 for m in history)
  assert all(m['verified_error'] >= m['error'] for m in history)
  assert int(state.step) == 40
  before, after = jax.tree.leaves(first.batch_stats), jax.tree.leaves(state.batch_stats)
  moved = [bool(jnp.any(a != b)) for a, b in zip(before, after, strict=True)]
  assert all(moved)


def test_the_step_is_a_pure_function():
  step, state = step_of(nn.mlp((16,), input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0)))
  one, two = step(state, (IMAGES, LABELS), KEY), step(state, (IMAGES, LABELS), KEY)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    np.testing.assert_array_equal(a, b)


def test_natural_training_is_radius_zero_and_weight_one():
  model = nn.mlp((16,), input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0))
  step, state = step_of(model, eps=lambda s: 0., kappa=lambda s: 1.)
  after, metrics = step(state, (IMAGES, LABELS), KEY)
  gradient = jax.grad(lambda p: training.natural_loss(nnx.merge(nnx.graphdef(model), p)(IMAGES), LABELS))(state.params)
  want = jax.tree.map(lambda p, g: p - .1 * g, state.params, gradient)
  for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert float(metrics['robust']) == pytest.approx(float(metrics['natural']), rel=1e-5)


def test_at_kappa_zero_the_natural_loss_is_only_measured():
  """A number 0 gives the step that a schedule of the value 0 gives, without the gradient of the natural loss."""
  def done(kappa):
    step, state = step_of(classifier(), run=jax.jit, kappa=kappa)
    compiled = step.lower(state, (IMAGES, LABELS), KEY).compile()
    return compiled(state, (IMAGES, LABELS), KEY), compiled.cost_analysis()['flops']
  (one, cost), (other, more) = done(training.tied(lambda s: .02, .02, 0., 0.)), done(training.linear(1., 5, 5))
  chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-5)
  assert cost < .95 * more
  assert float(one[1]['natural']) > 0


def classifier():
  return nn.mlp((16,), input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures('promotion')
@pytest.mark.parametrize('make', [
    classifier, lambda: nn.cnn7(width=2, input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0))])
@pytest.mark.parametrize('options', [
    dict(objective=training.adversarial_objective, attack=functools.partial(training.attacked, steps=3)),
    dict(objective=functools.partial(training.trades_objective, steps=3))])
def test_adversarial_training_lowers_its_loss(make, options):
  step, state = step_of(make(), optax.adam(1e-2), eps=lambda s: .05, kappa=lambda s: 0., **options)
  history = []
  for i in range(30):
    state, metrics = step(state, (IMAGES, LABELS), jax.random.fold_in(KEY, i))
    history.append({k: float(v) for k, v in metrics.items()})
  assert history[-1]['robust'] < .8 * history[0]['robust']
  assert all(m['robust'] >= m['natural'] - .05 for m in history)
  assert all(0 <= m['attacked_error'] <= 1 for m in history)


def normalised():
  return nn.Sequential([nnx.Conv(1, 3, (3, 3), rngs=nnx.Rngs(0)), nn.BatchNorm(3), jax.nn.relu, nn.flatten,
                        nnx.Linear(192, 4, rngs=nnx.Rngs(1))])


ATTACKED = dict(objective=training.adversarial_objective, attack=functools.partial(training.attacked, steps=5))


def test_objectives_at_radius_zero_are_the_natural_loss():
  for options in (dict(objective=training.ibp_objective), ATTACKED, dict(objective=training.trades_objective)):
    step, state = step_of(classifier(), eps=lambda s: 0., kappa=lambda s: .5, **options)
    metrics = step(state, (IMAGES, LABELS), KEY)[1]
    assert float(metrics['robust']) == pytest.approx(float(metrics['natural']), rel=1e-5)


def test_the_losses_are_ordered_natural_attacked_bounded():
  values = []
  for options in (dict(objective=training.ibp_objective), ATTACKED):
    step, state = step_of(classifier(), eps=lambda s: .1, kappa=lambda s: 0., **options)
    values.append(step(state, (IMAGES, LABELS), KEY)[1])
  bounded, attacked = (float(m['robust']) for m in values)
  natural = float(values[1]['natural'])
  assert natural + .01 < attacked < bounded
  p, q = jnp.array([[1., 2., -1.]]), jnp.array([[0., 1., 3.]])
  by_hand = (jax.nn.softmax(p) * (jnp.log(jax.nn.softmax(p)) - jnp.log(jax.nn.softmax(q)))).sum()
  assert float(training.kl_divergence(p, q)) == pytest.approx(float(by_hand), rel=1e-5)


def test_natural_training_computes_no_bounds():
  step, state = step_of(classifier(), objective=None)
  metrics = step(state, (IMAGES, LABELS), KEY)[1]
  assert float(metrics['loss']) == float(metrics['natural'])
  assert 'robust' not in metrics


def test_l1_counts_kernels_only():
  (_, state), weight = training.TrainState.create(classifier(), optax.sgd(.1)), 3e-3
  kernels = sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(state.params) if x.ndim == 2)
  plain, more = (step_of(classifier(), l1=l1)[0](state, (IMAGES, LABELS), KEY)[1]['loss'] for l1 in (0., weight))
  assert float(more - plain) == pytest.approx(weight * kernels, rel=1e-3)


@pytest.mark.usefixtures('promotion')
@pytest.mark.parametrize('options', [dict(), ATTACKED | dict(statistics='attacked')])
def test_accumulated_steps_are_those_of_the_whole_batch(options):
  """With batch normalisation too: statistics, and the gradients through them, are those of the whole batch."""
  (one, state), (four, _) = (step_of(normalised(), optax.sgd(.1), accumulate=parts, **options) for parts in (1, 4))
  (after, seen), (same, metrics) = (step(state, (IMAGES, LABELS), KEY) for step in (one, four))
  chex.assert_trees_all_close((after, seen), (same, metrics), rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match='it must divide them'):
    step_of(normalised(), accumulate=3)[0](state, (IMAGES, LABELS), KEY)


def test_statistics_of_the_attacked_batch():
  """The attack runs on the stored averages; what it finds sets the statistics of all passes, and is recorded."""
  model, eps = normalised(), .2
  seen = []

  def attack(f, params, images, labels, radius, key):
    seen.append(params[1])
    return jnp.clip(images + radius, 0, 1)
  points = jnp.clip(IMAGES + eps, 0, 1)
  step, state = step_of(model, objective=training.adversarial_objective, attack=attack, statistics='attacked',
                        eps=lambda s: eps, kappa=lambda s: 0.)
  after, metrics = step(state, (IMAGES, LABELS), KEY)
  assert seen == [None]
  logits, stats = model.with_statistics(points)
  assert float(metrics['robust']) == pytest.approx(float(training.natural_loss(logits, LABELS)), rel=1e-5)
  assert float(metrics['natural']) == pytest.approx(
      float(training.natural_loss(model(IMAGES, stats), LABELS)), rel=1e-5)
  model.record(stats)
  for a, b in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(training.split(model)[1][1]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  for wrong in (dict(statistics='attacked'), dict(statistics='both', attack=attack)):
    with pytest.raises(ValueError, match='statistics is'):
      step_of(model, **wrong)[0](state, (IMAGES, LABELS), KEY)


def test_gradients_are_clipped():
  step, state = step_of(classifier(), optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.)))
  after, metrics = step(state, (IMAGES, LABELS), KEY)
  moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
  assert float(moved) == pytest.approx(1e-3, rel=1e-2)
  assert float(metrics['gradient_norm']) > 1e-2


def test_averaged_weights_and_their_statistics():
  trees = [dict(a=jnp.full(3, v), b=jnp.asarray(v)) for v in (1., 4., 7.)]
  mean = jax.tree.map(jnp.zeros_like, trees[0])
  for i, tree in enumerate(trees):
    mean = training.running_mean(mean, tree, i)
  np.testing.assert_allclose(mean['a'], 4, rtol=1e-6)
  model = nn.cnn7(width=2, input_shape=(8, 8, 1), classes=4, rngs=nnx.Rngs(0))
  graphdef, (params, batch_stats) = training.split(model)
  one = training.measured_batch_stats(graphdef, params, batch_stats, [IMAGES])
  _, stats = model.with_statistics(IMAGES)
  norms = [layer for layer in nnx.merge(graphdef, params, one).layers if isinstance(layer, nn.BatchNorm)]
  for found, want in zip(norms, stats, strict=True):
    np.testing.assert_allclose(found.mean[...], want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.var[...], want[1], rtol=1e-4, atol=1e-6)
  halves = training.measured_batch_stats(graphdef, params, batch_stats, [IMAGES[:8], IMAGES[8:]])
  first = nnx.merge(graphdef, params, halves).layers[1]  # its input is the same in both: the convolution of the images
  np.testing.assert_allclose(first.mean[...], stats[0][0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(first.var[...], stats[0][1], rtol=1e-4, atol=1e-6)
  mlp = training.split(classifier())
  assert training.measured_batch_stats(mlp[0], *mlp[1], [IMAGES]) is mlp[1][1]


def test_normalisation_is_a_layer_and_its_radius_in_pixels():
  x, eps = jax.random.uniform(jax.random.key(2), (5, 4, 4, 3)), .03
  layer = nn.Normalise((.5, .4, .3), (.2, .25, .3))
  np.testing.assert_allclose(layer(x), (x - jnp.array([[[[.5, .4, .3]]]])) / jnp.array([[[[.2, .25, .3]]]]), rtol=1e-5)
  bound = ibp(layer)(linf_ball(x, eps))
  np.testing.assert_allclose(bound.width, jnp.broadcast_to(2 * eps / jnp.array([.2, .25, .3]), x.shape), rtol=1e-4)
  with pytest.raises(ValueError, match='one of each a channel'):
    nn.Normalise((0.,), (0.,))


def test_stock_batch_norm_is_refused_with_the_remedy():
  model = nn.Sequential([nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))])
  with pytest.raises(TypeError, match=r'layers.1 is a flax.nnx.BatchNorm.*Use ibpjax.nn.BatchNorm'):
    training.TrainState.create(model, optax.sgd(.1))
