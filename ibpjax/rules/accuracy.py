"""How far each operation may be off as it is computed, by what its row states of its accuracy."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.composites.univariate import Univariate
from ibpjax.core.program import Equation, unsupported
from ibpjax.core.row import EXACT, MOVES, SUMS
from ibpjax.core.sets import Interval
from ibpjax.primitives import table
from ibpjax.primitives.registration import elementwise_call_p
from ibpjax.rules.elementwise import row


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
  stated = table.of(eqn).accuracy
  if stated in (MOVES, EXACT):
    return 0., 0., 4.
  if len(slots) == 1 and (rule := row(eqn, slots[0])) is not None:
    units = rule.units(eqn.outputs[0].dtype)
    if units is None:
      name = getattr(eqn.params.get('fn'), '__name__', eqn.name)
      raise unsupported(eqn, f'is the registered function `{name}`, which states no accuracy: bounds that allow for '
                             'rounding need ibpjax.Elementwise(..., roundings=), its greatest relative error in units '
                             'of roundoff (0 where it returns one of its arguments or a constant)')
    # Rows of the table state twice what was measured: the end of a box is off as well as what lies inside.
    twice = 2. if eqn.key is elementwise_call_p else 1.
    return twice * units, twice * rule.cancellation, twice * rule.vanished
  if isinstance(eqn.key, Univariate) or stated == SUMS:
    return 16., 0., 4.
  if not isinstance(stated, float):
    raise unsupported(eqn, 'has no stated accuracy')
  return stated, 0., 4.


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
  facts = table.of(eqn)
  if facts.repeats:
    return 1, out
  if not facts.many and (facts.affine or facts.accuracy == MOVES or facts.elementwise):
    return 1, 1
  raise unsupported(eqn, 'has no stated number of roundings')
