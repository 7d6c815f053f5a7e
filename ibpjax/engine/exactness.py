"""Exactness: which values of a program have their exact ranges as the boxes of interval arithmetic."""
from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Program
from ibpjax.primitives import affine

# Each element of the result is one of an operand, or that and a known number; no element is used twice.
_ONCE = frozenset({P.neg_p, P.add_p, P.sub_p, P.mul_p, P.div_p, P.reshape_p, P.transpose_p, P.squeeze_p, P.rev_p,
                   P.copy_p, P.slice_p, P.pad_p, P.concatenate_p, P.select_n_p, P.convert_element_type_p,
                   lax.split_p, lax.unstack_p, lax.stack_p})
# The same, but an element may be used many times.
_COPIES = frozenset({P.broadcast_in_dim_p, P.gather_p, lax.tile_p, P.dynamic_slice_p})


class Exact:
  """The values that are affine in boxes, each element in elements that vary by themselves.

  Of these no linear method knows more than interval arithmetic: the first layer of a network.
  """

  def __init__(self, program: Program, balls: Iterable[int]):
    self.apart = {v.id for v in program.inputs if v.id in program.perturbed} - set(balls)  # vary by themselves
    self.exact = set(self.apart)
    for eqn in program.equations:
      self._add(program, eqn)

  def __contains__(self, i: int) -> bool:
    return i in self.exact

  def _add(self, program: Program, eqn: Equation) -> None:
    flags = [v.id in program.perturbed for v in eqn.inputs]
    operands = {v.id for v, p in zip(eqn.inputs, flags) if p}
    if not operands or not affine.is_affine(eqn, flags):
      return
    outputs = {v.id for v in eqn.outputs if jnp.issubdtype(v.dtype, jnp.floating)}
    alone = sum(flags) == 1
    moved = eqn.key is P.broadcast_in_dim_p and eqn.inputs[0].size == eqn.outputs[0].size  # x[None], for instance
    if (eqn.key in _ONCE or moved) and (alone or eqn.key in (P.concatenate_p, lax.stack_p, P.select_n_p)):
      if operands <= self.exact:
        self.exact |= outputs
      if alone and operands <= self.apart:
        self.apart |= outputs
    elif (eqn.key in _COPIES and operands <= self.exact) or (alone and operands <= self.apart):
      self.exact |= outputs
