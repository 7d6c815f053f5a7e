"""Composites: groups of equations that have tighter bounds together than one by one.

Each is a class whose instances are keys of equations. `patterns` finds them in programs; here is
what they compute (`__call__`) and their bounds (`image`), with the reason why these hold. `u` is
the unit roundoff to allow for, 0 for bounds in exact arithmetic.
"""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ibpjax.affine import centre_radius
from ibpjax.graph import Groups
from ibpjax.interval import Interval, as_interval


def _gamma(n: float, u: float) -> float:
  return n * u / max(1 - n * u, 1e-3)


def _largest(x: Interval) -> Any:
  return jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))


def _least(x: Interval) -> Any:
  """The least absolute value of each element."""
  return jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)


def _widened(x: Interval, slack: Any) -> Interval:
  return Interval(x.lower - slack, x.upper + slack)


def _finite(a: Any) -> Any:
  return jnp.where(jnp.isfinite(a), a, 0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Composite:
  """What a group of equations computes together."""

  def __repr__(self) -> str:
    return re.sub('(?<=[a-z])(?=[A-Z])', '_', type(self).__name__).lower()

  def __call__(self, *operands: Any) -> Any:
    """The value on arrays."""
    raise NotImplementedError

  def image(self, operands: Sequence[Any], u: float) -> Interval:
    """Bounds of the value on boxes."""
    raise NotImplementedError


# ------------------------------------------------------------------------------------- softmax
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Softmax(Composite):
  """exp(x_i) / sum_j exp(x_j) over each group; with a mask, j runs over the elements it keeps.

  x_i / (x_i + rest) with exp(x) in place of x increases in element i and decreases in the
  others, so each end is reached at a corner: the bounds are exact. Shifts of a whole group cancel
  and are left out.
  """
  groups: Groups

  def __call__(self, x, mask=None):
    a = self.groups.into(x)
    e = jnp.exp(a - lax.stop_gradient(jnp.max(a, self.groups.axes, keepdims=True)))
    kept = e if mask is None else jnp.where(self.groups.into(mask), e, 0)
    return self.groups.back(e / jnp.sum(kept, self.groups.axes, keepdims=True))

  def image(self, operands, u):
    odds = _log_odds(self.groups, *operands)
    value: Callable[[Any], Any] = jax.nn.sigmoid
    if len(operands) > 1:  # what the mask removes is not a part of the sum that it is divided by
      kept = self.groups.into(operands[1])
      value = lambda t: jnp.where(kept, jax.nn.sigmoid(t), jnp.exp(jnp.where(kept, 0, t)))
    # exp(x - m) has the relative error |x - m| u; where that is large, the value is below the smallest float.
    slack, tiny = _gamma(4 * self.groups.count + 1024, u), u and 4 * float(jnp.finfo(odds.dtype).tiny)
    lower = jnp.maximum(value(odds.lower) * (1 - slack) - tiny, 0)
    upper = value(odds.upper) * (1 + slack) + tiny
    return Interval(self.groups.back(lower), self.groups.back(upper if len(operands) > 1 else jnp.minimum(upper, 1)))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogSoftmax(Composite):
  """x_i - log sum_j exp(x_j) over each group: -log(1 + sum of exp(x_j - x_i)), monotone like softmax. Exact."""
  groups: Groups

  def __call__(self, x):
    return self.groups.back(jax.nn.log_softmax(self.groups.into(x), self.groups.axes))

  def image(self, operands, u):
    odds = _log_odds(self.groups, *operands)
    out = Interval(jax.nn.log_sigmoid(odds.lower), jax.nn.log_sigmoid(odds.upper))
    if u:
      out = _widened(out, 8 * u * (_finite(_largest(out)) + 16) + _gamma(4 * self.groups.count + 16, u))
    return Interval(self.groups.back(out.lower), self.groups.back(jnp.minimum(out.upper, 0)))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogSumExp(Composite):
  """log sum_j exp(x_j) over each group: increasing in every element, hence exact on the ends."""
  groups: Groups
  leave: Callable[[Any], Any]

  def __call__(self, x):
    return self.leave(jax.nn.logsumexp(self.groups.into(x), self.groups.axes))

  def image(self, operands, u):
    x, = operands
    out = Interval(self(x.lower), self(x.upper))
    if not u:
      return out
    return _widened(out, 8 * u * (_finite(_largest(out)) + 8) + _gamma(4 * self.groups.count, u))


def _log_odds(groups: Groups, x: Interval, mask: Any = None) -> Interval:
  """Bounds of x_i - log of the sum of exp(x_j) over the others of its group (that a mask keeps)."""
  x = Interval(groups.into(x.lower), groups.into(x.upper))

  def less_others(own, end):
    shift, log = _log_of_rest(end if mask is None else jnp.where(groups.into(mask), end, -jnp.inf), groups.axes)
    return (own - shift) - log
  lower = less_others(x.lower, x.upper)
  return Interval(jnp.where(x.lower == -jnp.inf, -jnp.inf, lower), less_others(x.upper, x.lower))


def _log_of_rest(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
  """(s, l) with s + l = log of the sum of exp(x_j) over the others of the group, for each element, s near the greatest.

  The total less the own term, which is at most half of it, so that at most one bit is lost; for
  the one greatest element there may be, a sum of its own, so that the others do not vanish beside it.
  """
  def logarithm(total):
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)

  def shifted(x):
    top = lax.stop_gradient(_finite(jnp.max(jnp.where(x < jnp.inf, x, -jnp.inf), axes, keepdims=True)))
    return top, jnp.exp(x - top)
  first, e = shifted(x)
  total = jnp.sum(e, axes, keepdims=True)
  finite = jnp.isfinite(total)
  rest = logarithm(jnp.where(finite, jnp.maximum(jnp.where(finite, total, 0) - jnp.where(finite, e, 0), 0), jnp.inf))
  greatest = x == jnp.max(x, axes, keepdims=True)
  alone = greatest & (jnp.sum(greatest, axes, keepdims=True) == 1)
  second, e = shifted(jnp.where(alone, -jnp.inf, x))
  others = logarithm(jnp.sum(e, axes, keepdims=True))
  return jnp.where(alone, second, first), jnp.where(alone, others, rest)


def _rest(e: Any, axes: tuple[int, ...]) -> Any:
  """The sum of the other terms of its group, for each term of e >= 0.

  The total less the own term where that is at most half of the total, so that at most one bit is
  lost, and a sum of its own for the one greater term there may be.
  """
  top = e == jnp.max(e, axes, keepdims=True)
  alone = top & (jnp.sum(top, axes, keepdims=True) == 1)
  without_top = jnp.sum(jnp.where(top, 0, e), axes, keepdims=True)
  total = jnp.sum(e, axes, keepdims=True)
  bounded = jnp.isfinite(total)
  rest = jnp.where(alone, without_top, jnp.where(bounded, total, 0) - jnp.where(bounded, e, 0))
  return jnp.where(bounded | alone, jnp.maximum(rest, 0), jnp.inf)


# ------------------------------------------------------------------------------- normalisation
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Normalise(Composite):
  """z / (sqrt(factor * sum z**2 + inner) + outer) over each group, with z = x or z = x - mean(x).

  Let t = z_i. With z = x the sum of squares is t**2 plus that of the others. With z = x - mean(x)
  the D - 1 others have the mean -t / (D - 1), so it is t**2 D / (D - 1) + W, W being the squared
  deviations of the others from their own mean (this alone gives |out| <= sqrt(D - 1) for the mean
  square). Either way it is a multiple of t**2 plus what does not depend on x_i, and the quotient
  increases in t: each bound is reached at an end of t, with the least W where it is moved away from
  0, with the greatest where towards 0. For z = x this is exact.

  W over x = c + d, |d| <= r: |w|^2 + 2 <w, d> + |d'|^2, where w are the deviations of c and d' those of d.
  So it lies within 2 sum |w| r (+ sum r**2 above) of |w|^2, and its root within |r| of |w|.

  Attributes:
    groups: the elements that are normalised together.
    centred: whether z = x - mean(x).
    factor, inner, outer: as above.
    fast: whether the function computes the squares of deviations as E[x^2] - E[x]^2, which cancels.
  """
  groups: Groups
  centred: bool
  factor: float
  inner: float
  outer: float
  fast: bool

  def __call__(self, x):
    z = self.groups.into(x)
    axes = self.groups.axes
    z = z - jnp.mean(z, axes, keepdims=True) if self.centred else z
    return self.groups.back(z / (jnp.sqrt(self.factor * jnp.sum(z * z, axes, keepdims=True) + self.inner) + self.outer))

  def image(self, operands, u):
    x, = operands
    axes, count = self.groups.axes, self.groups.count
    x = Interval(self.groups.into(x.lower), self.groups.into(x.upper))
    size = _largest(x)
    z, share, least, greatest = self._deviations(x, u) if self.centred else (
        x, 1., _rest(_least(x) ** 2, axes), _rest(size * size, axes))
    if u:
      error = self._rounding(size, z, u)
      z = _widened(z, error) if self.centred else z
      lost = 8 * jnp.sum(error * (_largest(z) + error), axes, keepdims=True)
      if self.fast:
        lost += 4 * _gamma(count + 3, u) * jnp.sum(size * size, axes, keepdims=True)
      least, greatest = least - lost, greatest + lost

    def reached(t):  # the greatest quotient for elements up to t
      return jnp.where(t > 0, self._highest(t, share, least), self._divided(t, share * t * t + greatest))

    limit = (self.factor * share) ** -.5 if not u else np.inf  # of an infinite element
    lower = jnp.where(z.lower == -jnp.inf, -limit, -reached(-z.lower))
    upper = jnp.where(z.upper == jnp.inf, limit, reached(z.upper))
    out = _wider(Interval(lower, upper), 16 * u)
    if self.inner == 0 and self.outer == 0:
      away = share * _least(z) ** 2 + least > 0
      out = Interval(jnp.where(away, out.lower, -jnp.inf), jnp.where(away, out.upper, jnp.inf))
    return Interval(self.groups.back(out.lower), self.groups.back(out.upper))

  def _rounding(self, size: Any, z: Interval, u: float) -> Any:
    """By how much each z may be off, as the function and as the bound compute it; of its square, twice z times that."""
    gamma = _gamma(self.groups.count + 4, u)
    return gamma * (size + jnp.mean(size, self.groups.axes, keepdims=True) + _largest(z))

  def _divided(self, t: Any, squares: Any) -> Any:
    """t / (sqrt(factor * squares + inner) + outer), 0 for t = 0."""
    scale = _root(self.factor * jnp.maximum(squares, 0) + self.inner) + self.outer
    return jnp.where(t == 0, 0, t / jnp.where(scale > 0, scale, 1))

  def _highest(self, t: Any, slope: float, constant: Any) -> Any:
    """The greatest quotient for elements in [0, t], the sum of squares being slope t**2 + constant, or 0 if greater.

    It increases, except that a negative constant (an allowance for rounding) puts a peak where the sum leaves 0.
    """
    at_end = self._divided(t, slope * t * t + constant)
    peak = jnp.minimum(t, _root(-constant / slope))
    return jnp.where(constant < 0, jnp.maximum(at_end, self._divided(peak, 0.)), at_end)

  def _deviations(self, x: Interval, u: float) -> tuple[Interval, float, Any, Any]:
    """x - mean(x) in each element, D / (D - 1), and for each element the least and the greatest W."""
    axes, count = self.groups.axes, self.groups.count
    others = max(count - 1, 1)
    centre, radius = centre_radius(x)
    z = centre - jnp.mean(centre, axes, keepdims=True)
    around = _rest(radius, axes)
    share = count / others
    total = jnp.sum(z * z, axes, keepdims=True)
    squares = total - share * z * z  # cancels where z_i is about all there is; the roots below would magnify that
    cancelled = 4 * _gamma(count + 4, float(jnp.finfo(x.dtype).eps) / 2) * total
    if u:
      error = self._rounding(_largest(x), as_interval(z), u)
      cancelled += 8 * jnp.sum(error * (jnp.abs(z) + error), axes, keepdims=True)
    cross = _rest(jnp.abs(z) * radius, axes) + jnp.abs(z) * around / others  # |w_j| <= |z_j| + |z_i| / (D - 1)
    cross = jnp.where(jnp.isnan(cross), jnp.inf, cross)
    size = _rest(radius * radius, axes)
    near, far = _root(squares - cancelled) - _root(size), _root(squares + cancelled) + _root(size)
    least = jnp.maximum(squares - 2 * cross, jnp.where(near > 0, near, 0) ** 2)
    greatest = jnp.minimum(squares + 2 * cross + size, far * far)
    return _widened(as_interval(z), (radius * (count - 1) + around) / count), share, least, greatest


def _root(a: Any) -> Any:
  """sqrt with derivative 0 at 0."""
  return jnp.where(a > 0, jnp.sqrt(jnp.where(a > 0, a, 1)), 0)


def _wider(x: Interval, relative: float) -> Interval:
  return _widened(x, relative * _largest(x)) if relative else x


# -------------------------------------------------------------------------------------- blends
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Blend(Composite):
  """(1 - z) a + z b, elementwise: the update of a GRU, a highway, a gate between two values.

  Affine in each of a, b and z when the others are fixed, so its extremes lie at corners of the
  box: for both ends of z, the ends of (1 - z) a and of z b. Exact. With z in [0, 1] it stays
  between a and b, however many steps follow each other.
  """

  def __call__(self, z, a, b):
    return (1 - z) * a + z * b

  def image(self, operands, u):
    z, a, b = map(as_interval, operands)

    def scaled(w, x):  # w x for a known w; 0 times an infinite end is 0
      ends = [jnp.where(w == 0, 0, w) * jnp.where((w == 0) & ~jnp.isfinite(e), 0, e) for e in (x.lower, x.upper)]
      return Interval(jnp.minimum(*ends), jnp.maximum(*ends))

    at = [(scaled(1 - w, a), scaled(w, b)) for w in (z.lower, z.upper)]
    out = Interval(jnp.minimum(*(p.lower + q.lower for p, q in at)), jnp.maximum(*(p.upper + q.upper for p, q in at)))
    if not u:
      return out
    return _widened(out, 8 * u * (1 + _largest(z)) * (_largest(a) + _largest(b)) + jnp.finfo(out.dtype).tiny)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Average(Composite):
  """sum_j p_j v_j, where p >= 0 sums to 1 over j (softmax weights): attention.

  For any t, sum_j p_j v_j = t + sum_j p_j (v_j - t). With t near the values only their spread is
  multiplied by the width of p. And an average lies between the least and the greatest v_j.

  Attributes:
    eqn: the dot product.
    slot: which of its operands holds the weights.
    unit: the roundoff with which these are known; they sum to 1 up to it.
    narrowed: the roundoff of casts of the weights to a lower precision, a part of the function; else 0.
  """
  eqn: Any
  slot: int
  unit: float
  narrowed: float

  def __call__(self, *operands):
    return lax.dot_general_p.bind(*operands, **self.eqn.params)

  def _dot(self, p: Any, v: Any) -> Any:
    return self(p, v) if self.slot == 0 else self(v, p)

  def _arrange(self, v: Any, reduce: Callable[..., Any]) -> Any:
    """A reduction of v over the averaged axes, in the layout of the result, 1 where only p has axes."""
    (pc, vc), (pb, vb) = self.eqn.params['dimension_numbers']
    if self.slot == 1:
      (pc, vc), (pb, vb) = (vc, pc), (vb, pb)
    weights, values = self.eqn.inputs[self.slot], self.eqn.inputs[1 - self.slot]
    free = [i for i in range(len(values.shape)) if i not in (*vc, *vb)]
    ones = (1,) * (len(weights.shape) - len(pc) - len(pb))
    reduced = jnp.transpose(reduce(v, axis=tuple(vc), keepdims=True), (*vb, *free, *vc))
    batch, own = tuple(values.shape[i] for i in vb), tuple(values.shape[i] for i in free)
    return jnp.reshape(reduced, (*batch, *ones, *own) if self.slot == 0 else (*batch, *own, *ones))

  def image(self, operands, u):
    p, v = operands[self.slot], as_interval(operands[1 - self.slot])
    (pc, pr), (vc, vr) = centre_radius(as_interval(p)), centre_radius(v)
    axes = tuple(self.eqn.params['dimension_numbers'][0][1 - self.slot])
    shift = jnp.mean(vc, axis=axes, keepdims=True)
    base = self._arrange(shift, lambda a, **_: a)
    apart = vc - shift
    centre = self._dot(pc, apart)
    radius = self._dot(jnp.abs(pc), vr) + self._dot(pr, jnp.abs(apart) + vr)
    radius = jnp.where(jnp.isnan(radius), jnp.inf, radius)
    out = Interval(base + centre - radius, base + centre + radius)
    terms = int(np.prod([self.eqn.inputs[1 - self.slot].shape[i] for i in axes], dtype=np.int64))
    lost = 8 * _gamma(terms + 8, max(u, self.unit)) if u else 2 * self.narrowed
    slack = lost * self._arrange(_largest(v), jnp.max) if lost else 0.
    out = _widened(out, slack)
    return Interval(jnp.maximum(out.lower, self._arrange(v.lower, jnp.min) - slack),
                    jnp.minimum(out.upper, self._arrange(v.upper, jnp.max) + slack))
