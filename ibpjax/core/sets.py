"""Sets: what every input set is, intervals, and what else goes into a bound and comes out of it."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.core.directed import DOWN, UP
from ibpjax.core.products import dot, gamma, off_by
from ibpjax.core.subnormal import least_kept
from ibpjax.core.validation import as_end, concrete

T = TypeVar('T')


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: type[T]) -> type[T]:
  """Class decorator: a frozen dataclass that is also a pytree."""
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class InputSet:
  """A set of arrays of one shape and dtype over which functions are bounded.

  A new kind of set is one class like this, a frozen pytree (`pytree`), with the members below. Every method takes it:
  interval arithmetic goes on from its `hull`, linear bounds end at its `support`.
  """

  def __init_subclass__(cls, **options: Any) -> None:
    super().__init_subclass__(**options)
    for name in ('representative', 'hull', 'support', 'validated'):
      if not hasattr(cls, name) or getattr(cls, name) is getattr(InputSet, name, None):
        raise TypeError(f'{cls.__name__} is an input set and does not define `{name}`: see ibpjax.InputSet')

  # An array of the shape and dtype of the elements of the set.
  representative: Any
  shape = property(lambda self: self.representative.shape)
  ndim = property(lambda self: self.representative.ndim)
  size = property(lambda self: self.representative.size)
  dtype = property(lambda self: self.representative.dtype)

  @property
  def hull(self) -> Interval:
    """An Interval that holds the set, its ends rounded outward; the tighter, the better for interval arithmetic."""
    raise NotImplementedError

  def support(self, coefficients: Any, u: float = 0.) -> tuple[Any, Any]:
    """(centre, radius), two scalars: for all `x` in the set <coefficients, x> lies within centre -+ radius.

    Args:
      coefficients: array of the shape of the set.
      u: the unit roundoff that the radius allows for in all that is computed here (`rounding_of`, for instance); 0 for
        bounds in exact arithmetic.
    """
    raise NotImplementedError

  def at(self, cut: Callable[[Any], Any]) -> InputSet | None:
    """What some elements range over, which `cut` takes out of an array of the shape of the set; None if that is no such
    set: functionals of few elements then have coefficients for all."""
    return None

  def validated(self, name: str) -> InputSet:
    """The set, its arrays as floats of JAX; or an error with the name of the argument, what is wrong, and the remedy.

    While it is traced values cannot be looked at. There a set that is none, for instance of NaN, becomes one with
    infinite ends or an infinite support, so that no certificate can follow from it.
    """
    raise NotImplementedError


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
class Interval(_Ends, InputSet):
  """All `x` with `lower <= x <= upper`, elementwise.

  Attributes:
    lower: array of any shape and float dtype.
    upper: array of the same shape and dtype.

  Comparisons of intervals are intervals of booleans: `lower` says "always", `upper` says
  "possibly". Ends may be infinite in results; input sets must be finite.
  """
  lower: Any
  upper: Any

  representative = property(lambda self: self.lower)
  hull = property(lambda self: self)

  def support(self, coefficients: Any, u: float = 0.) -> tuple[Any, Any]:
    centre, radius = centre_radius(self)
    return jnp.vdot(coefficients, centre), dot(jnp.abs(coefficients), radius) + rounding_of(coefficients, self, u)

  def at(self, cut: Callable[[Any], Any]) -> Interval:
    return Interval(cut(self.lower), cut(self.upper))

  def validated(self, name: str) -> Interval:
    lower = as_end(self.lower, f'the lower end of {name}', DOWN)
    upper = as_end(self.upper, f'the upper end of {name}', UP)
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


def rounding_of(coefficients: Any, x: InputSet, u: float, terms: int = 0) -> Any:
  """How far rounding may move <coefficients, x> as computed, for any x in a set: what `InputSet.support` allows for.

  Args:
    coefficients: array of the shape of the set.
    x: the set.
    u: the unit roundoff; 0 gives 0.
    terms: those that a coefficient is itself a sum of, where it is not given.

  Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
  """
  if not u:
    return jnp.zeros((), coefficients.dtype)
  info, lost = jnp.finfo(coefficients.dtype), 8 * least_kept(coefficients.dtype)  # by half of an end
  box = x.hull
  reach = jnp.maximum(jnp.abs(box.lower), jnp.abs(box.upper)) + info.tiny
  error = 2 * gamma(coefficients.size + terms + 4, u) * reach + lost
  return off_by(coefficients, error, error) + coefficients.size * lost


def is_set(x: Any) -> bool:
  """Whether `x` is a set of values (an Interval, a ball) and not an array."""
  return isinstance(x, InputSet)


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


def validated(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
  """The arguments of a function with each input set validated, under the name of its place."""
  def given(x):
    return is_set(x) or isinstance(x, ExpectedInterval)

  def check(path, x):
    if not given(x):
      return x
    outer, inner = path[0], path[1:]
    first = f'argument {inner[0].idx}' if outer.idx == 0 else f'argument {inner[0].key!r}'
    name = first + jax.tree_util.keystr(inner[1:])
    if isinstance(x, ExpectedInterval):
      raise TypeError(f'{name} is an ExpectedInterval, no bound: it holds a range in expectation over random weights '
                      'only. Sound intervals are those of ibpjax.etb_companion, ibp, lbp, crown')
    return x.validated(name)
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
