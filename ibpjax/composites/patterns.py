"""Patterns: where the equations of a program compute a composite, by what they do and not by name.

Each pattern looks at one equation and the equations before it, and returns what computes the same
outputs as one composite, or None. The equations it replaces disappear if nothing else needs them.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.composites import univariate
from ibpjax.composites.composites import Blend
from ibpjax.composites.normalization import Normalise, Scale
from ibpjax.composites.softmax_patterns import average, log_softmax, logsumexp, softmax
from ibpjax.core.dataflow import Graph, Groups, equation, follow, inverse
from ibpjax.core.program import Equation, Program, Value, live

Pattern = Callable[[Graph, Equation], list[Equation] | None]
_Scale = tuple[Equation, Value, Sequence[Equation]]  # a product, its factor, and how that is moved afterwards


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
      if any(graph.perturbed(scale) for _, scale, _ in scales):  # its product with the root may overflow
        continue
      key = Normalise(squares.groups, squares.centred, squares.factor, inner, outer, squares.fast)
      steps = [graph.new(eqn.outputs[0]) for _ in scales] + [eqn.outputs[0]]
      made = [equation(eqn, key, [x], steps[0])]
      for (scale_eqn, scale, moves), before, after in zip(scales, steps, steps[1:]):
        made += (taken := _taken_along(graph, scale, moves))
        scale = taken[-1].outputs[0] if taken else scale
        made.append(equation(scale_eqn, Scale(inner ** .5 + outer), [scale], graph.new(scale, False)))
        scale = made[-1].outputs[0]
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
  if not divides and (inverted := inverse(graph, source)) is not None:
    divides = True
    source, more = graph.origin(inverted[0])
    last = (*more, *inverted[1], *last)
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


# --------------------------------------------------------------------------------------- blends
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
        return [equation(eqn, Blend(), [z, first, step.inputs[0]], eqn.outputs[0])]
      if (other := graph.made_by(first, P.mul_p)) is None:
        continue
      for rest, a in (other.inputs, other.inputs[::-1]):
        minus = graph.made_by(rest, P.sub_p)
        if (minus is not None and graph.number(minus.inputs[0]) == 1 and graph.plain(minus.inputs[1]).id == z.id
            and a.shape in (shape, ()) and b.shape in (shape, ()) and (graph.perturbed(a) or graph.perturbed(b))
            and z.id not in (graph.plain(a).id, graph.plain(b).id)):
          return [equation(eqn, Blend(), [z, a, b], eqn.outputs[0])]
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
