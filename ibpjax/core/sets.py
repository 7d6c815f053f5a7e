"""Intervals and input sets: the values that go into a bound and come out of it."""
from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.core.directed import DOWN, UP, converted, rounded, shifted

T = TypeVar('T')


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: type[T]) -> type[T]:
  """Class decorator: a frozen dataclass that is also a pytree."""
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class _Ends:
  """What two arrays, `lower` and `upper`, of one shape and dtype say together."""
  lower: Any
  upper: Any

  shape = property(lambda self: self.lower.shape)
  ndim = property(lambda self: self.lower.ndim)
  size = property(lambda self: self.lower.size)
  dtype = property(lambda self: self.lower.dtype)
  centre = property(lambda self: self.lower / 2 + self.upper / 2)
  radius = property(lambda self: self.upper / 2 - self.lower / 2)
  width = property(lambda self: self.upper - self.lower)


@pytree
class Interval(_Ends):
  """All `x` with `lower <= x <= upper`, elementwise.

  Attributes:
    lower: array of any shape and float dtype.
    upper: array of the same shape and dtype.

  Comparisons of intervals are intervals of booleans: `lower` says "always", `upper` says
  "possibly". Ends may be infinite in results; input sets must be finite.
  """
  lower: Any
  upper: Any


@pytree
class ExpectedInterval(_Ends):
  """An interval that holds the range of a function in expectation over random weights: no bound for any one function.

  Attributes:
    lower: array of any shape and float dtype.
    upper: array of the same shape and dtype.

  Not an Interval: what takes input sets or bounds of intermediate values refuses it, and so does certification.
  """
  lower: Any
  upper: Any


@pytree
class LpBall:
  """All `x` with `||x - centre||_p <= eps`, the norm taken over all elements of the array.

  Attributes:
    centre: array of any shape and float dtype.
    eps: scalar radius, in the units of `centre`.
    p: the order of the norm, 1 <= p < inf (the l-infinity ball is an Interval).
  """
  centre: Any
  eps: Any
  p: float = dataclasses.field(metadata=dict(static=True))

  shape = property(lambda self: self.centre.shape)
  ndim = property(lambda self: self.centre.ndim)
  size = property(lambda self: self.centre.size)
  dtype = property(lambda self: self.centre.dtype)

  @property
  def hull(self) -> Interval:
    """The least Interval that holds the ball: its ends are rounded outward."""
    return _box(self.centre, converted(self.eps, self.centre.dtype, UP))


@pytree
class Intermediates:
  """Bounds of the values inside a function that its nonlinear operations act on.

  Attributes:
    bounds: value id -> Interval, in the order of computation. Ids depend on the function, its
      static arguments and the shapes alone, so the bounds of one call can be edited (split,
      intersected, replaced) and handed to another: `ibp(f, intermediate=...)`.
    sources: (value id, operation, line of the user's code) of each, for reports.
  """
  bounds: dict[int, Interval]
  sources: tuple[tuple[int, str, str], ...] = dataclasses.field(default=(), metadata=dict(static=True))


def is_set(x: Any) -> bool:
  """Whether `x` is a set of values (Interval or LpBall) and not an array."""
  return isinstance(x, (Interval, LpBall))


def as_interval(x: Any) -> Interval:
  """`x` itself if it is an Interval, else the degenerate interval [x, x]."""
  return x if isinstance(x, Interval) else Interval(x, x)


def intersection(x: Interval, y: Interval) -> Interval:
  """The intersection of two bounds of one value; where one is NaN, the other."""
  if x.dtype == jnp.bool_:
    return Interval(x.lower | y.lower, x.upper & y.upper)
  return Interval(jnp.fmax(x.lower, y.lower), jnp.fmin(x.upper, y.upper))


def hull(a: Any, b: Any) -> Interval:
  """The least Interval that holds two intervals or arrays of one shape."""
  a, b = as_interval(a), as_interval(b)
  return Interval(jnp.minimum(a.lower, b.lower), jnp.maximum(a.upper, b.upper))


def is_floating(x: Any) -> bool:
  """Whether an array or a set is of floats."""
  return jnp.issubdtype(x.dtype, jnp.floating)


def is_unbounded(x: Interval) -> Any:
  """Where nothing is known of an interval: it is the whole line."""
  return (x.lower == -jnp.inf) & (x.upper == jnp.inf)


def unbounded(x: Interval, where: Any) -> Interval:
  """An interval, made the whole line at the elements `where`."""
  return Interval(jnp.where(where, -jnp.inf, x.lower), jnp.where(where, jnp.inf, x.upper))


def _as_floats(x: Any, name: str) -> jax.Array:
  """`x` as a float array, or an error that names it."""
  dtype = getattr(x, 'dtype', None) or np.asarray(x).dtype
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(f'{name} has dtype {dtype}; bounds need floating point: convert it first, '
                    f'e.g. {name}.astype(jnp.float32) / 255 for images stored as uint8')
  return jnp.asarray(x)


def _end(x: Any, name: str, towards: int) -> jax.Array:
  """An end of an interval as a float array; rounded outward where JAX does not hold it as it is given."""
  kept = _as_floats(x, name)
  if (x.dtype if hasattr(x, 'dtype') else np.dtype(type(x))) == kept.dtype:
    return kept
  end = rounded(x, kept.dtype, towards)
  return jnp.asarray(float(end) if type(x) is float else end)   # a Python number adapts to other dtypes


def concrete(*xs: Any) -> bool:
  """Whether none of `xs` is being traced, so that its values can be looked at."""
  return not any(isinstance(x, jax.core.Tracer) for x in xs)


def numbered(given: tuple, argnum: int) -> int:
  """`argnum` as an index >= 0 of the arguments `given`, or a clear error."""
  if not -len(given) <= argnum < len(given):
    raise TypeError(f'argnum is {argnum}, and there are {len(given)} arguments (without those by name)')
  return argnum % len(given)


def linf_ball(x: Any, eps: Any, minimum: Any = None, maximum: Any = None) -> Interval:
  """The l-infinity ball around `x`, clipped to [minimum, maximum] when these are given.

  It holds every real point of the clipped ball around `x` as JAX holds it (float32, if x is float64 and
  `jax_enable_x64` is off). Ends that are numbers of this dtype are exact; others are rounded outward, to the next.
  So are `eps`, `minimum` and `maximum` where they are given with higher precision, as Python numbers are. An argument
  of a function under `jax.jit` has been rounded, to nearest, before it comes here.

  Args:
    x: array of any shape and float dtype, e.g. images scaled to [0, 1].
    eps: radius in the units of `x`, >= 0; a scalar or an array that broadcasts to `x`.
    minimum, maximum: the valid range of `x`, scalars or arrays that broadcast to `x`.

  Returns:
    Interval of the shape and dtype of `x`. Ends too small to be normal numbers, which XLA takes for 0, become the next
    normal ones outward, or 0; float16 keeps them.

  Raises:
    TypeError: `x` holds integers.
    ValueError: eps is negative or not finite, or `x` leaves [minimum, maximum]. Inside `jit`
      values cannot be looked at: there such a box bounds nothing and every result is infinite.
  """
  x = _as_floats(x, 'x')
  check_eps(eps)
  radius = converted(eps, x.dtype, UP)
  box, inside = _box(x, radius), radius >= 0
  lower, upper = box.lower, box.upper
  if minimum is not None:
    least = converted(minimum, x.dtype, DOWN)
    lower, inside = jnp.maximum(lower, least), inside & (x >= least)
  if maximum is not None:
    greatest = converted(maximum, x.dtype, UP)
    upper, inside = jnp.minimum(upper, greatest), inside & (x <= greatest)
  if concrete(inside):
    if not bool(jnp.all(inside)):
      raise ValueError(f'x has values in [{jnp.min(x)}, {jnp.max(x)}], outside [minimum, maximum] = '
                       f'[{minimum}, {maximum}]: scale x (images to [0, 1], say) or widen the range')
    return Interval(lower, upper)
  return Interval(jnp.where(inside, lower, jnp.nan), jnp.where(inside, upper, jnp.nan))


def _box(centre: Any, radius: Any) -> Interval:
  """centre -+ radius, of one dtype, rounded outward."""
  return Interval(shifted(centre, radius, DOWN), shifted(centre, radius, UP))


def lp_ball(x: Any, eps: Any, p: float = 2.) -> LpBall | Interval:
  """The lp ball around `x`: all points at distance at most `eps`, 1 <= p <= inf.

  Args:
    x: array of any shape and float dtype; the norm runs over all of its elements.
    eps: scalar radius in the units of `x`, >= 0; rounded up to the dtype of `x`.
    p: order of the norm; p = inf gives an Interval.

  IBP bounds the affine maps next to the input with the dual norm (Lyu et al. 2021, section 2.1)
  and goes on with boxes.
  """
  x = _as_floats(x, 'x')
  if not p >= 1:
    raise ValueError(f'p is {p}; lp balls need 1 <= p <= inf')
  check_eps(eps)
  if np.isinf(p):
    return linf_ball(x, eps)
  eps = converted(eps, x.dtype, UP)
  if eps.ndim:
    raise ValueError(f'eps has shape {eps.shape}; the radius of an lp ball is a scalar (use vmap for batches)')
  return LpBall(x, eps if concrete(eps) else jnp.where(eps >= 0, eps, jnp.nan), float(p))


def check_eps(eps: Any) -> None:
  """Raises if a radius is negative, infinite or NaN."""
  if concrete(eps) and not bool(np.all((np.asarray(eps) >= 0) & np.isfinite(np.asarray(eps)))):
    raise ValueError(f'eps is {eps}; a radius is finite and >= 0')


def validate(x: Any, name: str) -> Interval | LpBall:
  """An input set that bounds may be computed from, or an error naming the input and the remedy.

  Under a trace values cannot be looked at; there an invalid element (lower > upper, NaN,
  infinite) becomes (-inf, inf), so that no certificate can follow from it.
  """
  if isinstance(x, ExpectedInterval):
    raise TypeError(f'{name} is an ExpectedInterval, no bound: it holds a range in expectation over random '
                    'weights only. Sound intervals are those of ibpjax.etb_companion, ibp, lbp, crown')
  if isinstance(x, LpBall):
    if not 1 <= x.p < np.inf:
      raise ValueError(f'{name} is a ball of order p = {x.p}; balls have 1 <= p < inf (ibpjax.lp_ball makes them)')
    centre, eps = _as_floats(x.centre, f'the centre of {name}'), x.eps
    _as_floats(eps, f'eps of {name}')
    box = LpBall(centre, converted(eps, centre.dtype, UP), x.p)
    ok = jnp.isfinite(box.centre) & jnp.isfinite(box.eps) & (box.eps >= 0)
    if concrete(ok):
      if not bool(jnp.all(ok)):
        raise ValueError(f'{name} has a centre or eps that is NaN, infinite or negative: input sets are finite')
      return box
    return LpBall(box.centre, jnp.where(jnp.all(ok), box.eps, jnp.inf), x.p)
  lower, upper = _end(x.lower, f'the lower end of {name}', DOWN), _end(x.upper, f'the upper end of {name}', UP)
  if lower.shape != upper.shape or lower.dtype != upper.dtype:
    raise ValueError(f'{name} has a lower end {lower.dtype}{list(lower.shape)} and an upper end '
                     f'{upper.dtype}{list(upper.shape)}: both ends need one shape and one dtype')
  ok = (lower <= upper) & jnp.isfinite(lower) & jnp.isfinite(upper)
  if not concrete(ok):
    return Interval(jnp.where(ok, lower, -jnp.inf), jnp.where(ok, upper, jnp.inf))
  if not bool(jnp.all(ok)):
    at = tuple(int(i) for i in np.argwhere(~np.asarray(ok))[0])
    raise ValueError(f'{name} is not a finite box: at index {at} it is [{lower[at]}, {upper[at]}]; '
                     'ends must be finite, not NaN, and lower <= upper')
  return Interval(lower, upper)


def validated(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
  """The arguments of a function with each input set validated, under the name of its place."""
  def given(x):
    return is_set(x) or isinstance(x, ExpectedInterval)

  def check(path, x):
    if not given(x):
      return x
    outer, inner = path[0], path[1:]
    first = f'argument {inner[0].idx}' if outer.idx == 0 else f'argument {inner[0].key!r}'
    return validate(x, first + jax.tree_util.keystr(inner[1:]))
  return jax.tree_util.tree_map_with_path(check, (args, kwargs), is_leaf=given)


def centre_radius(x: Interval) -> tuple[Any, Any]:
  """Finite centre and radius of an interval; an infinite or NaN end gives an infinite radius."""
  centre, radius = x.centre, x.radius
  bounded = jnp.isfinite(centre) & jnp.isfinite(radius)
  return jnp.where(bounded, centre, 0), jnp.where(bounded, radius, jnp.inf)


def around(centre: Any, radius: Any) -> Interval:
  """centre +- radius. Where one of them overflowed or is NaN, ends are infinite on their own side or NaN: unknown."""
  radius = jnp.where(jnp.isfinite(centre), radius, jnp.inf)
  return Interval(centre - radius, centre + radius)
