"""What the flags of training do: each changes what it says."""
import contextlib
import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx
from interpreted import interpreted

from ibpjax import nn, training
from ibpjax.cli import measures, recipe, train, training_run
from ibpjax.data import datasets
from ibpjax.data.datasets import Split
from ibpjax.runs import directory
from ibpjax.runs.load_run import open_run

FLAGS = flags.FLAGS
pytestmark = pytest.mark.usefixtures('promotion')  # optax's Adam


@pytest.fixture
def given():
  """Sets flags; those that a call does not name have their defaults."""
  if not FLAGS.is_parsed():
    FLAGS(['train'])
  with contextlib.ExitStack() as changed:
    def set_flags(*arguments):
      changed.close()  # puts the defaults back
      changed.enter_context(flagsaver.flagsaver())
      FLAGS(['train', *arguments])
      train.take_config()
      train.check_flags()
    yield set_flags


def rates(steps, per_epoch):
  """What the optimizer makes of gradients of 1: Adam's steps are as long as the learning rate."""
  optimizer, lengths = recipe.optimizer(per_epoch), []
  state = optimizer.init(jnp.zeros(1))
  for _ in range(steps):
    update, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
    lengths.append(float(-update[0]))
  return np.array(lengths)


def test_learning_rate_and_its_milestones(given):
  given('--learning_rate=.5', '--milestones=2,3', '--decay=.1', '--epochs=4', '--warmup_epochs=1', '--ramp_epochs=2')
  np.testing.assert_allclose(rates(8, 2), [.5] * 4 + [.05] * 2 + [.005] * 2, rtol=1e-4)


def test_the_default_milestone_is_at_four_fifths(given):
  given('--epochs=40', '--ramp_epochs=10')
  assert FLAGS.milestones == [32]
  given('--epochs=40', '--ramp_epochs=10', '--milestones=')
  assert FLAGS.milestones == []


def test_gradients_are_clipped(given):
  """Adam forgets the size of gradients but not how it changes: after a huge one, a clipped run is not at a stand."""
  def second(*arguments):
    given('--learning_rate=1', *arguments)
    optimizer = recipe.optimizer(1)
    state = optimizer.init(jnp.zeros(1))
    _, state = optimizer.update(jnp.full(1, 1e6), state, jnp.zeros(1))
    return float(optimizer.update(jnp.ones(1), state, jnp.zeros(1))[0][0])
  assert second('--gradient_clip=1') == pytest.approx(-1, rel=1e-3)
  assert abs(second() + 1) > .1


def test_schedules(given):
  given('--eps=.4', '--warmup_epochs=2', '--ramp_epochs=4', '--epochs=8', '--schedule=linear', '--kappa_start=.8',
        '--kappa_end=.3')
  options = recipe.objective_and_schedules(10)
  steps = [0, 20, 40, 60, 79]
  np.testing.assert_allclose([float(options['eps'](s)) for s in steps], [0, 0, .2, .4, .4], atol=1e-6)
  np.testing.assert_allclose([float(options['kappa'](s)) for s in steps], [.8, .8, .55, .3, .3], atol=1e-6)
  given('--eps=.4', '--warmup_epochs=2', '--ramp_epochs=4', '--epochs=8', '--schedule=smoothed')
  assert float(recipe.objective_and_schedules(10)['eps'](30)) < .09
  given('--l1=.25')
  assert recipe.objective_and_schedules(10)['l1'] == .25


def test_slopes_of_ramps(given):
  given('--activation=param_ramp', '--eta=.01', '--eta_end=0', '--eta_epochs=2,6')
  slope = recipe.objective_and_schedules(10)['eta']
  np.testing.assert_allclose([float(slope(s)) for s in (0, 20, 40, 60, 79)], [.01, .01, .005, 0, 0], atol=1e-9)
  given('--activation=param_ramp', '--eta=.01')
  assert recipe.objective_and_schedules(10)['eta'] is None


def test_ramps_bend_at_the_first_radius(given):
  given('--model=mlp', '--hidden=8', '--activation=param_ramp')
  facts, data = datasets.FACTS['digits'], datasets.load('digits', '')
  config = dict(model='mlp', hidden=[8], activation='param_ramp', eta=.25)
  graphdef, state = training.TrainState.create(directory.build_model(config, facts, 0), recipe.optimizer(1))
  model = nnx.merge(graphdef, state.params, state.batch_stats)
  after = training_run.bent(graphdef, state, facts, data.train)
  ramp, = nn.ramps(nnx.merge(graphdef, after.params, after.batch_stats))
  assert bool(ramp.bent[...])
  assert float(ramp.eta[...]) == .25
  x = model.layers[1](facts.pixels(data.train.images).reshape(len(data.train), -1))
  np.testing.assert_allclose(ramp.r[...], np.maximum(np.where(x > 0, x, .25 * x).mean(0), 1e-4), rtol=1e-4)


@pytest.mark.parametrize('name', FLAGS['config'].parser.enum_values)
def test_configs_are_flags_of_training(name, given):
  """Each with every row that it speaks of."""
  text = importlib.import_module(f'ibpjax.cli.configs.{name}').__doc__
  command, = re.findall(r'ibpjax train (.*?)--out', text, re.S)
  assert f'--config={name} ' in command
  rows = [()] if 'activation' not in text else [
      (), ('--activation=leaky_relu',), ('--activation=param_ramp',), ('--activation=param_ramp', '--height_noise=.01')]
  rows += [(f'--model={model}',) for model in directory.MODELS if re.search(rf'\b{model}\b', text)]
  rows += [(f'--loss={loss}',) for loss in FLAGS['loss'].parser.enum_values if f'--loss={loss}' in text]
  rows += [('--activation=param_ramp', '--eta=.01', '--eta_end=0')] if '--eta_end' in text else []
  for more in rows:
    given(f'--config={name}', *more)
    for flag in more:
      key, value = flag[2:].split('=')
      assert FLAGS[key].value == FLAGS[key].parser.parse(value)
    options = recipe.objective_and_schedules(10)
    assert float(options['eps'](10 * FLAGS.epochs)) == pytest.approx(FLAGS.eps)
    assert FLAGS.test_eps is None or FLAGS.test_eps < FLAGS.eps
    assert (FLAGS.statistics == 'attacked') == ('ibp' in FLAGS.loss and options['attack'] is not None)


def test_flags_go_before_a_config(given):
  given('--config=shi2021_cifar10_short', '--epochs=80', '--decay=.5')
  assert (FLAGS.epochs, FLAGS.decay, FLAGS.ramp_epochs, FLAGS.milestones) == (80, .5, 20, [50, 60])
  assert FLAGS.eps == pytest.approx(8 / 255)
  assert FLAGS.initialization == 'ibp'


def one_step(*arguments, given):
  """The metrics of a step that the flags describe."""
  given('--model=mlp', '--hidden=8', '--eps=.3', '--warmup_epochs=0', '--ramp_epochs=0', '--pgd_steps=3', *arguments)
  facts = datasets.FACTS['digits']
  config = dict(model='mlp', hidden=FLAGS.hidden)
  graphdef, state = training.TrainState.create(directory.build_model(config, facts, 0), recipe.optimizer(1))
  images = jax.random.uniform(jax.random.key(0), (16, *facts.shape))
  step = interpreted(lambda state: training.train_step(
      state, (images, jnp.arange(16) % 10), jax.random.key(1), graphdef=graphdef, optimizer=recipe.optimizer(1),
      **recipe.objective_and_schedules(1)))
  return {k: float(v) for k, v in step(state)[1].items()}


def test_losses(given):
  found = {loss: one_step(f'--loss={loss}', given=given) for loss in (
      'ibp', 'pgd', 'trades', 'natural', 'crown-ibp', 'crown-lbp', 'fused')}
  assert len({round(m['loss'], 5) for m in found.values()}) == 4  # beta has come to 0: the linear ones are ibp
  for loss in ('crown-ibp', 'crown-lbp', 'fused'):
    kept = one_step(f'--loss={loss}', '--beta_end=1', given=given)
    assert found[loss]['beta'] == pytest.approx(0, abs=1e-6)
    assert found['pgd']['robust'] < kept['robust'] < found['ibp']['robust'] == pytest.approx(found[loss]['robust'])
  assert found['natural']['loss'] == found['natural']['natural']
  assert not {'eps', 'kappa', 'robust'} & found['natural'].keys()
  assert found['ibp']['robust'] > found['pgd']['robust'] > found['natural']['natural']
  half = one_step('--loss=trades', '--trades_weight=3', given=given)
  natural = half['natural']
  assert half['robust'] - natural == pytest.approx((found['trades']['robust'] - natural) / 2, rel=1e-3)


def test_expressive_losses(given):
  found = {name: one_step(f'--loss={name}', '--alpha=.3', '--box_share=.2', '--pgd_step=.5', given=given)
           for name in ('mtl-ibp', 'cc-ibp', 'exp-ibp', 'sabr')}
  ibp, pgd = (one_step(f'--loss={name}', given=given)['robust'] for name in ('ibp', 'pgd'))
  assert all(pgd < m['robust'] < ibp for m in found.values())
  assert len({round(m['robust'], 4) for m in found.values()}) == 4
  further = one_step('--loss=mtl-ibp', '--alpha=.3', '--pgd_step=.5', '--attack_scale=1.5', given=given)
  assert further['robust'] > found['mtl-ibp']['robust']
  assert one_step('--loss=sabr', '--regularizer_weight=.5', '--ramp_epochs=4', given=given)['penalty'] > 0


def test_regularizers(given):
  before = one_step('--regularizer_weight=.5', '--ramp_epochs=4', '--kappa_start=0', given=given)
  assert before['penalty'] == pytest.approx(.5 * (before['tightness'] + before['balance']), rel=1e-5)
  assert before['penalty'] > 0
  assert before['loss'] == pytest.approx(before['robust'] + before['penalty'], rel=1e-5)
  assert one_step('--regularizer_weight=.5', given=given)['penalty'] == pytest.approx(0, abs=1e-6)  # eps has its value
  assert 'penalty' not in one_step(given=given)
  cifar = recipe.objective_and_schedules(1, datasets.FACTS['cifar10'].std)['objective'].keywords['regularizer']
  assert cifar is None
  given('--regularizer_weight=.5')
  cifar = recipe.objective_and_schedules(1, datasets.FACTS['cifar10'].std)['objective'].keywords['regularizer']
  np.testing.assert_allclose(cifar.keywords['std'].ravel(), datasets.FACTS['cifar10'].std, rtol=1e-6)


def test_initialization(given, tmp_path):
  for name in ('ibp', 'fan_in'):
    given('--model=mlp', '--hidden=64,64', '--epochs=1', '--warmup_epochs=0', '--ramp_epochs=0', '--learning_rate=0',
          '--loss=natural', f'--initialization={name}')
    train.train(datasets.load('digits', '', 0, None), tmp_path / name, 0, float('inf'))
  gains = {}
  for name in ('ibp', 'fan_in'):
    params, _ = open_run(tmp_path / name, None, 'test', 1).params
    gains[name] = [float(nn.difference_gain(w)) for w in jax.tree.leaves(params) if w.ndim == 2]
  assert gains['ibp'][:2] == pytest.approx([1, 1], rel=.1)
  assert gains['fan_in'][:2] == pytest.approx([2, 2], rel=.1)  # sqrt(64) / 4
  assert gains['ibp'][2] == gains['fan_in'][2]


def test_statistics_of_the_population(given, tmp_path):
  given('--model=cnn5', '--width=1', '--epochs=1', '--warmup_epochs=0', '--ramp_epochs=0', '--batch_size=64',
        '--learning_rate=0', '--loss=natural', '--population_statistics')
  data = datasets.load('digits', '', 0, None)
  train.train(data, tmp_path, 0, float('inf'))
  opened = open_run(tmp_path, None, 'test', 1)
  model = nnx.merge(opened.graphdef, *opened.params)
  norms = [layer for layer in model.flat() if isinstance(layer, nn.BatchNorm)]
  images = data.facts.pixels(data.train.images)
  for norm, (mean, var) in zip(norms[:1], model.with_statistics(images)[1][:1], strict=True):
    np.testing.assert_allclose(norm.mean[...], mean, rtol=.02, atol=1e-3)  # of all but the last, partial batch
    np.testing.assert_allclose(norm.var[...], var, rtol=.02)
  logits = model.with_statistics(images)[0]
  assert float(jnp.abs(model(images) - logits).max()) < .2 * float(logits.std())


def test_augmentation(given):
  facts = datasets.FACTS['cifar10']
  images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
  keys = jax.random.split(jax.random.key(0))
  given('--augment')
  one, other = (np.asarray(training_run.prepared(facts, images, key)) for key in keys)
  assert one.shape == images.shape
  assert (one != other).any()
  np.testing.assert_array_equal(training_run.prepared(facts, images, None), images / np.float32(255))
  given('--noaugment')
  for key in keys:
    np.testing.assert_array_equal(training_run.prepared(facts, images, key), images / np.float32(255))
  large = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3)).astype(np.uint8)
  imagenet = datasets.FACTS['imagenet']
  one, other = (np.asarray(training_run.prepared(imagenet, large, key)) for key in keys)
  np.testing.assert_array_equal(one, other)
  assert one.shape == (4, *imagenet.shape)


def test_evaluation(given):
  """Errors of a whole split at the radius that is given, in per cent, by a count that shares no code."""
  given()
  facts = datasets.FACTS['digits']
  model = directory.build_model(dict(model='mlp', hidden=[16]), facts, 0)
  graphdef, params = training.split(model)
  rng = np.random.default_rng(0)
  images = rng.integers(0, facts.levels + 1, (37, *facts.shape)).astype(np.uint8)
  logits = np.asarray(model(jnp.asarray(images, jnp.float32) / facts.levels))
  labels = np.where(rng.uniform(size=37) < .7, logits.argmax(-1), 0).astype(np.int32)
  split = Split(images, labels)
  at = {eps: measures.evaluator(graphdef, facts, split, 'test', eps)(*params, None)[0] for eps in (0., .003, .5)}
  wrong = 100 * np.mean(logits.argmax(-1) != labels)
  for found in at.values():
    assert found['test_error'] == pytest.approx(wrong)
  assert at[0.]['test_verified_error'] == pytest.approx(wrong)
  assert wrong <= at[.003]['test_verified_error'] < at[.5]['test_verified_error'] == 100


class After(float):
  """A deadline that is over at the nth look at the clock."""

  def __lt__(self, now):
    self.left -= 1
    return self.left <= 0


def test_a_lipschitz_run_that_was_stopped_measures_what_one_does_that_was_not(given, tmp_path):
  """Also which classes threaten, that are compared with those of the evaluation before; stopped right after it."""
  given('--model=mlp', '--hidden=16', '--loss=emma', '--epochs=2', '--batch_size=500', '--power_steps=2',
        '--warmup_epochs=0', '--ramp_epochs=1', '--kappa_start=0', '--eps=.3')
  data = datasets.load('digits', '')
  stop = After()
  stop.left = 2  # steps an epoch
  assert train.train(data, tmp_path / 'stopped', 0, stop) is None
  found = [train.train(data, tmp_path / name, 0, float('inf')) for name in ('stopped', 'whole')]
  lines = [[json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
           for name in ('stopped', 'whole')]
  for one, other in zip(*lines, strict=True):
    assert one | dict(seconds=0) == other | dict(seconds=0)
  assert [('rotation' in line) for line in lines[0]] == [False, True]
  assert found[0]['rotation'] == lines[0][-1]['rotation'] > 0


def test_runs_that_diverge_are_refused():
  params = dict(w=jnp.ones(3))
  training_run.refuse_divergence(dict(loss=1.), params, 1)
  for metrics, weights in ((dict(loss=np.nan), params), (dict(loss=1.), dict(w=jnp.array([1., np.inf])))):
    with pytest.raises(FloatingPointError, match='training diverged in epoch 3'):
      training_run.refuse_divergence(metrics, weights, 3)


def test_parameters_are_counted():
  model = directory.build_model(dict(model='mlp', hidden=[16]), datasets.FACTS['digits'], 0)
  assert directory.parameters(model) == 64 * 16 + 16 + 16 * 10 + 10
  assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 4
