"""Compares norms of convolutions in the Lipschitz bound of a certified run: value, kind, time, verified accuracy.

    python -m experiments.certify --run=runs/a --methods=lipschitz --eps=0.5,1,1.58
    python -m experiments.norms --run=runs/a

Prints Markdown, and writes it as norms.md into the folder of the run. Convolutions without overlap have the norm of
their kernel as a matrix, and maps that are none that of their whole matrix, under each method.
"""
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import ibpjax
from experiments.lipschitz import opened
from ibpjax.cli import commands
from ibpjax.operators import spectral, spectral_convolutions
from ibpjax.operators.spectral import NormBound
from ibpjax.operators.spectral_convolutions import Convolution
from ibpjax.runs import logs
from ibpjax.runs.load_run import open_run
from ibpjax.verification import lipschitz_cascade
from ibpjax.verification.report import radius_text

FLAGS = flags.FLAGS
flags.DEFINE_string('run', '', 'Folder of a run that has l2 certificates.')
flags.DEFINE_string('data_dir', None, 'Folder of the data; the default is the one of the run.')
flags.DEFINE_integer('seed', 0, 'Of the random starts.')

LARGEST = 10**8  # entries of a matrix that is looked at as a whole


def _matrix(convolution: Convolution) -> np.ndarray:
  matrix = convolution.sparse()
  if np.prod(matrix.shape) > LARGEST:
    raise ValueError(f'a matrix of {matrix.shape} is too large to be looked at as a whole')
  return matrix.toarray()


def methods(seed: int) -> dict[str, Callable[[Convolution], NormBound]]:
  """Name -> norm of a convolution whose windows overlap."""
  rng = np.random.default_rng(seed)
  by_lanczos = functools.partial(spectral_convolutions.by_lanczos, rng=rng)
  return {
      'whole matrix, singular values': lambda c: spectral.dense(_matrix(c)),
      'whole matrix, Gram iteration': lambda c: spectral.gram(_matrix(c)),
      'torus, singular values': spectral_convolutions.by_torus,
      'torus, Gram iteration': functools.partial(spectral_convolutions.by_torus, gram_steps=8),
      'Cholesky factorisation': lambda c: spectral_convolutions.by_cholesky(c, by_lanczos(c, failure=1e-3).value),
      'Lanczos': by_lanczos,
      'the default': spectral_convolutions.certified}


def _norm(convolution: Convolution, by: Callable[[Convolution], NormBound]) -> NormBound:
  return spectral_convolutions.by_patches(convolution) if convolution.apart else by(convolution)


def found_by(f: Callable, params: Any, x: Any, seed: int) -> list[tuple[str, str, float, np.ndarray, float]]:
  """(method, kind, bound, pairs, seconds) of each method that is affordable, and of power iteration."""
  rows = []
  for name, method in methods(seed).items():
    begin = time.perf_counter()
    try:
      bound = ibpjax.lipschitz(f, norm=functools.partial(_norm, by=method))(params, x)
    except ValueError as error:
      print(f'{name}: {error}')
      continue
    rows.append((name, bound.kind, bound.value, bound.pairs, time.perf_counter() - begin))
  for steps in (10, 500):
    begin = time.perf_counter()
    estimate, _ = jax.jit(ibpjax.lipschitz_estimate(f, steps=steps))(jax.random.key(seed), params, x)
    rows.append((f'power iteration, {steps} steps', 'lower', float(estimate.value), np.asarray(estimate.pairs),
                 time.perf_counter() - begin))
  return rows


def verified(logits: np.ndarray, labels: np.ndarray, pairs: np.ndarray, eps: float) -> float:
  """The share of examples whose margins are greater than eps allows, in per cent; without an allowance for rounding."""
  margins = logits[np.arange(len(labels)), labels][:, None] - logits
  safe = margins > eps * pairs[labels]
  safe[np.arange(len(labels)), labels] = True
  return 100 * float(safe.all(1).mean())


def main() -> None:
  if not FLAGS.run:
    raise app.UsageError('--run is empty: name the folder of a certified run')
  run = pathlib.Path(FLAGS.run).expanduser()
  balls = [r['eps'] for r in opened(run)['results']]
  trained = open_run(run, FLAGS.data_dir, 'test', None)
  with jax.enable_x64(True):
    params = jax.tree.map(lipschitz_cascade.wide, trained.params)
    forward = jax.jit(jax.vmap(trained.f, (None, 0)))
    pixels = trained.facts.pixels
    logits = np.concatenate([forward(params, lipschitz_cascade.wide(pixels(part))) for part in np.array_split(
        trained.images, -(-len(trained.images) // 500))])
    rows = found_by(trained.f, params, jnp.zeros(trained.facts.shape, jnp.float64), FLAGS.seed)
  least = rows[-1][2]  # of the longest power iteration
  head = ['norm of convolutions', 'kind', 'bound', 'above power iteration', *(f'VRA {radius_text(e)}' for e in balls),
          'seconds']
  text = logs.markdown_table(head, [
      [name, kind, f'{value:.6g}', f'{100 * (lipschitz_cascade.over(value, least) - 1):+.3f} %',
       *(f'{verified(logits, trained.labels, pairs, eps):.2f}' for eps in balls), f'{seconds:.1f}']
      for name, kind, value, pairs, seconds in rows])
  logs.write(run / 'norms.md', text)
  print(text, end='')


if __name__ == '__main__':
  commands.run(main)
