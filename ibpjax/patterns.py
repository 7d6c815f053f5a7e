"""Patterns: where the equations of a program compute a composite, by what they do and not by name.

Each pattern looks at one equation and the equations before it, and returns what computes the same
outputs as one composite, or None. The equations it replaces disappear if nothing else needs them.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax import univariate
from ibpjax.composites import Blend
from ibpjax.graph import Graph, Groups, follow
from ibpjax.normalise import Normalise
from ibpjax.program import Equation, Program, Value, live, rebind
from ibpjax.softmax import Average, LogSoftmax, LogSumExp, Softmax

Pattern = Callable[[Graph, Equation], list[Equation] | None]
_Scale = tuple[Equation, Value, Sequence[Equation]]  # a product, its factor, and how that is moved afterwards


def _equation(like: Equation, key: Any, inputs: Sequence[Value], output: Value) -> Equation:
  """An equation that computes `key(*inputs)`, at the place of another in the user's code."""
  return Equation(None, {}, tuple(inputs), (output,), like.source, like.context, key, fn=key)


# ------------------------------------------------------------- softmax, log_softmax, logsumexp
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


def _is_greatest(graph: Graph, shift: Value | None) -> bool:
  """Whether a shift is the greatest element of something, or a number where that is infinite."""
  if shift is None or not graph.perturbed(shift):
    return False
  source = graph.origin(shift)[0]
  if graph.made_by(source, P.reduce_max_p) is not None:
    return True
  made = graph.made_by(source, P.max_p, P.select_n_p)
  return made is not None and any(_is_greatest(graph, v) for v in made.inputs)


def softmax(graph: Graph, eqn: Equation) -> list[Equation] | None:
  """exp(x - m) / sum(exp(x - m)), whatever m is, the same for all elements of a group; or times 1 / sum."""
  if eqn.key is P.div_p:
    ways: list[tuple[Value, Value, tuple[Equation, ...]]] = [(eqn.inputs[0], eqn.inputs[1], ())]
  elif eqn.key is P.mul_p:
    ways = [(a, *inverse) for a, b in (eqn.inputs, eqn.inputs[::-1]) if (inverse := _inverse(graph, b)) is not None]
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
    x, shift = _unshifted(graph, s, groups)
    key = Softmax(groups, numerator[1] is not None, _is_greatest(graph, shift))
    return [_equation(eqn, key, [x] if mask is None else [x, mask], eqn.outputs[0])]
  return None


def _inverse(graph: Graph, v: Value) -> tuple[Value, tuple[Equation, ...]] | None:
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
  return [_equation(eqn, LogSoftmax(groups), [_unshifted(graph, s, groups)[0]], eqn.outputs[0])]


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
    x, subtracted = _unshifted(graph, s, groups)
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
    return [_equation(eqn, LogSumExp(groups, leave, _is_greatest(graph, shift)), [x], eqn.outputs[0])]
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


# --------------------------------------------------------------------------------- normalisation
def _centred(graph: Graph, v: Value) -> tuple[Value, Groups] | None:
  """(x, groups) if v = x - mean(x) over each group."""
  sub = graph.made_by(v, P.sub_p)
  if sub is None or not all(map(graph.perturbed, sub.inputs)) or (found := graph.summed(sub.inputs[1])) is None:
    return None
  summand, moves, axes, factor = found
  x = graph.plain(sub.inputs[0])
  if (enter := graph.way(x, summand)) is None:
    return None
  groups = Groups(enter, axes, x.shape)
  return (x, groups) if _is_mean(factor, groups, x) and groups.returned_by(moves) else None


def _is_mean(factor: float, groups: Groups, x: Value) -> bool:
  """Whether a factor is 1 / count, up to its own rounding: a large mean would magnify more."""
  return abs(factor * groups.count - 1) <= 2 * float(jnp.finfo(x.dtype).eps)


@dataclasses.dataclass(frozen=True)
class _Squares:
  """factor * moved(sum over groups of z**2), with z = x or z = x - mean(x)."""
  groups: Groups
  factor: float
  moves: tuple[Equation, ...]
  centred: bool
  fast: bool = False  # computed as E[x**2] - E[x]**2

  def then(self, factor: float, moves: Sequence[Equation]) -> _Squares:
    """The same, scaled and moved on."""
    return dataclasses.replace(self, factor=self.factor * factor, moves=(*self.moves, *moves))


def _squares(graph: Graph, v: Value, x: Value) -> _Squares | None:
  """`v` as a mean square of the elements of `x`, in one of the ways that layers compute it."""
  source, last, scale = graph.scaled_origin(v)
  if (top := graph.made_by(source, P.max_p)) is not None and 0 in map(graph.number, top.inputs):
    inner = _squares(graph, next(i for i in top.inputs if graph.number(i) != 0), x)
    return None if inner is None else inner.then(scale, last)
  if (sub := graph.made_by(source, P.sub_p)) is not None:  # E[x**2] - E[x]**2
    squares, mean = _squares(graph, sub.inputs[0], x), graph.squared(sub.inputs[1])
    if squares is None or squares.centred or mean is None or (found := graph.summed(mean)) is None:
      return None
    summand, moves, axes, factor = found
    if (enter := graph.way(x, summand)) is None or not _is_mean(squares.factor, squares.groups, x):
      return None
    groups = Groups(enter, axes, x.shape)
    if not (groups.same_as(squares.groups) and _is_mean(factor, groups, x) and np.array_equal(
        follow(moves, groups.labels()[1]), follow(squares.moves, squares.groups.labels()[1]))):
      return None
    return dataclasses.replace(squares.then(scale, last), centred=True, fast=True)
  if (found := graph.summed(v)) is None:
    return None
  summand, moves, axes, factor = found
  base, after = graph.origin(summand, invertible=True)
  if (z := graph.squared(base)) is None:
    return None
  if (enter := graph.way(x, z)) is not None:
    return _Squares(Groups((*enter, *after), axes, x.shape), factor, moves, False)
  z, between = graph.origin(z, invertible=True)
  if (centred := _centred(graph, z)) is None or (enter := graph.way(x, centred[0])) is None:
    return None
  groups = Groups((*enter, *between, *after), axes, x.shape)
  of_mean = Groups((*enter, *centred[1].enter), centred[1].axes, x.shape)
  return _Squares(groups, factor, moves, True) if groups.same_as(of_mean) else None


def normalisation(graph: Graph, eqn: Equation) -> list[Equation] | None:
  """z * rsqrt(S + eps) [* scale], z / sqrt(S + eps), z / (sqrt(S) + eps), S a mean or sum of squares of z."""
  if eqn.key is P.mul_p:
    pairs = [(eqn.inputs[0], eqn.inputs[1]), (eqn.inputs[1], eqn.inputs[0])]
  elif eqn.key is P.div_p:
    pairs = [(eqn.inputs[0], eqn.inputs[1])]
  else:
    return None
  for z, root in pairs:
    if not (graph.perturbed(z) and graph.perturbed(root)):
      continue
    z = graph.plain(z)
    centred = _centred(graph, z)
    for x, of_mean in ([] if centred is None else [centred]) + [(z, None)]:
      scales: list[_Scale] = []
      found = _root(graph, root, x, eqn.key is P.div_p, scales)
      if found is None or found[0].centred is not (of_mean is not None):
        continue
      squares, inner, outer = found
      if not squares.groups.returned_by(squares.moves) or (of_mean is not None and not of_mean.same_as(squares.groups)):
        continue
      key = Normalise(squares.groups, squares.centred, squares.factor, inner, outer, squares.fast)
      steps = [graph.new(eqn.outputs[0]) for _ in scales] + [eqn.outputs[0]]
      made = [_equation(eqn, key, [x], steps[0])]
      for (scale_eqn, scale, moves), before, after in zip(scales, steps, steps[1:]):
        made += (taken := _taken_along(graph, scale, moves))
        scale = taken[-1].outputs[0] if taken else scale
        made.append(dataclasses.replace(scale_eqn, inputs=(before, scale), outputs=(after,)))
      return made
  return None


def _taken_along(graph: Graph, scale: Value, moves: Sequence[Equation]) -> list[Equation]:
  """Equations that move a scale as the root that it multiplies is moved."""
  made: list[Equation] = []

  def add(eqn: Equation) -> None:
    v = made[-1].outputs[0] if made else scale
    made.append(dataclasses.replace(eqn, inputs=(v,), outputs=(graph.new(eqn.outputs[0], graph.perturbed(scale)),)))
  if moves and moves[0].inputs[0].shape != scale.shape:  # products broadcast axes of size 1 by themselves
    root = moves[0].inputs[0]
    params = dict(shape=root.shape, broadcast_dimensions=tuple(range(len(root.shape))), sharding=None)
    add(dataclasses.replace(moves[0], primitive=lax.broadcast_in_dim_p, key=lax.broadcast_in_dim_p, params=params,
                            outputs=(root,)))
  for move in moves:
    add(move)
  return made


def _root(graph: Graph, v: Value, x: Value, divides: bool,
          scales: list[_Scale]) -> tuple[_Squares, float, float] | None:
  """What stands in a normaliser of x: squares, inner and outer eps. Further factors go to `scales`."""
  outer, inner = 0., 0.
  source, last = graph.origin(v)
  while not divides and (mul := graph.made_by(source, P.mul_p)) is not None:
    a, b = mul.inputs
    if not graph.perturbed(a) or (graph.perturbed(b) and graph.made_by(
        graph.origin(b)[0], P.rsqrt_p, P.pow_p, P.div_p) is not None):
      a, b = b, a
    if a.shape != source.shape:
      return None
    scales.append((mul, b, last if b.shape else ()))
    source, more = graph.origin(a)
    last = (*more, *last)
  if not divides and (inverse := _inverse(graph, source)) is not None:
    divides = True
    source, more = graph.origin(inverse[0])
    last = (*more, *inverse[1], *last)
  if divides and (shifted := _plus_number(graph, source)) is not None:
    outer = shifted[1]
    source, more = graph.origin(shifted[0])
    last = (*more, *last)
  made = graph.made_by(source, P.sqrt_p if divides else P.rsqrt_p, P.pow_p)
  if made is None or (made.key is P.pow_p and graph.number(made.inputs[1]) != (.5 if divides else -.5)):
    return None
  inside, moves = graph.origin(made.inputs[0])
  if (shifted := _plus_number(graph, inside)) is not None:
    inside, inner = shifted
  squares = _squares(graph, inside, x)
  return None if squares is None else (squares.then(1., (*moves, *last)), inner, outer)


def _plus_number(graph: Graph, v: Value) -> tuple[Value, float] | None:
  """(x, c) if v = x + c with a known number c > 0."""
  if (add := graph.made_by(v, P.add_p)) is None:
    return None
  for x, c in (add.inputs, add.inputs[::-1]):
    number = graph.number(c)
    if graph.perturbed(x) and number is not None and number > 0:
      return x, number
  return None


# ----------------------------------------------------------------------------- blends, averages
def blend(graph: Graph, eqn: Equation) -> list[Equation] | None:
  """(1 - z) * a + z * b, in any order of factors and terms, and a + z * (b - a)."""
  if eqn.key is not P.add_p:
    return None
  shape = eqn.outputs[0].shape
  for first, second in (eqn.inputs, eqn.inputs[::-1]):
    product = graph.made_by(second, P.mul_p)
    if product is None or not graph.perturbed(first):
      continue
    for z, b in (product.inputs, product.inputs[::-1]):
      if not graph.perturbed(z):
        continue
      z = graph.plain(z)
      if ((step := graph.made_by(b, P.sub_p)) is not None and graph.plain(step.inputs[1]).id == graph.plain(first).id
          and step.inputs[0].shape in (shape, ()) and z.id not in (step.inputs[0].id, graph.plain(first).id)):
        return [_equation(eqn, Blend(), [z, first, step.inputs[0]], eqn.outputs[0])]
      if (other := graph.made_by(first, P.mul_p)) is None:
        continue
      for rest, a in (other.inputs, other.inputs[::-1]):
        minus = graph.made_by(rest, P.sub_p)
        if (minus is not None and graph.number(minus.inputs[0]) == 1 and graph.plain(minus.inputs[1]).id == z.id
            and a.shape in (shape, ()) and b.shape in (shape, ()) and (graph.perturbed(a) or graph.perturbed(b))
            and z.id not in (graph.plain(a).id, graph.plain(b).id)):
          return [_equation(eqn, Blend(), [z, a, b], eqn.outputs[0])]
  return None


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
    if made is None or not isinstance(made.key, Softmax) or len(made.inputs) > 1 or not made.key.shifted:
      continue  # weights that may not sum to 1: masked ones, or overflowing ones
    axes = tuple(map(int, eqn.params['dimension_numbers'][0][slot]))
    if axes and Groups(moves, axes, source.shape).same_as(made.key.groups):
      units = [float(jnp.finfo(d).eps) / 2 for d in dtypes]
      narrowed = max(units) if max(units) > units[-1] else 0.
      made = _equation(eqn, Average(eqn, slot, max(units), narrowed), eqn.inputs, eqn.outputs[0])
      return [dataclasses.replace(made, params=eqn.params)]  # of which the precision says how products are rounded
  return None


_PATTERNS: tuple[Pattern, ...] = (softmax, log_softmax, logsumexp, normalisation, blend, average)


def grouped(program: Program) -> Program:
  """A program that computes the same, its composites and functions of one value as single equations."""
  graph, equations = Graph(program), list[Equation]()
  for eqn in program.equations:
    if eqn.bodies:
      eqn = dataclasses.replace(eqn, bodies=tuple(map(grouped, eqn.bodies)))
    found = None
    if len(eqn.outputs) == 1 and graph.perturbed(eqn.outputs[0]):
      found = next((made for pattern in _PATTERNS if (made := pattern(graph, eqn)) is not None), None)
    for step in found or [eqn]:
      equations.append(step)
      graph.maker |= {v.id: step for v in step.outputs}
  perturbed = program.perturbed | graph.made_perturbed
  return univariate.grouped(live(dataclasses.replace(program, equations=tuple(equations), perturbed=perturbed)))
