"""Averages of weights over training, and batch-norm statistics measured anew for them."""
from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ibpjax.training.step import split
from ibpjax.xla.compiling import RightJit


def running_mean(mean: Any, params: Any, count: Any) -> Any:
  """The mean of count + 1 pytrees from the mean of the first `count` and the last one.

  Stochastic weight averaging takes it at the end of each epoch (Izmailov et al. 2018, algorithm 1).
  """
  return optax.incremental_update(params, mean, 1 / (count + 1))


def measured_batch_stats(graphdef: Any, params: Any, batch_stats: Any, batches: Iterable[Any]) -> Any:
  """Batch-norm statistics of a model over clean batches, each of the same weight.

  Averaged weights have activations that no training step saw, so their statistics are measured
  (Izmailov et al. 2018, section 3.2). The variance of the whole is the mean variance of the
  batches plus the variance of their means.

  Args:
    graphdef, params, batch_stats: a model of `ibpjax.nn.Sequential`, split.
    batches: images, as the model takes them.

  Returns:
    The statistics to put in the place of `batch_stats`; those themselves if the model has none.
  """
  if not jax.tree.leaves(batch_stats):
    return batch_stats

  total, count = None, 0
  for images in batches:
    new = _sums(graphdef, params, batch_stats, images)
    total = new if total is None else jax.tree.map(jnp.add, total, new)
    count += 1
  if total is None:
    raise ValueError('no batch was given to measure batch statistics on')
  model = nnx.merge(graphdef, params, batch_stats)
  model.replace([(m / count, v / count + s / count - jnp.square(m / count)) for m, v, s in total])
  return split(model)[1][1]


@functools.partial(RightJit, static_argnums=0)
def _sums(graphdef: Any, params: Any, batch_stats: Any, images: Any) -> list[tuple[Any, Any, Any]]:
  _, stats = nnx.merge(graphdef, params, batch_stats).with_statistics(images)
  return [(mean, var, jnp.square(mean)) for mean, var in stats]
