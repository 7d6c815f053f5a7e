r"""Trains a classifier with guaranteed bounds and writes its run to a folder.

    ibpjax train --dataset=digits --model=dm_small --eps=0.1 --out=runs/digits
    ibpjax train --dataset=mnist --data_dir=~/tensorflow_datasets --model=mlp --hidden=100,100,100 \
        --eps=0.1 --seeds=0,1,2 --out=runs/fcnn

The same command goes on with a run that was stopped or killed, and ends as if it had never stopped.
"""
import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import os
import pathlib
import pkgutil
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from ibpjax import nn, training
from ibpjax.cli import commands, configs, measures, recipe
from ibpjax.cli.flags import define_integers, define_radius
from ibpjax.data import datasets, pipeline
from ibpjax.nn.liresnet import BLOCKS
from ibpjax.plotting import figures
from ibpjax.runs import directory, logs
from ibpjax.training import augment, parallel
from ibpjax.training.checkpoints import CheckpointError, fill

FLAGS = flags.FLAGS
flags.DEFINE_enum('dataset', 'digits', list(datasets.FACTS), 'What to train on.')
flags.DEFINE_string('data_dir', '~/tensorflow_datasets', 'Folder of TFDS, of packed .npz files, or of image folders.')
flags.DEFINE_integer('validation', 0, 'Training examples held out; then they are evaluated, not the test split.', 0)
flags.DEFINE_bool('augment', True, 'Random flips and crops, where the dataset has them.')
flags.DEFINE_integer('pad', None, 'Zeros around an image before a random crop to its size; by default the padding that '
                     'is usual for the dataset.', 0)
flags.DEFINE_integer('side', None, 'Cut images to this height and width: at random in training, in the middle else.', 1)
flags.DEFINE_string('generated', None, 'A .npz of generated examples (image, label) to train on too.')
flags.DEFINE_integer('generated_batch', 768, 'How many of them there are in a step, beside --batch_size.', 1)
flags.DEFINE_integer('workers', 2, 'Processes that read a dataset too large for memory.', 0)
flags.DEFINE_enum('model', 'dm_small', list(directory.MODELS), 'Which network.')
define_integers('hidden', [], 'Widths of the hidden layers of mlp.', least=1)
flags.DEFINE_integer('width', None, 'Channels of the first layer of cnn5, cnn7, cnn9, dm_large and liresnet.', 1)
flags.DEFINE_integer('depth', None, 'Blocks of liresnet.', 1)
flags.DEFINE_integer('neck', None, 'Side of the windows behind them.', 1)
flags.DEFINE_enum('block', None, list(BLOCKS), 'Which; by default linear.')
flags.DEFINE_bool('valid', False, 'No padding in dm_small and dm_medium (Gowal et al. 2018).')
flags.DEFINE_enum('activation', 'relu', list(directory.ACTIVATIONS), 'Of all hidden layers.')
flags.DEFINE_float('eta', 0., 'Slope of leaky_relu below 0 and of param_ramp outside of its bends, at the beginning.',
                   0., 1.)
flags.DEFINE_float('eta_end', None, 'That slope at the end; by default it does not change.', 0., 1.)
define_integers('eta_epochs', [70, 140], 'Epochs after which the slope starts to change and has changed, in a line.',
                least=0, distinct=True)
flags.DEFINE_float('height_noise', 0., 'Noise added to the heights of param_ramp in each step, as a share of their '
                   'mean in a layer.', 0.)
flags.DEFINE_enum('initialization', 'fan_in', ['fan_in', 'ibp'], 'Of the kernels: uniform within 1 / sqrt(fan_in), or '
                  'that of Shi et al. 2021, but for the last layer.')
flags.DEFINE_float('regularizer_weight', 0., 'Weight of the warm-up regularizers of Shi et al. 2021 at eps 0, with '
                   '--loss=ibp, sabr, taps, staps, mtl-ibp, cc-ibp, exp-ibp; it falls to 0 as eps grows.', 0.)
flags.DEFINE_enum('loss', 'ibp', ['ibp', 'crown-ibp', 'crown-lbp', 'fused', 'sabr', 'mtl-ibp', 'cc-ibp', 'exp-ibp',
                                  'ibp-r', 'taps', 'staps', 'etb', 'companion', 'pgd', 'trades', 'natural',
                                  *recipe.LIPSCHITZ],
                  'What is minimised beside the natural loss; fused is CROWN-IBP of the loss itself, companion the '
                  f'sound companion of ETB with slopes of chords; {", ".join(recipe.LIPSCHITZ)} are of Lipschitz '
                  'networks and l2 balls.')
flags.DEFINE_integer('power_steps', 10, 'Steps of the power iteration of these, in each step of training.', 1)
flags.DEFINE_float('etb_weight', 1., 'Weight of the loss of expected logits in etb, beside the natural one in it.', 0.)
flags.DEFINE_float('temperature', 1., 'Of these logits, which are divided by their greatest magnitude; 0 leaves them '
                   'as they are.', 0.)
flags.DEFINE_float('alpha', .5, 'Weight of the interval bounds in mtl-ibp, cc-ibp and exp-ibp, beside attacks.', 0., 1.)
flags.DEFINE_float('attack_scale', 1., 'Radius of the attacks of pgd, sabr, staps, ibp-r, mtl-ibp, cc-ibp and exp-ibp,'
                   ' in eps.', 0.)
flags.DEFINE_float('box_share', .4, 'Width of the boxes of sabr and staps, as a share of that of the ball.', 0., 1.)
flags.DEFINE_float('instability', .1, 'Weight of the instability of ReLUs in ibp-r.', 0.)
flags.DEFINE_integer('cut', 4, 'Activations after which taps and staps attack boxes inside of the network.', 1)
flags.DEFINE_float('cut_weight', 5., 'Weight of the gradient of the loss of these attacks.', 0.)
flags.DEFINE_float('weight_noise', 0., 'Noise of the weights over which the loss is averaged, as a share of their '
                   'standard deviation.', 0.)
flags.DEFINE_integer('weight_samples', 2, 'Samples of that noise.', 1)
flags.DEFINE_float('pgd_step', None, 'Length of a step of these attacks, in radii; default 2.5 / steps, at least 0.1.',
                   0.)
flags.DEFINE_enum('statistics', 'clean', ['clean', 'attacked'], 'Whose batch statistics normalise a step: of the '
                  'batch, or of what these attacks make of it, with the stored averages.')
flags.DEFINE_bool('population_statistics', False, 'After each epoch measure the stored batch statistics anew, over the '
                  'training split without augmentation, in whole batches.')
flags.DEFINE_float('beta_end', 0., 'Weight of the linear bounds of crown-ibp, crown-lbp and fused in the mixture with '
                   'interval bounds once eps has its value; linear in eps, from 1 before the ramp.', 0., 1.)
flags.DEFINE_integer('pgd_steps', 7, 'Steps of the attacks in training.', 1)
flags.DEFINE_float('trades_weight', 6., 'Weight of the divergence in trades and gloro-trades.', 0.)
define_radius('eps', .1, 'Radius of the ball to train for; pixels lie in [0, 1].')
flags.DEFINE_float('eps_start', 0., 'Radius before the ramp, as a share of --eps.', 0., 1.)
define_radius('test_eps', None, 'Radius that the curves evaluate; the default is --eps.')
flags.DEFINE_integer('epochs', 60, 'Passes over the training split.', 1)
flags.DEFINE_integer('warmup_epochs', 3, 'Epochs with eps 0 before the ramp.', 0)
flags.DEFINE_integer('ramp_epochs', 30, 'Epochs in which eps grows to its value.', 0)
flags.DEFINE_enum('schedule', 'smoothed', ['linear', 'smoothed'], 'Shape of the ramp of eps.')
flags.DEFINE_float('kappa_start', 1., 'Weight of the natural loss before the ramp.', 0., 1.)
flags.DEFINE_float('kappa_end', 0., 'Weight of the natural loss after the ramp; linear in eps between.', 0., 1.)
flags.DEFINE_integer('batch_size', 32, 'Examples a step.', 1)
flags.DEFINE_string('coordinator', None, 'host:port of the first of several processes that train together; "auto" asks '
                    'the environment of a cluster for it and for the next two.')
flags.DEFINE_integer('processes', None, 'How many processes there are.', 1)
flags.DEFINE_integer('process', None, 'Which of them this one is.', 0)
flags.DEFINE_bool('fsdp', False, 'Cut parameters and optimizer states over the devices, not only batches.')
flags.DEFINE_integer('accumulate', 1, 'Parts of a batch that bounds are computed for one after the other, to save '
                     'memory; batch statistics and steps are those of the whole batch.', 1)
flags.DEFINE_enum('optimizer', 'adam', ['adam', 'adamw', 'sgd'], 'sgd has a momentum of 0.9.')
flags.DEFINE_float('learning_rate', 2e-3, 'Of the optimizer.', 0.)
flags.DEFINE_float('weight_decay', 0., 'Added to the gradient of the loss, as a multiple of the weights; of adamw to '
                   'its direction.', 0.)
define_integers('milestones', None, 'Epochs after which the learning rate is multiplied by --decay; by default one, at '
                '4/5 of --epochs.', least=1, distinct=True)
flags.DEFINE_float('decay', .1, 'Factor of the learning rate.', 0., 1.)
flags.DEFINE_bool('cosine', False, 'Let the learning rate fall along a cosine in the place of milestones.')
flags.DEFINE_integer('rate_warmup_epochs', 0, 'Epochs in which the learning rate grows to its value first.', 0)
flags.DEFINE_float('gradient_clip', 0., 'Greatest l2 norm of the gradient; 0 for no limit.', 0.)
flags.DEFINE_float('l1', 0., 'Weight of the L1 norm of the kernels.', 0.)
flags.DEFINE_integer('swa_from', None, 'Epoch from which on weights are averaged, one sample an epoch.', 1)
define_integers('seeds', [0], 'Of initial weights, order, augmentation and attacks; several give several runs.',
                least=0, distinct=True)
flags.DEFINE_integer('evaluate_every', 1, 'Epochs between evaluations.', 1)
flags.DEFINE_float('checkpoint_minutes', 5., 'Minutes between checkpoints; 0 saves every step.', 0.)
flags.DEFINE_float('max_minutes', None, 'Save and stop after so many minutes; the same command goes on.', 0.)
flags.DEFINE_enum('config', None, sorted(m.name for m in pkgutil.iter_modules(configs.__path__) if m.name[0] != '_'),
                  'Settings of a published row, a file of ibpjax/cli/configs; flags that are given too go before it.')
flags.DEFINE_string('out', 'runs/digits', 'Folder of the run; with several seeds, of the runs.')


def take_config() -> None:
  """Gives the flags that are not on the command line the values of the config."""
  if FLAGS.config is not None:
    for name, value in importlib.import_module(f'ibpjax.cli.configs.{FLAGS.config}').FLAGS.items():
      if not FLAGS[name].present:
        FLAGS[name].value = FLAGS[name].parser.parse(value) if isinstance(value, str) else value


def check_flags() -> None:
  """Raises for combinations that make no sense, before anything is written; fills in what depends on others."""
  if FLAGS.milestones is None:
    FLAGS['milestones'].value = [4 * FLAGS.epochs // 5] if FLAGS.epochs > 1 else []
  if FLAGS.rate_warmup_epochs >= min([FLAGS.epochs, *(FLAGS.milestones if not FLAGS.cosine else [])]):
    raise app.UsageError(f'--rate_warmup_epochs={FLAGS.rate_warmup_epochs} must end before the learning rate falls')
  if any(epoch >= FLAGS.epochs for epoch in FLAGS.milestones):
    raise app.UsageError(f'--milestones={",".join(map(str, FLAGS.milestones))}: each must come before the last epoch, '
                         f'--epochs={FLAGS.epochs}')
  if FLAGS.warmup_epochs + FLAGS.ramp_epochs > FLAGS.epochs:
    raise app.UsageError(f'--epochs={FLAGS.epochs} ends before the ramp of eps does: it needs --warmup_epochs + '
                         f'--ramp_epochs = {FLAGS.warmup_epochs + FLAGS.ramp_epochs}')
  if FLAGS.loss not in recipe.LIPSCHITZ and max(FLAGS.eps, FLAGS.test_eps or 0) > 1:
    raise app.UsageError('radii of l-infinity balls are at most 1, as pixels lie in [0, 1]: write 2/255 and not 2')
  if FLAGS.activation == 'relu' and (FLAGS.eta or FLAGS.eta_end is not None):
    raise app.UsageError('--eta and --eta_end are options of --activation=leaky_relu and param_ramp, not of relu')
  if FLAGS.activation != 'param_ramp' and FLAGS.height_noise:
    raise app.UsageError(f'--height_noise is an option of --activation=param_ramp, not of {FLAGS.activation}')
  if FLAGS.eta_end is not None and not (
      len(FLAGS.eta_epochs) == 2 and FLAGS.eta_epochs[0] < FLAGS.eta_epochs[1] <= FLAGS.epochs):
    raise app.UsageError(f'--eta_epochs={",".join(map(str, FLAGS.eta_epochs))}: the slope changes between two epochs, '
                         f'the second not after --epochs={FLAGS.epochs}')
  for text, given, losses in (('--regularizer_weight', FLAGS.regularizer_weight, recipe.REGULARIZED),
                              ('--pgd_step', FLAGS.pgd_step is not None, recipe.ATTACKED),
                              ('--statistics=attacked', FLAGS.statistics == 'attacked', recipe.ATTACKED)):
    if given and FLAGS.loss not in losses:
      raise app.UsageError(f'{text} is an option of --loss={", ".join(losses)}, not of {FLAGS.loss}')
  if FLAGS.batch_size % FLAGS.accumulate:
    raise app.UsageError(f'--accumulate={FLAGS.accumulate} does not divide --batch_size={FLAGS.batch_size}')
  part = examples_a_step() // FLAGS.accumulate
  if part % jax.device_count():
    raise app.UsageError(f'{jax.device_count()} devices do not divide the {part} examples of a part of a batch: choose '
                         '--batch_size and --accumulate so that they do')
  if not FLAGS.seeds:
    raise app.UsageError('--seeds is empty: give one or more different numbers')
  if FLAGS.swa_from is not None and FLAGS.swa_from > FLAGS.epochs:
    raise app.UsageError(f'--swa_from={FLAGS.swa_from} comes after the last epoch, {FLAGS.epochs}')


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


def train(data: datasets.Dataset, out: pathlib.Path, seed: int, deadline: float) -> dict[str, Any] | None:
  """One run, or what remains of it: its last record, or None if the deadline came first."""
  facts, begun = data.facts, time.monotonic()
  if FLAGS.pad is not None:
    facts = dataclasses.replace(facts, pad=FLAGS.pad, edge=False)
  mesh = parallel.data_mesh()
  feed: Any = (pipeline.Streamed(data.train, FLAGS.batch_size, seed, FLAGS.workers, mesh)
               if isinstance(data.train, datasets.Stream) else
               pipeline.Resident(data.train, FLAGS.batch_size, seed, mesh))
  if FLAGS.generated is not None:
    made = pipeline.Resident(datasets.generated(facts, FLAGS.generated), FLAGS.generated_batch, seed, mesh)
    feed = pipeline.Mixed(feed, made)
  per_epoch = len(feed)
  total = FLAGS.epochs * per_epoch
  optimizer, options = recipe.optimizer(per_epoch), recipe.objective_and_schedules(per_epoch, facts.std)
  known = FLAGS.get_key_flags_for_module(__name__)
  config = {f.name: f.value for f in known} | dict(seed=seed)
  model, key = directory.build_model(config, facts, seed), jax.random.key(seed)
  if FLAGS.initialization == 'ibp':
    nn.reinitialize(model, jax.random.fold_in(key, total))  # a number that no step folds in
  carried = None if (estimate := options['estimate']) is None else training.carried_at_start(
      model, estimate, jnp.zeros(facts.shape), jax.random.fold_in(key, total + 1))
  graphdef, state = training.TrainState.create(model, optimizer, carried)

  def step(state, images, labels):
    augmenting, attacking = jax.random.split(jax.random.fold_in(key, state.step))
    batch = prepared(facts, images, augmenting), labels
    return training.train_step(state, batch, attacking, graphdef=graphdef, optimizer=optimizer, **options)

  size = examples_a_step()
  batch = jax.ShapeDtypeStruct((size, *facts.shape), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32)
  scalars = jax.eval_shape(step, state, *batch)[1]  # here, before anything is written: it may refuse the flags
  zeros = lambda: jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), scalars)
  first = jax.process_index() == 0
  if first:
    directory.begin(out, config | dict(parameters=directory.parameters(model)), {f.name: f.default for f in known})
  saved = directory.checkpoints(out)
  split, name = (data.validation, 'validation') if data.validation else (data.test, 'test')
  now, before, averaged = dict[str, Any](state=state, sums=zeros(), seen=measures.unseen(split)), 0., 0
  if FLAGS.swa_from is not None:
    now['mean'] = jax.tree.map(jnp.zeros_like, state.params)
  if saved.steps():
    at, arrays, notes = saved.restore()
    now, before, averaged = fill(now, arrays, saved.folder / str(at)), notes['seconds'], notes['averaged']
  layouts = parallel.state_shardings(mesh, now, fsdp=FLAGS.fsdp)
  now = jax.device_put(now, layouts)

  @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(layouts['state'], layouts['sums'], None),
                     compiler_options=training.compiler_options())
  def advance(state, sums, images, labels):
    state, metrics = step(state, images, labels)
    return state, jax.tree.map(jnp.add, sums, metrics), metrics

  start = int(now['state'].step)
  log = logs.Log(out if first else None, start)
  if start == total:
    if not first:
      return {}
    if not log.records:
      raise FileNotFoundError(f'{log.path} is missing: the run is finished, but what it measured is lost. Delete {out} '
                              'to train again')
    drawn(out, log.records)
    print(f'{out} is finished: {total} steps. Delete the folder to train again')
    return log.records[-1]
  evaluate = measures.evaluator(graphdef, facts, split, name, FLAGS.eps if FLAGS.test_eps is None else FLAGS.test_eps)

  def statistics_of(params):
    clean = (prepared(facts, x, None) for x, _ in feed.batches(0))
    return training.measured_batch_stats(graphdef, params, now['state'].batch_stats, clean)

  last, seconds = time.monotonic(), lambda: before + time.monotonic() - begun
  with tqdm(total=total, initial=start, desc=str(out), unit='step', disable=None) as bar:
    for number, images, labels in steps(feed, per_epoch, start, total):
      if number == FLAGS.warmup_epochs * per_epoch + 1 and nn.ramps(model):  # the ramp of eps begins
        now['state'] = bent(graphdef, now['state'], facts, data.train)
      now['state'], now['sums'], metrics = advance(now['state'], now['sums'], images, labels)
      jax.block_until_ready(metrics)
      bar.update()
      epoch, rest = divmod(number, per_epoch)
      final = dict[str, Any]()
      if not rest:
        means = {k: float(v) / per_epoch for k, v in now['sums'].items()}
        means |= {f'train_{k}': 100 * means.pop(k) for k in list(means) if k.endswith('error')}  # per cent, as below
        refuse_divergence(means, now['state'].params, epoch)
        means |= {k: float(metrics[k]) for k in ('eps', 'kappa', 'beta') if k in metrics}
        now['sums'] = jax.device_put(zeros(), layouts['sums'])
        if FLAGS.swa_from is not None and epoch >= FLAGS.swa_from:
          now['mean'], averaged = training.running_mean(now['mean'], now['state'].params, averaged), averaged + 1
        if FLAGS.population_statistics:
          now['state'] = dataclasses.replace(now['state'], batch_stats=statistics_of(now['state'].params))
        params, batch_stats = now['state'].params, now['state'].batch_stats
        if number == total and averaged:
          params, batch_stats = now['mean'], statistics_of(now['mean'])
        if epoch % FLAGS.evaluate_every == 0 or number == total:
          measured, seen = evaluate(params, batch_stats, now['seen'])
          means |= measured
          now['seen'] = jax.device_put(seen, layouts['seen'])
        log.add(dict(epoch=epoch, step=number, **means, seconds=seconds()))
        log.say(FLAGS.epochs, bar)
        if (ratio := means.get('expected_ratio_centred')) is not None and ratio < 1:
          bar.write(f'warning: the drop of margins that ETB around the network expects is {ratio:.2f} of the one that '
                    'attacks find: it is false on average')
        final = dict(final=(params, batch_stats)) if number == total else {}
      stop, save = parallel.agreed(time.monotonic() > deadline,
                                   time.monotonic() - last >= 60 * FLAGS.checkpoint_minutes)
      if final or stop or save:
        refuse_divergence(metrics, now['state'].params, number // per_epoch + 1)
        whole = parallel.gathered(now | final)
        if first:
          saved.save(number, whole, dict(seconds=seconds(), averaged=averaged, finished=bool(final)))
        last = time.monotonic()
      if stop and not final:
        return None
  log.close()
  if first:
    drawn(out, log.records)
  return log.records[-1]


def main() -> None:
  take_config()
  if FLAGS.coordinator is not None:
    given = {} if FLAGS.coordinator == 'auto' else dict(
        coordinator_address=FLAGS.coordinator, num_processes=FLAGS.processes, process_id=FLAGS.process)
    jax.distributed.initialize(**given)
  check_flags()
  deadline = time.monotonic() + 60 * FLAGS.max_minutes if FLAGS.max_minutes is not None else float('inf')
  data = datasets.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.validation, FLAGS.side)
  out, records = pathlib.Path(FLAGS.out).expanduser(), []
  for seed in FLAGS.seeds:
    where = out / f'seed{seed}' if len(FLAGS.seeds) > 1 else out
    try:
      with directory.alone(where) if jax.process_index() == 0 else contextlib.nullcontext():
        record = train(data, where, seed, deadline)
    except CheckpointError as e:
      # The storage library reports a full disk again, many times: its threads may be in the middle of a line now, and
      # there are more when Python ends. So a line of its own, in one write, and away.
      os.write(2, f'\n{type(e).__name__}: {e}\n'.encode())
      os._exit(1)
    if jax.process_index():
      if record is None:
        return
      continue
    if record is None:
      print(f'stopped after {FLAGS.max_minutes:g} minutes and saved in {where}: the same command goes on')
      return
    records.append(record)
    print(f'trained {FLAGS.epochs} epochs in {record["seconds"]:.0f} s: {where}/curves.png, {where}/metrics.jsonl')
  if len(records) > 1:
    summary = {k: dict(mean=statistics.mean(r[k] for r in records), std=statistics.stdev(r[k] for r in records))
               for k in records[0] if k.endswith('error')}
    logs.write(out / 'seeds.json', json.dumps(dict(seeds=FLAGS.seeds, **summary), indent=2) + '\n')
    for k, v in summary.items():
      print(f'{k:<28} {v["mean"]:6.2f} +- {v["std"]:.2f} % over {len(records)} seeds')


def start() -> None:
  commands.run(main)
