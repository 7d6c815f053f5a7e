"""Measures what bounds cost beside the network itself, in pairs, on networks of the papers.

    python -m experiments.benchmark --nets=dm_small,dm_medium,cnn7 --batch_size=64
    python -m experiments.benchmark --nets=vit_block,unet,gru_20,gru_200 --batch_size=16
    python -m experiments.benchmark --nets=mlp --peer_python=~/peer/bin/python --jax_peer_python=~/jax_peer/bin/python
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.benchmark --scaling

Each pair runs in turn (A B A B ...), so that a drift of the machine's speed hits both. XLA cost is
the number of floating-point operations that the compiled program reports.
"""
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx

import ibpjax
from experiments import contest, scaling
from experiments.timing import in_turn
from ibpjax.cli import architectures, commands
from ibpjax.runs import directory, logs

FLAGS = flags.FLAGS
flags.DEFINE_list('nets', ['dm_small', 'dm_medium', 'cnn7'], 'Networks to measure.')
flags.DEFINE_integer('batch_size', 64, 'Examples in a batch.', 1)
flags.DEFINE_integer('repeats', 15, 'Pairs to time; the median counts.', 3)
flags.DEFINE_float('eps', .01, 'Radius of the boxes.', 0., 1.)
flags.DEFINE_string('peer_python', None, 'Python of an environment with auto_LiRPA: then linear methods are measured '
                    'beside it, on one CPU, for the networks, batches and radii of `contest.CELLS`.')
flags.DEFINE_string('jax_peer_python', None, 'The same with jax_verify.')
flags.DEFINE_bool('scaling', False, 'Read from compiled steps of training what they cost on 1, 2, 4, ... devices.')
flags.DEFINE_string('out', None, 'File of JSON lines for what is measured beside a peer, or of scaling.')
SHAPES = {'mlp': (28, 28, 1), 'dm_small': (28, 28, 1), 'wk_small': (28, 28, 1), 'dm_medium': (32, 32, 3),
          'cnn7': (32, 32, 3)}


def compiled(f: Callable, *args: Any) -> tuple[Any, float]:
  """The compiled program and the seconds that tracing and compilation took."""
  start = time.perf_counter()
  program = jax.jit(f).lower(*args).compile()
  return program, time.perf_counter() - start


def pair(reference: Callable, other: Callable, *args: Any, repeats: int) -> dict[str, float]:
  """Median seconds of both, median of their ratio pair by pair, ratio of their XLA costs, compile seconds, memory."""
  (a, _), (b, compile_seconds) = compiled(reference, *args), compiled(other, *args)
  times = in_turn((a, b), *args, repeats=repeats)
  flops = [p.cost_analysis()['flops'] for p in (a, b)]
  return dict(reference=statistics.median(t for t, _ in times), seconds=statistics.median(t for _, t in times),
              ratio=statistics.median(t / r for r, t in times), cost=flops[1] / flops[0], compile=compile_seconds,
              megabytes=b.memory_analysis().temp_size_in_bytes / 2 ** 20)


def network(model: Any, x: Any, y: Any) -> Any:
  """What bounds are compared to: a batch through the network."""
  del y
  return model(x)


def margins(model: Any, x: Any, y: Any) -> Any:
  """The margins of one example."""
  return ibpjax.margins(model(x[None])[0], y)


def ball(x: Any) -> ibpjax.Interval:
  return ibpjax.linf_ball(x, FLAGS.eps, 0., 1.)


def batch(model: Any, x: Any, y: Any) -> ibpjax.Interval:
  """Bounds of the logits of a batch."""
  return ibpjax.ibp(network)(model, ball(x), y)


def elided(model: Any, x: Any, y: Any) -> ibpjax.Interval:
  """Bounds of the margins, merged with the last layer, as in training."""
  return jax.vmap(ibpjax.ibp(margins, elide=True), (None, 0, 0))(model, ball(x), y)


def outward(model: Any, x: Any, y: Any) -> ibpjax.Interval:
  """Bounds of the logits of a batch, with the allowance for rounding."""
  return ibpjax.ibp(network, round_outward=True)(model, ball(x), y)


def certified(model: Any, x: Any, y: Any) -> ibpjax.Interval:
  """The same with the allowance for rounding, as in certificates."""
  return jax.vmap(ibpjax.ibp(margins, elide=True, round_outward=True), (None, 0, 0))(model, ball(x), y)


CLASSIFIER = {'ibp': batch, 'ibp, elided margins': elided, '... rounded outward': certified}
ANY_NETWORK = {'ibp': batch, '... rounded outward': outward}


def build(name: str) -> tuple[Any, tuple[int, ...], dict[str, Callable]]:
  """A network, the shape of one example, and the bounds to measure."""
  if name in architectures.NAMES:
    return *architectures.build(name), ANY_NETWORK
  return directory.MODELS[name](input_shape=SHAPES[name], classes=10, rngs=nnx.Rngs(0)), SHAPES[name], CLASSIFIER


def beside(peers: dict[str, str], nets: list[str]) -> None:
  """Prints what libraries take, cell by cell: CPU seconds, memory, time to build, distance of the bounds to ours."""
  print(f'{"network":<10} {"method":<16} {"batch":>5} {"eps":>5} {"unstable":>8}   {"library":<11}'
        f'{"CPU s":>10} {"/ ours":>7} {"MB":>6} {"build s":>8} {"apart":>8}')
  for cell in contest.cells(nets):
    found = contest.measure(cell, peers)
    ours = found['ibpjax']
    unstable = f'{found["unstable"]:.2f}' if 'unstable' in found else ''
    for library in ('ibpjax', *peers):
      of = f'{cell.net:<10} {cell.method:<16} {cell.batch:>5} {cell.eps:>5g} {unstable:>8}   {library:<11}'
      figures = found[library]
      if 'failed' in figures:
        print(f'{of} {figures["failed"]}')
        continue
      ratio = f'{figures["cpu"] / ours["cpu"]:.2f}' if 'cpu' in ours else ''
      apart = f'{figures["apart"]:.1e}' if 'apart' in figures else ''
      print(f'{of}{figures["cpu"]:>10.3g} {ratio:>7} {figures["megabytes"]:>6.0f} {figures["build"]:>8.1f} {apart:>8}',
            flush=True)
    if FLAGS.out:
      logs.append(pathlib.Path(FLAGS.out), [found])


def across_devices() -> None:
  """Prints what a step of training costs a device, by the number of devices."""
  columns = ['devices', 'states', 'GFLOP', 'GB moved', 'GB held', 'MB sent', *scaling.ACCELERATORS]
  print(f'{"workload":<34}' + ''.join(f'{c:>20}' if c in scaling.ACCELERATORS else f'{c:>10}' for c in columns))
  for name, found in scaling.report():
    held = (found['state'] + found['temporary']) / 1e9
    row = [f'{found["devices"]}', found['layout'], f'{found["flops"] / 1e9:.1f}',
           f'{found["bytes"] / 1e9:.2f}', f'{held:.2f}', f'{found["sent"] / 1e6:.1f}']
    times = [f'{1e3 * t:.2f} ms, {found["bound"][device]}' for device, t in found['roofline'].items()]
    print(f'{name:<34}' + ''.join(f'{c:>10}' for c in row) + ''.join(f'{c:>20}' for c in times), flush=True)
    if FLAGS.out:
      logs.append(pathlib.Path(FLAGS.out), [dict(workload=name, **found)])


def main() -> None:
  pythons = dict(zip(contest.PEERS, (FLAGS.peer_python, FLAGS.jax_peer_python), strict=True))
  peers = {library: os.path.expanduser(python) for library, python in pythons.items() if python}
  known = list(contest.CELLS) if peers else [*SHAPES, *architectures.NAMES]
  if unknown := set(FLAGS.nets) - set(known):
    raise app.UsageError(f'--nets={",".join(sorted(unknown))}: known are {", ".join(known)}')
  if FLAGS.scaling:
    across_devices()
    return
  if peers:
    beside(peers, FLAGS.nets)
    return
  print(f'{directory.versions()["devices"]}, jax {jax.__version__}, batch {FLAGS.batch_size}, {FLAGS.repeats} pairs')
  columns = f'{"network ms":>10} {"bound ms":>10} {"ratio":>6} {"cost":>6} {"compile s":>9} {"temp MB":>8}'
  print(f'{"network":<11} {"bound":<22} {columns}')
  for name in FLAGS.nets:
    model, shape, bounds = build(name)
    x = jax.numpy.asarray(np.random.default_rng(0).uniform(size=(FLAGS.batch_size, *shape)), np.float32)
    y = jax.numpy.arange(FLAGS.batch_size) % 10
    for label, bound in bounds.items():
      found = pair(network, bound, model, x, y, repeats=FLAGS.repeats)
      print(f'{name:<11} {label:<22} {1e3 * found["reference"]:>10.2f} {1e3 * found["seconds"]:>10.2f} '
            f'{found["ratio"]:>6.2f} {found["cost"]:>6.2f} {found["compile"]:>9.2f} {found["megabytes"]:>8.1f}')


if __name__ == '__main__':
  commands.run(main, keep=False)  # compile times are measured
