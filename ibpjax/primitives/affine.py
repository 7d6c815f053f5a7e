"""Primitives that are affine in all of their perturbed operands: what moves elements, and sums."""
from __future__ import annotations

from typing import Any

from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.row import EXACT, INCREASING, MOVES, SIGNED, SUMS, Row

_MOVE = Row(affine=INCREASING, accuracy=MOVES)
_COPIES = Row(affine=INCREASING, accuracy=MOVES, repeats=True)
_SUM = Row(affine=INCREASING, accuracy=SUMS, many=True)

ROWS: dict[Any, Row] = {
    P.reshape_p: _MOVE,
    P.transpose_p: _MOVE,
    P.squeeze_p: _MOVE,
    P.rev_p: _MOVE,
    P.slice_p: _MOVE,
    P.copy_p: _MOVE,
    lax.split_p: _MOVE,
    lax.stack_p: _MOVE,
    lax.unstack_p: _MOVE,
    P.sharding_constraint_p: _MOVE,
    lax.optimization_barrier_p: _MOVE,
    P.dynamic_slice_p: Row(affine=INCREASING, accuracy=MOVES, control=slice(1, None)),
    P.dynamic_update_slice_p: Row(affine=INCREASING, accuracy=MOVES, control=slice(2, None), places=True),
    P.concatenate_p: Row(affine=INCREASING, accuracy=MOVES, places=True),
    P.pad_p: Row(affine=INCREASING, accuracy=MOVES, control=slice(1, None), places=True, monotone=True),
    P.broadcast_in_dim_p: _COPIES,
    lax.tile_p: _COPIES,
    P.gather_p: Row(affine=INCREASING, accuracy=MOVES, control=slice(1, None), repeats=True),
    P.add_p: Row(affine=INCREASING, accuracy=SUMS),
    P.add_jaxvals_p: Row(affine=INCREASING, accuracy=SUMS),
    P.sub_p: Row(affine=SIGNED, accuracy=SUMS),
    P.neg_p: Row(affine=SIGNED, accuracy=EXACT),
    P.reduce_sum_p: _SUM,
    P.reduce_window_sum_p: _SUM,
    P.cumsum_p: _SUM,
    P.scatter_add_p: Row(affine=INCREASING, accuracy=SUMS, many=True, control=slice(1, 2)),
}
