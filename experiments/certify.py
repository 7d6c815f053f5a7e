"""Certifies the whole test split for a trained run and prints natural, attacked and verified error.

    python -m experiments.certify --run=runs/digits
"""
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import nnx

import ibpjax
from experiments import plots, runs
from experiments.data import DATASETS
from experiments.evaluation import evaluate, table
from ibpjax.training import split
from ibpjax.verification.certify import METHODS

FLAGS = flags.FLAGS
flags.DEFINE_string('run', 'runs/digits', 'Folder of a trained run.')
flags.DEFINE_float('eps', None, 'Radius to certify; the default is the one of training.', 0., 1.)
flags.DEFINE_enum('method', 'ibp', list(METHODS), 'How bounds are computed.')
flags.DEFINE_integer('pgd_steps', 40, 'Steps of each attack.', 1)
flags.DEFINE_integer('pgd_restarts', 5, 'Random starts of each attack.', 1)
flags.DEFINE_integer('seed', 0, 'Of the random starts and samples.')


def draw_boxes(path: pathlib.Path, f, params, x, eps: float, key) -> None:
  """Widths of the bounds at every layer, and the ranges of 256 random points and corners."""
  everything = ibpjax.ibp(f, intermediates=True)

  def layers(box):
    out, hidden = everything(params, box)
    return [box, *hidden.bounds.values(), out], hidden.sources

  box = ibpjax.linf_ball(x, eps, 0., 1.)
  bounds, sources = layers(box)
  uniform, signs = jax.random.split(key)
  inner, corners = jax.random.uniform(uniform, (128, *x.shape)), jax.random.bernoulli(signs, shape=(128, *x.shape))
  points = box.lower + box.width * jnp.concatenate([inner, corners.astype(x.dtype)])
  values = jax.lax.map(lambda p: [b.lower for b in layers(ibpjax.Interval(p, p))[0]], points)
  names = ['input', *(f'{i}: before {operation}' for i, (_, operation, _) in enumerate(sources, 1)), 'logits']
  plots.boxes(path, names, [np.asarray(b.width) for b in bounds], [np.asarray(np.ptp(v, axis=0)) for v in values],
              f'{len(x)} test examples, eps {eps:g}')


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # of the checkpoint library
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}: all options are flags, --name=value')
  run = pathlib.Path(FLAGS.run)
  config = runs.read_config(run)
  eps = config['eps'] if FLAGS.eps is None else FLAGS.eps
  data = DATASETS[config['dataset']]()
  graphdef, (params, averages) = split(runs.build_model(config['model'], data, config['seed']))
  state = runs.restore(run, dict(params=params, averages=averages))

  def batch_model(state, x):
    return nnx.merge(graphdef, state['params'], state['averages'])(x)

  result = evaluate(ibpjax.batched(batch_model), state, data, eps, method=FLAGS.method, seed=FLAGS.seed,
                    pgd_steps=FLAGS.pgd_steps, pgd_restarts=FLAGS.pgd_restarts)
  result |= dict(method=FLAGS.method, pgd=f'{FLAGS.pgd_steps}x{FLAGS.pgd_restarts}')
  (run / 'certificate.json').write_text(json.dumps(result, indent=2) + '\n')
  draw_boxes(run / 'boxes.png', batch_model, state, data.test_images[:64], eps, jax.random.key(FLAGS.seed))
  print(table(result, FLAGS.method.upper(), f'PGD-{result["pgd"]}'))
  print(f'{run}/certificate.json, {run}/boxes.png')


if __name__ == '__main__':
  app.run(main)
