"""Affine pieces: a program as 1-Lipschitz operations with maximal affine maps between them."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Program, Value, source_line, unsupported
from ibpjax.operators.declared import declared_constant
from ibpjax.primitives import table
from ibpjax.rules import affine

_EXTREMES = (P.max_p, P.min_p)


@dataclasses.dataclass(frozen=True, eq=False)
class Nonlinearity:
  """A nonlinear operation: (operands) -> (outputs), both stacked, changes by at most `constant` times as much.

  The input of a program is a unit without operands, its outputs are the operands of a unit without outputs.
  """
  operands: tuple[Value, ...]
  outputs: tuple[Value, ...]
  constant: float
  name: str
  line: str = ''


@dataclasses.dataclass(frozen=True)
class AffineMap:
  """The linear part of an affine map between two units."""
  program: Program
  known: dict[int, Any]
  source: Nonlinearity
  target: Nonlinearity
  equations: tuple[Equation, ...]

  def __call__(self, xs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the operands of the target change by, where the outputs of the source change by `xs`."""
    zeros = tuple(jnp.zeros(v.shape, v.dtype) for v in self.source.outputs)
    return jax.jvp(self._affine, zeros, tuple(jnp.asarray(x, v.dtype) for x, v in zip(xs, self.source.outputs)))[1]

  def _affine(self, *xs: Any) -> tuple[Any, ...]:
    env = dict(zip((v.id for v in self.source.outputs), xs, strict=True))

    def read(v: Value) -> Any:
      if v.id in self.program.perturbed:
        return env[v.id] if v.id in env else jnp.zeros(v.shape, v.dtype)
      return self.known[v.id]
    for eqn in self.equations:
      out = affine.run(eqn, *map(read, eqn.inputs))
      env |= zip((v.id for v in eqn.outputs), out, strict=True)
    return tuple(map(read, self.target.operands))

  def matrix(self) -> np.ndarray:
    """The whole matrix (all operands of the target, all outputs of the source), in float64."""
    with jax.enable_x64(True):
      wide = _in_float64(self)
      into = [jax.ShapeDtypeStruct(v.shape, np.float64) for v in self.source.outputs]
      out = [jax.ShapeDtypeStruct(v.shape, np.float64) for v in self.target.operands]
      if sum(v.size for v in self.target.operands) < sum(v.size for v in self.source.outputs):
        pull = jax.linear_transpose(wide, tuple(into))
        return _columns(lambda rows: pull(rows)[0], out).T
      return _columns(wide, into)


def _columns(apply: Any, into: Sequence[Any]) -> np.ndarray:
  """The matrix of a linear function of a tuple of arrays, 256 columns at a time."""
  sizes = [int(np.prod(v.shape, dtype=np.int64)) for v in into]

  def column(flat):
    parts = jnp.split(flat, [int(i) for i in np.cumsum(sizes)[:-1]])
    return jnp.concatenate([x.ravel() for x in apply(tuple(p.reshape(v.shape) for p, v in zip(parts, into)))])
  run = jax.jit(jax.vmap(column, out_axes=1))
  eye = np.eye(sum(sizes))
  return np.concatenate([np.asarray(run(eye[:, i:i + 256].T)) for i in range(0, sum(sizes), 256)], axis=1)


def _in_float64(piece: AffineMap) -> AffineMap:
  """The same map on arrays of float64."""
  def wide(v: Value) -> Value:
    return dataclasses.replace(v, dtype=np.dtype(np.float64)) if jnp.issubdtype(v.dtype, jnp.floating) else v

  def wider(eqn: Equation) -> Equation:
    params = dict(eqn.params)
    for name in ('preferred_element_type', 'new_dtype'):
      if params.get(name) is not None and jnp.issubdtype(params[name], jnp.floating):
        params[name] = np.dtype(np.float64)
    return dataclasses.replace(eqn, params=params, inputs=tuple(map(wide, eqn.inputs)),
                               outputs=tuple(map(wide, eqn.outputs)))
  known = {i: jnp.asarray(x, jnp.float64) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x
           for i, x in piece.known.items()}
  source, target = (dataclasses.replace(u, operands=tuple(map(wide, u.operands)), outputs=tuple(map(wide, u.outputs)))
                    for u in (piece.source, piece.target))
  return AffineMap(piece.program, known, source, target, tuple(map(wider, piece.equations)))


def units(program: Program) -> list[Nonlinearity]:
  """The nonlinear operations of a program in order, the input first and the outputs last.

  max(a, b) and min(a, b) of the same two values are one unit: together they only exchange elements.

  Raises:
    NotImplementedError: an operation that is neither affine nor known to be Lipschitz; names it and the line.
  """
  found = [Nonlinearity((), tuple(v for v in program.inputs if v.id in program.perturbed), 1., 'input')]
  pairs: dict[tuple[int, ...], tuple[int, Any]] = {}
  for eqn in program.equations:
    flags = [v.id in program.perturbed for v in eqn.inputs]
    if not any(flags) or table.is_affine(eqn, flags):
      continue
    moving = tuple(v for v, p in zip(eqn.inputs, flags) if p)
    key = tuple(sorted(v.id for v in moving))
    if eqn.key in _EXTREMES and len(key) == 2 and key in pairs and pairs[key][1] is not eqn.key:
      at, _ = pairs.pop(key)
      found[at] = dataclasses.replace(found[at], outputs=(*found[at].outputs, *eqn.outputs), name='max and min')
      continue
    if eqn.key in _EXTREMES and len(key) == 2 and key[0] != key[1]:
      pairs[key] = len(found), eqn.key
    found.append(Nonlinearity(moving, eqn.outputs, constant(eqn, flags), eqn.name, source_line(eqn)))
  return [*found, Nonlinearity(tuple(v for v in program.outputs if v.id in program.perturbed), (), 1., 'output')]


def constant(eqn: Equation, flags: Sequence[bool]) -> float:
  """By how much a nonlinear operation may lengthen the difference of two arguments, stacked."""
  match eqn.key:
    case P.max_p | P.min_p:
      return 1.
    case P.sort_p if len(eqn.inputs) == 1:
      return 1.
    case P.reduce_max_p | P.reduce_min_p:
      return 1.
    case P.reduce_window_max_p | P.reduce_window_min_p if max(eqn.params['base_dilation']) == 1:
      return overlaps(eqn) ** .5
    case P.jit_p if flags == [True, *[False] * (len(flags) - 1)] and len(eqn.outputs) == 1:
      if (declared := declared_constant(eqn.params)) is not None:
        return declared
    case p if (known := table.of(eqn).lipschitz) is not None and sum(flags) == 1 and (p is not P.clamp_p or flags[1]):
      return known
  raise unsupported(eqn, 'has no Lipschitz constant here. Write it with affine operations, maxima, minima, absolute '
                         'values, sorts, pooling by maxima, tanh, sigmoid, sin, cos, erf')


def overlaps(eqn: Equation) -> int:
  """The greatest number of windows that an element lies in."""
  window, strides, dilation = (eqn.params[k] for k in ('window_dimensions', 'window_strides', 'window_dilation'))
  return int(np.prod([-(-n // s) if d == 1 else n for n, s, d in zip(window, strides, dilation)]))


def pieces(program: Program, known: dict[int, Any], ordered: Sequence[Nonlinearity]) -> dict[int, list[AffineMap]]:
  """Id of a unit -> the affine maps into its operands, one from each unit that these depend on directly."""
  maker = {v.id: eqn for eqn in program.equations for v in eqn.outputs}
  owner = {v.id: i for i, unit in enumerate(ordered) for v in unit.outputs}
  found = dict[int, list[AffineMap]]()
  for target in ordered[1:]:
    passed, ends = set[int](), set[int]()
    stack = [v.id for v in target.operands]
    while stack:
      at = stack.pop()
      if at in owner:
        ends.add(owner[at])
      elif id(maker[at]) not in passed:
        passed.add(id(maker[at]))
        stack += [v.id for v in maker[at].inputs if v.id in program.perturbed]
    equations = tuple(eqn for eqn in program.equations if id(eqn) in passed)
    found[id(target)] = [AffineMap(program, known, ordered[j], target, equations) for j in sorted(ends)]
  return found
