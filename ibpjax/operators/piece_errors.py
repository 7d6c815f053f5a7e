"""How far the numbers of an affine piece, computed in float64, may be from those of exact arithmetic.

An entry of its matrix is a sum of products of weights along paths. Rounding moves it by at most gamma times the sum of
their magnitudes, which is the entry of the piece with the magnitudes of its weights and without signs: where terms
cancel, that is much more than the entry itself. (Higham 2002, section 3.5.)
"""
from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation
from ibpjax.core.row import SIGNED
from ibpjax.operators.pieces import AffineMap
from ibpjax.primitives import table

_UNIT = float(np.finfo(np.float64).eps) / 2


def magnitudes(piece: AffineMap) -> AffineMap:
  """The piece with the magnitudes of its weights, sums in the place of differences."""
  known, equations = dict(piece.known), list[Equation]()
  for eqn in piece.equations:
    if table.of(eqn).affine == SIGNED:
      key = P.add_p if eqn.key is P.sub_p else P.copy_p
      eqn = dataclasses.replace(eqn, primitive=key, key=key, params={})
    elif table.of(eqn).affine in table.WEIGHTED:
      slot = 1 if eqn.inputs[0].id in piece.program.perturbed else 0
      weights = dataclasses.replace(eqn.inputs[slot], id=-1 - len(equations))  # an id that no value has
      known[weights.id] = np.abs(np.asarray(piece.known[eqn.inputs[slot].id]))
      eqn = dataclasses.replace(eqn, inputs=tuple(weights if i == slot else v for i, v in enumerate(eqn.inputs)))
    equations.append(eqn)
  return dataclasses.replace(piece, known=known, equations=tuple(equations))


def roundings(piece: AffineMap) -> float:
  """gamma: by how much of its magnitude an entry may be off, with as many roundings as lie on any path."""
  count = 4 + sum(2 + _terms(piece, eqn) for eqn in piece.equations)
  return count * _UNIT / (1 - count * _UNIT)


def _terms(piece: AffineMap, eqn: Equation) -> int:
  """How many terms the sums of an equation have, at most."""
  known = next((v for v in eqn.inputs if v.id not in piece.program.perturbed), None)
  if eqn.key is P.dot_general_p and known is not None:
    (left, _), _ = eqn.params['dimension_numbers']
    return int(np.prod([eqn.inputs[0].shape[i] for i in left]))
  if eqn.key is P.conv_general_dilated_p and known is not None:
    return known.size // max(1, known.shape[eqn.params['dimension_numbers'].rhs_spec[0]])
  return max(v.size for v in eqn.inputs) if table.of(eqn).many else 1


def matrix_error(piece: AffineMap) -> np.ndarray:
  """What the entries of `piece.matrix()` may be off by, an array of its shape."""
  with jax.enable_x64(True):
    return roundings(piece) * np.abs(magnitudes(piece).matrix())
