"""Pictures of runs: learning curves, widths of bounds, states of neurons, errors against eps and against each other."""
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from ibpjax.verification.report import radius_text

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # the backend is chosen first
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox


def curves(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
  """Losses, errors and the radius against the epoch; errors of the validation split where there is one."""
  split = 'validation' if any('validation_error' in r for r in records) else 'test'
  epochs = [r['epoch'] for r in records]
  get = lambda key: [r.get(key, np.nan) for r in records]
  figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout='constrained')
  left.plot(epochs, get('natural'), label='natural')
  if any('robust' in r for r in records):
    left.plot(epochs, get('robust'), label='robust, current eps')
  left.set(xlabel='epoch', ylabel='training loss [nats]', yscale='log')
  seen = [i for i, value in enumerate(get(f'{split}_error')) if not np.isnan(value)]
  for key, label in ((f'{split}_error', 'natural'), (f'{split}_verified_error', 'verified, target eps')):
    middle.plot([epochs[i] for i in seen], [get(key)[i] for i in seen], label=label)
  middle.set(xlabel='epoch', ylabel=f'{split} error [%]', ylim=(0, 102))
  right.plot(epochs, np.divide(get('eps'), max(get('eps')) or 1), label=f'eps / {max(get("eps")):g}')
  right.plot(epochs, get('kappa'), label='kappa, weight of the natural loss')
  right.set(xlabel='epoch', ylim=(0, 1.02))
  for axis in (left, middle, right):
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def layers(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
  """Radii of bounds, unstable and inactive neurons against the epoch, one line for what goes into each activation."""
  records = [r for r in records if r.get('layers', {}).get('radius')]
  if not records:
    return
  figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout='constrained')
  epochs, count = [r['epoch'] for r in records], len(records[0]['layers']['radius'])
  for axis, key, label in zip(axes, ('radius', 'gain', 'unstable', 'inactive'), (
      'mean radius of interval bounds', 'growth in the layer', 'unstable neurons', 'inactive neurons')):
    for i, colour in enumerate(_colours(count)):
      axis.plot(epochs, [r['layers'][key][i] for r in records], color=colour, linewidth=1.2, label=f'layer {i + 1}')
    axis.set(xlabel='epoch', title=label, **(dict(yscale='log') if key in ('radius', 'gain') else dict(ylim=(0, 1))))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[['top', 'right']].set_visible(False)
  finish(figure, axes[-1], path)


def boxes(path: pathlib.Path, names: list[str], widths: list[np.ndarray], sampled: list[np.ndarray],
          title: str) -> None:
  """Interval widths layer by layer, beside the range that random points of the box really reach.

  Args:
    path: where the picture goes.
    names: one for each layer.
    widths: for each layer, the widths of its bounds, any shape.
    sampled: for each layer, the sampled ranges, of the same shape.
    title: one line.
  """
  figure, axis = plt.subplots(figsize=(max(6, 1.1 * len(names)), 3.8), layout='constrained')
  places = np.arange(len(names))
  for values, shift, colour, label in ((widths, -.18, 'C0', 'IBP bound'), (sampled, .18, 'C1', 'sampled range')):
    style = dict(color=colour)
    parts = axis.boxplot([np.maximum(v.ravel(), 1e-6) for v in values], positions=places + shift, widths=.3,
                         whis=(1, 99), showfliers=False, boxprops=style, whiskerprops=style, capprops=style,
                         medianprops=dict(color='black'))
    parts['boxes'][0].set_label(label)
  axis.set(yscale='log', ylabel='width, one value a neuron', title=title)
  axis.set_xticks(places, names, rotation=30, ha='right')
  axis.legend(frameon=False)
  axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def against_eps(path: pathlib.Path, results: list[dict[str, Any]], title: str) -> None:
  """Verified, attacked and natural error against the radius, with bands for their intervals.

  Args:
    path: where the picture goes.
    results: summaries of several radii (`ibpjax.verification.report.summarise`).
    title: one line.
  """
  results = sorted(results, key=lambda r: r['eps'])
  texts = [radius_text(r['eps']) for r in results]
  levels = any('/' in text for text in texts) and all('/' in text or text == '0' for text in texts)
  eps = [r['eps'] * (255 if levels else 1) for r in results]
  figure, axis = plt.subplots(figsize=(6, 3.8), layout='constrained')
  for kind, label, colour in (('verified', 'verified', 'C1'), ('attacked', 'PGD', 'C2'), ('natural', 'natural', 'C0')):
    low, high = zip(*(r[f'{kind}_interval'] for r in results))
    axis.plot(eps, [r[f'{kind}_error'] for r in results], color=colour, marker='o', markersize=4, label=label)
    axis.fill_between(eps, low, high, color=colour, alpha=.2, linewidth=0)
  top = max(r['verified_interval'][1] for r in results)
  axis.set(xlabel='eps [1/255]' if levels else 'eps, pixels in [0, 1]', ylabel='error [%], bands: 95 % (Wilson)',
           title=title, ylim=(0, min(102, 1.05 * top)))
  finish(figure, axis, path)


def learning_curves(path: pathlib.Path, runs: dict[str, list[dict[str, tuple[list[float], list[float]]]]]) -> None:
  """Verified and natural error against the epoch, one colour a name.

  Args:
    path: where the picture goes.
    runs: name -> for each of its runs, natural and verified: (epochs, errors in per cent). Those
      without runs are not drawn, but have their colour.
  """
  figure, axis = plt.subplots(figsize=(8, 4.2), layout='constrained')
  for (name, members), colour in zip(runs.items(), _colours(len(runs))):
    if members:
      axis.plot([], color=colour, label=name)
    for curves in members:
      axis.plot(*curves['verified'], color=colour, linewidth=1.2)
      axis.plot(*curves['natural'], color=colour, linewidth=1.2, linestyle='--')
  axis.plot([], color='black', label='IBP-verified')
  axis.plot([], color='black', linestyle='--', label='natural')
  axis.set(xlabel='epoch', ylabel='error [%]', ylim=(0, 102))
  finish(figure, axis, path)


def tradeoff(path: pathlib.Path, runs: dict[str, list[dict[str, Any]]]) -> None:
  """Verified error against natural error, one point a name and radius.

  Args:
    path: where the picture goes.
    runs: name -> for each radius, eps: its text; natural, verified: (value, low, high) in per cent.
      Those without radii are not drawn, but have their colour.
  """
  figure, axis = plt.subplots(figsize=(8, 4.8), layout='constrained')
  labels = []
  for (name, points), colour in zip(runs.items(), _colours(len(runs))):
    if not points:
      continue
    labels += _with_bars(axis, points, [f'eps {p["eps"]}' for p in points], fmt='o', color=colour, label=name)
  axis.margins(.12)
  (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
  axis.set(xlabel='natural error [%]', ylabel='verified error [%]', xlim=(max(0, left), right),
           ylim=(max(0, bottom), min(102, top)), title='bars: 95 % (Wilson), or ± standard deviation over seeds')
  finish(figure, axis, path, labels)


def front(path: pathlib.Path, sweep: str, points: dict[str, list[dict[str, Any]]]) -> None:
  """Verified error against natural error, a line through the values of a setting for each radius.

  Args:
    path: where the picture goes.
    sweep: the name of the setting.
    points: value of the setting -> for each radius, as of `tradeoff`.
  """
  figure, axis = plt.subplots(figsize=(8, 4.4), layout='constrained')
  labels, radii = [], list(dict.fromkeys(p['eps'] for found in points.values() for p in found))
  for eps, colour in zip(radii, _colours(len(radii))):
    found = [(value, p) for value, ps in points.items() for p in ps if p['eps'] == eps]
    found.sort(key=lambda pair: pair[1]['natural'][0])
    labels += _with_bars(axis, [p for _, p in found], [value for value, _ in found], fmt='o-', color=colour,
                         label=f'eps {eps}', linewidth=1, markersize=4)
  axis.set(xlabel='natural error [%]', ylabel='verified error [%]',
           title=f'values of {sweep}; bars: 95 % (Wilson), or ± deviation over seeds')
  finish(figure, axis, path, labels)


def _with_bars(axis: Any, points: list[dict[str, Any]], texts: list[str], **style: Any) -> list[Any]:
  """Draws points of natural and verified error (value, low, high) with bars; their labels, for `_finish`."""
  x, y = (np.array([p[kind] for p in points]) for kind in ('natural', 'verified'))
  reach = [np.abs(values[:, 1:] - values[:, :1]).T for values in (x, y)]
  axis.errorbar(x[:, 0], y[:, 0], xerr=reach[0], yerr=reach[1], elinewidth=1, **style)
  return [(natural, verified, text, style['color']) for natural, verified, text in zip(x[:, 0], y[:, 0], texts)]


def tightness(path: pathlib.Path, radii: list[float], widths: dict[str, list[list[float]]], title: str) -> None:
  """Mean widths of the outputs against the radius, and of all layers at the middle one of the radii.

  Args:
    path: where the picture goes.
    radii: ascending.
    widths: method -> for each radius the mean widths of the layers, the outputs last. Names of one method with
      different lines differ behind a comma; they have one colour.
    title: one line.
  """
  figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout='constrained')
  methods = list(dict.fromkeys(name.split(',')[0] for name in widths))
  middle = len(radii) // 2
  for name, found in widths.items():
    style = dict(color=f'C{methods.index(name.split(",")[0])}', linestyle='--' if name.endswith('adaptive') else '-',
                 marker='o', markersize=3, linewidth=1.2, label=name)
    left.plot(radii, [layers[-1] for layers in found], **style)
    right.plot(range(1, len(found[middle]) + 1), found[middle], **style)
  left.set(xscale='log', yscale='log', xlabel='eps, pixels in [0, 1]', ylabel='mean width of the outputs', title=title)
  right.set(yscale='log', xlabel='layer', ylabel='mean width of its values', title=f'eps {radius_text(radii[middle])}')
  right.xaxis.set_major_locator(MaxNLocator(integer=True))
  left.spines[['top', 'right']].set_visible(False)
  finish(figure, right, path)


def margins(path: pathlib.Path, least: dict[str, np.ndarray], title: str) -> None:
  """Histograms of the least margin of each example: its values, and its lower bounds by several methods.

  Args:
    path: where the picture goes.
    least: name -> (examples,).
    title: one line.
  """
  figure, axis = plt.subplots(figsize=(8, 3.8), layout='constrained')
  every = np.concatenate([v[np.isfinite(v)] for v in least.values()])
  low, high = np.quantile(every, [.01, .99]) if len(every) else (0, 1)
  bins = np.linspace(min(low, 0), max(high, 0) + 1e-9, 41)
  for (name, values), colour in zip(least.items(), _colours(len(least))):
    share = 100 * np.mean(values > 0)
    axis.hist(np.clip(values, bins[0], bins[-1]), bins.tolist(), histtype='step', color=colour,
              label=f'{name}: {share:.1f} % above 0')
  axis.axvline(0, color='black', linewidth=.8)
  axis.set(xlabel='least margin of an example, outliers at the ends', ylabel='examples', title=title)
  finish(figure, axis, path)


def neuron_states(path: pathlib.Path, layers: list[dict[str, float]], title: str) -> None:
  """Which fraction of the neurons of each layer is in which state, as bars."""
  figure, axis = plt.subplots(figsize=(max(6, 1.2 * len(layers)), 3.8), layout='constrained')
  bottom = np.zeros(len(layers))
  for state in layers[0]:
    heights = np.array([layer[state] for layer in layers])
    if heights.any():
      axis.bar(range(1, len(layers) + 1), heights, bottom=bottom, width=.7, label=state)
      bottom += heights
  axis.set(xlabel='layer', ylabel='fraction of neurons', ylim=(0, 1), title=title)
  axis.xaxis.set_major_locator(MaxNLocator(integer=True))
  finish(figure, axis, path)


def expected_blocks(path: pathlib.Path, rows: list[dict[str, float]]) -> None:
  """Radius of IBP over that of ETB against the hidden units of single blocks; rows as in `experiments.etb`."""
  figure, axis = plt.subplots(figsize=(7, 4.2), layout='constrained')
  for i, rho in enumerate(dict.fromkeys(row['rho'] for row in rows)):
    mine = [row for row in rows if row['rho'] == rho]
    k = [row['k'] for row in mine]
    axis.plot(k, [row['ratio'] for row in mine], 'o', color=f'C{i}', markersize=5, label=f'rho {rho:g}')
    axis.plot(k, [row['predicted'] for row in mine], '-', color=f'C{i}', linewidth=1, label=f'rho {rho:g}, predicted')
  axis.axhline(1, color='black', linewidth=.8)
  axis.set(xscale='log', yscale='log', xlabel='hidden units of a block', ylabel='radius of IBP over that of ETB')
  finish(figure, axis, path)


def expected_depth(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Widths and misses against depth, a row of panels for each kind of random network; rows as in `experiments.etb`."""
  kinds = list(dict.fromkeys((row['k'], row['eps']) for row in rows))
  figure, axes = plt.subplots(len(kinds), 2, figsize=(11, 3.2 * len(kinds)), layout='constrained', squeeze=False)
  for (k, eps), (left, right) in zip(kinds, axes):
    mine = [row for row in rows if (row['k'], row['eps']) == (k, eps)]
    layers = [row['layers'] for row in mine]
    for i, name in enumerate(mine[0]['width']):
      style = dict(color=f'C{i}', marker='o', markersize=3, linewidth=1.2, label=name)
      left.plot(layers, [row['width'][name] for row in mine], **style)
      right.plot(layers, [100 * row['missed'][name] for row in mine], **style)
    left.set(yscale='log', xlabel='affine layers', ylabel='width / inner estimate', title=f'{k} units, eps {eps:g}')
    right.set(xlabel='affine layers', ylabel='miss a part of the range [%]', ylim=(-2, 102),
              title=left.get_title())
    for axis in (left, right):
      axis.spines[['top', 'right']].set_visible(False)
      axis.xaxis.set_major_locator(MaxNLocator(integer=True))
  finish(figure, axes[0, 1], path)


def expected_runs(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Of each run: accuracy under attack, as expected and as sound bounds verify; rows as in `experiments.etb`."""
  runs = list(dict.fromkeys(row['run'] for row in rows))
  figure, axes = plt.subplots(1, len(runs), figsize=(4.2 * len(runs) + 2, 3.8), layout='constrained', squeeze=False,
                              sharey=True)
  kinds = {'robust': 'attacked', 'says': 'expected, not certified', 'says_centred': 'centred, not certified',
           'says_mask': 'sound, slopes 1', 'says_chord': 'sound, chords'}
  for run, axis in zip(runs, axes[0]):
    mine = sorted((row for row in rows if row['run'] == run), key=lambda row: row['eps'])
    radii = [row['eps'] for row in mine]
    for i, (key, label) in enumerate(kinds.items()):
      axis.plot(radii, [100 * row[key] for row in mine], '--' if 'not' in label else '-', color=f'C{i}', marker='o',
                markersize=3, label=label)
    gap = [(100 * row['robust'], 100 * row['says_centred']) for row in mine]
    axis.fill_between(radii, *zip(*gap), where=[b > a for a, b in gap], color='C2', alpha=.15, linewidth=0)
    axis.set(xlabel='eps, pixels in [0, 1]', ylim=(0, 102), title='/'.join(pathlib.Path(run).parts[-2:]))
    axis.spines[['top', 'right']].set_visible(False)
  axes[0, 0].set(ylabel='examples [%]')
  finish(figure, axes[0, -1], path)


def _colours(n: int) -> list[Any]:
  """One colour for each of n names."""
  return [f'C{i}' for i in range(n)] if n <= 10 else list(plt.get_cmap('turbo')(np.linspace(0, 1, n)))


def finish(figure: Any, axis: Any, path: pathlib.Path, labels: Sequence[tuple[float, float, str, Any]] = ()) -> None:
  """Puts the legend beside the axis, labels beside their points, and saves."""
  axis.spines[['top', 'right']].set_visible(False)
  axis.legend(frameon=False, loc='upper left', bbox_to_anchor=(1.01, 1), borderaxespad=0)
  figure.canvas.draw()  # from here on places in pixels are known
  places = [axis.transData.transform((x, y)) for x, y, _, _ in labels]
  taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
  for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
    for up in range(0, 200, 2):  # the least shift upwards that covers no point and no other label
      note = axis.annotate(text, (x, y), xytext=(7, up + 3), textcoords='offset points', color=colour, fontsize=8)
      box = note.get_window_extent()
      if not any(box.overlaps(other) for other in taken):
        break
      note.remove()
    taken.append(box)
  figure.savefig(path, dpi=120)
  plt.close(figure)
