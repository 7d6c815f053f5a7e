"""Pictures of Lipschitz networks: verified accuracy against radius and depth, rivals that change, tightness."""
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ibpjax.plotting.figures import finish, plt  # the backend is chosen there
from ibpjax.verification.lipschitz_cascade import over
from ibpjax.verification.report import radius_text


def radii(path: pathlib.Path, runs: dict[str, Sequence[float]], attacked: Sequence[dict[str, Any]] = ()) -> None:
  """Verified accuracy against the l2 radius, a line for each run; attacked accuracies as points.

  Args:
    path: where the picture goes.
    runs: name -> certified radius of each example.
    attacked: summaries of the only run, with eps and attacked_error.
  """
  figure, axis = plt.subplots(figsize=(6.4, 3.8), layout='constrained')
  for name, found in runs.items():
    ordered = np.sort([r for r in np.minimum(found, 1e9) if r > 0])
    above = 100 * np.arange(len(ordered), -1, -1) / len(found)
    axis.step([0., *ordered], above, where='post', linewidth=1.4, label=f'{name}, certified' if attacked else name)
  if attacked:
    axis.plot([r['eps'] for r in attacked], [100 - r['attacked_error'] for r in attacked], 'kv', markersize=5,
              label='under attack')
  largest = max(np.quantile(np.minimum(found, 1e9), .99) for found in runs.values())
  axis.set(xlabel='l2 radius, pixels in [0, 1]', ylabel='verified accuracy [%]', ylim=(0, 102),
           xlim=(0, max([1.05 * largest, *(1.05 * r['eps'] for r in attacked)]) or 1))
  finish(figure, axis, path)


def rotation(path: pathlib.Path, runs: dict[str, Sequence[dict[str, Any]]]) -> None:
  """Of how many examples the nearest other class changed since the epoch before, against the epoch."""
  figure, axis = plt.subplots(figsize=(6.4, 3.8), layout='constrained')
  for name, records in runs.items():
    seen = [r for r in records if 'rotation' in r]
    axis.plot([r['epoch'] for r in seen], [100 * r['rotation'] for r in seen], linewidth=1.2, label=name)
  axis.set(xlabel='epoch', ylabel='examples with another rival [%]', ylim=(0, None))
  axis.xaxis.set_major_locator(MaxNLocator(integer=True))
  finish(figure, axis, path)


def tightness(path: pathlib.Path, audits: dict[str, dict[str, Any]]) -> None:
  """Constants of pairs of classes, on which certificates rest: bounds and what Jacobians reach, means, for each run."""
  figure, axis = plt.subplots(figsize=(max(6., .9 * len(audits) + 3), 3.8), layout='constrained')
  places, pairs = np.arange(len(audits)), [found['pairs'] for found in audits.values()]
  for i, (key, label) in enumerate((('bound', 'bound'), ('reached', 'Jacobians reach'))):
    axis.bar(places + .38 * (i - .5), [found[key] for found in pairs], .36, color=f'C{i}', label=label)
  for place, found in zip(places, pairs):
    axis.annotate(f'{over(found["bound"], found["reached"]):.2f}', (place - .19, found['bound']), ha='center',
                  va='bottom', fontsize=8, xytext=(0, 2), textcoords='offset points')
  axis.set(ylabel='Lipschitz constant of f_i - f_j', title='above: bound / reached')
  axis.set_xticks(places, list(audits), rotation=20, ha='right')
  finish(figure, axis, path)


def depth(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """Verified accuracy against depth, a line for each kind of block and radius.

  Args:
    path: where the picture goes.
    rows: with block, depth, eps and verified, in per cent.
  """
  figure, axis = plt.subplots(figsize=(6.4, 3.8), layout='constrained')
  blocks, balls = (list(dict.fromkeys(row[key] for row in rows)) for key in ('block', 'eps'))
  for block, eps in dict.fromkeys((row['block'], row['eps']) for row in rows):
    mine = sorted((row for row in rows if (row['block'], row['eps']) == (block, eps)), key=lambda row: row['depth'])
    axis.plot([row['depth'] for row in mine], [row['verified'] for row in mine], marker='o', markersize=3,
              color=f'C{balls.index(eps)}', linestyle=('-', '--', ':', '-.')[blocks.index(block)],
              label=f'{block}, radius {radius_text(eps)}')
  axis.set(xlabel='blocks', ylabel='verified accuracy [%]')
  axis.xaxis.set_major_locator(MaxNLocator(integer=True))
  finish(figure, axis, path)
