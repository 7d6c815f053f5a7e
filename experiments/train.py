"""Trains a classifier with interval bounds and writes its run to a folder.

    python -m experiments.train --dataset=digits --model=dm_small --eps=0.1 --out=runs/digits
"""
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from tqdm import tqdm

import ibpjax
from experiments import plots, runs
from experiments.data import DATASETS, batches
from ibpjax import training

FLAGS = flags.FLAGS
flags.DEFINE_enum('dataset', 'digits', list(DATASETS), 'What to train on.')
flags.DEFINE_enum('model', 'dm_small', list(runs.MODELS), 'Which network.')
flags.DEFINE_float('eps', 0.1, 'Radius of the l-infinity ball to train for; pixels lie in [0, 1].', 0., 1.)
flags.DEFINE_integer('epochs', 60, 'Passes over the training split.', 1)
flags.DEFINE_integer('warmup_epochs', 3, 'Epochs with eps 0 before the ramp.', 0)
flags.DEFINE_integer('ramp_epochs', 30, 'Epochs in which eps grows to its value.', 0)
flags.DEFINE_enum('schedule', 'smoothed', ['linear', 'smoothed'], 'Shape of the ramp of eps.')
flags.DEFINE_float('kappa_start', 1., 'Weight of the natural loss before the ramp.', 0., 1.)
flags.DEFINE_float('kappa_end', 0., 'Weight of the natural loss after the ramp.', 0., 1.)
flags.DEFINE_integer('batch_size', 32, 'Examples a step.', 1)
flags.DEFINE_float('learning_rate', 2e-3, 'Of Adam; a tenth of it in the last fifth of the epochs.', 0.)
flags.DEFINE_integer('seed', 0, 'Of initial weights and of the order of examples.')
flags.DEFINE_string('out', 'runs/digits', 'Folder of the run; made anew.')


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # of the checkpoint library
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}: all options are flags, --name=value')
  if FLAGS.warmup_epochs + FLAGS.ramp_epochs > FLAGS.epochs:
    raise app.UsageError(f'--epochs={FLAGS.epochs} ends before the ramp of eps does: it needs --warmup_epochs + '
                         f'--ramp_epochs = {FLAGS.warmup_epochs + FLAGS.ramp_epochs}')
  data = DATASETS[FLAGS.dataset]()
  per_epoch = len(data.train_images) // FLAGS.batch_size
  if not per_epoch:
    raise app.UsageError(f'--batch_size={FLAGS.batch_size} is more than the {len(data.train_images)} examples')
  out = pathlib.Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  runs.write_config(out, {f.name: f.value for f in FLAGS.get_key_flags_for_module(argv[0])})
  metrics_path = out / 'metrics.jsonl'
  metrics_path.unlink(missing_ok=True)

  ramp = dict(start=FLAGS.warmup_epochs * per_epoch, length=FLAGS.ramp_epochs * per_epoch)
  drop = int(.8 * FLAGS.epochs) * per_epoch
  optimizer = optax.adam(optax.piecewise_constant_schedule(FLAGS.learning_rate, {drop: .1}))
  graphdef, state = training.TrainState.create(runs.build_model(FLAGS.model, data, FLAGS.seed), optimizer)
  step = jax.jit(functools.partial(
      training.train_step, graphdef=graphdef, optimizer=optimizer,
      eps=getattr(training, FLAGS.schedule)(FLAGS.eps, **ramp),
      kappa=training.linear(FLAGS.kappa_end, **ramp, initial=FLAGS.kappa_start)))

  @jax.jit
  def test(state):
    """Natural and IBP-verified error on the test split, as trained (no allowance for rounding)."""
    def one(model, x, y):
      return ibpjax.margins(model(x[None])[0], y)
    model = nnx.merge(graphdef, state.params, state.averages)
    box = ibpjax.linf_ball(data.test_images, FLAGS.eps, 0., 1.)
    clean = jax.vmap(one, (None, 0, 0))(model, data.test_images, data.test_labels)
    bound = jax.vmap(ibpjax.ibp(one, elide=True), (None, 0, 0))(model, box, data.test_labels).lower
    error = lambda margin: 100 * jnp.mean(~(margin.min(-1) > 0))
    return dict(test_error=error(clean), test_verified_error=error(bound))

  rng, start, records = np.random.default_rng(FLAGS.seed), time.time(), []
  for epoch in tqdm(range(1, FLAGS.epochs + 1), desc='training', unit='epoch', disable=None):
    seen = []
    for images, labels in batches(data.train_images, data.train_labels, FLAGS.batch_size, rng):
      state, metrics = step(state, images, labels)
      seen.append(metrics)
    means = {k: float(np.mean([m[k] for m in seen])) for k in seen[0]}
    means |= {f'train_{k}': 100 * means.pop(k) for k in ('error', 'verified_error')}  # per cent, as for the test split
    last = dict(eps=float(seen[-1]['eps']), kappa=float(seen[-1]['kappa']))
    tested = {k: float(v) for k, v in test(state).items()}
    records.append(dict(epoch=epoch, step=int(state.step), **means | last, **tested, seconds=time.time() - start))
    runs.append(metrics_path, records[-1])
    if not np.isfinite(means['loss']):
      raise FloatingPointError(f'the loss is {means["loss"]} in epoch {epoch}: lower --learning_rate or lengthen '
                               '--ramp_epochs')
  runs.save(out, dict(params=state.params, averages=state.averages))
  plots.curves(out / 'curves.png', records)
  print(f'trained {FLAGS.epochs} epochs in {records[-1]["seconds"]:.0f} s: {out}/curves.png, {out}/metrics.jsonl')


if __name__ == '__main__':
  app.run(main)
