"""Images of boxes under what is neither affine nor a function of each element, by its row; what is refused."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.composite import Composite
from ibpjax.core.program import Equation, unsupported
from ibpjax.core.row import INCREASING
from ibpjax.core.sets import Interval, is_set
from ibpjax.primitives import nonlinear, table
from ibpjax.primitives.reductions import ends
from ibpjax.rules import integers

_BITS = frozenset({P.and_p, P.or_p, P.xor_p, P.not_p, P.reduce_and_p, P.reduce_or_p})
_SCATTERS = frozenset({P.scatter_p, P.scatter_add_p, lax.scatter_sub_p, P.scatter_mul_p, P.scatter_max_p,
                       P.scatter_min_p})
_COMPLEX = frozenset({P.complex_p, P.real_p, P.imag_p, P.conj_p, P.fft_p})


def _refuse(eqn: Equation, perturbed: Sequence[bool]) -> None:
  """Raises for what has no bounds for a reason that no rule could change."""
  if eqn.key in _BITS and eqn.inputs[0].dtype != jnp.bool_:
    raise unsupported(eqn, 'combines the bits of perturbed integers; only booleans are bounded')
  if eqn.key in (P.argmax_p, P.argmin_p):
    raise unsupported(eqn, 'is a position that depends on perturbed values, and jumps with them. Bound the values '
                           'themselves (max, sort, top_k), or margins between them (ibpjax.margins)')
  if eqn.key in _COMPLEX or any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in (*eqn.inputs, *eqn.outputs)):
    raise unsupported(eqn, 'uses complex numbers, which have no order and so no intervals. Compute the real and the '
                           'imaginary part as two real arrays')
  control = table.of(eqn).control
  moved = eqn.key not in (P.select_n_p, P.div_p, P.pad_p) and any(perturbed[control])
  if moved or (eqn.key in _SCATTERS and perturbed[1]):
    raise unsupported(eqn, 'is indexed by positions that depend on perturbed values, such as those of a sort, top_k or '
                           'argmax. Use the sorted values themselves, or jnp.where with comparisons')


def image(eqn: Equation, operands: Sequence[Any]) -> list[Interval] | None:
  """Bounds of an equation that is not affine by the rule of its row, or None if it has none for these operands."""
  if isinstance(eqn.key, Composite):
    return [eqn.key.image(operands, 0.)]
  perturbed = [is_set(x) for x in operands]
  _refuse(eqn, perturbed)
  if any(is_set(x) and jnp.issubdtype(x.dtype, jnp.integer) for x in operands) and eqn.key not in (
      P.convert_element_type_p, P.select_n_p, *nonlinear.COMPARISONS):
    return integers.image(eqn, operands)
  row = table.of(eqn)
  structural = (row.affine == INCREASING and eqn.key not in (P.select_n_p, P.convert_element_type_p)
                and not jnp.issubdtype(eqn.outputs[0].dtype, jnp.floating))
  if structural or (row.monotone and (eqn.key not in (P.max_p, P.min_p) or all(perturbed))):
    return ends(eqn, operands)
  if eqn.key is P.select_n_p and not perturbed[0]:  # of booleans, by a known predicate
    return ends(eqn, operands)
  if eqn.key is P.pow_p and not all(perturbed):  # a row of the table of elementwise functions
    return None
  out = None if row.image is None else row.image(eqn, operands)
  return [out] if isinstance(out, Interval) else out
