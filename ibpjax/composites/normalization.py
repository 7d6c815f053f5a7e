"""Normalisation by a root of a sum of squares: its bounds as a whole (see `composites`)."""
from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from ibpjax.composites.composites import gamma, largest, least, rest, widened
from ibpjax.core.composite import Composite
from ibpjax.core.dataflow import Groups
from ibpjax.core.sets import Interval, as_interval, centre_radius, unbounded


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
    total = lambda a: jnp.sum(a, axes, keepdims=True)
    # Groups whose squares overflow, or may be infinite, keep the bounds that always hold: these never see them.
    known = total(largest(x) ** 2) < float(jnp.finfo(x.dtype).max) / 256
    x = Interval(jnp.where(known, x.lower, -1), jnp.where(known, x.upper, 1))
    size = largest(x)
    z, share, fewest, most = self._deviations(x, u) if self.centred else (
        x, 1., rest(least(x) ** 2, axes), rest(size * size, axes))
    lost: Any = u and count * float(jnp.finfo(x.dtype).tiny)
    if u and self.centred:
      error = self._rounding(size, z, u)
      z = widened(z, error)
      lost += 3 * total(error * (largest(z) + error))
      if self.fast:
        lost += 4 * gamma(count + 3, u) * total(size * size)
    elif u:
      lost += 6 * gamma(count + 4, u) * total(size * size)
    # Two ways to see the sum of squares, each a multiple of t**2 and what lies between two numbers.
    ways = [(share, fewest - lost, most + lost)]
    if self.centred:
      ways.append((1., rest(least(z) ** 2, axes) - lost, rest(largest(z) ** 2, axes) + lost))

    def reached(t):  # the greatest quotient for elements up to t
      rising = functools.reduce(jnp.minimum, [self._highest(t, slope, low) for slope, low, _ in ways])
      squares = functools.reduce(jnp.minimum, [slope * t * t + high for slope, _, high in ways])
      return jnp.where(t > 0, rising, self._divided(t, squares))

    out = _wider(Interval(-reached(-z.lower), reached(z.upper)), 16 * u)
    out = widened(out, u and 4 * float(jnp.finfo(x.dtype).tiny))
    if self.inner == 0 and self.outer == 0:
      away = functools.reduce(jnp.maximum, [slope * least(z) ** 2 + low for slope, low, _ in ways]) > 0
      out = unbounded(out, ~away)
    limit = (self.factor * share) ** -.5 * (1 + 1e-5) if not u and (self.inner or self.outer) else jnp.inf
    out = Interval(jnp.where(known, out.lower, -limit), jnp.where(known, out.upper, limit))
    return Interval(self.groups.back(out.lower), self.groups.back(out.upper))

  def curvature(self, operands):
    # With s = 1 / (sqrt(q) + outer), q = factor |z|^2 + inner, along a step whose deviations are e:
    # |s'| <= sqrt(factor) |e| s^2 and |s''| <= 2 factor |e|^2 s^2 / sqrt(q), so that
    # |(z_i s)''| <= 2 |e_i| |s'| + |z_i s| |s''| / s, the three factors each at their greatest.
    if self.outer < 0:
      return None
    x, = operands
    axes, count = self.groups.axes, self.groups.count
    c, r = (self.groups.into(a) for a in centre_radius(x))
    z, own = c, r
    if self.centred:
      z, own = c - jnp.mean(c, axes, keepdims=True), (r * (count - 1) + rest(r, axes)) / count
    length = jnp.sqrt(jnp.sum(r * r, axes, keepdims=True))  # of e, and no less than by how much |z| changes
    least = jnp.maximum(_root(jnp.sum(z * z, axes, keepdims=True)) - length, 0)
    root = _root(self.factor * least * least + self.inner)
    scale = 1 / (root + self.outer)
    greatest = self.groups.into(largest(self.image(operands, 0.)))
    bound = self.factor ** .5 * length * scale * (own * scale + greatest * self.factor ** .5 * length / root)
    bound = self.groups.back(jnp.where(jnp.isnan(bound), jnp.inf, bound))
    return Interval(-bound, bound)

  def _rounding(self, size: Any, z: Interval, u: float) -> Any:
    """By how much each z may be off: twice what the function and what the bound may lose on the way to it."""
    size = size + jnp.mean(size, self.groups.axes, keepdims=True) + largest(z)
    return 4 * gamma(self.groups.count + 4, u) * size + 16 * float(jnp.finfo(size.dtype).tiny)

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
    around = rest(radius, axes)
    share = count / others
    total = jnp.sum(z * z, axes, keepdims=True)
    squares = total - share * z * z  # cancels where z_i is about all there is; the roots below would magnify that
    cancelled = 4 * gamma(count + 4, float(jnp.finfo(x.dtype).eps) / 2) * total
    if u:
      error = self._rounding(largest(x), as_interval(z), u)
      cancelled += 3 * jnp.sum(error * (jnp.abs(z) + error), axes, keepdims=True)
    cross = rest(jnp.abs(z) * radius, axes) + jnp.abs(z) * around / others  # |w_j| <= |z_j| + |z_i| / (D - 1)
    cross = jnp.where(jnp.isnan(cross), jnp.inf, cross)
    size = rest(radius * radius, axes)
    near, far = _root(squares - cancelled) - _root(size), _root(squares + cancelled) + _root(size)
    fewest = jnp.maximum(squares - 2 * cross, jnp.where(near > 0, near, 0) ** 2)
    most = jnp.minimum(squares + 2 * cross + size, far * far)
    return widened(as_interval(z), (radius * (count - 1) + around) / count), share, fewest, most


@dataclasses.dataclass(frozen=True)
class Scale:
  """A known factor that is multiplied with the inverse of the root before what is normalised is.

  NaN, of which there are no bounds, where that product may leave the range of floats, which a product with what is
  normalised does not.

  Attributes:
    root: the least that the root may be.
  """
  root: float

  def __call__(self, s):
    info, size = jnp.finfo(s.dtype), jnp.abs(s)
    greatest, tiny = float(info.max), float(info.tiny)
    most = greatest / 2 * max(self.root, 2 * tiny ** .5)
    least = tiny * greatest ** .5  # the root of squares that `image` knows is less
    return jnp.where((s == 0) | ((size > least) & (size < most)), s, jnp.nan)


def _root(a: Any) -> Any:
  """sqrt with derivative 0 at 0."""
  return jnp.where(a > 0, jnp.sqrt(jnp.where(a > 0, a, 1)), 0)


def _wider(x: Interval, relative: float) -> Interval:
  return widened(x, relative * largest(x)) if relative else x
