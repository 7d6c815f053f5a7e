"""Reading a program backwards: who made a value, which number it is, which elements are summed together."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Program, Value

# Operations that move data (or do nothing to it), each with what it does to an array of indices.
_MOVES: dict[Any, Callable[[Equation, np.ndarray], np.ndarray]] = {
    P.broadcast_in_dim_p: lambda eqn, a: _broadcast(eqn, a),
    P.reshape_p: lambda eqn, a: a.reshape(eqn.outputs[0].shape),
    P.squeeze_p: lambda eqn, a: a.reshape(eqn.outputs[0].shape),
    P.transpose_p: lambda eqn, a: a.transpose(eqn.params['permutation']),
    P.copy_p: lambda eqn, a: a,
    P.stop_gradient_p: lambda eqn, a: a,
}

_INVERTIBLE = frozenset({P.broadcast_in_dim_p, P.reshape_p, P.squeeze_p, P.transpose_p})  # where the size stays


def _broadcast(eqn: Equation, a: np.ndarray) -> np.ndarray:
  shape = [1] * len(eqn.outputs[0].shape)
  for size, axis in zip(a.shape, eqn.params['broadcast_dimensions']):
    shape[axis] = size
  return np.broadcast_to(a.reshape(shape), eqn.outputs[0].shape)


def follow(moves: Sequence[Equation], a: np.ndarray) -> np.ndarray:
  """An array of indices, moved."""
  for eqn in moves:
    a = _MOVES[eqn.primitive](eqn, a)
  return a


@dataclasses.dataclass(frozen=True)
class Groups:
  """A partition of the elements of a value: those that a reduction over `axes` takes together.

  Attributes:
    enter: moves, all invertible, from the value to the operand of the reduction.
    axes: the axes that it reduces.
    shape: of the value.
  """
  enter: tuple[Equation, ...]
  axes: tuple[int, ...]
  shape: tuple[int, ...]

  def into(self, a: Any) -> Any:
    """An array of the shape of the value, in the shape that has the groups along `axes`."""
    for eqn in self.enter:
      a = jnp.transpose(a, eqn.params['permutation']) if eqn.primitive is P.transpose_p else jnp.reshape(
          a, eqn.outputs[0].shape)
    return a

  def back(self, a: Any) -> Any:
    """The inverse of `into`."""
    for eqn in reversed(self.enter):
      a = (jnp.transpose(a, tuple(map(int, np.argsort(eqn.params['permutation'])))) if eqn.primitive is P.transpose_p
           else jnp.reshape(a, eqn.inputs[0].shape))
    return a

  @property
  def count(self) -> int:
    """The number of elements of a group."""
    shape = self.enter[-1].outputs[0].shape if self.enter else self.shape
    return int(np.prod([shape[i] for i in self.axes], dtype=np.int64))

  def labels(self) -> tuple[np.ndarray, np.ndarray]:
    """A number for the group of each element of the value, and for each element of the reduced value."""
    index = np.arange(int(np.prod(self.shape, dtype=np.int64))).reshape(self.shape)
    entered = follow(self.enter, index)
    least = entered.min(self.axes, keepdims=True)
    labels = np.empty(index.size, index.dtype)
    labels[entered.ravel()] = np.broadcast_to(least, entered.shape).ravel()
    return labels.reshape(self.shape), least.reshape([n for i, n in enumerate(entered.shape) if i not in self.axes])

  def returned_by(self, moves: Sequence[Equation]) -> bool:
    """Whether `moves` take each reduced element back to the elements of its own group."""
    full, reduced = self.labels()
    spread = follow(moves, reduced)
    return spread.shape == full.shape and bool(np.array_equal(spread, full))

  def constant_on(self, moves: Sequence[Equation], shape: tuple[int, ...]) -> bool:
    """Whether `moves`, from a value of `shape`, give all elements of a group the same element."""
    index = follow(moves, np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape))
    if index.shape != self.shape:
      return False
    entered = follow(self.enter, index)
    return bool(np.array_equal(entered.min(self.axes), entered.max(self.axes)))

  def same_as(self, other: Groups) -> bool:
    """Whether two partitions of one value are equal."""
    return self.shape == other.shape and bool(np.array_equal(self.labels()[0], other.labels()[0]))


class Graph:
  """A program and the equation that made each of its values."""

  def __init__(self, program: Program):
    self.program = program
    self.maker: dict[int, Equation] = {v.id: e for e in program.equations for v in e.outputs}
    values = (*program.inputs, *(v for e in program.equations for v in e.outputs))
    self.next_id = 1 + max((*(v.id for v in values), *program.constants))
    self.made_perturbed: set[int] = set()

  def perturbed(self, v: Value) -> bool:
    """Whether a value depends on a set."""
    return v.id in self.program.perturbed or v.id in self.made_perturbed

  def new(self, like: Value, perturbed: bool = True) -> Value:
    """A new value of the shape and dtype of another."""
    v = dataclasses.replace(like, id=self.next_id)
    self.next_id += 1
    if perturbed:
      self.made_perturbed.add(v.id)
    return v

  def made_by(self, v: Value, *primitives: Any) -> Equation | None:
    """The equation of one of `primitives` that made a value; copies and additions of 0 are seen through."""
    eqn = self.maker.get(self.plain(v).id)
    return eqn if eqn is not None and eqn.key in primitives else None

  def plain(self, v: Value) -> Value:
    """The value that `v` is a copy of."""
    while (eqn := self.maker.get(v.id)) is not None:
      whole = eqn.inputs[:1] and eqn.inputs[0].shape == v.shape
      recast = eqn.key is P.convert_element_type_p and eqn.inputs[0].dtype == v.dtype  # of a weakly typed value
      if eqn.key is P.copy_p or recast or (
          whole and eqn.key in (P.add_p, P.sub_p) and self.number(eqn.inputs[1]) == 0):
        v = eqn.inputs[0]
      elif eqn.key is P.select_n_p and (which := self.number(eqn.inputs[0])) is not None:
        v = eqn.inputs[1 + int(which)]
      else:
        break
    return v

  def number(self, v: Value) -> float | None:
    """The number that all elements of a known value are, if that can be told from the program."""
    if self.perturbed(v):
      return None
    if v.id in self.program.constants:
      x = self.program.constants[v.id]
      return float(x) if isinstance(x, np.ndarray) and x.ndim == 0 else None
    eqn = self.maker.get(v.id)
    if eqn is None:
      return None
    if eqn.key in (P.broadcast_in_dim_p, P.reshape_p, P.copy_p):
      return self.number(eqn.inputs[0])
    if eqn.key is P.convert_element_type_p:
      x = self.number(eqn.inputs[0])
      return None if x is None else float(np.asarray(x).astype(eqn.params['new_dtype']))
    arithmetic: dict[Any, Callable] = {P.sub_p: np.subtract, P.add_p: np.add, P.mul_p: np.multiply, P.gt_p: np.greater}
    if eqn.key in arithmetic:
      a, b = map(self.number, eqn.inputs)
      if a is not None and b is not None:
        return float(arithmetic[eqn.key](*(np.asarray(x, i.dtype) for x, i in zip((a, b), eqn.inputs))))
    return None

  def origin(self, v: Value, *, invertible: bool = False) -> tuple[Value, tuple[Equation, ...]]:
    """The value that `v` is moved data of, and the moves. Invertible ones keep every element once."""
    moves: list[Equation] = []
    v = self.plain(v)
    while (eqn := self.maker.get(v.id)) is not None and eqn.key in _MOVES and self.perturbed(v):
      if invertible and (eqn.key not in _INVERTIBLE or eqn.inputs[0].size != v.size):
        break
      moves.append(eqn)
      v = self.plain(eqn.inputs[0])
    return v, tuple(reversed(moves))

  def scaled_origin(self, v: Value) -> tuple[Value, tuple[Equation, ...], float]:
    """Like `origin`, seeing through known positive factors too: v = factor * moved(origin)."""
    moves: tuple[Equation, ...] = ()
    factor = 1.
    while True:
      v, more = self.origin(v)
      moves = more + moves
      eqn = self.made_by(v, P.mul_p, P.div_p)
      if eqn is None or not self.perturbed(v):
        return v, moves, factor
      slots = [i for i, a in enumerate(eqn.inputs) if self.perturbed(a)]
      other = self.number(eqn.inputs[1 - slots[0]])
      if len(slots) != 1 or other is None or not other > 0 or (eqn.key is P.div_p and slots[0] == 1):
        return v, moves, factor
      factor *= other if eqn.key is P.mul_p else 1 / other
      v = eqn.inputs[slots[0]]

  def summed(self, v: Value) -> tuple[Value, tuple[Equation, ...], tuple[int, ...], float] | None:
    """(summand, moves that bring the sums to `v`, axes, factor) if v = factor * moved(sum of summand)."""
    source, moves, factor = self.scaled_origin(v)
    eqn = self.made_by(source, P.reduce_sum_p)
    return None if eqn is None else (eqn.inputs[0], moves, tuple(map(int, eqn.params['axes'])), factor)

  def way(self, x: Value, v: Value) -> tuple[Equation, ...] | None:
    """The invertible moves that lead from `x` to `v`, or None if `v` is not moved data of `x`."""
    moves: list[Equation] = []
    v = self.plain(v)
    while v.id != x.id:
      eqn = self.maker.get(v.id)
      if eqn is None or eqn.key not in _INVERTIBLE or eqn.inputs[0].size != v.size:
        return None
      moves.append(eqn)
      v = self.plain(eqn.inputs[0])
    return tuple(reversed(moves))

  def squared(self, v: Value) -> Value | None:
    """x, if v = x ** 2."""
    eqn = self.made_by(v, P.square_p, P.integer_pow_p, P.mul_p)
    if eqn is None or (eqn.key is P.integer_pow_p and eqn.params['y'] != 2):
      return None
    if eqn.key is P.mul_p and eqn.inputs[0].id != eqn.inputs[1].id:
      return None
    inner = self.made_by(eqn.inputs[0], P.abs_p)
    return self.plain(eqn.inputs[0] if inner is None else inner.inputs[0])


def equation(like: Equation, key: Any, inputs: Sequence[Value], output: Value) -> Equation:
  """An equation that computes `key(*inputs)`, at the place of another in the user's code."""
  return Equation(None, {}, tuple(inputs), (output,), like.source, like.context, key, fn=key)


def inverse(graph: Graph, v: Value) -> tuple[Value, tuple[Equation, ...]] | None:
  """(x, moves) if v = moved(1 / x)."""
  if not graph.perturbed(v):
    return None
  source, moves = graph.origin(v)
  made = graph.made_by(source, P.div_p, P.integer_pow_p)
  if made is None:
    return None
  if made.key is P.integer_pow_p:
    return (made.inputs[0], moves) if made.params['y'] == -1 else None
  return (made.inputs[1], moves) if graph.number(made.inputs[0]) == 1 else None
