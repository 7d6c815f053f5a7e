"""Estimates of Lipschitz constants inside of a training step: by power iteration, with a state that is carried on."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.sets import pytree
from ibpjax.engine.prepare import named_as
from ibpjax.operators.networks import cut
from ibpjax.operators.pieces import AffineMap
from ibpjax.operators.spectral import power_iteration, random_start


@pytree
class LipschitzEstimate:
  """What power iteration says of a network, inside of a training step: too small, and no bound.

  Attributes:
    value: of all outputs stacked.
    pairs: for one output (classes,), an array (classes, classes) as of a LipschitzBound; None for other outputs.
    parts: the norms of the affine maps that a LipschitzBound has as `parts`, in the same order.
  """
  value: Any
  pairs: Any
  parts: list[Any]


def lipschitz_estimate(f: Callable, *, argnum: int = -1, steps: int = 10) -> Callable:
  """The norms of `lipschitz` by power iteration with a state, for training: differentiable, and from below.

  The returned function takes a state and then the arguments of `f`, and returns (LipschitzEstimate, state). The state
  is a PRNG key at first, and what was returned before after that, so that the iteration follows the weights. It
  composes with jit and grad; derivatives are those of the norms at the directions found.

  Args:
    f, argnum: as in `lipschitz`.
    steps: of each power iteration.

  Raises:
    NotImplementedError: as `lipschitz`.
    TypeError, ValueError: no state, one of another function, no step.

  Source: Leino et al. 2021; Hu et al. 2023.
  """
  if steps < 1:
    raise ValueError(f'steps is {steps}; a power iteration takes at least one')

  def estimated(state, *args):
    keyed = isinstance(state, jax.Array) and jnp.issubdtype(state.dtype, jax.dtypes.prng_key)
    if not (keyed or isinstance(state, (list, tuple))):
      raise TypeError(f'the state, which comes first, is {type(state).__name__}; it is a key of jax.random.key(seed), '
                      'or what the last call returned')
    network = cut(f, args, argnum)
    maps = [piece for unit in network.units for piece in network.into(unit)]
    if not keyed and len(state) != len(maps):
      raise ValueError(f'the state is of {len(state)} affine maps and the function has {len(maps)}')
    if keyed:
      state = [random_start(key, tuple(jnp.zeros(v.shape, v.dtype) for v in piece.source.outputs))
               for key, piece in zip(jax.random.split(state, len(maps)), maps)]
    found = [power_iteration(piece, v, steps) for piece, v in zip(maps, state)]
    norms = {id(piece): norm for piece, (norm, _) in zip(maps, found)}
    reach, total = network.reach(lambda piece: norms[id(piece)])
    pairs = None
    if network.is_vector:
      terms = [_table(_rows(piece)) * reach[id(piece.source)] for piece in network.into(network.units[-1])]
      pairs = sum(terms, start=jnp.zeros(network.program.outputs[0].shape * 2))
    return LipschitzEstimate(jnp.asarray(total), pairs, list(norms.values())), [v for _, v in found]
  return named_as(f, estimated)


def _rows(piece: AffineMap) -> Any:
  """The rows of a map to a vector, flattened: (classes, size), in the dtype of the network."""
  into = tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in piece.source.outputs)
  pull = jax.linear_transpose(lambda xs: piece(xs)[0], into)
  target, = piece.target.operands
  rows, = jax.vmap(pull)(jnp.eye(target.size, dtype=target.dtype))
  return jnp.concatenate([row.reshape(len(row), -1) for row in rows], axis=1)


def _table(rows: Any) -> Any:
  """The distances of rows, (classes, classes), of derivative 0 where two are equal."""
  products = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
  squares = jnp.diagonal(products)
  square = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0) * (1 - jnp.eye(len(rows), dtype=rows.dtype))
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
