"""One run of training: what it is made of, and what a step, an epoch and a checkpoint do."""
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from tqdm import tqdm

from ibpjax import nn, training
from ibpjax.cli import measures, recipe
from ibpjax.data import datasets, pipeline
from ibpjax.plotting import figures
from ibpjax.runs import directory, logs
from ibpjax.training import augment, parallel
from ibpjax.training.checkpoints import fill

FLAGS = flags.FLAGS


class Training:
  """A run on the devices that there are, by the flags of `ibpjax train`, from its last checkpoint on.

  Attributes:
    now: what a checkpoint holds, on the devices: the state, the sums of an epoch, what evaluations have seen.
    before: seconds that earlier commands have trained for.
    averaged: how many epochs the mean of the weights is over.
  """

  def __init__(self, data: datasets.Dataset, out: pathlib.Path, seed: int, chosen: dict[str, Any],
               defaults: dict[str, Any]):
    """Builds a run, and begins or restores its folder.

    Args:
      data: what it is trained on.
      out: its folder.
      seed: of all that is drawn.
      chosen, defaults: values of the flags, which the folder records.
    """
    self.begun = time.monotonic()
    self.data, self.out = data, out
    self.facts = data.facts if FLAGS.pad is None else dataclasses.replace(data.facts, pad=FLAGS.pad, edge=False)
    self.mesh = parallel.data_mesh()
    self.feed = _feed(data, self.facts, seed, self.mesh)
    self.per_epoch = len(self.feed)
    self.total = FLAGS.epochs * self.per_epoch
    self.optimizer = recipe.optimizer(self.per_epoch)
    self.options = recipe.objective_and_schedules(self.per_epoch, self.facts.std)
    config = chosen | dict(seed=seed)
    self.model, self.key = directory.build_model(config, self.facts, seed), jax.random.key(seed)
    if FLAGS.initialization == 'ibp':
      nn.reinitialize(self.model, jax.random.fold_in(self.key, self.total))  # a number that no step folds in
    estimate = self.options['estimate']
    carried = None if estimate is None else training.carried_at_start(
        self.model, estimate, jnp.zeros(self.facts.shape), jax.random.fold_in(self.key, self.total + 1))
    self.graphdef, state = training.TrainState.create(self.model, self.optimizer, carried)
    size = examples_a_step()
    batch = jax.ShapeDtypeStruct((size, *self.facts.shape), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32)
    self.scalars = jax.eval_shape(self._step, state, *batch)[1]  # before anything is written: it may refuse the flags
    self.first = jax.process_index() == 0
    if self.first:
      directory.begin(out, config | dict(parameters=directory.parameters(self.model)), defaults)
    self.saved = directory.checkpoints(out)
    self.split, self.name = (data.validation, 'validation') if data.validation else (data.test, 'test')
    self.now, self.before, self.averaged = self._fresh(state), 0., 0
    if self.saved.steps():
      at, arrays, notes = self.saved.restore()
      self.now = fill(self.now, arrays, self.saved.folder / str(at))
      self.before, self.averaged = notes['seconds'], notes['averaged']
    self.layouts = parallel.state_shardings(self.mesh, self.now, fsdp=FLAGS.fsdp)
    self.now = jax.device_put(self.now, self.layouts)

  def _fresh(self, state: training.TrainState) -> dict[str, Any]:
    now = dict[str, Any](state=state, sums=self._zeros(), seen=measures.unseen(self.split))
    if FLAGS.swa_from is not None:
      now['mean'] = jax.tree.map(jnp.zeros_like, state.params)
    return now

  def _zeros(self) -> Any:
    return jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), self.scalars)

  def _step(self, state: training.TrainState, images: Any, labels: Any) -> tuple[training.TrainState, Any]:
    augmenting, attacking = jax.random.split(jax.random.fold_in(self.key, state.step))
    batch = prepared(self.facts, images, augmenting), labels
    return training.train_step(state, batch, attacking, graphdef=self.graphdef, optimizer=self.optimizer,
                               **self.options)

  def to_the_end(self, deadline: float) -> dict[str, Any] | None:
    """Trains: the last record, or None if the deadline came first."""
    start = int(self.now['state'].step)
    log = logs.Log(self.out if self.first else None, start)
    if start == self.total:
      return _finished(self.out, log, self.total) if self.first else {}

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=training.compiler_options(),
                       out_shardings=(self.layouts['state'], self.layouts['sums'], None))
    def advance(state, sums, images, labels):
      state, metrics = self._step(state, images, labels)
      return state, jax.tree.map(jnp.add, sums, metrics), metrics

    eps = FLAGS.eps if FLAGS.test_eps is None else FLAGS.test_eps
    evaluate = measures.evaluator(self.graphdef, self.facts, self.split, self.name, eps)
    last = time.monotonic()
    with tqdm(total=self.total, initial=start, desc=str(self.out), unit='step', disable=None) as bar:
      for number, images, labels in steps(self.feed, self.per_epoch, start, self.total):
        if number == FLAGS.warmup_epochs * self.per_epoch + 1 and nn.ramps(self.model):  # the ramp of eps begins
          self.now['state'] = bent(self.graphdef, self.now['state'], self.facts, self.data.train)
        self.now['state'], self.now['sums'], metrics = advance(self.now['state'], self.now['sums'], images, labels)
        jax.block_until_ready(metrics)
        bar.update()
        final = {} if number % self.per_epoch else self._end_epoch(number, metrics, evaluate, log, bar)
        stop, save = parallel.agreed(time.monotonic() > deadline,
                                     time.monotonic() - last >= 60 * FLAGS.checkpoint_minutes)
        if final or stop or save:
          self._save(number, metrics, final)
          last = time.monotonic()
        if stop and not final:
          return None
    log.close()
    if self.first:
      drawn(self.out, log.records)
    return log.records[-1]

  def _end_epoch(self, number: int, metrics: Any, evaluate: Callable[..., Any], log: logs.Log,
                 bar: tqdm) -> dict[str, Any]:
    """Averages, evaluates and records an epoch; what the last checkpoint holds besides, if it was the last."""
    epoch, now = number // self.per_epoch, self.now
    means = {k: float(v) / self.per_epoch for k, v in now['sums'].items()}
    means |= {f'train_{k}': 100 * means.pop(k) for k in list(means) if k.endswith('error')}  # per cent, as below
    refuse_divergence(means, now['state'].params, epoch)
    means |= {k: float(metrics[k]) for k in ('eps', 'kappa', 'beta') if k in metrics}
    now['sums'] = jax.device_put(self._zeros(), self.layouts['sums'])
    if FLAGS.swa_from is not None and epoch >= FLAGS.swa_from:
      now['mean'] = training.running_mean(now['mean'], now['state'].params, self.averaged)
      self.averaged += 1
    if FLAGS.population_statistics:
      now['state'] = dataclasses.replace(now['state'], batch_stats=self._statistics_of(now['state'].params))
    params, batch_stats = now['state'].params, now['state'].batch_stats
    if number == self.total and self.averaged:
      params, batch_stats = now['mean'], self._statistics_of(now['mean'])
    if epoch % FLAGS.evaluate_every == 0 or number == self.total:
      measured, seen = evaluate(params, batch_stats, now['seen'])
      means |= measured
      now['seen'] = jax.device_put(seen, self.layouts['seen'])
    log.add(dict(epoch=epoch, step=number, **means, seconds=self._seconds()))
    log.say(FLAGS.epochs, bar)
    if (ratio := means.get('expected_ratio_centred')) is not None and ratio < 1:
      bar.write(f'warning: the drop of margins that ETB around the network expects is {ratio:.2f} of the one that '
                'attacks find: it is false on average')
    return dict(final=(params, batch_stats)) if number == self.total else {}

  def _statistics_of(self, params: Any) -> Any:
    clean = (prepared(self.facts, x, None) for x, _ in self.feed.batches(0))
    return training.measured_batch_stats(self.graphdef, params, self.now['state'].batch_stats, clean)

  def _save(self, number: int, metrics: Any, final: dict[str, Any]) -> None:
    refuse_divergence(metrics, self.now['state'].params, number // self.per_epoch + 1)
    whole = parallel.gathered(self.now | final)
    if self.first:
      self.saved.save(number, whole, dict(seconds=self._seconds(), averaged=self.averaged, finished=bool(final)))

  def _seconds(self) -> float:
    return self.before + time.monotonic() - self.begun


def _finished(out: pathlib.Path, log: logs.Log, total: int) -> dict[str, Any]:
  """What a command says of a run that has no steps left."""
  if not log.records:
    raise FileNotFoundError(f'{log.path} is missing: the run is finished, but what it measured is lost. Delete {out} '
                            'to train again')
  drawn(out, log.records)
  print(f'{out} is finished: {total} steps. Delete the folder to train again')
  return log.records[-1]


def _feed(data: datasets.Dataset, facts: datasets.Facts, seed: int, mesh: Any) -> Any:
  """Batches of the training split, and of generated examples."""
  feed: Any = (pipeline.Streamed(data.train, FLAGS.batch_size, seed, FLAGS.workers, mesh)
               if isinstance(data.train, datasets.Stream) else
               pipeline.Resident(data.train, FLAGS.batch_size, seed, mesh))
  if FLAGS.generated is not None:
    made = pipeline.Resident(datasets.generated(facts, FLAGS.generated), FLAGS.generated_batch, seed, mesh)
    feed = pipeline.Mixed(feed, made)
  return feed


def examples_a_step() -> int:
  """Those of the split, and generated ones."""
  return FLAGS.batch_size + (0 if FLAGS.generated is None else FLAGS.generated_batch)


def prepared(facts: datasets.Facts, images: Any, key: Any | None) -> Any:
  """Stored images as floats in [0, 1] of the shape that the model takes; augmented if there is a key."""
  if key is None or not FLAGS.augment:
    return measures.pixels(facts, images)
  crop, rest = jax.random.split(key)
  images = augment.crop(crop, images, facts.shape[0])
  if facts.flip or facts.pad:
    images = augment.flip_and_crop(rest, images, flip=facts.flip, pad=facts.pad, edge=facts.edge)
  return facts.pixels(images)


def bent(graphdef: Any, state: training.TrainState, facts: datasets.Facts, split: Any) -> training.TrainState:
  """The state with the heights of param_ramp in force, each at the mean output of its neuron over a split."""
  model = nnx.merge(graphdef, state.params, state.batch_stats)
  nn.calibrate(model, (prepared(facts, images, None)
                       for images, _ in pipeline.evaluation_batches(split, 1000, FLAGS.workers)))
  _, (params, batch_stats) = training.split(model)
  return dataclasses.replace(state, params=params, batch_stats=batch_stats)


def drawn(out: pathlib.Path, records: list[dict[str, Any]]) -> None:
  """Draws what a run has measured."""
  figures.curves(out / 'curves.png', records)
  figures.layers(out / 'layers.png', records)


def refuse_divergence(metrics: Any, params: Any, epoch: int) -> None:
  """Raises if the loss or a weight is no longer a number, before that gets into a checkpoint."""
  finite = [np.isfinite(metrics['loss']), *(jnp.isfinite(x).all() for x in jax.tree.leaves(params))]
  if not all(map(bool, finite)):
    raise FloatingPointError(f'training diverged in epoch {epoch}: the loss is {float(metrics["loss"])}, and not all '
                             'weights are finite. Lower --learning_rate, lengthen --ramp_epochs or set --gradient_clip')


def steps(feed: Any, per_epoch: int, start: int, total: int) -> Any:
  """(number of the step, images, labels) of all steps after `start`, in an order that the seed alone fixes."""
  while start < total:
    epoch, first = divmod(start, per_epoch)
    for images, labels in itertools.islice(feed.batches(epoch, first), per_epoch - first):
      start += 1
      yield start, images, labels
