"""How far each operation may be off as it is computed: which are exact, which sum, what other functions lose.

Each fact is stated for its primitive; there is no default. A primitive that has bounds and no statement here stops the
import.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.composites.univariate import Univariate
from ibpjax.core.program import Equation, unsupported
from ibpjax.core.sets import Interval
from ibpjax.primitives import affine, elementwise, nonlinear
from ibpjax.primitives.registration import elementwise_call_p
from ibpjax.rules.elementwise import row

# What moves the bits of its operands.
MOVES = frozenset({
    P.broadcast_in_dim_p, P.concatenate_p, P.copy_p, P.dynamic_slice_p, P.dynamic_update_slice_p, P.gather_p, P.pad_p,
    P.reshape_p, P.rev_p, P.slice_p, lax.split_p, P.squeeze_p, lax.stack_p, lax.tile_p, P.transpose_p, lax.unstack_p,
    P.sharding_constraint_p, lax.optimization_barrier_p, P.stop_gradient_p,
})
# What returns one of its operands, up to sign; a whole number; or a rounding by definition (casts).
EXACT = frozenset({
    P.max_p, P.min_p, P.clamp_p, P.abs_p, P.neg_p, P.select_n_p, P.sort_p, P.top_k_p, P.scatter_p, P.scatter_max_p,
    P.scatter_min_p, P.reduce_max_p, P.reduce_min_p, P.reduce_window_max_p, P.reduce_window_min_p, P.cummax_p,
    P.cummin_p, P.floor_p, P.ceil_p, P.round_p, P.sign_p, P.reduce_precision_p, P.convert_element_type_p,
})
# Affine operations that round.
SUMS = frozenset({
    P.add_p, P.add_jaxvals_p, P.sub_p, P.cumsum_p, P.reduce_sum_p, P.reduce_window_sum_p, P.scatter_add_p,
    lax.scatter_sub_p, P.mul_p, P.div_p, P.dot_general_p, P.conv_general_dilated_p,
})
# Products of many factors: one rounding each.
PRODUCTS = frozenset({P.reduce_prod_p, P.cumprod_p, P.scatter_mul_p})
# Functions of two perturbed operands, in units of roundoff: XLA's of two arrays are within 2 on CPUs.
_OF_TWO = {P.pow_p: 512., P.atan2_p: 16.}
_OTHER = frozenset({P.cumlogsumexp_p, elementwise_call_p})
# What has results of integers and booleans alone.
_UNROUNDED = frozenset({
    P.eq_p, P.ne_p, P.lt_p, P.le_p, P.gt_p, P.ge_p, P.and_p, P.or_p, P.xor_p, P.not_p, P.is_finite_p, P.reduce_and_p,
    P.reduce_or_p,
})
# Operations whose every result is one term, and in which every operand enters one result.
_ONE_TO_ONE = MOVES - {P.broadcast_in_dim_p, P.gather_p, lax.tile_p} | {
    P.add_p, P.add_jaxvals_p, P.sub_p, P.neg_p, P.mul_p, P.div_p, P.select_n_p, P.convert_element_type_p, P.max_p,
    P.min_p,
}


def _check() -> None:
  """Raises for a primitive that has bounds and no stated accuracy."""
  bounded = {*affine.INCREASING, *affine.SIGNED, *affine.WEIGHTED, *nonlinear.MONOTONE, *nonlinear.TABLE}
  stated = {*MOVES, *EXACT, *SUMS, *PRODUCTS, *_OF_TWO, *_OTHER, *_UNROUNDED}
  rows = {key for key, row in elementwise.TABLE.items() if callable(row) or row.roundings is not None}
  missing = (bounded | set(elementwise.TABLE)) - stated - rows
  if missing:
    raise ImportError(f'no accuracy is stated for {", ".join(sorted(map(str, missing)))}: say in '
                      'ibpjax/rules/accuracy.py whether they are exact, or give their rows `roundings`')


_check()


def unit(eqn: Equation) -> float:
  """The unit roundoff u of an equation on floats: half an ulp of its least precise operand or result."""
  floats = [v.dtype for v in (*eqn.inputs, *eqn.outputs) if jnp.issubdtype(v.dtype, jnp.floating)]
  u = max(float(jnp.finfo(d).eps) for d in floats) / 2
  precision = eqn.params.get('precision')
  if precision is not None and any(p != lax.Precision.HIGHEST for p in np.ravel(np.asarray(precision, object))):
    u = max(u, 2. ** -8)  # products in bfloat16, asked for by the model itself
  return u


def of_value(eqn: Equation, operands: Sequence[Any]) -> tuple[float, float, float]:
  """(roundings, cancellation, vanished) of an equation that is not affine, as `Elementwise` states them.

  Raises:
    NotImplementedError: a function that the user registered without stating its accuracy.
  """
  slots = [i for i, x in enumerate(operands) if isinstance(x, Interval)]
  if eqn.key in MOVES or eqn.key in EXACT:
    return 0., 0., 4.
  if len(slots) == 1 and (rule := row(eqn, slots[0])) is not None:
    stated = rule.units(eqn.outputs[0].dtype)
    if stated is None:
      name = getattr(eqn.params.get('fn'), '__name__', eqn.name)
      raise unsupported(eqn, f'is the registered function `{name}`, which states no accuracy: bounds that allow for '
                             'rounding need ibpjax.Elementwise(..., roundings=), its greatest relative error in units '
                             'of roundoff (0 where it returns one of its arguments or a constant)')
    # Rows of the table state twice what was measured: the end of a box is off as well as what lies inside.
    twice = 2. if eqn.key is elementwise_call_p else 1.
    return twice * stated, twice * rule.cancellation, twice * rule.vanished
  if isinstance(eqn.key, Univariate) or eqn.key in SUMS:
    return 16., 0., 4.
  if eqn.key not in _OF_TWO:
    raise unsupported(eqn, 'has no stated accuracy')
  return _OF_TWO[eqn.key], 0., 4.


def roundings(eqn: Equation, perturbed: Sequence[bool]) -> tuple[int, int]:
  """(terms summed into one element of the result, elements of the result that one perturbed element enters)."""
  sizes, out = [v.size for v in eqn.inputs], eqn.outputs[0].size
  match eqn.primitive:
    case P.dot_general_p:
      (contract, _), (batch, _) = eqn.params['dimension_numbers']
      terms = int(np.prod([eqn.inputs[0].shape[i] for i in contract], dtype=np.int64))
      shared = terms * int(np.prod([eqn.inputs[0].shape[i] for i in batch], dtype=np.int64))
      return terms, max(sizes) // max(shared, 1)
    case P.conv_general_dilated_p:
      kernel, numbers = eqn.inputs[1], eqn.params['dimension_numbers']
      features = eqn.outputs[0].shape[numbers.out_spec[1]]
      entered = [kernel.size // kernel.shape[numbers.rhs_spec[1]], out // max(features, 1)]
      return kernel.size // kernel.shape[numbers.rhs_spec[0]], max(n for n, p in zip(entered, perturbed) if p)
    case P.reduce_sum_p:
      return sizes[0] // max(out, 1), 1
    case P.reduce_window_sum_p:
      terms = int(np.prod(eqn.params['window_dimensions'], dtype=np.int64))
      return terms, terms
    case P.cumsum_p:
      n = eqn.inputs[0].shape[eqn.params['axis']]
      return n, n
    case P.scatter_add_p | lax.scatter_sub_p:
      return sizes[2] + 1, 1
    case P.gather_p | P.broadcast_in_dim_p | lax.tile_p:
      return 1, out
    case p if p in _ONE_TO_ONE:
      return 1, 1
  raise unsupported(eqn, 'has no stated number of roundings')
