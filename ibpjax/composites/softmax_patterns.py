"""Patterns of exponentials: where a program computes softmax and its kin, or an average by softmax weights."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.composites.softmax import Average, Exponents, LogSoftmax, LogSumExp, Softmax
from ibpjax.core.dataflow import Graph, Groups, equation, follow, inverse
from ibpjax.core.program import Equation, Value, rebind
from ibpjax.core.subnormal import least_kept


def _exponents(graph: Graph, v: Value) -> tuple[Value, Value | None] | None:
  """(s, mask) if v = exp(s), with 0 where a known mask is false."""
  mask = None
  select = graph.made_by(v, P.select_n_p)
  if select is not None and len(select.inputs) == 3 and not graph.perturbed(select.inputs[0]):
    if graph.number(select.inputs[1]) != 0 or select.inputs[0].shape != v.shape:
      return None
    mask, v = select.inputs[0], select.inputs[2]
  exp = graph.made_by(v, P.exp_p)
  return None if exp is None else (graph.plain(exp.inputs[0]), mask)


def _sum_of_exponentials(graph: Graph, v: Value) -> tuple[Value, Value | None, Groups, tuple[Equation, ...]] | None:
  """(s, mask, groups, moves) if v = moved(sum over groups of exp(s))."""
  if (found := graph.summed(v)) is None or found[3] != 1:
    return None
  summand, moves, axes, _ = found
  base, enter = graph.origin(summand, invertible=True)
  exponents = _exponents(graph, base)
  return None if exponents is None else (*exponents, Groups(enter, axes, base.shape), moves)


def _unshifted(graph: Graph, s: Value, groups: Groups) -> tuple[Value, Value | None]:
  """(x, shift) where s = x - shift, the shift being one number for each group; else (s, None)."""
  sub = graph.made_by(s, P.sub_p)
  if sub is not None and graph.perturbed(sub.inputs[0]) and sub.inputs[1].shape == groups.shape:
    source, moves = graph.origin(sub.inputs[1])
    if groups.constant_on(moves, source.shape):
      return sub.inputs[0], sub.inputs[1]
  return s, None


def _exponents_at(graph: Graph, s: Value, groups: Groups, mask: Value | None = None,
                  masked: bool = False) -> tuple[Value, Value | None, Exponents, list[Value]]:
  """(x, shift, where the exponents are, operands that a composite has at its end for them), where s = x - shift.

  Args:
    graph: the program.
    s: what exp is taken of.
    groups: its elements that are summed together.
    mask: which of them are summed; None for all.
    masked: whether the others do not matter at all.
  """
  x, shift = _unshifted(graph, s, groups)
  if shift is None:
    return x, None, Exponents.FIRST, []
  if _is_greatest(graph, shift, x, groups, mask, masked):
    return x, shift, Exponents.SAFE, []
  return x, shift, Exponents.LAST, [s]


def _is_greatest(graph: Graph, shift: Value, x: Value, groups: Groups, mask: Value | None, masked: bool) -> bool:
  """Whether a shift is the greatest of just those elements of each group of `x` that are summed."""
  moves: tuple[Equation, ...] = ()
  v = shift
  while True:
    v, more = graph.origin(v)
    moves = (*more, *moves)
    if (made := graph.made_by(v, P.max_p)) is not None and -np.inf in map(graph.number, made.inputs):
      v = next(i for i in made.inputs if graph.number(i) != -np.inf)
    elif (made := graph.made_by(v, P.select_n_p)) is not None and (inner := _if_finite(graph, made)) is not None:
      v = inner
    else:
      break
  made = graph.made_by(v, P.reduce_max_p)
  if made is None:
    return False
  taken, enter = graph.origin(made.inputs[0], invertible=True)
  of = Groups(enter, tuple(map(int, made.params['axes'])), taken.shape)
  if mask is None:
    source, own = graph.origin(x, invertible=True)
    return taken.id == source.id and _reduced(of, moves, groups, own)
  (base, kept), (own_base, cut) = _parts(graph, taken), _parts(graph, x)
  summed = base == own_base and kept == graph.plain(mask).id and (masked or cut == kept)
  return summed and _reduced(of, moves, groups, ())


def _reduced(of: Groups, moves: Sequence[Equation], groups: Groups, own: tuple[Equation, ...]) -> bool:
  """Whether `moves` take a reduction over `of` to the elements of its groups, which are `groups` behind moves `own`."""
  if not Groups((*own, *groups.enter), groups.axes, of.shape).same_as(of):
    return False
  full, reduced = of.labels()
  spread, moved = follow(moves, reduced), follow(own, full)
  return spread.shape == moved.shape and bool(np.array_equal(spread, moved))


def _if_finite(graph: Graph, select: Equation) -> Value | None:
  """x, if a selection is x where that is finite and 0 elsewhere."""
  if len(select.inputs) != 3 or graph.number(select.inputs[1]) != 0:
    return None
  which, x = graph.made_by(select.inputs[0], P.is_finite_p), graph.plain(select.inputs[2])
  return x if which is not None and graph.plain(which.inputs[0]).id == x.id else None


def _parts(graph: Graph, v: Value) -> tuple[int, int | None]:
  """(x, mask) by their ids, if `v` is x where a known mask is true and -inf elsewhere; else (v, None)."""
  v = graph.plain(v)
  select = graph.made_by(v, P.select_n_p)
  if select is None or len(select.inputs) != 3 or graph.number(select.inputs[1]) != -np.inf or graph.perturbed(
      select.inputs[0]):
    return v.id, None
  return graph.plain(select.inputs[2]).id, graph.plain(select.inputs[0]).id


def softmax(graph: Graph, eqn: Equation) -> list[Equation] | None:
  """exp(x - m) / sum(exp(x - m)), whatever m is, the same for all elements of a group; or times 1 / sum."""
  if eqn.key is P.div_p:
    ways: list[tuple[Value, Value, tuple[Equation, ...]]] = [(eqn.inputs[0], eqn.inputs[1], ())]
  elif eqn.key is P.mul_p:
    ways = [(a, *inverted) for a, b in (eqn.inputs, eqn.inputs[::-1]) if (inverted := inverse(graph, b)) is not None]
  else:
    return None
  for above, below, last in ways:
    if (found := _sum_of_exponentials(graph, below)) is None or (numerator := _exponents(graph, above)) is None:
      continue
    s, mask, groups, moves = found
    if numerator[0].id != s.id or not groups.returned_by((*moves, *last)):
      continue
    if numerator[1] is not None and (mask is None or numerator[1].id != mask.id):
      continue
    masked = numerator[1] is not None
    x, _, exponents, more = _exponents_at(graph, s, groups, mask, masked)
    key = Softmax(groups, masked, exponents)
    return [equation(eqn, key, [x, *([] if mask is None else [mask]), *more], eqn.outputs[0])]
  return None


def log_softmax(graph: Graph, eqn: Equation) -> list[Equation] | None:
  """s - log(sum(exp(s))), with s = x - m."""
  if eqn.key is not P.sub_p:
    return None
  source, last = graph.origin(eqn.inputs[1])
  if (log := graph.made_by(source, P.log_p)) is None or not graph.perturbed(eqn.inputs[0]):
    return None
  found = _sum_of_exponentials(graph, log.inputs[0])
  if found is None or found[1] is not None or found[0].id != graph.plain(eqn.inputs[0]).id:
    return None
  s, _, groups, moves = found
  if not groups.returned_by((*moves, *last)):
    return None
  x, _, exponents, more = _exponents_at(graph, s, groups)
  return [equation(eqn, LogSoftmax(groups, exponents), [x, *more], eqn.outputs[0])]


def logsumexp(graph: Graph, eqn: Equation) -> list[Equation] | None:
  """log(sum(exp(x - m))) + m, or log(sum(exp(x)))."""
  if eqn.key not in (P.add_p, P.log_p):
    return None
  for log_value, shift in ([(eqn.inputs[0], eqn.inputs[1]), (eqn.inputs[1], eqn.inputs[0])] if eqn.key is P.add_p
                           else [(eqn.outputs[0], None)]):
    source, last = graph.origin(log_value)
    log = graph.made_by(source, P.log_p)
    if log is None:
      continue
    positive = graph.made_by(log.inputs[0], P.abs_p)  # a sum of exponentials is its own absolute value
    found = _sum_of_exponentials(graph, log.inputs[0] if positive is None else positive.inputs[0])
    if found is None or found[1] is not None:
      continue
    s, _, groups, moves = found
    x, subtracted, exponents, more = _exponents_at(graph, s, groups)
    moves = (*moves, *last)
    if shift is None:
      if subtracted is not None:
        continue
    elif subtracted is None or not _same_shift(graph, groups, subtracted, shift, moves):
      continue

    def leave(a, moves=moves):
      for move in moves:
        a, = rebind(move, a)
      return a
    return [equation(eqn, LogSumExp(groups, leave, exponents), [x, *more], eqn.outputs[0])]
  return None


def _same_shift(graph: Graph, groups: Groups, subtracted: Value, added: Value, moves: Sequence[Equation]) -> bool:
  """Whether each sum is shifted back by what was subtracted from the elements of its own group."""
  (a, a_moves), (b, b_moves) = graph.origin(subtracted), graph.origin(added)
  if a.id != b.id:
    return False
  index = np.arange(a.size).reshape(a.shape)
  element_label, sum_label = groups.labels()
  shift_of_label = np.empty(element_label.size, index.dtype)
  shift_of_label[element_label] = follow(a_moves, index)
  return bool(np.array_equal(shift_of_label[follow(moves, sum_label)], follow(b_moves, index)))


def average(graph: Graph, eqn: Equation) -> list[Equation] | None:
  """A dot product with softmax weights, over the elements that they weight. They may be cast on the way."""
  if eqn.key is not P.dot_general_p:
    return None
  for slot in (0, 1):
    if not graph.perturbed(eqn.inputs[slot]):
      continue
    source, moves = graph.origin(eqn.inputs[slot], invertible=True)
    dtypes = [source.dtype]
    while (cast := graph.made_by(source, P.convert_element_type_p)) is not None:
      source, more = graph.origin(cast.inputs[0], invertible=True)
      moves = (*more, *moves)
      dtypes.append(source.dtype)
    made = graph.maker.get(source.id)
    if made is None or not isinstance(made.key, Softmax) or len(made.inputs) > 1 or (
        made.key.exponents is not Exponents.SAFE):
      continue  # weights that may not sum to 1: masked ones, or overflowing ones
    axes = tuple(map(int, eqn.params['dimension_numbers'][0][slot]))
    if axes and Groups(moves, axes, source.shape).same_as(made.key.groups):
      units = [float(jnp.finfo(d).eps) / 2 for d in dtypes]
      narrowed = max(units) if max(units) > units[-1] else 0.
      spacing = max(map(least_kept, dtypes))
      made = equation(eqn, Average(eqn, slot, max(units), narrowed, spacing), eqn.inputs, eqn.outputs[0])
      return [dataclasses.replace(made, params=eqn.params)]  # of which the precision says how products are rounded
  return None
