"""Functions of one value: elementwise code in which a value occurs twice, bounded as a whole.

x * sigmoid(x) is a function of one variable, though its equations multiply two perturbed values.
Where an equation joins values that all come, element by element, from one value, the equations
between become one: a row of the table if they compute a function that it has, else a `Univariate`.
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.dataflow import Graph
from ibpjax.core.program import Equation, Program, Value, evaluate, live, trace
from ibpjax.core.row import Elementwise, along
from ibpjax.core.sets import Interval, unbounded
from ibpjax.primitives import table
from ibpjax.primitives.elementwise import COMPOSED
from ibpjax.primitives.registration import elementwise_call_p

# What may stand between a value and a function of it, each element for itself. A function that
# jumps has no derivative to rely on; one that branches has it on pieces where each test is certain.
_TESTS = frozenset({P.lt_p, P.le_p, P.gt_p, P.ge_p, P.eq_p, P.ne_p})
_JUMPING = frozenset({P.sign_p, P.floor_p, P.ceil_p, P.round_p})
_SMOOTH = frozenset({P.add_p, P.add_jaxvals_p, P.sub_p, P.neg_p, P.mul_p, P.div_p, P.copy_p, P.select_n_p, P.and_p,
                     P.or_p, P.not_p})
_ELEMENTWISE = _JUMPING | _TESTS | _SMOOTH | frozenset(
    key for key, row in table.ROWS.items() if row.elementwise is not None and key not in COMPOSED)
_PIECES = 16
Bounds = Callable[[Program, Sequence[Any]], list[Any]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Univariate:
  """A function of one value (and known ones), each element for itself: what the table has no row for.

  Its range over a box is enclosed on pieces of the box, by interval arithmetic and, where the
  function is continuous by construction, by its slope too: from both ends of a piece with slopes
  in [d, e], f stays above max(f(a) + d (x - a), f(b) - e (b - x)), and below likewise. The error
  falls with the square of the width of a piece (Neumaier, Interval Methods for Systems of
  Equations, 1990, section 2.4).

  Attributes:
    body: the program, its first input the value.
    slope: the program of its derivative, or None.
    tests: the program of the comparisons that choose its branches.
  """
  body: Program
  slope: Program | None
  tests: Program

  def __repr__(self) -> str:
    return 'function of one value'

  def __call__(self, x: Any, *known: Any) -> Any:
    return evaluate(self.body, [x, *known])[0]

  def image(self, operands: Sequence[Any], bounds: Bounds, u: float) -> Interval:
    """Bounds on a box; `bounds` computes those of a program by interval arithmetic."""
    return self.tilted(operands, bounds, u)(None)

  def tilted(self, operands: Sequence[Any], bounds: Bounds, u: float) -> Callable[[Any], Interval]:
    """k -> bounds of f(x) - k x on a box."""
    x, *known = operands

    def run(program, lower, upper):
      return jax.vmap(lambda a, b: bounds(program, [Interval(a, b), *known]))(lower, upper)

    whole = bounds(self.body, operands)[0]
    bounded = jnp.isfinite(x.upper - x.lower)
    lower, upper = jnp.where(bounded, x.lower, 0), jnp.where(bounded, x.upper, 0)
    steps = jnp.linspace(0, 1, _PIECES + 1, dtype=x.dtype)
    grid = jax.vmap(lambda t: jnp.clip(lower + (upper - lower) * t, lower, upper))(steps).at[-1].set(upper)
    pieces, = run(self.body, grid[:-1], grid[1:])
    if self.slope is not None:
      off = u and 2 * u * jnp.abs(grid)  # x may be a product that some of its uses round and others do not
      at, = run(self.body, grid - off, grid + off)
      slope, = run(self.slope, grid[:-1], grid[1:])
      for test in run(self.tests, grid[:-1], grid[1:]):
        certain = test.lower == test.upper
        slope = unbounded(slope, ~certain)

    def image(k):
      own = None if k is None else k[None]
      refined = _less(pieces, own, grid[:-1], grid[1:])
      if self.slope is not None:
        values = _less(at, own, grid, grid)
        ends = [Interval(values.lower[i], values.upper[i]) for i in (slice(None, -1), slice(1, None))]
        bent = slope if own is None else Interval(slope.lower - own, slope.upper - own)
        by_slope = _between(ends[0], ends[1], grid[1:] - grid[:-1], bent, u)
        # What is computed may overflow where the exact function, of which slopes are, does not.
        exact = jnp.isfinite(pieces.lower) & jnp.isfinite(pieces.upper) if u else True
        refined = Interval(jnp.where(exact, jnp.fmax(refined.lower, by_slope.lower), refined.lower),
                           jnp.where(exact, jnp.fmin(refined.upper, by_slope.upper), refined.upper))
      low, high = refined.lower.min(0), refined.upper.max(0)
      plain = _less(whole, k, x.lower, x.upper)
      return Interval(jnp.where(bounded, jnp.fmax(low, plain.lower), plain.lower),
                      jnp.where(bounded, jnp.fmin(high, plain.upper), plain.upper))
    return image


def _less(y: Interval, k: Any, lower: Any, upper: Any) -> Interval:
  """Bounds of y - k x for x in [lower, upper]."""
  if k is None:
    return y
  ends = along(k, lower), along(k, upper)
  return Interval(y.lower - jnp.maximum(*ends), y.upper - jnp.minimum(*ends))


def _between(left: Interval, right: Interval, width: Any, slope: Interval, u: float) -> Interval:
  """The range over a piece, from the values at its ends and an enclosure of the slope."""
  tiny = 4 * float(jnp.finfo(width.dtype).tiny)

  def least(a, b, d, e):
    usable = jnp.isfinite(d) & jnp.isfinite(e)
    d, e = jnp.where(usable, d, -1), jnp.where(usable, e, 1)
    bends = (d < 0) & (e > 0)
    gap = jnp.where(bends, e - d, 1)
    right = -d / gap
    inside = a * (e / gap) + b * right - width * right * e
    inside -= 8 * u * (jnp.abs(a) + jnp.abs(b) + width * e) + (u and tiny)
    return jnp.where(usable, jnp.where(bends, jnp.minimum(inside, jnp.minimum(a, b)), jnp.minimum(a, b)), -jnp.inf)
  return Interval(least(left.lower, right.lower, slope.lower, slope.upper),
                  -least(-left.upper, -right.upper, -slope.upper, -slope.lower))


# ------------------------------------------------------------------------- finding the functions
def grouped(program: Program) -> Program:
  """A program that computes the same, functions of one value in single equations."""
  graph, equations = Graph(program), list[Equation]()
  dominators: dict[int, tuple[Value, ...]] = {}  # of each value: those it is a function of, element by element
  for eqn in program.equations:
    made = eqn
    perturbed = list({v.id: v for v in eqn.inputs if graph.perturbed(v)}.values())
    if perturbed and len(eqn.outputs) == 1:
      out = eqn.outputs[0]
      chain: tuple[Value, ...] = ()
      if eqn.key in _ELEMENTWISE and all(v.shape == out.shape for v in perturbed):
        chains = [dominators.get(v.id, (v,)) for v in perturbed]
        chain = _common(chains)
        if len(perturbed) > 1 and chain and jnp.issubdtype(chain[-1].dtype, jnp.floating):
          made = _function(graph, eqn, chain[-1]) or eqn
      dominators[out.id] = (*chain, out)
    equations.append(made)
  return live(dataclasses.replace(program, equations=tuple(equations)))


def _common(chains: Sequence[tuple[Value, ...]]) -> tuple[Value, ...]:
  """The common beginning of several chains."""
  n = 0
  while all(n < len(c) and c[n].id == chains[0][n].id for c in chains):
    n += 1
  return chains[0][:n]


def _function(graph: Graph, last: Equation, x: Value) -> Equation | None:
  """The equations from `x` to `last` as one, or None if they are bounded as well one by one."""
  between = _between_values(graph, last, x)
  flags = {id(e): [graph.perturbed(v) for v in e.inputs] for e in between}
  if all(table.is_affine(e, flags[id(e)]) for e in between):
    return None
  out = last.outputs[0]
  for fn in COMPOSED:
    known = _match(fn, str(x.dtype), graph, out, x)
    if known is not None:
      return dataclasses.replace(last, primitive=None, params={}, inputs=(x, *known), key=fn, fn=fn)
  if _monotone(graph, between, x):
    return None
  own = {v.id for e in between for v in e.outputs} | {x.id}
  known = list({v.id: v for e in between for v in e.inputs if v.id not in own}.values())
  body = Program(tuple(between), (x, *known), (out,), {}, frozenset(own))
  tests = [e.outputs[0] for e in between if e.key in _TESTS]
  key = Univariate(body, _slope(body), live(dataclasses.replace(body, outputs=tuple(tests))))
  return dataclasses.replace(last, primitive=None, params={}, inputs=(x, *known), key=key, fn=key)


def _between_values(graph: Graph, last: Equation, x: Value) -> list[Equation]:
  """The equations that lead from `x` to the output of `last`, in order."""
  found: dict[int, Equation] = {}
  stack = [last]
  while stack:
    eqn = stack.pop()
    if id(eqn) not in found:
      found[id(eqn)] = eqn
      stack += [graph.maker[v.id] for v in eqn.inputs if v.id != x.id and graph.perturbed(v)]
  return [e for e in graph.program.equations if id(e) in found]


def _slope(body: Program) -> Program | None:
  """The program of the derivative in the first input, if the body is continuous by construction between branches."""
  if any(e.key in _JUMPING or has_own_derivative(e) for e in body.equations):
    return None
  x, *known = [jnp.zeros(v.shape, v.dtype) for v in body.inputs]

  def derivative(x, *known):
    return jax.jvp(lambda v: evaluate(body, [v, *known])[0], (x,), (jnp.ones_like(x),))[1]
  program = trace(derivative, (Interval(x, x), *known), {})[0]
  if program.outputs[0].id not in program.perturbed:  # a constant slope would have been affine
    return None
  simple = all(e.key in _ELEMENTWISE | {P.convert_element_type_p, P.stop_gradient_p} or not any(
      v.id in program.perturbed for v in e.inputs) for e in program.equations)
  return program if simple else None


def has_own_derivative(eqn: Equation) -> bool:
  """Whether a registered function may have another derivative than that of its values: a custom or a stopped one."""
  if eqn.key is not elementwise_call_p:
    return False
  code = str(jax.make_jaxpr(eqn.params['fn'])(*(jnp.zeros(v.shape, v.dtype) for v in eqn.inputs)))
  return any(name in code for name in ('custom_jvp', 'custom_vjp', 'stop_gradient'))


_TRENDS = {P.add_p: (1, 1), P.sub_p: (1, -1), P.neg_p: (-1,), P.max_p: (1, 1), P.min_p: (1, 1), P.copy_p: (1,)}


def _monotone(graph: Graph, equations: Sequence[Equation], x: Value) -> bool:
  """Whether all ways from `x` to the last equation rise, or all fall: then the ends of the box are enough."""
  trend: dict[int, int] = {x.id: 1}
  for eqn in equations:
    own = [(i, trend[v.id]) for i, v in enumerate(eqn.inputs) if v.id in trend]
    row = table.of(eqn).elementwise
    signs: set[int]
    if eqn.key in _TRENDS:
      signs = {_TRENDS[eqn.key][i] * t for i, t in own}
    elif eqn.key in (P.mul_p, P.div_p) and len(own) == 1 and own[0][0] <= (eqn.key is P.mul_p):
      factor = graph.number(eqn.inputs[1 - own[0][0]])
      signs = {0} if factor is None else {int(np.sign(factor)) * own[0][1]}
    else:
      signs = {row.trend * t for _, t in own} if isinstance(row, Elementwise) else {0}
    if len(signs) != 1 or 0 in signs:
      return False
    trend[eqn.outputs[0].id] = signs.pop()
  return True


# ------------------------------------------------------------------- recognising rows of the table
@functools.cache
def _template(fn: Callable, dtype: str) -> Graph:
  """The program of a function of the table on scalars; its structure, not its name, is what is compared."""
  known = [np.ones((), dtype)] * COMPOSED[fn]
  x = np.zeros((), dtype)
  with jax.ensure_compile_time_eval():
    return Graph(trace(fn, (Interval(x, x), *known), {})[0])


_COMMUTATIVE = frozenset({P.add_p, P.mul_p, P.max_p, P.min_p})
_LAYOUT = frozenset({'sharding', 'out_sharding', 'accuracy', 'out_dtype', 'weak_type'})


def _match(fn: Callable, dtype: str, graph: Graph, out: Value, x: Value) -> list[Value] | None:
  """The known operands with which `fn` computes `out` from `x`, or None if it does not."""
  template = _template(fn, dtype)
  first, *wild = template.program.inputs
  bound: dict[int, Value] = {}

  def known(t: Value, v: Value) -> bool:
    if graph.perturbed(v):
      return False
    number = template.number(t)
    if number is not None:
      return graph.number(v) == number
    t, v = _unbroadcast(template, t), _unbroadcast(graph, v)
    if t.id in {w.id for w in wild}:
      return v.shape in ((), x.shape) and bound.setdefault(t.id, v).id == v.id
    a, b = template.maker.get(t.id), graph.maker.get(v.id)
    return a is not None and b is not None and same(a, b)

  def same(a: Equation, b: Equation) -> bool:
    if a.key is not b.key or len(a.inputs) != len(b.inputs) or any(
        a.params[k] != b.params[k] for k in a.params.keys() & b.params.keys() - _LAYOUT):
      return False
    orders = [b.inputs, b.inputs[::-1]] if a.key in _COMMUTATIVE else [b.inputs]
    before = dict(bound)
    for inputs in orders:
      if all(value(t, v) for t, v in zip(a.inputs, inputs)):
        return True
      bound.clear()
      bound.update(before)
    return False

  def value(t: Value, v: Value) -> bool:
    if not template.perturbed(t):
      return known(t, v)
    t = template.plain(t)
    a, b = template.maker.get(t.id), graph.maker.get(v.id)
    if v.id != x.id and a is not None and b is not None and a.key is b.key and same(a, b):
      return True  # before anything is seen through: an addition of 0 may be one that the template makes
    v = graph.plain(v)
    if t.id == first.id or v.id == x.id:
      return t.id == first.id and v.id == x.id
    b = graph.maker.get(v.id)
    return graph.perturbed(v) and a is not None and b is not None and same(a, b)

  return [bound[w.id] for w in wild] if value(template.program.outputs[0], out) else None


def _unbroadcast(graph: Graph, v: Value) -> Value:
  """The scalar that a known value repeats, or the value itself."""
  while (eqn := graph.maker.get(v.id)) is not None and (
      (eqn.key is P.convert_element_type_p and eqn.inputs[0].dtype == v.dtype)
      or (eqn.key is lax.broadcast_in_dim_p and eqn.inputs[0].shape == ())):
    v = eqn.inputs[0]
  return v
