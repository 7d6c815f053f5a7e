"""Pictures of a run: learning curves, and interval widths through the layers."""
import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # the backend is chosen first


def curves(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
  """Losses, errors and the radius against the epoch."""
  epochs = [r['epoch'] for r in records]
  get = lambda key: [r[key] for r in records]
  figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout='constrained')
  left.plot(epochs, get('natural'), label='natural')
  left.plot(epochs, get('robust'), label='robust (IBP, current eps)')
  left.set(xlabel='epoch', ylabel='training loss [nats]', yscale='log')
  middle.plot(epochs, get('test_error'), label='natural')
  middle.plot(epochs, get('test_verified_error'), label='IBP-verified, target eps')
  middle.set(xlabel='epoch', ylabel='test error [%]', ylim=(0, 102))
  right.plot(epochs, np.divide(get('eps'), max(get('eps')) or 1), label=f'eps / {max(get("eps")):g}')
  right.plot(epochs, get('kappa'), label='kappa, weight of the natural loss')
  right.set(xlabel='epoch', ylim=(0, 1.02))
  for axis in (left, middle, right):
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0)
  figure.savefig(path, dpi=120)
  plt.close(figure)


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
