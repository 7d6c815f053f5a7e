"""Exactness: which values of a program have their exact ranges as the boxes of interval arithmetic."""
from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Program
from ibpjax.core.row import CONTRACTED
from ibpjax.primitives import table


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
    if not operands or not table.is_affine(eqn, flags):
      return
    outputs = {v.id for v in eqn.outputs if jnp.issubdtype(v.dtype, jnp.floating)}
    alone = sum(flags) == 1
    moved = eqn.key is P.broadcast_in_dim_p and eqn.inputs[0].size == eqn.outputs[0].size  # x[None], for instance
    row = table.of(eqn)
    once = row.affine != CONTRACTED and not row.many and not row.repeats   # no element of an operand is used twice
    if (once or moved) and (alone or eqn.key in (P.concatenate_p, lax.stack_p, P.select_n_p)):
      if operands <= self.exact:
        self.exact |= outputs
      if alone and operands <= self.apart:
        self.apart |= outputs
    elif (row.repeats and operands <= self.exact) or (alone and operands <= self.apart):
      self.exact |= outputs
