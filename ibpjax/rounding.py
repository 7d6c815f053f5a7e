"""Rounding: how far floating point may have moved a bound, and the widening that makes up for it.

Standard model of floating point (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
chapters 2 and 3): each operation is exact up to a relative u, so a sum of n products is exact up
to gamma_n = n u / (1 - n u) times the sum of their absolute values, in any order of summation.
Both the function itself and its bound are computed so; the constant 4 below covers both.

Known values (weights, and what is computed from known values alone, such as folded batch norm)
are taken as computed: a bound holds for the function of these values.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax import affine, nonlinear, reductions
from ibpjax.composites import Composite
from ibpjax.elementwise import row
from ibpjax.interval import Interval, LpBall, as_interval
from ibpjax.program import Equation

# Affine operations that round; the other affine ones only move data.
SUMS = frozenset({P.add_p, P.add_jaxvals_p, P.sub_p, P.cumsum_p, P.reduce_sum_p, P.reduce_window_sum_p,
                   P.scatter_add_p, lax.scatter_sub_p}) | affine.WEIGHTED
# What returns one of its arguments, up to sign, or is a rounding by definition (casts).
_EXACT = (affine.INCREASING | nonlinear.MONOTONE | {P.max_p, P.min_p, P.abs_p, P.neg_p, P.select_n_p, P.stop_gradient_p,
                                                    P.convert_element_type_p, P.sort_p, P.top_k_p, P.scatter_p}) - SUMS
# Products of many factors: one rounding each.
_PRODUCTS = frozenset({P.reduce_prod_p, P.cumprod_p, P.scatter_mul_p})


def unit(eqn: Equation) -> float:
  """The unit roundoff u of an equation: half an ulp of its least precise operand or result."""
  floats = [v.dtype for v in (*eqn.inputs, *eqn.outputs) if jnp.issubdtype(v.dtype, jnp.floating)]
  u = max(float(jnp.finfo(d).eps) for d in floats) / 2
  precision = eqn.params.get('precision')
  if precision is not None and any(p != lax.Precision.HIGHEST for p in np.ravel(np.asarray(precision, object))):
    u = max(u, 2. ** -8)  # products in bfloat16, asked for by the model itself
  return u


def gamma(n: float, u: float) -> float:
  """n u / (1 - n u), infinite where the model says nothing any more."""
  return n * u / (1 - n * u) if n * u < .5 else float('inf')


def roundings(eqn: Equation) -> tuple[int, int]:
  """(terms summed into one output element, output elements that one input element enters)."""
  sizes = [v.size for v in eqn.inputs]
  match eqn.primitive:
    case P.dot_general_p:
      (contract, _), (batch, _) = eqn.params['dimension_numbers']
      terms = int(np.prod([eqn.inputs[0].shape[i] for i in contract], dtype=np.int64))
      shared = terms * int(np.prod([eqn.inputs[0].shape[i] for i in batch], dtype=np.int64))
      return terms, max(sizes) // max(shared, 1)
    case P.conv_general_dilated_p:
      kernel, dims = eqn.inputs[1], eqn.params['dimension_numbers'].rhs_spec
      return kernel.size // kernel.shape[dims[0]], kernel.size // kernel.shape[dims[1]]
    case P.reduce_sum_p:
      return sizes[0] // max(eqn.outputs[0].size, 1), 1
    case P.reduce_window_sum_p:
      terms = int(np.prod(eqn.params['window_dimensions'], dtype=np.int64))
      return terms, terms
    case P.cumsum_p:
      n = eqn.inputs[0].shape[eqn.params['axis']]
      return n, n
    case P.scatter_add_p | lax.scatter_sub_p:
      return sizes[2] + 1, 1
    case P.gather_p | P.broadcast_in_dim_p | lax.tile_p:
      return 1, eqn.outputs[0].size
  return 1, 1


def _wider(x: Any, relative: float, vanished: Any = 1) -> Any:
  """An interval with its ends rounded outward, each by `relative` times itself, and by results too small to be kept."""
  if not isinstance(x, Interval):
    return x
  tiny = vanished * jnp.finfo(x.dtype).tiny
  return Interval(x.lower - relative * jnp.abs(x.lower) - tiny, x.upper + relative * jnp.abs(x.upper) + tiny)


def _spread(x: Any, relative: float) -> Any:
  """An interval widened by `relative` times its largest magnitude, on both sides."""
  if not isinstance(x, Interval):
    return x
  slack = relative * magnitude(x)
  return Interval(x.lower - slack, x.upper + slack)


def rounded_hull(x: LpBall) -> Interval:
  """The hull of a ball, its ends rounded outward."""
  return _wider(x.hull, float(jnp.finfo(x.dtype).eps))


def outward(step: Callable[[Equation, list[Any]], list[Any]], eqn: Equation, operands: list[Any]) -> list[Any]:
  """One step of IBP, widened by the rounding of the equation and of its bound."""
  if eqn.bodies or not jnp.issubdtype(eqn.outputs[0].dtype, jnp.floating):
    return step(eqn, operands)  # loops widen inside; comparisons are exact
  u = unit(eqn)
  if eqn.key in SUMS:
    terms, _ = roundings(eqn)
    if eqn.primitive in (P.scatter_add_p, lax.scatter_sub_p):  # what is added to counts among the terms, known or not
      operands = [as_interval(x) if jnp.issubdtype(v.dtype, jnp.floating) else x for x, v in zip(operands, eqn.inputs)]
    # |W| (r + 4 (gamma_n + u) |x|) covers the sums of the function, of the centre and of the radius.
    operands = [_spread(x, 4 * gamma(terms + 1, u)) for x in operands]
    return [_wider(x, 4 * u, terms + 1) for x in step(eqn, operands)]
  if eqn.key in _EXACT:
    return step(eqn, operands)
  if isinstance(eqn.key, Composite):
    return [eqn.key.image(operands, u)]
  relative, absolute, vanished = 16., 0., jnp.ones(())
  slots = [i for i, x in enumerate(operands) if isinstance(x, Interval)]
  if len(slots) == 1 and (rule := row(eqn, slots[0])) is not None:
    relative, absolute = rule.roundings, rule.cancellation
    vanished = 4 * (1 + jnp.minimum(magnitude(operands[slots[0]]), 1024))  # x times what vanished
  elif eqn.key in _PRODUCTS:
    relative = 4. * reductions.count(eqn) + 16
  elif eqn.key is P.cumlogsumexp_p:
    absolute = 4. * reductions.count(eqn) + 16
  out = [_wider(x, relative * u, vanished) for x in step(eqn, operands)]
  if not absolute:
    return out
  slack = absolute * u * (1 + magnitude(operands[slots[0]]))
  return [Interval(x.lower - slack, x.upper + slack) for x in out]


def magnitude(x: Any) -> Any:
  """The largest absolute value of each element of an array or a set."""
  if isinstance(x, LpBall):
    return jnp.abs(x.centre) + x.eps
  if isinstance(x, Interval):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x.upper
    return jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)) + jnp.finfo(x.dtype).tiny
  return jnp.abs(x) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) else x
