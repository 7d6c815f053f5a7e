"""Measures how tight the methods are on a trained run: widths against eps and depth, margins, states of neurons.

    python -m experiments.tightness --run=runs/mnist --examples=100

Methods are run with tight and with adaptive lines and without intersection, to see each by itself. Written are
`tightness.json`, `tightness.png` (mean widths of the logits against eps, and of what goes into each activation against
depth), `margins.png` and, for networks of ReLU or ParamRamp, `neurons.png`.
"""
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

import ibpjax
from ibpjax.cli import commands
from ibpjax.cli.flags import define_radii
from ibpjax.plotting import figures
from ibpjax.runs import directory, logs
from ibpjax.runs.load_run import open_run
from ibpjax.verification.analysis import propagation_tightness
from ibpjax.verification.neurons import neuron_states
from ibpjax.verification.report import radius_text

FLAGS = flags.FLAGS
flags.DEFINE_string('run', 'runs/digits', 'Folder of a trained run.')
define_radii('eps', [1e-5, 1e-4, 1e-3, 1e-2, .1], 'Radii of the widths, in the units of pixels in [0, 1].')
define_radii('margin_eps', None, 'Radii of the margins and of the states of neurons; the default is the one trained '
             'for.')
LINEAR: dict[str, Callable[..., Callable]] = {
    'CROWN-IBP': functools.partial(ibpjax.crown, intermediate='ibp'), 'LBP': ibpjax.lbp,
    'CROWN-LBP': functools.partial(ibpjax.crown, intermediate='lbp'), 'CROWN': ibpjax.crown}
flags.DEFINE_list('methods', list(LINEAR), 'Linear methods to measure beside IBP.')
flags.DEFINE_integer('examples', 100, 'The first ones of the test split.', 1)
flags.DEFINE_integer('batch_size', 20, 'Examples at a time.', 1)
flags.DEFINE_string('data_dir', None, 'Folder of the data; the default is the one of the run.')


def methods(names: list[str]) -> dict[str, Callable]:
  """name -> a transformation that can return bounds of intermediate values."""
  chosen: dict[str, Callable] = {'IBP': functools.partial(ibpjax.ibp, elide=True)}
  for name in names:
    chosen |= {f'{name}, tight': functools.partial(LINEAR[name], lines=ibpjax.tight),
               f'{name}, adaptive': functools.partial(LINEAR[name], lines=ibpjax.adaptive)}
  return chosen


def batches(*arrays: Any) -> Any:
  """So many examples at a time, the last ones fewer."""
  return (tuple(a[i:i + FLAGS.batch_size] for a in arrays) for i in range(0, len(arrays[0]), FLAGS.batch_size))


def widths(f: Callable, method: Callable, params: Any, images: Any, radii: list[float]) -> list[list[float]]:
  """For each radius the mean widths of what goes into each activation, and of the logits."""
  @jax.jit
  def means(params, x, eps):
    out, inside = jax.vmap(method(f, intermediates=True), (None, 0))(params, ibpjax.linf_ball(x, eps, 0., 1.))
    return jnp.stack([b.width.reshape(len(x), -1).mean(1) for b in (*inside.bounds.values(), out)], 1)
  return [np.concatenate([means(params, x, eps) for x, in batches(images)]).mean(0).tolist() for eps in radii]


def lower_margins(f: Callable, method: Callable) -> Callable:
  """(params, images, labels, eps) -> lower bounds of the margins of a batch, compiled once for all radii."""
  def one(params, x, label):
    return ibpjax.margins(f(params, x), label)
  return jax.jit(lambda params, x, y, eps: jax.vmap(method(one), (None, 0, 0))(
      params, ibpjax.linf_ball(x, eps, 0., 1.), y).lower)


def margins(lower: Callable, params: Any, images: Any, labels: Any, eps: float) -> np.ndarray:
  """(examples, classes - 1), lower bounds of the margins without an allowance for rounding."""
  return np.concatenate([lower(params, x, y, eps) for x, y in batches(images, labels)])


def main() -> None:
  if unknown := set(FLAGS.methods) - set(LINEAR):
    raise app.UsageError(f'--methods={",".join(sorted(unknown))}: known are {", ".join(LINEAR)}')
  run = pathlib.Path(FLAGS.run).expanduser()
  opened = open_run(run, FLAGS.data_dir, 'test', FLAGS.examples)
  f, params, labels = opened.f, opened.params, opened.labels
  images = opened.facts.pixels(opened.images)
  radii = sorted(FLAGS.eps)
  of_margins = FLAGS.margin_eps or [opened.config['eps']]
  chosen = methods(list(dict.fromkeys(FLAGS.methods)))
  print(f'{run}: the first {len(images)} of {opened.of} test examples; mean widths of the logits, l-infinity balls')
  print(f'{"method":<22}' + ''.join(f'{radius_text(eps):>11}' for eps in radii))
  found, table = dict[str, list[list[float]]](), dict[str, dict[str, dict[str, float]]]()
  for name, method in chosen.items():
    found[name] = widths(f, method, params, images, radii)
    print(f'{name:<22}' + ''.join(f'{layers[-1]:>11.4g}' for layers in found[name]), flush=True)
  clean = jax.vmap(ibpjax.margins)(jax.vmap(f, (None, 0))(params, images), labels)
  least = dict(natural=np.asarray(clean.min(1)))
  bounds = {name: lower_margins(f, method) for name, method in chosen.items()}
  for eps in of_margins:
    print(f'{"margins, eps " + radius_text(eps):<22}{"verified error %":>18}{"mean lower bound":>18}')
    for name, lower in bounds.items():
      lowest = margins(lower, params, images, labels, eps)
      row = dict(verified_error=100 * float(np.mean(~(lowest.min(1) > 0))), mean_margin=float(lowest.mean()))
      table.setdefault(name, {})[radius_text(eps)] = row
      if eps == of_margins[0] and not name.endswith('adaptive'):
        least[name] = lowest.min(1)
      print(f'{name:<22}{row["verified_error"]:>18.2f}{row["mean_margin"]:>18.5g}', flush=True)
  tightest = jax.jit(functools.partial(propagation_tightness, f))
  ratios = np.concatenate([tightest(params, x) for x, in batches(images)])
  print(f'propagation tightness {ratios.mean():.4f}, deviation {ratios.std():.4f}')
  pictures = ['tightness.png', 'margins.png']
  figures.margins(run / 'margins.png', least, f'{len(images)} test examples, lower bounds at eps '
                f'{radius_text(of_margins[0])}')
  figures.tightness(run / 'tightness.png', radii, found, f'{opened.config["dataset"]}, {len(images)} test examples')
  try:
    model = nnx.merge(opened.graphdef, *params)
    states = {radius_text(eps): neuron_states(model, images, eps) for eps in of_margins}
    figures.neuron_states(run / 'neurons.png', states[radius_text(of_margins[0])],
                        f'{len(images)} test examples, IBP at eps {radius_text(of_margins[0])}')
    pictures.append('neurons.png')
  except ValueError as error:
    print(f'no states of neurons: {error}')
    states = {}
  settings = dict(examples=len(images), of=opened.of, eps=radii, versions=directory.versions())
  logs.write(run / 'tightness.json', json.dumps(dict(**settings, widths=found, margins=table, states=states,
                                                    propagation=dict(mean=float(ratios.mean()),
                                                                     deviation=float(ratios.std())))) + '\n')
  print(', '.join(f'{run}/{name}' for name in ('tightness.json', *pictures)))


if __name__ == '__main__':
  commands.run(main)
