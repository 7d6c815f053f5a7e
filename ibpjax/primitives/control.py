"""Scans, whiles and conds: one equation whose parts are programs of their own."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Program, unsupported
from ibpjax.core.sets import Interval, as_interval, hull, is_set

Run = Callable[[Program, Sequence[Any]], list[Any]]


def image(eqn: Equation, operands: Sequence[Any], run: Run) -> list[Any]:
  """Bounds of the outputs; `run` bounds a program on boxes."""
  return {P.scan_p: scan, P.while_p: repeat, P.cond_p: branch}[eqn.primitive](eqn, operands, run)


def lift(xs: Sequence[Any], values: Sequence[Any], program: Program) -> list[Any]:
  """Known operands as degenerate boxes where the program takes them for perturbed."""
  return [as_interval(x) if v.id in program.perturbed else x for x, v in zip(xs, values, strict=True)]


def scan(eqn: Equation, operands: Sequence[Any], run: Run) -> list[Any]:
  """A scan whose step bounds the body: one compiled loop, whatever its length."""
  return _scanned(eqn, operands, run)[0]


def carries(eqn: Equation, operands: Sequence[Any], run: Run) -> list[Any]:
  """The bounds of the carry of a scan before each of its steps, stacked."""
  return _scanned(eqn, operands, run)[1]


def _scanned(eqn: Equation, operands: Sequence[Any], run: Run) -> tuple[list[Any], list[Any]]:
  body, = eqn.bodies
  first, last = eqn.loop.first, eqn.loop.last
  args = lift(operands, body.inputs, body)

  def advance(carry, xs):
    out = run(body, [*args[:first], *carry, *xs])
    return typed(lift(out[:last - first], body.inputs[first:last], body), carry), (out[last - first:], carry)

  carry, (ys, before) = lax.scan(advance, args[first:last], args[last:], length=eqn.loop.length,
                                 reverse=eqn.loop.reverse, unroll=eqn.loop.unroll)
  return [*carry, *ys], before


def repeat(eqn: Equation, operands: Sequence[Any], run: Run) -> list[Any]:
  """A while whose test depends on known values alone: as many steps as the function itself makes."""
  test, body = eqn.bodies
  skip, first = eqn.loop.skip, eqn.loop.first
  if test.outputs[0].id in test.perturbed:
    raise unsupported(eqn, 'stops when a perturbed value says so: it has no greatest number of steps. Use a loop with '
                           'a known number of steps (lax.scan, lax.fori_loop) and jnp.where inside')
  known, args = list(operands[:skip]), lift(operands[skip:], body.inputs, body)

  def tested(carry):
    return run(test, [*known, *carry])[0]

  def step(carry):
    new = typed(lift(run(body, [*args[:first], *carry]), body.inputs[first:], body), carry)
    going = tested(carry)
    if going.ndim == 0:
      return new
    # Many loops in one, by vmap: each stops by itself.
    return jax.tree.map(lambda a, b: jnp.where(jnp.reshape(going, going.shape + (1,) * (a.ndim - going.ndim)), a, b),
                        new, list(carry))

  def proceed(carry):
    return jnp.any(tested(carry))

  return lax.while_loop(proceed, step, args[first:])


def typed(new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
  """A carry whose weak types are those it started with."""
  return jax.tree.map(lambda a, b: lax.convert_element_type(a, b.dtype), list(new), list(old))


def branch(eqn: Equation, operands: Sequence[Any], run: Run) -> list[Any]:
  """A cond or switch: by a known index its branch; by a perturbed one the hull of those it may take."""
  which, *args = operands
  perturbed = [is_set(which) or any(b.outputs[i].id in b.perturbed for b in eqn.bodies)
               for i in range(len(eqn.outputs))]

  def run_branch(body, args):
    return [as_interval(x) if p else x for x, p in zip(run(body, args), perturbed, strict=True)]

  if not is_set(which):
    return lax.switch(which, [lambda *xs, body=body: run_branch(body, xs) for body in eqn.bodies], *args)
  if any(not jnp.issubdtype(v.dtype, jnp.floating) and v.dtype != jnp.bool_ for v in eqn.outputs):
    raise unsupported(eqn, 'chooses between integers by a perturbed value; integers that depend on the input have no '
                           'bounds. Return floats from the branches')
  last = len(eqn.bodies) - 1
  low, high = jnp.clip(which.lower, 0, last), jnp.clip(which.upper, 0, last)
  return [_hull_of_possible(outs, low, high) for outs in zip(*(run_branch(body, args) for body in eqn.bodies))]


def _hull_of_possible(outs: Sequence[Interval], low: Any, high: Any) -> Interval:
  """The hull of outs[low], ..., outs[high]."""
  total: Interval | None = None
  for i, out in enumerate(outs):
    possible = (low <= i) & (i <= high)
    if out.dtype == jnp.bool_:
      own = Interval(out.lower | ~possible, out.upper & possible)
      total = own if total is None else Interval(total.lower & own.lower, total.upper | own.upper)
    else:
      own = Interval(jnp.where(possible, out.lower, jnp.inf), jnp.where(possible, out.upper, -jnp.inf))
      total = own if total is None else hull(total, own)
  assert total is not None
  return total
