"""The evaluation protocol: methods from cheap to tight, then attacks, on every example; one record of each."""
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ibpjax.runs import logs
from ibpjax.training import parallel
from ibpjax.training.attacks import pgd_by_steps
from ibpjax.verification.certify import certify
from ibpjax.verification.report import radius_text, summarise, verdict

Records = list[dict[str, Any]]
_LEAST = 8  # examples that a later stage runs on, if need be by repeating one


def example_key(seed: Any, eps: Any, index: Any, attack: Any) -> Any:
  """The PRNG key of one attack (0, 1, ...) on one example: batches and resuming do not change it."""
  at = jax.lax.bitcast_convert_type(jax.numpy.asarray(eps, np.float32), np.uint32)
  return functools.reduce(jax.random.fold_in, (at, attack, index), jax.random.key(seed))


def filled(part: np.ndarray, size: int) -> np.ndarray:
  """So many, the last one repeated: one shape for all batches."""
  return np.pad(part, (0, size - len(part)), mode='edge')


class Cascade:
  """Records of batches of examples: methods from cheap to tight, then attacks.

  The first method and the first attack see every example, verified ones too: that is the check of
  the bounds. A later method sees those predicted correctly and not yet verified, a later attack
  those of them that are not yet broken. The first stages run on whole batches and the later ones
  on eighths of a batch; of fewer examples on halves, quarters, ... of these, filled up by
  repeating their last example, so that each compiles a few times and no more.

  Args:
    f: (params, x) -> (classes,) logits of one example.
    params: its first argument.
    methods: of `ibpjax.verification.certify.METHODS`, in order.
    attacks: (steps, restarts) of each PGD, in order.
    seed: of the attacks.
    batch_size: examples in a batch.
    mesh: devices, as `certify` takes them; None for one.
  """

  def __init__(self, f: Callable, params: Any, *, methods: Sequence[str], attacks: Sequence[tuple[int, int]], seed: int,
               batch_size: int, mesh: jax.sharding.Mesh | None = None):
    self.f, self.params, self.methods, self.attacks, self.seed = f, params, methods, attacks, seed
    self.batch_size, self.mesh = batch_size, mesh
    self.compiled: set[tuple[str, int]] = set()

    @jax.jit
    def logits(params, images):
      return jax.vmap(f, (None, 0))(params, images)

    @functools.partial(jax.jit, static_argnums=0)
    def keys(attack, indices, eps):
      return jax.vmap(lambda index: example_key(seed, eps, index, attack))(indices)

    self.logits, self.keys = logits, keys

  def __call__(self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray, eps: float) -> Records:
    """One record an example, for at most batch_size of them.

    Args:
      images: (batch, ...) floats in [0, 1].
      labels: (batch,) integers.
      indices: (batch,) places in the split.
      eps: radius, in the units of the images.

    Returns:
      index, label, prediction, eps; margins: method -> the least lower bound of a margin, None where
      it was not tried; pgd_margin: the least that an attack found; verdict; method: which verified
      it, or None; seconds: wall time of its batches shared by their examples, without compilation.
    """
    n = len(images)
    everyone, seconds = np.arange(n), np.zeros(n)

    def stage(name: str, function: Callable, which: np.ndarray, size: int,
              prepare: Callable | None = None) -> np.ndarray:
      values = [np.zeros(0, np.float32)] if not len(which) else []
      for start in range(0, len(which), size):
        part, room = which[start:start + size], size
        while size < self.batch_size and room // 2 >= max(len(part), _LEAST):
          room //= 2
        padded = filled(part, room)
        arguments = images[padded], labels[padded], indices[padded]
        if self.mesh is not None:
          arguments = parallel.spread(self.mesh, *arguments)[:-1]
        if (name, room) not in self.compiled:  # so that no compilation is timed; what is cheap runs twice for it
          jax.block_until_ready((prepare or function)(*arguments))
          self.compiled.add((name, room))
        begin = time.perf_counter()
        values.append(np.asarray(function(*arguments))[:len(part)])
        seconds[part] += (time.perf_counter() - begin) / len(part)
      return np.concatenate(values)

    later = max(1, self.batch_size // 8)
    verified, by, margins = np.zeros(n, bool), np.full(n, None), np.full((len(self.methods), n), None)
    worst = np.full(n, np.inf, np.float32)
    with jax.default_matmul_precision('highest'):
      logits = stage('logits', lambda x, y, i: self.logits(self.params, x), everyone, self.batch_size)
      others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
      correct = logits[everyone, labels] > others.max(-1)  # neither ties nor NaN
      for place, method in enumerate(self.methods):
        def bound(x, y, i, method=method):
          return certify(self.f, self.params, x, y, eps, method=method, mesh=self.mesh).lower.min(-1)
        which = np.flatnonzero(correct & ~verified) if place else everyone
        found = stage(method, bound, which, later if place else self.batch_size)
        margins[place, which] = found.tolist()
        verified[which] = found > 0
        by[which[found > 0]] = method
      for place in range(len(self.attacks)):
        def attack(x, y, i, place=place, effort=self.attacks[place]):
          steps, restarts = effort
          return pgd_by_steps(self.f, self.params, x, y, eps, self.keys(place, i, eps), steps=steps,
                              restarts=restarts)[1]
        which = np.flatnonzero(correct & ~verified & (worst > 0)) if place else everyone
        found = stage(f'attack {place}', attack, which, later if place else self.batch_size,
                      functools.partial(attack, effort=(1, 1)))
        worst[which] = np.minimum(worst[which], found)  # NaN stays
    return [dict(index=int(indices[i]), label=int(labels[i]), prediction=int(logits[i].argmax()), eps=eps,
                 margins=dict(zip(self.methods, margins[:, i])), pgd_margin=float(worst[i]),
                 verdict=verdict(bool(correct[i]), bool(verified[i]), not worst[i] > 0), method=by[i],
                 seconds=float(seconds[i])) for i in range(n)]


def refuse_contradictions(records: Records, path: pathlib.Path) -> None:
  """Raises if an example is both verified and attackable: then a bound is wrong, and no error may be reported."""
  wrong = [r for r in records if r['verdict'] == 'contradiction']
  if wrong:
    where = '; '.join(f'eps {radius_text(eps)}: examples {[r["index"] for r in wrong if r["eps"] == eps]}'
                      for eps in dict.fromkeys(r['eps'] for r in wrong))
    raise RuntimeError(f'verified and yet misclassified within the radius, {where}: a bound is wrong. Please report '
                       f'this run; {path} holds the records, with verdict "contradiction"')


def evaluate(cascade: Any, images: np.ndarray, labels: np.ndarray, radii: Sequence[float],
             path: pathlib.Path, pixels: Callable[[np.ndarray], Any] = np.asarray) -> Records:
  """Records of all examples at all radii, each on the disk when its batch is done; goes on with those in the file.

  `cascade` is a Cascade, or what has its call and its batch_size.

  Batches are the same however often it was stopped: of one done in part, the missing records are added.
  `pixels` makes floats in [0, 1] of a batch of `images`, which can stay as they are stored.

  Raises:
    RuntimeError: an example is both verified and attackable. Its record is in the file.
  """
  records, size = logs.recovered(path), cascade.batch_size
  refuse_contradictions(records, path)
  done = {(r['eps'], r['index']) for r in records}
  with tqdm(total=len(images) * len(radii), initial=sum(r['eps'] in radii for r in records), desc='certifying',
            unit='example', disable=None) as bar:
    for eps in radii:
      for start in range(0, len(images), size):
        indices = np.arange(start, min(start + size, len(images)))
        if all((eps, i) in done for i in indices.tolist()):
          continue
        found = cascade(pixels(images[indices]), labels[indices], indices, eps)
        new = [r for r in found if (eps, r['index']) not in done]
        logs.append(path, new)
        refuse_contradictions(new, path)
        records += new
        bar.update(len(new))
  return records


def fingerprint(arrays: Any) -> str:
  """A short hash of a pytree of arrays: other weights or images have another."""
  digest = hashlib.sha256()
  for x in map(np.ascontiguousarray, jax.tree.leaves(arrays)):
    digest.update(f'{x.dtype} {x.shape}'.encode())
    digest.update(x.data)
  return digest.hexdigest()[:16]


def begin(folder: pathlib.Path, settings: dict[str, Any]) -> pathlib.Path:
  """The file for the records of a run. Writes the settings to certificate.json before the first of them.

  Raises:
    ValueError: the folder holds records made with other settings.
  """
  path, summary = folder / 'certificates.jsonl', folder / 'certificate.json'
  settings = json.loads(json.dumps(settings))
  if not path.exists():
    logs.write(summary, json.dumps(dict(settings=settings), indent=2) + '\n')
    return path
  try:
    old = json.loads(summary.read_text())['settings']
    differ = [f'{k} {old.get(k)} there and {settings.get(k)} here' for k in sorted(old.keys() | settings.keys())
              if old.get(k) != settings.get(k)]
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    differ = [f'{summary}, which tells them, is missing or was changed']
  if differ:
    raise ValueError(f'{path} holds certificates made with other settings ({"; ".join(differ)}): certify with those to '
                     f'go on with it, or delete {path} to certify anew')
  return path


def finish(folder: pathlib.Path, settings: dict[str, Any], records: Records, **more: Any) -> Records:
  """The summary of each radius that all examples have a record of; writes certificate.json."""
  of = {eps: [r for r in records if r['eps'] == eps] for eps in dict.fromkeys(r['eps'] for r in records)}
  results = [summarise(own) for own in of.values() if len(own) == settings['examples']]
  logs.write(folder / 'certificate.json', json.dumps(dict(settings=settings, results=results, **more), indent=2) + '\n')
  return results


def table(results: Records) -> str:
  """The errors for people, one row a radius."""
  kinds = ('natural', 'attacked', 'verified')
  rows = [['eps', 'natural error', 'PGD error', 'verified error', 'verified by', 'seconds']]
  for r in results:
    errors = ['{:.2f} % [{:.2f}, {:.2f}]'.format(r[f'{kind}_error'], *r[f'{kind}_interval']) for kind in kinds]
    by = ', '.join(f'{method} {count}' for method, count in r['verified_by'].items()) or '-'
    rows.append([radius_text(r['eps']), *errors, by, f'{r["total_seconds"]:.1f}'])
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join('  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)
