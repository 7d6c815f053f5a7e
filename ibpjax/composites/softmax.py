"""Softmax and its kin, and averages by softmax weights: their bounds as wholes (see `composites`)."""
from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ibpjax.composites.composites import gamma, largest, rest, widened
from ibpjax.core.composite import Composite, finite, radius
from ibpjax.core.dataflow import Groups
from ibpjax.core.products import times
from ibpjax.core.sets import Interval, as_interval, centre_radius, is_set, unbounded
from ibpjax.core.subnormal import least_kept


class Exponents(enum.Enum):
  """Where the operands of a composite have what the function takes exp of."""
  SAFE = 'each group less its greatest element: neither do they overflow, nor do all of a group vanish'
  FIRST = 'the first operand, as it is'
  LAST = 'the last operand: the first one, shifted by something else'

  def among(self, operands: Sequence[Any]) -> Interval:
    """The operand that is taken exp of."""
    return operands[0] if self is Exponents.FIRST else operands[-1]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Softmax(Composite):
  """exp(x_i) / sum_j exp(x_j) over each group; with a mask, j runs over the elements it keeps.

  x_i / (x_i + rest) with exp(x) in place of x increases in element i and decreases in the
  others, so each end is reached at a corner: the bounds are exact. Shifts of a whole group cancel
  and are left out.

  Attributes:
    groups: the elements that sum to 1.
    masked: whether the elements that the mask removes are 0 themselves.
    exponents: where what goes into exp is to be found, which is to be seen whether it can be computed (`Exponents`).
  """
  groups: Groups
  masked: bool
  exponents: Exponents

  def __call__(self, x, *others):
    mask = self._mask([x, *others])
    a = self.groups.into(x)
    e = jnp.exp(a - lax.stop_gradient(jnp.max(a, self.groups.axes, keepdims=True)))
    kept = e if mask is None else jnp.where(self.groups.into(mask), e, 0)
    return self.groups.back((kept if self.masked else e) / jnp.sum(kept, self.groups.axes, keepdims=True))

  def image(self, operands, u):
    x, mask = operands[0], self._mask(operands)
    odds = _log_odds(self.groups, x, mask)
    # exp(x - m) has the relative error |x - m| u; where that is large, the value is below the smallest float.
    slack = gamma(4 * self.groups.count + 1024, u) + 2 * _of_shift(self.groups, self.exponents, operands, u)
    slack = jnp.minimum(slack, 1e3)  # of elements that may be infinite, where `odds` are
    tiny: Any = u and 4 * float(jnp.finfo(odds.dtype).tiny)
    if u and self.exponents is not Exponents.SAFE:  # a term that vanishes, over a sum that is itself small
      own = self.groups.into(self.exponents.among(operands).lower)
      own = own if mask is None else jnp.where(self.groups.into(mask), own, -jnp.inf)
      tiny = tiny * jnp.exp(jnp.clip(-jnp.max(own, self.groups.axes, keepdims=True), 0, 88))
    if mask is None:
      lower, upper = jax.nn.sigmoid(odds.lower), jax.nn.sigmoid(odds.upper)
      lower, upper = jnp.maximum(lower * (1 - slack) - tiny, 0), jnp.minimum(upper * (1 + slack) + tiny, 1)
    else:  # what the mask removes is not a part of the sum that it is divided by
      kept = self.groups.into(mask)
      out_of_it = (lambda t: jnp.zeros_like(t)) if self.masked else (lambda t: jnp.exp(jnp.where(kept, 0, t)))
      lower, upper = (jnp.where(kept, jax.nn.sigmoid(t), out_of_it(t)) for t in (odds.lower, odds.upper))
      lower, upper = jnp.maximum(lower * (1 - slack) - tiny, 0), upper * (1 + slack) + tiny
      empty = ~jnp.any(kept, self.groups.axes, keepdims=True)  # 0 / 0
      lower, upper = jnp.where(empty, -jnp.inf, lower), jnp.where(empty, jnp.inf, upper)
    if u and self.exponents is not Exponents.SAFE:
      computed = _exp_is_kept(self.groups, self.exponents.among(operands), mask, self.masked) & (slack < .5)
      lower, upper = jnp.where(computed, lower, -jnp.inf), jnp.where(computed, upper, jnp.inf)
    return Interval(self.groups.back(lower), self.groups.back(upper))

  def _mask(self, operands):
    own = operands[1:-1] if self.exponents is Exponents.LAST else operands[1:]
    return own[0] if own else None

  def curvature(self, operands):
    x, mask = operands[0], self._mask(operands)
    if mask is not None and not self.masked:
      return None
    into, axes = self.groups.into, self.groups.axes
    box = self.image(operands, 0.)
    low, high = into(box.lower), into(box.upper)
    r = into(radius(x))
    if mask is not None:
      r = jnp.where(into(mask), r, 0)
    # s_i ((d_i - <s, d>)^2 - the variance of d), where d_i - <s, d> = (1 - s_i) d_i - sum of s_j d_j over the others.
    others = jnp.minimum(rest(high * r, axes), (1 - low) * jnp.max(r, axes, keepdims=True))
    apart = (1 - low) * r + others
    return Interval(self.groups.back(-high * _variance(high, r, axes) / 2),
                    self.groups.back(high * apart * apart / 2))


def _variance(weights: Any, r: Any, axes: tuple[int, ...]) -> Any:
  """The greatest variance of d under weights of sum 1 of at most `weights`, for |d| <= r."""
  squares = jnp.sum(times(weights, r * r), axes, keepdims=True)
  return jnp.minimum(squares, jnp.max(r, axes, keepdims=True) ** 2)


def _variance_of_exponents(groups: Groups, x: Interval) -> Any:
  """The greatest variance over each group of a step within the box, under softmax weights."""
  high = groups.into(Softmax(groups, False, Exponents.SAFE).image([x], 0.).upper)
  return _variance(high, groups.into(radius(x)), groups.axes)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogSoftmax(Composite):
  """x_i - log sum_j exp(x_j) over each group: -log(1 + sum of exp(x_j - x_i)), monotone like softmax. Exact."""
  groups: Groups
  exponents: Exponents

  def __call__(self, x, *others):
    return self.groups.back(jax.nn.log_softmax(self.groups.into(x), self.groups.axes))

  def image(self, operands, u):
    odds = _log_odds(self.groups, operands[0])
    out = Interval(jax.nn.log_sigmoid(odds.lower), jax.nn.log_sigmoid(odds.upper))
    if u:
      out = widened(out, 8 * u * (finite(largest(out)) + 16) + gamma(4 * self.groups.count + 16, u))
      out = widened(Interval(out.lower, jnp.minimum(out.upper, 0)), _of_shift(self.groups, self.exponents, operands, u))
    if u and self.exponents is not Exponents.SAFE:
      own = self.exponents.among(operands)
      out = widened(out, 8 * u * jnp.max(self.groups.into(finite(largest(own))), self.groups.axes, keepdims=True))
      computed = _exp_is_kept(self.groups, own)
      out = unbounded(out, ~computed)
    return Interval(self.groups.back(out.lower), self.groups.back(out.upper))

  def curvature(self, operands):
    most = self.groups.back(jnp.broadcast_to(_variance_of_exponents(self.groups, operands[0]) / 2,
                                             self.groups.into(operands[0].lower).shape))
    return Interval(-most, jnp.zeros_like(most))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogSumExp(Composite):
  """log sum_j exp(x_j) over each group: increasing in every element, hence exact on the ends.

  Attributes:
    groups: the elements that are summed.
    leave: the moves of the sums.
    exponents: as in `Softmax`.
  """
  groups: Groups
  leave: Callable[[Any], Any]
  exponents: Exponents

  def __call__(self, x, *others):
    return self.leave(jax.nn.logsumexp(self.groups.into(x), self.groups.axes))

  def image(self, operands, u):
    x = operands[0]
    out = Interval(self(x.lower), self(x.upper))
    if not u:
      return out
    out = widened(out, 8 * u * (finite(largest(out)) + 8) + gamma(4 * self.groups.count, u))
    if self.exponents is Exponents.SAFE:
      return out
    own = self.exponents.among(operands)
    off = _of_shift(self.groups, self.exponents, operands, u)
    out = widened(out, self.leave(jnp.squeeze(off, self.groups.axes)))
    computed = self.leave(_exp_is_kept(self.groups, own).all(self.groups.axes))
    return unbounded(out, ~computed)

  def curvature(self, operands):
    most = self.leave(jnp.squeeze(_variance_of_exponents(self.groups, operands[0]) / 2, self.groups.axes))
    return Interval(jnp.zeros_like(most), most)


OF_EXPONENTS = (Softmax, LogSoftmax, LogSumExp)  # what takes exp: of known elements -inf too, which masks put there


def _of_shift(groups: Groups, exponents: Exponents, operands: Sequence[Any], u: float) -> Any:
  """How far exponents may be off because the shift of their group is rounded, perhaps anew wherever it is used.

  An array that has 1 in the place of the elements of a group, or 0 for u = 0. The greatest element of a group is an
  element, but what it is subtracted from may be a product that is not rounded any more: compilers join a * b - m to one
  operation. Both differ by u |m|; elements far below vanish.
  """
  if not u:
    return 0.
  if exponents is not Exponents.LAST:
    tops = [jnp.max(groups.into(end), groups.axes, keepdims=True) for end in (operands[0].lower, operands[0].upper)]
    return 8 * u * jnp.maximum(*map(jnp.abs, tops))
  size = groups.into(finite(largest(operands[0])) + finite(largest(operands[-1])))
  return 8 * u * (groups.count + 8) * jnp.max(size, groups.axes, keepdims=True)


def _exp_is_kept(groups: Groups, x: Interval, mask: Any = None, masked: bool = False) -> Any:
  """Whether exp(x) and its sum over each group can be computed: they neither overflow nor vanish altogether.

  With a mask, the sum is that of the elements that it keeps, and the others do not matter if they are `masked`.
  """
  info, count = jnp.finfo(x.dtype), groups.count
  lower, upper = groups.into(x.lower), groups.into(x.upper)
  if mask is not None:
    kept = groups.into(mask)
    lower, upper = jnp.where(kept, lower, -jnp.inf), jnp.where(kept | (not masked), upper, -jnp.inf)
  highest = jnp.max(upper, groups.axes, keepdims=True)
  lowest = jnp.max(lower, groups.axes, keepdims=True)
  return (highest < math.log(float(info.max) / count) - 1) & (lowest > math.log(float(info.tiny)) + 1)


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
  infinite = x == jnp.inf
  others_infinite = jnp.sum(infinite, axes, keepdims=True) > infinite.astype(int)
  x = jnp.where(infinite, -jnp.inf, x)

  def logarithm(total):
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)

  def shifted(x):
    top = lax.stop_gradient(finite(jnp.max(x, axes, keepdims=True)))
    return top, jnp.exp(x - top)
  first, e = shifted(x)
  rest = logarithm(jnp.sum(e, axes, keepdims=True) - e)
  greatest = x == jnp.max(x, axes, keepdims=True)
  alone = greatest & (jnp.sum(greatest, axes, keepdims=True) == 1)
  second, e = shifted(jnp.where(alone, -jnp.inf, x))
  others = logarithm(jnp.sum(e, axes, keepdims=True))
  return jnp.where(alone, second, first), jnp.where(others_infinite, jnp.inf, jnp.where(alone, others, rest))


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
    spacing: the distance of the least numbers that the weights are rounded to, below which roundoff is not relative.
  """
  eqn: Any
  slot: int
  unit: float
  narrowed: float
  spacing: float

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

  def _restore(self, reduced: Any) -> Any:
    """The inverse of `_arrange`: one number for each group of averaged values, in the layout of the values."""
    values = self.eqn.inputs[1 - self.slot]
    vc, vb = (d[1 - self.slot] for d in self.eqn.params['dimension_numbers'])
    free = [i for i in range(len(values.shape)) if i not in (*vc, *vb)]
    order = (*vb, *free, *vc)
    flat = jnp.reshape(reduced, [1 if i in vc else values.shape[i] for i in order])
    return jnp.transpose(flat, tuple(map(int, np.argsort(order))))

  def _parts(self, operands):
    """(centre, radius) of the weights and of the values, and t, one number for each group of values."""
    p, v = (as_interval(operands[i]) for i in (self.slot, 1 - self.slot))
    (pc, pr), (vc, vr) = centre_radius(p), centre_radius(v)
    numbers, batch = self.eqn.params['dimension_numbers']
    queries = [i for i in range(p.ndim) if i not in (*numbers[self.slot], *batch[self.slot])]
    open_ = jnp.sum(pr, axis=queries, keepdims=True)  # t near the values whose weights are uncertain
    whole = self._dot(open_, jnp.ones_like(vc))
    base = jnp.where(whole > 0, self._dot(open_, vc) / jnp.where(whole > 0, whole, 1), 0)
    return (pc, pr), (vc, vr), jnp.where(jnp.isfinite(base), base, 0).astype(vc.dtype)

  def _slack(self, v: Interval, u: float) -> Any:
    """What the weights may lack of the sum 1, times the values, and what products of both may lose by vanishing."""
    axes = self.eqn.params['dimension_numbers'][0][1 - self.slot]
    terms = int(np.prod([self.eqn.inputs[1 - self.slot].shape[i] for i in map(int, axes)], dtype=np.int64))
    lost = 8 * gamma(terms + 8, max(u, self.unit)) if u else 2 * self.narrowed
    lost += terms * self.spacing if u or self.narrowed else 0
    if not lost:
      return 0.
    lost = lost if lost < float(jnp.finfo(v.dtype).max) else math.inf
    off = times(jnp.asarray(lost, v.dtype), self._arrange(largest(v), jnp.max)).astype(self.eqn.outputs[0].dtype)
    return off + (u and 4 * terms * least_kept(off.dtype) + 16 * least_kept(v.dtype))

  def image(self, operands, u):
    v = as_interval(operands[1 - self.slot])
    (pc, pr), (vc, vr), base = self._parts(operands)
    apart = vc - self._restore(base)
    centre = self._dot(pc, apart)
    radius = self._dot(jnp.abs(pc), vr) + self._dot(pr, jnp.abs(apart) + vr)
    radius = jnp.where(jnp.isnan(radius), jnp.inf, radius)
    centre += base.astype(centre.dtype)
    out = Interval(centre - radius, centre + radius)
    slack = jnp.asarray(self._slack(v, u), out.dtype)
    out = widened(out, slack)
    return Interval(jnp.maximum(out.lower, self._arrange(v.lower, jnp.min).astype(out.dtype) - slack),
                    jnp.minimum(out.upper, self._arrange(v.upper, jnp.max).astype(out.dtype) + slack))

  def linearised(self, operands):
    p, v = (operands[i] for i in (self.slot, 1 - self.slot))
    (pc, pr), (vc, vr), base = self._parts(operands)
    apart = vc - self._restore(base)
    moving = [x for x, perturbed in (('p', is_set(p)), ('v', is_set(v))) if perturbed]
    order = moving if self.slot == 0 else moving[::-1]

    def push(*xs):
      given = dict(zip(order, xs))
      return sum(self._dot(given['p'], apart) if name == 'p' else self._dot(pc, given['v']) for name in moving)
    # t + <p, v - t> = t + <c, v - t> + <p - c, e - t> + <p - c, v - e>, c and e being the centres
    centre = self._dot(pc, jnp.broadcast_to(self._restore(base), vc.shape))
    offset = base.astype(centre.dtype) - centre
    if is_set(p):
      offset -= self._dot(pc, apart)
    if not is_set(v):
      offset += self._dot(pc, vc)
    left = self._dot(pr, vr) + jnp.asarray(self._slack(as_interval(v), 0.), offset.dtype)
    left = jnp.where(jnp.isnan(left), jnp.inf, left)
    return push, Interval(offset - left, offset + left)
