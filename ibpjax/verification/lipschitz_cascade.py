"""Certificates of Lipschitz networks: radii of examples, attacks that check them, and an audit of the bound."""
import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.methods.lipschitz import LipschitzBound, lipschitz
from ibpjax.methods.lipschitz_estimates import lipschitz_estimate
from ibpjax.runs import logs
from ibpjax.training.attacks import pgd_l2_by_steps
from ibpjax.verification.evaluation import Records, example_key, filled, fingerprint
from ibpjax.verification.radii import certified_lipschitz_radii
from ibpjax.verification.report import verdict


class Radii:
  """Records of batches of examples, in the place of a `Cascade`: radii by one Lipschitz bound, then l2 attacks.

  Certificates are of the network with these weights in exact arithmetic: logits are computed in float64, with an error
  that is bounded by interval arithmetic at the point and taken off. Attacks are on the network as it runs, in float32.

  Args:
    f, params: the logits of one example, and its first argument.
    shape: of one example.
    attacks: (steps, restarts) of each; the first on all examples, the others on those neither verified nor broken.
    seed: of the attacks.
    batch_size: examples in a batch.
  """

  def __init__(self, f: Callable, params: Any, shape: tuple[int, ...], *, attacks: Sequence[tuple[int, int]], seed: int,
               batch_size: int):
    self.f, self.params, self.attacks, self.batch_size = f, params, attacks, batch_size
    self.logits = jax.jit(jax.vmap(f, (None, 0)))
    with jax.enable_x64(True):
      self.wide = jax.tree.map(wide, params)
      self.bound = lipschitz(f)(self.wide, jnp.zeros(shape, jnp.float64))
    self.keys = jax.jit(jax.vmap(lambda index, eps, attack: example_key(seed, eps, index, attack), (0, None, None)))
    self.known: dict[str, tuple[np.ndarray, ...]] = {}  # of batches: what no radius changes

  def __call__(self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray, eps: float) -> Records:
    """One record an example: as of a `Cascade`, with the certified radius in the place of margins.

    Its seconds are those of its batch, attacks and compilation included.
    """
    begin, n = time.perf_counter(), len(images)
    with jax.default_matmul_precision('highest'):
      if (batch := fingerprint((images, labels))) not in self.known:
        self.known[batch] = self._certified(images, labels)
      logits, radii, errors = self.known[batch]
      others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
      correct = logits[np.arange(n), labels] > others.max(-1)
      verified = correct & (radii > eps)
      worst = np.full(n, np.inf, np.float32)
      for place, (steps, restarts) in enumerate(self.attacks):
        which = np.flatnonzero(correct & ~verified & (worst > 0)) if place else np.arange(n)
        size = max(1, self.batch_size // 8) if place else self.batch_size
        for start in range(0, len(which), size):
          part = which[start:start + size]
          x, y, at = (array[filled(part, size)] for array in (images, labels, indices))
          _, found = pgd_l2_by_steps(self.f, self.params, x, y, eps, self.keys(at, eps, place), steps=steps,
                                     restarts=restarts)
          worst[part] = np.minimum(worst[part], found[:len(part)])  # NaN stays
    seconds = (time.perf_counter() - begin) / n
    return [dict(index=int(indices[i]), label=int(labels[i]), prediction=int(logits[i].argmax()), eps=eps,
                 radius=float(radii[i]), error=float(errors[i]), pgd_margin=float(worst[i]), seconds=seconds,
                 verdict=verdict(bool(correct[i]), bool(verified[i]), not worst[i] > 0),
                 method='lipschitz' if verified[i] else None) for i in range(n)]

  def _certified(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """(logits as the network computes them, certified radius, allowance for the error of logits) of each example."""
    which = filled(np.arange(len(images)), self.batch_size)
    x = jnp.asarray(images[which])
    with jax.enable_x64(True):
      radii, errors = certified_lipschitz_radii(self.f, self.wide, wide(x), labels[which], self.bound)
    return tuple(found[:len(images)] for found in (np.asarray(self.logits(self.params, x)), radii, errors))


def wide(x: Any) -> Any:
  """Floats in float64, all else as it is."""
  return jnp.asarray(x, jnp.float64) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x


def of_examples(records: Records) -> list[float]:
  """The radius of each example, which does not depend on the eps of a record."""
  return [r['radius'] for r in records if r['eps'] == records[0]['eps']]


def audit(f: Callable, params: Any, bound: LipschitzBound, images: Any, *, steps: int = 500,
          seed: int = 0) -> dict[str, Any]:
  """What the bound is worth: by part, its norm and what power iteration reaches; of all, what Jacobians reach.

  Args:
    f, params: as of `Radii`.
    bound: of `ibpjax.lipschitz`, for these.
    images: examples at which Jacobians are taken.
    steps: of the power iteration, from a random start.
    seed: of that.
  """
  estimate, _ = jax.jit(lipschitz_estimate(f, steps=steps))(jax.random.key(seed), params, images[0])
  parts = [dict(operation=name, norm=part.value, kind=part.kind, slack=part.slack,
                method=part.method, reached=float(low), gap=part.value / float(low) - 1 if low > 0 else None)
           for (name, _, part), low in zip(bound.parts, estimate.parts, strict=True)]

  @jax.jit
  def jacobian(x):
    return jax.jacrev(functools.partial(f, params))(x)
  assert bound.pairs is not None  # networks of classes have them
  value, pairs = 0., np.zeros_like(bound.pairs)
  for x in images:
    rows = np.asarray(jacobian(x), np.float64).reshape(len(pairs), -1)
    value = max(value, np.linalg.svd(rows, compute_uv=False).max())
    square = (rows ** 2).sum(1)
    apart = np.sqrt(np.maximum(square[:, None] + square - 2 * rows @ rows.T, 0))
    pairs = np.maximum(pairs, apart)
  off = ~np.eye(len(pairs), dtype=bool)
  return dict(bound=bound.value, kind=bound.kind, reached=float(value), examples=len(images),
              power_iteration=float(estimate.value), parts=parts,
              pairs=dict(bound=float(bound.pairs[off].mean()), reached=float(pairs[off].mean()),
                         gap=float(np.max(bound.pairs[off] / np.maximum(pairs[off], 1e-30)))))


def over(a: float, b: float) -> float:
  """a / b, infinite where b is 0, as of a network that training has switched off."""
  return a / b if b else np.inf


def audit_table(found: dict[str, Any]) -> str:
  """An audit in Markdown."""
  head = ['into', 'norm', 'kind', 'power iteration', 'gap', 'method']
  rows = [[p['operation'], f'{p["norm"]:.6g}', p['kind'], f'{p["reached"]:.6g}',
            '-' if p['gap'] is None else f'{100 * p["gap"]:.3f} %', p['method']] for p in found['parts']]
  rows.append(['all', f'{found["bound"]:.6g}', found['kind'], f'{found["power_iteration"]:.6g}',
               f'{100 * (over(found["bound"], found["power_iteration"]) - 1):.3f} %',
               f'Jacobians of {found["examples"]} examples reach {found["reached"]:.6g}'])
  pairs = found['pairs']
  rows.append(['pairs of outputs, mean', f'{pairs["bound"]:.6g}', found['kind'], '', '',
               f'Jacobians reach {pairs["reached"]:.6g}; worst pair, bound / reached: {pairs["gap"]:.4g}'])
  return logs.markdown_table(head, rows)


def write_audit(folder: pathlib.Path, found: dict[str, Any]) -> None:
  """audit.md and audit.json in the folder of a run."""
  logs.write(folder / 'audit.md', audit_table(found))
  logs.write(folder / 'audit.json', json.dumps(found, indent=1) + '\n')
