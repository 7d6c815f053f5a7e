"""Certifies a trained run on a whole split and prints natural, attacked and verified error.

    ibpjax certify --run=runs/digits
    ibpjax certify --run=runs/cifar10 --eps=2/255,8/255 --pgd=40x1,200x10
    ibpjax certify --run=runs/liresnet --methods=lipschitz --eps=36/255 --audit=200

Lipschitz certificates are of the network in exact arithmetic, all others also of the one in floating point.

Killed at any moment, the same command goes on. What is written, beside pictures: `certificates.jsonl`, a record an
example and eps (`evaluation.Cascade`), and `certificate.json`, settings and summary (`report.summarise`).
"""
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import ibpjax
from ibpjax.cli import commands
from ibpjax.cli.flags import define_radii
from ibpjax.plotting import figures, lipschitz_figures
from ibpjax.runs import directory
from ibpjax.runs.load_run import open_run
from ibpjax.training import parallel
from ibpjax.verification import evaluation, lipschitz_cascade
from ibpjax.verification.certify import METHODS
from ibpjax.verification.report import radius_text

FLAGS = flags.FLAGS
flags.DEFINE_string('run', 'runs/digits', 'Folder of a trained run.')
define_radii('eps', None, 'Radii to certify, in the units of pixels in [0, 1]; the default is the one of the curves.')
flags.DEFINE_list('methods', ['ibp', 'crown-ibp'],
                  f'How bounds are computed, from cheap to tight, each on what is left: {", ".join(METHODS)}; or '
                  'lipschitz alone, for l2 balls.')
flags.DEFINE_integer('audit', 0, 'With --methods=lipschitz: examples whose Jacobians say how tight the bound is.', 0)
flags.DEFINE_list('pgd', ['40x1', '200x10'], 'STEPSxRESTARTS of each attack: the first on all examples, the others on '
                                             'those that are neither verified nor broken.')
flags.DEFINE_integer('batch_size', 500, 'Examples in a batch; the later methods and attacks take eighths of it.', 1)
flags.DEFINE_integer('devices_an_example', 1, 'Devices among which the rows are dealt that linear methods walk back '
                     'for an example; batches are cut over groups of so many.', 1)
flags.DEFINE_enum('split', 'test', ['test', 'validation'], 'Which examples.')
flags.DEFINE_integer('examples', None, 'Only so many, the first ones; the default is all.', 1)
flags.DEFINE_integer('seed', 0, 'Of the random starts and samples.')
flags.DEFINE_string('data_dir', None, 'Folder of the data; the default is the one of the run.')


def draw_boxes(path: pathlib.Path, f: Callable, params: Any, x: Any, title: str, eps: float, key: Any) -> None:
  """Widths of the bounds at every layer, and the ranges of 256 random points and corners."""
  sources: list[str] = []

  def layers(box):
    out, hidden = ibpjax.ibp(f, intermediates=True)(params, box)
    sources[:] = [operation for _, operation, _ in hidden.sources]
    return [box, *hidden.bounds.values(), out]

  box = ibpjax.linf_ball(x, eps, 0., 1.)
  bounds = jax.vmap(layers)(box)
  uniform, signs = jax.random.split(key)
  inner, corners = jax.random.uniform(uniform, (128, *x.shape)), jax.random.bernoulli(signs, shape=(128, *x.shape))
  points = box.lower + box.width * jnp.concatenate([inner, corners.astype(x.dtype)])
  values = jax.lax.map(lambda p: [b.lower for b in jax.vmap(layers)(ibpjax.Interval(p, p))], points)
  names = ['input', *(f'{i}: before {operation}' for i, operation in enumerate(sources, 1)), 'logits']
  figures.boxes(path, names, [np.asarray(b.width) for b in bounds], [np.asarray(np.ptp(v, axis=0)) for v in values],
              title)


def attack(text: str) -> tuple[int, int]:
  """(steps, restarts) of an attack that is written as 40x1."""
  found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
  if not found:
    raise app.UsageError(f'--pgd={text}: write steps x restarts of each attack, as in 40x1,200x10')
  return int(found[1]), int(found[2])


def main() -> None:
  methods, attacks = list(dict.fromkeys(FLAGS.methods)), [attack(text) for text in FLAGS.pgd]
  if methods != ['lipschitz'] and (not methods or set(methods) - set(METHODS)):
    raise app.UsageError(f'--methods={",".join(methods)}: known are {", ".join(METHODS)}, and lipschitz alone')
  lipschitz = methods == ['lipschitz']
  if FLAGS.audit and not lipschitz:
    raise app.UsageError('--audit is of Lipschitz bounds: --methods=lipschitz')
  if jax.device_count() % FLAGS.devices_an_example:
    raise app.UsageError(f'--devices_an_example={FLAGS.devices_an_example} does not divide the {jax.device_count()} '
                         'devices')
  if not attacks:
    raise app.UsageError('--pgd is empty: without an attack nothing checks the bounds')
  run = pathlib.Path(FLAGS.run).expanduser()
  opened = open_run(run, FLAGS.data_dir, FLAGS.split, FLAGS.examples)
  f, params, config, pixels = opened.f, opened.params, opened.config, opened.facts.pixels
  images, labels, total = opened.images, opened.labels, opened.of
  default = config['eps'] if config.get('test_eps') is None else config['test_eps']
  balls, versions = list(dict.fromkeys(FLAGS.eps or [default])), directory.versions()
  settings = dict(
      dataset=config['dataset'], split=FLAGS.split, examples=len(images), of=total, methods=methods,
      pgd=[f'{steps}x{restarts}' for steps, restarts in attacks], seed=FLAGS.seed, norm='l2' if lipschitz else 'linf',
      weights=evaluation.fingerprint(params), data=evaluation.fingerprint((images, labels)),
      **{k: versions[k] for k in ('commit', 'ibpjax', 'jax', 'devices')})
  path = evaluation.begin(run, settings)
  size = min(FLAGS.batch_size, len(images))
  common: dict[str, Any] = dict(attacks=attacks, seed=FLAGS.seed, batch_size=size)
  cascade: Any
  if lipschitz:
    cascade = lipschitz_cascade.Radii(f, params, opened.facts.shape, **common)
  else:
    mesh = parallel.data_mesh(rows=FLAGS.devices_an_example)
    cascade = evaluation.Cascade(f, params, methods=methods, mesh=mesh if mesh.size > 1 else None, **common)
  records = evaluation.evaluate(cascade, images, labels, balls, path, pixels)
  results = evaluation.finish(run, settings, records, batch_size=size, versions=versions)

  few, pictures = min(64, len(images)), ['radii.png' if lipschitz else 'boxes.png']
  if lipschitz:
    lipschitz_figures.radii(run / 'radii.png', {run.name: lipschitz_cascade.of_examples(records)}, results)
  else:
    title = f'{few} {FLAGS.split} examples, eps {radius_text(max(balls))}'
    draw_boxes(run / 'boxes.png', f, params, pixels(images[:few]), title, max(balls), jax.random.key(FLAGS.seed))
  what = f'{total} {FLAGS.split} examples' if len(images) == total else (
      f'the first {len(images)} of {total} {FLAGS.split} examples (a subset: not the errors on the whole split)')
  if len(results) > 1:
    figures.against_eps(run / 'eps.png', results, f'{config["dataset"]}, {what.split(" (")[0]}')
    pictures.append('eps.png')
  balls_of, tried = 'l2' if lipschitz else 'l-infinity', ' then '.join(settings['pgd'])
  print(f'{what}, {balls_of} balls, intervals of 95 % (Wilson), PGD {tried}')
  print(evaluation.table(results))
  if FLAGS.audit:
    found = lipschitz_cascade.audit(f, params, cascade.bound, pixels(images[:FLAGS.audit]), seed=FLAGS.seed)
    lipschitz_cascade.write_audit(run, found)
    print(lipschitz_cascade.audit_table(found), end='')
    pictures += ['audit.md', 'audit.json']
  print(', '.join(f'{run}/{name}' for name in ('certificate.json', 'certificates.jsonl', *pictures)))


def start() -> None:
  commands.run(main)
