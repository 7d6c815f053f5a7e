"""Local Lipschitz bounds: Jacobians of a function bounded over a box, by any method that bounds functions."""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax.composites import univariate
from ibpjax.core.composite import Composite
from ibpjax.core.program import Equation, Program, rebind, unsupported
from ibpjax.core.sets import Interval, is_set, validated
from ibpjax.core.validation import numbered
from ibpjax.engine.prepare import named_as, prepare
from ibpjax.methods.ibp import ibp
from ibpjax.primitives import table
from ibpjax.primitives.registration import elementwise_call_p


def jacobian_bounds(f: Callable, *, argnum: int = -1, method: Callable[..., Callable] = ibp) -> Callable:
  """Bounds of the Jacobian of `f` in one of its arguments, over a set of these.

  The returned function takes the arguments of `f`, the argument `argnum` an input set, and returns the tree of `f`'s
  result with an Interval of shape (*output, *input) for each array: where `f` has a derivative, it lies inside.
  The derivative is that of `f`'s own operations, taken apart: custom derivatives and stopped gradients in it are looked
  through. It composes with jit, vmap and grad as far as `method` does.

  Args:
    f: any JAX function of continuous operations, on one example.
    argnum: the number of the argument, one array.
    method: a transformation that bounds functions: `ibp`, or tighter `crown`, with options by `functools.partial`.

  Raises:
    NotImplementedError: an operation that may jump (a choice by a test, rounding), or one whose derivative `method`
      does not bound; names it and the line.
    TypeError: what is to be bounded is no set.

  Source: Shi et al. 2022 for linear bounds of Jacobians of ReLU networks; by bounds of the traced derivative here.
  """
  def bounded(*given):
    place = numbered(given, argnum)
    if not is_set(given[place]):
      raise TypeError(f'argument {place} is {type(given[place]).__name__}: give an Interval (ibpjax.linf_ball) or '
                      'another input set to bound the Jacobian on')
    given, _ = validated(given, {})
    box, others = given[place], [None if i == place else x for i, x in enumerate(given)]
    if any(map(is_set, jax.tree.leaves(others, is_leaf=is_set))):
      raise TypeError(f'several arguments are sets: Jacobians are bounded in one of them, argnum = {argnum}; make the '
                      'others arrays')

    def of_one(x):
      return f(*(x if i == place else other for i, other in enumerate(others)))
    prepared = prepare(of_one, (box,), {})
    program = prepared.program
    _check(program)
    sizes = [v.size for v in program.outputs]
    derivative = jax.jacrev if sum(sizes) < box.size else jax.jacfwd
    return prepared.result(method(derivative(lambda x: _values(program, [x])))(box))
  return named_as(f, bounded)


def local_lipschitz(f: Callable, *, argnum: int = -1, p: float = 2., method: Callable[..., Callable] = ibp) -> Callable:
  """Upper bounds of how much `f` lengthens within a set: ||f(x) - f(y)||_p <= L ||x - y||_p for all x, y in it.

  The returned function takes the arguments of `f`, the argument `argnum` an input set, and returns L, a scalar, for the
  outputs of `f` stacked: the greatest norm of the matrices within `jacobian_bounds`. For p = 2 that is
  at most the norm of their greatest magnitudes, and at most the norm of the centre plus that of the radius; for p = 1
  and inf it is exact. Infinite where the bounds of the Jacobian are. In exact arithmetic, unless `method` allows for
  rounding; the norm itself is rounded up.

  Args:
    f, argnum, method: as in `jacobian_bounds`.
    p: order of the norm of inputs and outputs: 1, 2 or inf.

  Raises:
    NotImplementedError, TypeError: as `jacobian_bounds`.
    ValueError: another norm.
  """
  if p not in (1, 2, np.inf):
    raise ValueError(f'p is {p}; local Lipschitz bounds are for p = 1, 2 and inf')

  def bounded(*given):
    found = jax.tree.leaves(jacobian_bounds(f, argnum=argnum, method=method)(*given),
                            is_leaf=lambda x: isinstance(x, Interval))
    size = given[argnum].size
    whole = jax.tree.map(lambda *ends: jnp.concatenate([x.reshape(-1, size) for x in ends]), *found)
    greatest = jnp.maximum(jnp.abs(whole.lower), jnp.abs(whole.upper))
    usable = jnp.isfinite(greatest).all()
    if p != 2:
      norm = jnp.max(jnp.sum(greatest, axis=1 if p == np.inf else 0), initial=0)
      return _raised(norm, usable, greatest.shape)
    spectral = lambda a: jnp.linalg.svd(jnp.where(usable, a, 0), compute_uv=False).max(initial=0)
    norm = jnp.minimum(spectral(greatest), spectral(whole.centre) + spectral(whole.radius))
    return _raised(norm, usable, greatest.shape)
  return named_as(f, bounded)


def _raised(norm: Any, usable: Any, shape: tuple[int, ...]) -> Any:
  """A norm of a matrix with an allowance for its rounding; infinite where the matrix is not `usable`."""
  return jnp.where(usable, norm * (1 + 16 * max(shape) * jnp.finfo(norm.dtype).eps), jnp.inf)


def _values(program: Program, inputs: Sequence[Any]) -> list[Any]:
  """The outputs of a program, as a function whose derivative is that of its values."""
  env = program.environment(inputs)
  for eqn in program.equations:
    env |= zip((v.id for v in eqn.outputs), _step(eqn, [env[v.id] for v in eqn.inputs]), strict=True)
  return [env[v.id] for v in program.outputs]


def _step(eqn: Equation, operands: Sequence[Any]) -> list[Any]:
  """One equation of it, differentiated as what it computes and so that little is lost in bounds of the derivative."""
  match eqn.key:
    case univariate.Univariate():
      return _values(eqn.key.body, operands)
    case P.stop_gradient_p:
      return list(operands)
    case P.max_p:
      return [_maximum(*operands)]
    case P.min_p:
      return [-_maximum(*(-x for x in operands))]
    case P.clamp_p:
      low, x, high = operands
      return [-_maximum(-_maximum(low, x), -high)]
    case P.abs_p:
      return [_magnitude(*operands)]
    case P.reduce_max_p | P.reduce_window_max_p:
      return [_greatest(eqn, operands[0])]
    case P.reduce_min_p | P.reduce_window_min_p:
      return [-_greatest(eqn, -operands[0])]
    case P.scan_p:
      return _scanned(eqn, operands)
  return rebind(eqn, *operands)


@jax.custom_jvp
def _maximum(a: Any, b: Any) -> Any:
  """The maximum, with one of two derivatives by a test. JAX's own asks which of both equals it, and no box tells."""
  return jnp.maximum(a, b)


@_maximum.defjvp
def _(primals, tangents):
  return _maximum(*primals), jnp.where(primals[0] > primals[1], *jnp.broadcast_arrays(*tangents))


@jax.custom_jvp
def _magnitude(x: Any) -> Any:
  """The absolute value; likewise."""
  return jnp.abs(x)


@_magnitude.defjvp
def _(primals, tangents):
  return _magnitude(*primals), jnp.where(primals[0] > 0, tangents[0], -tangents[0])


def _greatest(eqn: Equation, x: Any) -> Any:
  """The maxima over axes or windows, of two at a time."""
  parts: list[tuple[Any, Any]]  # one element of each window, and at which places there is one
  if eqn.key in (P.reduce_max_p, P.reduce_min_p):
    axes = tuple(eqn.params['axes'])
    moved = jnp.moveaxis(x, axes, range(len(axes)))
    parts = [(part, np.True_) for part in moved.reshape(-1, *moved.shape[len(axes):])]
  else:
    window, strides, padding = (eqn.params[k] for k in ('window_dimensions', 'window_strides', 'padding'))
    span = np.multiply(strides, np.subtract(eqn.outputs[0].shape, 1)) + 1
    around, inside = jnp.pad(x, padding), np.pad(np.ones(x.shape, bool), padding)
    at = [tuple(slice(i, i + n, s) for i, n, s in zip(start, span, strides)) for start in np.ndindex(*window)]
    parts = [(around[i], inside[i]) for i in at]
  while len(parts) > 1:
    parts = [functools.reduce(_joined, parts[i:i + 2]) for i in range(0, len(parts), 2)]
  return parts[0][0]


def _joined(one: tuple[Any, Any], other: tuple[Any, Any]) -> tuple[Any, Any]:
  """The greater of two where there are both, else the one that there is; and where there is any."""
  (a, with_a), (b, with_b) = one, other
  greater = _maximum(a, b)
  if not (with_a & with_b).all():
    greater = jnp.where(with_a & with_b, greater, jnp.where(with_a, a, b))
  return greater, with_a | with_b


def _scanned(eqn: Equation, operands: Sequence[Any]) -> list[Any]:
  """The values of a scan."""
  body, = eqn.bodies
  consts, carried = eqn.loop.first, eqn.loop.last - eqn.loop.first
  known, start, xs = operands[:consts], operands[consts:consts + carried], operands[consts + carried:]

  def step(carry, x):
    out = _values(body, [*known, *carry, *x])
    return out[:carried], out[carried:]
  carry, ys = jax.lax.scan(step, list(start), list(xs), length=eqn.loop.length, reverse=eqn.loop.reverse)
  return [*carry, *ys]


def _check(program: Program) -> None:
  """Raises unless all that depends on the set is continuous."""
  for eqn in program.equations:
    flags = [v.id in program.perturbed for v in eqn.inputs]
    if not any(flags):
      continue
    if isinstance(eqn.key, univariate.Univariate):
      _check(eqn.key.body)
    elif eqn.key is P.scan_p:
      _check(eqn.bodies[0])
    elif not (table.is_affine(eqn, flags) or table.of(eqn).continuous or isinstance(eqn.key, Composite)
              or _is_pooling(eqn) or _in_table(eqn, flags)):
      raise unsupported(eqn, 'may jump, or has another derivative than that of its values: its Jacobian bounds no '
                             'differences. Write it with continuous operations, jnp.maximum in the place of tests')


def _in_table(eqn: Equation, flags: Sequence[bool]) -> bool:
  """Whether an equation is a continuous elementwise function, differentiated as what it is."""
  if eqn.key is P.pow_p and flags[1]:  # 0 ** x jumps at 0
    return False
  own = eqn.key is elementwise_call_p and univariate.has_own_derivative(eqn)
  return table.of(eqn).elementwise is not None and not own


def _is_pooling(eqn: Equation) -> bool:
  """Whether an equation takes maxima or minima over windows without holes that all meet the array."""
  if eqn.key not in (P.reduce_window_max_p, P.reduce_window_min_p):
    return False
  window, padding, *dilations = (eqn.params[k] for k in (
      'window_dimensions', 'padding', 'base_dilation', 'window_dilation'))
  return max(map(max, dilations)) == 1 and all(0 <= min(ends) <= max(ends) < n for n, ends in zip(window, padding))
