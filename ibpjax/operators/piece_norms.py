"""Norms of affine pieces, from above: of one convolution, of a whole matrix, or of the parts."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, unsupported
from ibpjax.operators import spectral
from ibpjax.operators.piece_errors import magnitudes, matrix_error, roundings
from ibpjax.operators.piece_forms import as_convolution, contraction
from ibpjax.operators.pieces import AffineMap, Nonlinearity, overlaps
from ibpjax.operators.spectral import NormBound, weakest
from ibpjax.operators.spectral_convolutions import Convolution
from ibpjax.primitives import table


def piece_norm(piece: AffineMap, by: Callable[[Convolution], NormBound]) -> NormBound:
  """A bound of the norm of a piece, with what rounding may have done to its numbers."""
  if (convolution := as_convolution(piece)) is not None:
    off = as_convolution(magnitudes(piece))
    taps = np.inf if off is None else float(np.sqrt(np.square(off.kernel).sum((2, 3))).sum())
    return _widened(by(convolution), roundings(piece) * taps)
  entries = sum(v.size for v in piece.source.outputs) * sum(v.size for v in piece.target.operands)
  if entries <= spectral.WHOLE:
    found = dataclasses.replace(spectral.dense(piece.matrix()), method='singular values of the whole matrix')
    return _widened(found, float(np.linalg.norm(matrix_error(piece))))
  return _by_parts(piece, by)


def _widened(found: NormBound, error: float) -> NormBound:
  """A bound with an absolute allowance more; no longer exact where that is much of it."""
  if not error:
    return found
  value = (found.value + error) * (1 + 1e-15)
  much = not error <= 1e-6 * found.value
  kind = 'upper' if found.kind == 'exact' and much else found.kind
  slack = found.slack + (error / found.value if found.value > 0 else np.inf)
  return dataclasses.replace(found, value=np.inf if np.isnan(value) else value, kind=kind, slack=slack)


def _by_parts(piece: AffineMap, by: Callable[[Convolution], NormBound]) -> NormBound:
  """The norms of a piece's equations, multiplied along ways and added where these meet."""
  reach = {v.id: 1. for v in piece.source.outputs}
  kinds, failure = set[str](), 0.
  for eqn in piece.equations:
    moving = [v for v in eqn.inputs if v.id in reach]
    if not moving:
      continue
    found = _of_equation(piece, eqn, by)
    kinds.add(found.kind)
    failure += found.failure
    joined = float(np.hypot.reduce([reach[v.id] for v in moving])) if eqn.key is P.concatenate_p else sum(
        reach[v.id] for v in moving)
    reach |= {v.id: joined * found.value for v in eqn.outputs}
  value = float(np.hypot.reduce([reach.get(v.id, 0.) for v in piece.target.operands]))
  return NormBound(value * (1 + 1e-12), weakest([*kinds, 'upper']), 1e-12, failure, 'product of the parts')


# Operations whose results have each element of each operand at most once.
_MOVES = frozenset({
    P.add_p, P.sub_p, P.add_jaxvals_p, P.neg_p, P.copy_p, P.reshape_p, P.squeeze_p, P.transpose_p, P.rev_p, P.slice_p,
    P.pad_p, P.concatenate_p, P.select_n_p, P.convert_element_type_p, P.dynamic_slice_p, P.dynamic_update_slice_p,
    jax.lax.split_p, jax.lax.stack_p, jax.lax.unstack_p})


def _of_equation(piece: AffineMap, eqn: Equation, by: Callable[[Convolution], NormBound]) -> NormBound:
  """A bound of the norm of one equation: in each perturbed operand of a move, in the only one of all else."""
  exact = functools.partial(NormBound, kind='upper', slack=0.)
  if eqn.key in _MOVES:
    return exact(1.)
  before, *others = (v for v in eqn.inputs if v.id in piece.program.perturbed)
  if others:
    raise unsupported(eqn, 'stands in an affine map that is too large to be looked at as a whole, and has several '
                           'perturbed operands')
  if eqn.key is P.broadcast_in_dim_p:
    return exact(float(eqn.outputs[0].size / before.size) ** .5)
  if eqn.key is P.reduce_sum_p:
    return exact(float(before.size / eqn.outputs[0].size) ** .5)
  if eqn.key is P.reduce_window_sum_p and max(eqn.params['base_dilation']) == 1:
    window = int(np.prod(eqn.params['window_dimensions']))
    return exact(float(window * overlaps(eqn)) ** .5)
  if eqn.key in (P.mul_p, P.div_p):
    other = next(v for v in eqn.inputs if v.id not in piece.program.perturbed)
    x = np.abs(np.asarray(piece.known[other.id], np.float64))
    return exact(float(np.max(1 / x if eqn.key is P.div_p else x, initial=0)))
  if eqn.key is P.dot_general_p and not eqn.params['dimension_numbers'][1][0]:  # the same for each row of the other
    return spectral.dense(contraction(piece, eqn).weights)
  first, last = Nonlinearity((), (before,), 1., ''), Nonlinearity(eqn.outputs, (), 1., '')
  alone = AffineMap(piece.program, piece.known, first, last, (eqn,))
  if (convolution := as_convolution(alone)) is not None:
    return by(convolution)
  if before.size * eqn.outputs[0].size <= spectral.WHOLE and table.is_affine(
      eqn, [v.id in piece.program.perturbed for v in eqn.inputs]):
    return spectral.dense(alone.matrix())
  raise unsupported(eqn, 'stands in an affine map that is too large to be looked at as a whole, and has no norm of '
                         'its own')
