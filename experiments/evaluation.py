"""Natural, attacked and verified error of a classifier on a whole test split."""
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import ibpjax
from experiments.data import Dataset
from ibpjax.training import pgd


def evaluate(f: Callable, params: Any, data: Dataset, eps: float, *, method: str, seed: int, pgd_steps: int,
             pgd_restarts: int, batch_size: int = 500) -> dict[str, Any]:
  """Errors in per cent on all test examples, none left out.

  Raises:
    RuntimeError: an example is both verified and successfully attacked: a bound is wrong.
  """
  attack = jax.jit(lambda params, x, y, key: pgd(f, params, x, y, eps, key, steps=pgd_steps, restarts=pgd_restarts)[1])
  seen: list[tuple[Any, Any, Any]] = []
  for start in range(0, len(data.test_images), batch_size):
    x, y = data.test_images[start:start + batch_size], data.test_labels[start:start + batch_size]
    certificate = ibpjax.certify(f, params, x, y, eps, method=method)
    worst = attack(params, x, y, jax.random.fold_in(jax.random.key(seed), start))
    seen.append((certificate.correct, worst <= 0, certificate.verified))
  correct, attacked, verified = (np.concatenate(parts) for parts in zip(*seen))
  broken = np.flatnonzero(verified & attacked)
  if len(broken):
    raise RuntimeError(f'test examples {broken.tolist()} are verified at eps {eps} and yet misclassified within it: '
                       'a bound is wrong. Please report this run')
  return dict(examples=len(correct), eps=eps, natural_error=100 * float(np.mean(~correct)),
              pgd_error=100 * float(np.mean(attacked)), verified_error=100 * float(np.mean(~verified)))


def table(result: dict[str, Any], method: str, attack: str) -> str:
  """The result as lines for people."""
  rows = [('natural error', result['natural_error']), (f'{attack} error', result['pgd_error']),
          (f'{method}-verified error', result['verified_error'])]
  width = max(len(name) for name, _ in rows)
  head = f'{result["examples"]} test examples, l-infinity eps {result["eps"]:g}'
  return '\n'.join([head, *(f'  {name:<{width}}  {value:6.2f} %' for name, value in rows)])
