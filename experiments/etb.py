"""Measures expected tight bounds: widths and misses on random networks, and what they are worth on trained runs.

    python -m experiments.etb --out=etb
    python -m experiments.etb --runs=runs/a,runs/b --eps=0.1,0.2 --out=etb

Without --runs: random networks, Gaussian weights of variance 2 / fan_in, zero biases. `blocks.md`: radius of IBP over
that of ETB of one block, and the law sqrt(k). `depth.md`: widths over an inner estimate of the range (attacks on each
output), and how many intervals miss part of that. With --runs, `runs.md`: errors by attacks, expected and sound, and
what the expected ones are worth. Each with a picture and .json.
"""
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ibpjax
from ibpjax.cli import commands
from ibpjax.cli.flags import define_integers, define_radii
from ibpjax.plotting import figures
from ibpjax.runs import logs
from ibpjax.runs.load_run import open_run
from ibpjax.training.attacks import pgd_by_steps
from ibpjax.verification.evaluation import example_key
from ibpjax.verification.expected import drops, expectations
from ibpjax.verification.report import radius_text

FLAGS = flags.FLAGS
flags.DEFINE_list('runs', [], 'Folders of trained runs; none for random networks.')
define_radii('eps', None, 'Radii; by default 0.01 and 0.1 on random networks, and the one that a run was trained for.')
define_integers('widths', [32, 128], 'Hidden units of random networks.', least=1)
define_integers('depths', [2, 3, 4, 6, 8], 'Affine layers of random networks.', least=2)
flags.DEFINE_integer('networks', 10, 'Random networks of each kind.', 1)
flags.DEFINE_integer('examples', None, 'The first ones of the test split; default all.', 1)
flags.DEFINE_integer('batch_size', 100, 'Examples at a time.', 1)
flags.DEFINE_integer('steps', 40, 'Steps of the attacks.', 1)
flags.DEFINE_integer('restarts', 5, 'Random starts of the attacks.', 1)
flags.DEFINE_integer('seed', 0, 'Of random networks and of attacks.', 0)
flags.DEFINE_string('data_dir', None, 'Folder of the data; the default is the one of each run.')
flags.DEFINE_string('out', 'etb', 'Folder for tables and pictures.')
INPUTS, OUTPUTS = 64, 5
BLOCK_INPUTS, BLOCK_OUTPUTS = 400, 16
BLOCKS = (4, 16, 64, 256, 1024, 4096)   # hidden units of single blocks
REACH = (.1, 1., 8.)   # mean l1 norm of the rows of their first layer times eps, over the deviation of its values
METHODS: dict[str, Callable[..., Callable]] = {
    'IBP': ibpjax.ibp, 'V1': ibpjax.etb, 'V2': functools.partial(ibpjax.etb, masks='ibp'),
    'V3': functools.partial(ibpjax.etb, blocks='box'),
    'V2 centred': functools.partial(ibpjax.etb, masks='ibp', centre='network'),
    'S1': ibpjax.etb_companion, 'S2': functools.partial(ibpjax.etb_companion, slopes='chord'),
    'S2r': functools.partial(ibpjax.etb_companion, slopes='chord', masks='sound', intersect=True)}
SOUND = ('IBP', 'S1', 'S2', 'S2r')


def network(params: Any, x: Any) -> Any:
  """Affine layers with ReLUs between them."""
  *layers, last = params
  for w in layers:
    x = jax.nn.relu(w @ x)
  return last @ x


def weights(rng: np.random.Generator, sizes: list[int], gain: float) -> list[Any]:
  """Matrices (out, in) of variance gain / in."""
  return [jnp.asarray(rng.normal(size=(m, n)) * (gain / n) ** .5, jnp.float32) for n, m in itertools.pairwise(sizes)]


def blocks() -> list[dict[str, float]]:
  """Of single blocks: radius of IBP over that of ETB, as measured and as predicted."""
  def radii(params, x, eps):
    box = ibpjax.linf_ball(x, eps)
    hidden = ibpjax.ibp(lambda p, x: p[0] @ x)(params, box)
    alive = hidden.upper >= 0
    passed = (jax.nn.relu(hidden.upper) - jax.nn.relu(hidden.lower)) / 2
    count = alive.sum()
    predicted = jnp.sum(passed) / jnp.sum(jnp.where(alive, hidden.radius, 0)) * jnp.sqrt(2 * count / jnp.pi)
    return ibpjax.ibp(network)(params, box).radius.mean(), ibpjax.etb(network)(params, box).radius.mean(), predicted
  run, found = jax.jit(radii), []
  for k, rho in itertools.product(BLOCKS, REACH):
    rng, rows = np.random.default_rng(FLAGS.seed), []
    for _ in range(2 * FLAGS.networks):
      params = weights(rng, [BLOCK_INPUTS, k, BLOCK_OUTPUTS], 1.)
      x = jnp.asarray(rng.normal(size=BLOCK_INPUTS), jnp.float32)
      rows.append(run(params, x, rho / (2 * BLOCK_INPUTS / np.pi) ** .5))
    by_ibp, by_etb, predicted = np.mean(np.asarray(rows, float), 0)
    found.append(dict(k=k, rho=rho, ratio=float(by_ibp / by_etb), predicted=float(predicted)))
  return found


def inner(params: Any, x: Any, eps: Any, key: Any) -> ibpjax.Interval:
  """The least and greatest output that sign-gradient ascents find, each from random points and from the centre."""
  box = ibpjax.linf_ball(x, eps)

  def reach(j, sign, start):
    value = jax.value_and_grad(lambda x: sign * network(params, x)[j])

    def step(state, _):
      x, best = state
      v, gradient = value(x)
      return (jnp.clip(x + .1 * eps * jnp.sign(gradient), box.lower, box.upper), jnp.maximum(best, v)), None
    (end, best), _ = jax.lax.scan(step, (start, jnp.asarray(-jnp.inf)), length=FLAGS.steps)
    return jnp.maximum(best, value(end)[0])
  starts = box.lower + box.width * jax.random.uniform(key, (FLAGS.restarts, *x.shape))
  starts = jnp.concatenate([starts, x[None]])
  over = jax.vmap(jax.vmap(reach, (None, None, 0)), (0, None, None))
  up, down = (over(jnp.arange(OUTPUTS), sign, starts).max(1) for sign in (1., -1.))
  return ibpjax.Interval(-down, up)


def depth(k: int, layers: int, radii: list[float]) -> list[dict[str, Any]]:
  """Of random networks: mean widths over that of an inner estimate of the range, and the fractions that miss it."""
  @jax.jit
  def run(params, x, eps, key):
    found = {name: method(network)(params, ibpjax.linf_ball(x, eps)) for name, method in METHODS.items()}
    found = {name: getattr(x, 'sound', x) for name, x in found.items()}
    return {name: (x.lower, x.upper) for name, x in found.items()}, inner(params, x, eps, key), network(params, x)
  rows = []
  for eps in radii:
    rng = np.random.default_rng(FLAGS.seed)
    widths, missed, outside = ({name: list[float]() for name in (*METHODS, 'inner')} for _ in range(3))
    for i in range(FLAGS.networks):
      params = weights(rng, [INPUTS, *[k] * (layers - 1), OUTPUTS], 2.)
      x = jnp.asarray(rng.normal(size=INPUTS), jnp.float32)
      found, true, clean = jax.tree.map(np.asarray, run(params, x, eps, jax.random.key(i)))
      slack = 1e-5 * np.abs(clean).max() + 1e-3 * true.width
      for name, (lower, upper) in (found | dict(inner=(true.lower, true.upper))).items():
        widths[name].append(np.mean(upper - lower))
        missed[name].append(np.mean((lower > true.lower + slack) | (upper < true.upper - slack)))
        outside[name].append(np.mean((lower > clean + slack) | (upper < clean - slack)))
    mean = {name: float(np.mean(w)) for name, w in widths.items()}
    rows.append(dict(k=k, layers=layers, eps=eps, width={n: mean[n] / mean['inner'] for n in METHODS},
                     missed={n: float(np.mean(m)) for n, m in missed.items() if n in METHODS},
                     outside={n: float(np.mean(m)) for n, m in outside.items() if n in METHODS}))
    for name in SOUND:
      if np.mean(missed[name]) > 0:
        raise RuntimeError(f'{name} misses values that were reached (k={k}, {layers} layers, eps {eps}): a wrong bound')
  return rows


def of_run(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Of a trained run, for each radius what `drops` says, in fractions."""
  opened = open_run(folder, FLAGS.data_dir, 'test', FLAGS.examples)
  f, params = opened.f, opened.params
  run = jax.jit(functools.partial(expectations, f))
  keys = jax.jit(jax.vmap(functools.partial(example_key, attack=0), (None, None, 0)))
  rows = []
  for eps in FLAGS.eps or [opened.config['eps']]:
    parts = []
    for start in range(0, len(opened.labels), FLAGS.batch_size):
      which = np.arange(start, start + FLAGS.batch_size) % len(opened.labels)  # one shape, the last ones twice
      images, labels = opened.facts.pixels(opened.images[which]), jnp.asarray(opened.labels[which])
      points, _ = pgd_by_steps(f, params, images, labels, eps, keys(FLAGS.seed, eps, which), steps=FLAGS.steps,
                               restarts=FLAGS.restarts)
      parts.append(jax.tree.map(np.asarray, run(params, images, labels, eps, points)))
    found = jax.tree.map(lambda *x: np.concatenate(x)[:len(opened.labels)], *parts)
    rows.append(dict(run=str(folder), eps=eps, examples=len(opened.labels), **drops(found)))
    print(logs.markdown([cells(rows[-1])]), end='', flush=True)
  return rows


HEAD = ['run', 'eps', 'clean', 'PGD', 'expected (false)', 'centred (false)', 'sound, mask', 'sound, chord',
        'missed', 'refuted', 'drop ETB', 'drop centred', 'drop chord']


def cells(row: dict[str, Any]) -> list[Any]:
  """A row of the table of runs: accuracies in per cent, ratios of drops."""
  rates = lambda *names: [f'{100 * row[name]:.2f}' for name in names]
  return [row['run'], radius_text(row['eps']), *rates('natural', 'robust'),
          '{} ({})'.format(*rates('says', 'false')), '{} ({})'.format(*rates('says_centred', 'false_centred')),
          *rates('says_mask', 'says_chord', 'missed', 'refuted'),
          *('-' if row[name] is None else f'{row[name]:.2f}' for name in ('ratio', 'ratio_centred', 'ratio_chord'))]


def random_networks(out: pathlib.Path) -> None:
  """Tables and pictures of random networks."""
  found = blocks()
  text = logs.markdown_table(['k', 'rho', 'IBP / ETB', 'predicted'], [list(row.values()) for row in found])
  print(text)
  logs.write(out / 'blocks.md', text)
  rows = [row for k, layers in itertools.product(FLAGS.widths, FLAGS.depths)
          for row in depth(k, layers, FLAGS.eps or [.01, .1])]
  shown = [n for n in METHODS if n not in SOUND]
  head = ['k', 'layers', 'eps', *(f'width {n}' for n in METHODS if n != 'V2 centred'), 'IBP / V2',
          *(f'missed {n}' for n in shown), *(f'f(x) outside {n}' for n in ('V1', 'V2'))]
  found_rows = [[r['k'], r['layers'], r['eps'], *(r['width'][n] for n in METHODS if n != 'V2 centred'),
                 r['width']['IBP'] / r['width']['V2'], *(r['missed'][n] for n in shown),
                 *(r['outside'][n] for n in ('V1', 'V2'))] for r in rows]
  text = logs.markdown_table(head, found_rows)
  print(text)
  logs.write(out / 'depth.md', text)
  logs.write(out / 'random.json', json.dumps(dict(blocks=found, depth=rows), indent=1) + '\n')
  figures.expected_blocks(out / 'blocks.png', found)
  figures.expected_depth(out / 'depth.png', rows)


def main() -> None:
  out = pathlib.Path(FLAGS.out).expanduser()
  out.mkdir(parents=True, exist_ok=True)
  if not FLAGS.runs:
    random_networks(out)
    return
  print(logs.markdown_table(HEAD, []), end='')
  rows = [row for run in FLAGS.runs for row in of_run(pathlib.Path(run).expanduser())]
  logs.write(out / 'runs.md', logs.markdown_table(HEAD, list(map(cells, rows))))
  logs.write(out / 'runs.json', json.dumps(rows, indent=1) + '\n')
  figures.expected_runs(out / 'runs.png', rows)


if __name__ == '__main__':
  commands.run(main)
