"""A chain of layers that knows where its batch normalisation is, and sums of two chains."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flax import nnx

from ibpjax.nn.batch_norm import BatchNorm, Statistics


def flatten(x: Any) -> Any:
  """(batch, ...) -> (batch, features)."""
  return x.reshape(x.shape[0], -1)


def is_activation(layer: Callable) -> bool:
  """Whether a layer is an activation: a module that says so, or a plain function other than `flatten`."""
  return getattr(layer, 'activates', not isinstance(layer, nnx.Module) and layer is not flatten)


class Sequential(nnx.Module):
  """Layers applied one after the other to a batch.

  Args:
    layers: NNX modules and plain functions of one array; Sequentials and Residuals among them are parts of the chain,
      any other module is a layer that has no batch normalisation of ours inside.
  """

  def __init__(self, layers: Sequence[Callable]):
    self.layers = nnx.List(list(layers))

  def __call__(self, x: Any, stats: Sequence[Statistics] | None = None) -> Any:
    """(batch, ...) -> (batch, outputs).

    Args:
      x: a batch.
      stats: (mean, var) for each BatchNorm, in order; None uses the stored averages.
    """
    if stats is None:
      return self.walk(x, lambda layer, x: layer(x))
    given = iter(stats)
    return self.walk(x, lambda layer, x: layer(x, next(given)) if isinstance(layer, BatchNorm) else layer(x))

  def walk(self, x: Any, apply: Callable[[Callable, Any], Any]) -> Any:
    """What `apply(layer, x)` makes of a batch, layer by layer, in the order of `flat`."""
    for layer in self.layers:
      x = layer.walk(x, apply) if isinstance(layer, Sequential) else apply(layer, x)
    return x

  def flat(self) -> Iterator[Callable]:
    """All layers in the order in which they are applied, those of the chains inside of this one too."""
    for layer in self.layers:
      if isinstance(layer, Sequential):
        yield from layer.flat()
      else:
        yield layer

  def with_statistics(self, x: Any, axis_name: str | None = None) -> tuple[Any, list[Statistics]]:
    """The outputs for a clean batch normalised by its own statistics, and those; as `BatchNorm.statistics`."""
    stats = []

    def apply(layer, x):
      if not isinstance(layer, BatchNorm):
        return layer(x)
      stats.append(layer.statistics(x, axis_name))
      return layer(x, stats[-1])
    return self.walk(x, apply), stats

  def record(self, stats: Sequence[Statistics]) -> None:
    """Moves the stored averages towards the statistics that `with_statistics` found."""
    for norm, new in zip(self.norms(), stats, strict=True):
      norm.record(new)

  def replace(self, stats: Sequence[Statistics]) -> None:
    """Puts statistics in the place of the stored averages."""
    for norm, (mean, var) in zip(self.norms(), stats, strict=True):
      norm.mean[...], norm.var[...] = mean, var

  def norms(self) -> list[BatchNorm]:
    """The BatchNorms in the order of `flat`."""
    return [layer for layer in self.flat() if isinstance(layer, BatchNorm)]


class Residual(Sequential):
  """The sum of what two chains of layers make of a batch.

  Args:
    layers: of the one, as of `Sequential`.
    shortcut: of the other; none leaves the batch as it is.
  """

  def __init__(self, layers: Sequence[Callable], shortcut: Sequence[Callable] = ()):
    super().__init__(layers)
    self.shortcut = Sequential(shortcut)

  def walk(self, x: Any, apply: Callable[[Callable, Any], Any]) -> Any:
    """As of `Sequential`: first the layers, then the short cut."""
    return super().walk(x, apply) + self.shortcut.walk(x, apply)

  def flat(self) -> Iterator[Callable]:
    """As of `Sequential`: first the layers, then the short cut."""
    yield from super().flat()
    yield from self.shortcut.flat()
