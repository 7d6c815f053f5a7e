"""Networks: functions as nonlinear operations with maximal affine maps between them, and how norms compose."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.program import Program, rebind
from ibpjax.core.sets import Interval, is_set
from ibpjax.core.validation import numbered
from ibpjax.engine.prepare import ungrouped
from ibpjax.operators.declared import declared_constant
from ibpjax.operators.pieces import AffineMap, Nonlinearity, pieces, units


@dataclasses.dataclass(frozen=True)
class Network:
  """A program cut at its nonlinear operations.

  Attributes:
    program: it.
    units: the input, the nonlinear operations in order, the outputs.
    pieces: id of a unit -> the affine maps into its operands, one from each unit that these depend on directly.
  """
  program: Program
  units: Sequence[Nonlinearity]
  pieces: dict[int, list[AffineMap]]

  def into(self, unit: Nonlinearity) -> list[AffineMap]:
    """The affine maps into the operands of a unit."""
    return self.pieces.get(id(unit), [])

  @property
  def is_vector(self) -> bool:
    """Whether there is one output, of classes."""
    return len(self.program.outputs) == 1 and len(self.program.outputs[0].shape) == 1

  def reach(self, norm: Callable[[AffineMap], Any]) -> tuple[dict[int, Any], Any]:
    """(id of a unit -> by how much more than inputs its outputs may be apart, the same of all outputs), given norms."""
    found: dict[int, Any] = {id(self.units[0]): 1.}
    total: Any = 0.
    for unit in self.units[1:]:
      total = sum((norm(piece) * found[id(piece.source)] for piece in self.into(unit)), start=0.)
      found[id(unit)] = unit.constant * total
    return found, total


def cut(f: Callable, given: tuple, argnum: int) -> Network:
  """A function of arguments, perturbed in one of them, as a network."""
  args, argnum = list(given), numbered(given, argnum)
  for i, x in enumerate(args):
    if any(map(is_set, jax.tree.leaves(x, is_leaf=is_set))):
      raise TypeError(f'argument {i} is a set: global Lipschitz bounds are of all inputs, give an array of the same '
                      'shape (or bound it within the set by ibpjax.local_lipschitz)')
  args[argnum] = jax.tree.map(lambda x: Interval(jnp.asarray(x), jnp.asarray(x)), args[argnum])
  program, inputs, _ = ungrouped(f, tuple(args), {}, keep=lambda params: declared_constant(params) is not None)
  ordered = units(program)
  return Network(program, ordered, pieces(program, _known(program, inputs), ordered))


def _known(program: Program, inputs: list[Any]) -> dict[int, Any]:
  """The known values of a program."""
  env = {i: x for i, x in program.environment(inputs).items() if not is_set(x)}
  for eqn in program.equations:
    if not any(v.id in program.perturbed for v in eqn.inputs):
      env |= zip((v.id for v in eqn.outputs), rebind(eqn, *[env[v.id] for v in eqn.inputs]), strict=True)
  return env
