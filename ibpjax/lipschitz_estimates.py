"""Estimates of Lipschitz constants inside of a training step: by power iteration, with a state that is carried on."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.interval import pytree
from ibpjax.networks import cut
from ibpjax.pieces import Piece
from ibpjax.spectral import power_iteration, random_start


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

  Source: Leino et al. 2021; Hu et al. 2023.
  """
  def estimated(state, *args):
    network = cut(f, args, argnum)
    maps = [piece for unit in network.units for piece in network.into(unit)]
    if isinstance(state, jax.Array) and not jnp.issubdtype(state.dtype, jax.dtypes.prng_key):
      raise TypeError(f'the state is an array {state.dtype}{list(state.shape)}; it is a key of jax.random.key(seed), '
                      'or what the last call returned')
    if isinstance(state, jax.Array):
      keys = jax.random.split(state, len(maps))
      state = [random_start(key, tuple(jnp.zeros(v.shape, v.dtype) for v in piece.source.outputs))
               for key, piece in zip(keys, maps)]
    found = {id(piece): power_iteration(piece, v, steps) for piece, v in zip(maps, state, strict=True)}
    reach, total = network.reach(lambda piece: found[id(piece)][0])
    pairs = None
    if network.is_vector:
      pairs = sum(_table(_rows(piece)) * reach[id(piece.source)] for piece in network.into(network.units[-1]))
    norms, state = map(list, zip(*found.values(), strict=True))
    return LipschitzEstimate(jnp.asarray(total), pairs, norms), state
  return functools.update_wrapper(estimated, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())


def _rows(piece: Piece) -> Any:
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
