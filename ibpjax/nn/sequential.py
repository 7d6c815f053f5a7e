"""A chain of layers that knows where its batch normalisation is."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from ibpjax.nn.batch_norm import BatchNorm, Statistics


def flatten(x: Any) -> Any:
  """(batch, ...) -> (batch, features)."""
  return x.reshape(x.shape[0], -1)


class Sequential(nnx.Module):
  """Layers applied one after the other to a batch.

  Args:
    layers: NNX modules and plain functions of one array.
  """

  def __init__(self, layers: Sequence[Callable]):
    self.layers = nnx.List(list(layers))

  def __call__(self, x: Any, stats: Sequence[Statistics] | None = None) -> Any:
    """(batch, ...) -> (batch, outputs).

    Args:
      x: a batch.
      stats: (mean, var) for each BatchNorm, in order; None uses the stored averages.
    """
    given = iter(stats) if stats is not None else None
    for layer in self.layers:
      if isinstance(layer, BatchNorm):
        x = layer(x) if given is None else layer(x, next(given))
      else:
        x = layer(x)
    return x

  def with_statistics(self, x: Any) -> tuple[Any, list[Statistics]]:
    """The outputs for a clean batch normalised by its own statistics, and those statistics."""
    stats = []
    for layer in self.layers:
      if isinstance(layer, BatchNorm):
        stats.append(layer.statistics(x))
        x = layer(x, stats[-1])
      else:
        x = layer(x)
    return x, stats

  def record(self, stats: Sequence[Statistics]) -> None:
    """Moves the stored averages towards the statistics that `with_statistics` found."""
    for norm, new in zip(self._norms(), stats, strict=True):
      norm.record(new)

  def replace(self, stats: Sequence[Statistics]) -> None:
    """Puts statistics in the place of the stored averages."""
    for norm, (mean, var) in zip(self._norms(), stats, strict=True):
      norm.mean[...], norm.var[...] = mean, var

  def _norms(self) -> list[BatchNorm]:
    return [layer for layer in self.layers if isinstance(layer, BatchNorm)]
