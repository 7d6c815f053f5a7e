"""The table: one row for each primitive, and for each function that groups of equations are recognised as."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation
from ibpjax.core.row import CONTRACTED, SCALED, Elementwise, Row
from ibpjax.primitives import affine, elementwise, nonlinear, registration

WEIGHTED = SCALED, CONTRACTED   # kinds that are affine in one operand, the others being known weights
_FAMILIES = affine.ROWS, nonlinear.ROWS, elementwise.ROWS, registration.ROWS


def check(rows: Mapping[Any, Row]) -> None:
  """Raises for a row that leaves out a fact that others rely on, by the name of its primitive."""
  for key, row in rows.items():
    own = row.elementwise
    silent = row.accuracy is None or (isinstance(own, Elementwise) and own.roundings is None)
    if silent:
      raise ImportError(f'no accuracy is stated for {key}: say in its row whether it moves data, is exact, sums or '
                        'rounds, and give an Elementwise its `roundings`')
    if not (row.affine or row.monotone or own or row.image):
      raise ImportError(f'the row of {key} says nothing of its bounds')


def _joined() -> dict[Any, Row]:
  rows: dict[Any, Row] = {}
  for family in _FAMILIES:
    if twice := rows.keys() & family.keys():
      raise ImportError(f'two rows are of {", ".join(map(str, twice))}')
    check(family)
    rows |= family
  return rows


ROWS: Mapping[Any, Row] = _joined()
_NONE = Row()


def of(eqn: Equation) -> Row:
  """The row of what an equation computes; one that states nothing for groups, loops and unknown primitives."""
  return ROWS.get(eqn.key, _NONE)


def is_affine(eqn: Equation, perturbed: Sequence[bool]) -> bool:
  """Whether an equation is affine in its perturbed operands, given the others."""
  row = of(eqn)
  if row.affine is None or not all(jnp.issubdtype(v.dtype, jnp.floating) for v in eqn.outputs):
    return False
  if any(perturbed[row.control]):
    return False
  if eqn.key is P.convert_element_type_p:  # to another precision: rows would be computed in the lower one
    return eqn.inputs[0].dtype == eqn.outputs[0].dtype
  return row.affine not in WEIGHTED or sum(perturbed) == 1
