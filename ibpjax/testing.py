"""Laws of bounds for functions of your own, as `jax.test_util.check_grads` is for gradients.

`check_elementwise` is for whoever registers an activation, `check_rule` for whoever adds a primitive or doubts a
bound.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibpjax.core.sets import Interval, is_set
from ibpjax.methods.crown import crown
from ibpjax.methods.ibp import ibp
from ibpjax.methods.lbp import lbp
from ibpjax.methods.linear_bounds import linear_bounds

_RELATIVE = 1e-9   # what float64 may lose in a handful of operations
_SHARES = 1., .1, 1e-3, 0.   # of the box that is given


def check_elementwise(fn: Callable, *known: Any, low: float = -3., high: float = 3., boxes: int = 60,
                      points: int = 400, loosest: float = 2., seed: int = 0) -> None:
  """Checks the row of a function registered with `ibpjax.elementwise`: ranges, lines of any slope, accuracy.

  Boxes of many sizes are drawn from [low, high]. Over each, sampled values lie in the range that the row gives, and so
  do those of fn(x) - k x for slopes k of the function and others. At points, values in float32, and those in float64 of
  the same points, lie within the accuracy that the row states for float32; where it states none, that is left out. What
  it states for float64 takes arithmetic of more digits to check.

  Args:
    fn: the registered function, (x, *known) -> an array of the shape of x.
    known: its other arguments, numbers.
    low, high: where it is finite. Take kinks, poles and what is far out inside.
    boxes, points: how many boxes, and samples of each.
    loosest: greatest width of a bound over that of the sampled values.
    seed: of the samples.

  Raises:
    AssertionError: a law is broken; names the law, the box, the point and the value.
    ValueError: fn is not finite on [low, high].
  """
  rng, name = np.random.default_rng(seed), getattr(fn, '__name__', 'the function')
  with jax.enable_x64(True):
    ends = rng.uniform(low, high, (2, boxes))
    width = 10. ** rng.uniform(-4, 0, boxes) * (ends.max(0) - ends.min(0))
    l = np.concatenate([ends.min(0), [low]])
    u = np.concatenate([np.minimum(l[:-1] + width, high), [high]])
    x = l + (u - l) * np.concatenate([np.linspace(0, 1, points), rng.uniform(size=points)])[:, None]
    f = jax.jit(lambda x: fn(x, *known))
    values = np.asarray(f(jnp.asarray(x)))
    if not np.isfinite(values).all():
      at = float(x[~np.isfinite(values)][0])
      raise ValueError(f'{name} is not finite at {at:g}: give low and high between which it is')
    box = Interval(jnp.asarray(l), jnp.asarray(u))
    _inside(f'the range of {name}', ibp(lambda x: fn(x, *known))(box), x, values, box, loosest)

    @jax.jit
    @jax.vmap
    def enclosed(box, k):
      lines = lambda fn, l, u, points=(): (k, k)
      planes = linear_bounds(lambda x: fn(x, *known), lines=lines)(box)
      return [(side.coeffs[0], side.bias) for side in (planes.lower, planes.upper)]
    steps = np.diff(values[:points], axis=0) / np.maximum(np.diff(x[:points], axis=0), 1e-300)
    slopes = [steps[i] for i in rng.integers(0, points - 1, 4)] + [np.full(len(l), k) for k in rng.normal(size=2)]
    for k in slopes:
      (a, least), (b, most) = jax.device_get(enclosed(box, jnp.asarray(k)))
      if not (np.isfinite(least).all() and np.isfinite(most).all()):
        raise AssertionError(f'{name} has no line of a slope of its own over some box: its points of that slope are '
                             'NaN or infinite')
      _inside(f'the line below {name}', Interval(least, np.full(len(l), np.inf)), x, values - a * x, box, None)
      _inside(f'the line above {name}', Interval(np.full(len(l), -np.inf), most), x, values - b * x, box, None)
  _check_accuracy(name, fn, known, np.concatenate([rng.choice(x.ravel(), 4000), ends.ravel()]))


def _check_accuracy(name: str, fn: Callable, known: Sequence[Any], x: np.ndarray) -> None:
  """Whether values of float32, computed in both precisions, lie in the bounds of the points at which they are taken."""
  with jax.enable_x64(True):
    at, own = x.astype(np.float32), [np.asarray(k, np.float32) for k in known]   # known numbers as they are in float32
    f = lambda x: fn(x, *(jnp.asarray(k, x.dtype) for k in own))
    box = Interval(jnp.asarray(at), jnp.asarray(at))
    try:
      found = jax.jit(ibp(f, round_outward=True))(box)
    except NotImplementedError:  # it states no accuracy
      return
    values = np.stack([np.asarray(jax.jit(f)(box.lower)), np.asarray(jax.jit(f)(jnp.asarray(at, np.float64)))])
    _inside(f'the accuracy of {name} in float32', found, at[None], values, box, None, relative=0.)


def check_rule(f: Callable, box: Interval, *, points: int = 1000, loosest: float = 10., seed: int = 0) -> None:
  """Checks the bounds of a function over a box and over boxes inside of it, by every method that has a rule for it.

  Sampled values lie inside of the bounds by `ibp`, `crown` and `lbp`, and, with outward rounding, those in float32 too;
  the box of a point gives the value; a box inside of another has no wider bounds by `ibp`; and no bound of a small box
  is more than `loosest` times as wide as what samples reach.

  Args:
    f: a function of one array, on one example.
    box: of its argument, concrete; f is finite on it.
    points: samples of each box.
    loosest: as said; infinite for bounds that are known to be loose.
    seed: of the samples.

  Raises:
    AssertionError: a law is broken; names the law, the box and the value.
  """
  rng, name = np.random.default_rng(seed), getattr(f, '__name__', 'the function')
  lower, upper = np.asarray(box.lower, np.float64), np.asarray(box.upper, np.float64)
  share = rng.uniform(size=(points, *lower.shape))
  share = np.where(rng.uniform(size=share.shape) < .5, share, np.round(share))   # faces
  with jax.enable_x64(True):
    values_of, signs = jax.jit(jax.vmap(f)), jax.jit(functools.partial(_signs, f))
    for method in (ibp, crown, lbp):
      bounds, before = jax.jit(method(f)), None
      for size in _SHARES:
        centre = lower + (upper - lower) * rng.uniform(size=lower.shape) * (size < 1)
        l = np.clip(centre, lower, upper) if size < 1 else lower
        u = np.minimum(l + size * (upper - lower), upper)
        inner = Interval(jnp.asarray(l), jnp.asarray(u))
        x = np.concatenate([l + (u - l) * share, _corners(signs, l, u)])
        found, values = bounds(inner), values_of(jnp.asarray(x))
        limit = loosest if 0 < size < .01 else None
        for b, v in _pairs(found, values):
          relative = _RELATIVE if method is ibp else 1e-7
          _inside(f'{method.__name__} of {name}', b, None, v, inner, limit, relative)
          if size == 0.:
            _same(f'{method.__name__} of {name}', b, v[0])
        if method is ibp and before is None:
          before = found
        elif method is ibp:
          _within(name, found, before)
  _check_rounding(name, f, Interval(lower, upper), share)


def _pairs(one: Any, other: Any) -> list[tuple[Any, Any]]:
  """The leaves of two trees side by side: Intervals, and arrays of NumPy."""
  leaves = [[x if is_set(x) else np.asarray(x) for x in jax.tree.leaves(tree, is_leaf=is_set)] for tree in (one, other)]
  return list(zip(*leaves, strict=True))


def _signs(f: Callable, x: Any) -> Any:
  """The signs of the derivatives of the first results."""
  def flat(x):
    return jnp.concatenate([jnp.ravel(y).astype(x.dtype) for y in jax.tree.leaves(f(x))])[:64]
  return jnp.sign(jax.jacrev(flat)(x))


def _corners(signs: Callable[[Any], Any], l: np.ndarray, u: np.ndarray) -> np.ndarray:
  """Corners of a box that sums reach their ends in: its ends, and those to which some results rise and fall."""
  corners = [np.where(way * sign > 0, u, l) for sign in np.asarray(signs(jnp.asarray(l + (u - l) / 2)))
             for way in (1, -1)]
  return np.stack([l, u, *corners])


def _check_rounding(name: str, f: Callable, box: Interval, share: np.ndarray) -> None:
  """Whether values in float32 and float64 lie in the bounds that allow for rounding."""
  with jax.enable_x64(True):
    l, u = np.asarray(box.lower, np.float32), np.asarray(box.upper, np.float32)
    x = np.clip((l + (u - l) * share).astype(np.float32), l, u)
    inner = Interval(jnp.asarray(l), jnp.asarray(u))
    values = jax.jit(jax.vmap(f))
    for method in (ibp, crown, lbp):
      try:
        found = jax.jit(method(f, round_outward=True))(inner)
      except NotImplementedError:  # a registered function that states no accuracy
        return
      for given in (x, x.astype(np.float64)):
        for b, v in _pairs(found, values(jnp.asarray(given))):
          what = f'{method.__name__} of {name} with outward rounding'
          _inside(what, b, None, v, inner, None, relative=0.)


def _inside(what: str, bound: Interval, x: np.ndarray | None, values: np.ndarray, box: Interval, loosest: float | None,
            relative: float = _RELATIVE) -> None:
  """Raises unless all values (leading axis: samples) lie in the bound, and it is no wider than they let it be."""
  lower, upper = np.asarray(bound.lower), np.asarray(bound.upper)
  if values.dtype == bool:
    outside = (values < lower) | (values > upper)
  else:
    slack = relative * (1 + np.max(np.abs(values), axis=0, initial=0))
    outside = ~((values >= lower - slack) & (values <= upper + slack))   # NaN is outside
  if outside.any():
    place = tuple(int(i) for i in np.argwhere(outside)[0])
    element = place[1:]
    raise AssertionError(f'{what} is wrong: the value {values[place]!r} {_where(x, place, box)}lies outside of the '
                         f'bound [{lower[element]!r}, {upper[element]!r}]. A stationary point, a kink or a rounding is '
                         'missing in its row, or a sign is wrong')
  if loosest is not None and values.dtype != bool:
    reached = np.ptp(values, axis=0)
    wide = (upper - lower) > loosest * reached + 1e-9 * (1 + np.max(np.abs(values), axis=0))
    if wide.any():
      element = tuple(int(i) for i in np.argwhere(wide)[0])
      raise AssertionError(f'{what} is loose: samples of the box reach {reached[element]:g}, and the bound '
                           f'[{lower[element]!r}, {upper[element]!r}] is more than {loosest:g} times as wide')


def _where(x: np.ndarray | None, place: Sequence[int], box: Interval) -> str:
  """The point of a function of each element of `x`; nothing for others."""
  if x is None:
    return ''
  l, u = (float(np.asarray(end)[tuple(place[1:])]) for end in (box.lower, box.upper))
  return f'at x = {float(x[place[0] % len(x)][tuple(place[1:])])!r} in the box [{l!r}, {u!r}] '


def _same(what: str, bound: Interval, value: np.ndarray) -> None:
  if value.dtype == bool:
    return
  off = max(np.max(np.abs(np.asarray(end) - value), initial=0) for end in (bound.lower, bound.upper))
  if not off <= 1e-6 * (1 + np.max(np.abs(value), initial=0)):
    raise AssertionError(f'{what} is loose: over the box of a point the bound is {off:g} away from the value there')


def _within(name: str, inner: Any, outer: Any) -> None:
  for a, b in _pairs(inner, outer):
    if a.dtype == jnp.bool_:
      continue
    slack = 1e-9 * (1 + np.maximum(np.abs(b.lower), np.abs(b.upper)))
    if not (np.all(a.lower >= b.lower - slack) and np.all(a.upper <= b.upper + slack)):
      raise AssertionError(f'ibp of {name} is not monotone: over a box inside of another the bounds are wider')
