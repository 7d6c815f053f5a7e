r"""Trains a classifier with guaranteed bounds and writes its run to a folder.

    ibpjax train --dataset=digits --model=dm_small --eps=0.1 --out=runs/digits
    ibpjax train --dataset=mnist --data_dir=~/tensorflow_datasets --model=mlp --hidden=100,100,100 \
        --eps=0.1 --seeds=0,1,2 --out=runs/fcnn

The same command goes on with a run that was stopped or killed, and ends as if it had never stopped.
"""
import contextlib
import importlib
import json
import os
import pathlib
import pkgutil
import statistics
import time
from typing import Any

import jax
from absl import app, flags

from ibpjax.cli import commands, configs, recipe
from ibpjax.cli.flags import define_integers, define_radius
from ibpjax.cli.training_run import Training, examples_a_step
from ibpjax.data import datasets
from ibpjax.nn.liresnet import BLOCKS
from ibpjax.runs import directory, logs
from ibpjax.training.checkpoints import CheckpointError

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


def train(data: datasets.Dataset, out: pathlib.Path, seed: int, deadline: float) -> dict[str, Any] | None:
  """One run, or what remains of it: its last record, or None if the deadline came first."""
  known = FLAGS.get_key_flags_for_module(__name__)
  run = Training(data, out, seed, {f.name: f.value for f in known}, {f.name: f.default for f in known})
  return run.to_the_end(deadline)


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
