"""What the laws are made of: samples of a box, containment, shrinking."""
import jax
import numpy as np
import pytest

from ibpjax import Interval


def is_interval(x):
  return isinstance(x, Interval)


def leaves(tree):
  return jax.tree.leaves(tree, is_leaf=is_interval)


def waiting(names, slow) -> list:
  """Names as parameters of a test; those in `slow` wait for `make test-all`."""
  return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


def box_around(x, radius):
  return Interval(x - radius, x + radius)


def samples(box, n, seed=0):
  """(n + 3, *shape): interior points, corners, points with coordinates of both kinds, both ends, the centre."""
  rng = np.random.default_rng(seed)
  shape = (n // 3, *box.shape)
  inner, corners = rng.uniform(size=shape), rng.integers(0, 2, shape)
  mixed = np.where(rng.uniform(size=shape) < .5, rng.uniform(size=shape), rng.integers(0, 2, shape))
  ends = [np.full((1, *box.shape), v) for v in (0., 1., .5)]
  t = np.concatenate([inner, corners, mixed, *ends])
  lower, upper = np.asarray(box.lower), np.asarray(box.upper)
  points = lower + (upper - lower) * t
  return np.clip(np.where(t == 1, upper, points), lower, upper).astype(lower.dtype)


def in_batches(f, size=2048, run=jax.jit):
  """Points (leading axis) -> what a function of one array is at each: compiled once, however many points there are."""
  batch = run(jax.vmap(f))

  def values(points):
    padded = np.concatenate([points, np.repeat(points[-1:], -len(points) % size, 0)])
    parts = [jax.device_get(batch(padded[i:i + size])) for i in range(0, len(padded), size)]
    return jax.tree.map(lambda *ys: np.concatenate(ys)[:len(points)], *parts)
  return values


def differences(values, x, step):
  """(outputs, *shape): by how much all float outputs, flattened, differ along each axis, a step on either side of x."""
  x, step = np.asarray(x), np.asarray(step)
  moves = np.eye(x.size).reshape(x.size, *x.shape) * step
  out = leaves(values(np.concatenate([x + moves, x - moves])))
  out = [y.reshape(2 * x.size, -1) for y in out if np.issubdtype(y.dtype, np.floating)]
  up, down = np.split(np.concatenate([*out, np.zeros((2 * x.size, 0))], axis=1), 2)
  return (up - down).T.reshape(-1, *x.shape)


def at(affine, points):
  """The values of an affine function of one array at many; NumPy compiles nothing."""
  a, axes = np.asarray(affine.coeffs[0]), points.ndim - 1
  return np.asarray(affine.bias) + np.tensordot(points, a, (range(1, axes + 1), range(a.ndim - axes, a.ndim)))


def extremal(values, box, count):
  """Samples of a box, and the corners to which each output falls or rises along every axis: near the range of each."""
  signs = np.sign(differences(values, box.centre, box.radius))
  corners = np.asarray(box.centre) + np.concatenate([signs, -signs]) * np.asarray(box.radius)
  return np.concatenate([samples(box, count), corners])


def holds(bounds, values, relative=1e-11):
  """Whether every sampled value (leading axis) lies in the bounds, NaN being failure."""
  return all(inside(b, v, relative).all() for b, v in zip(leaves(bounds), leaves(values), strict=True))


def inside(bound, values, relative=1e-11):
  """Where sampled values (leading axis) lie in an interval, up to rounding."""
  lower, upper, v = np.asarray(bound.lower), np.asarray(bound.upper), np.asarray(values)
  if v.dtype == bool:
    return (v >= lower) & (v <= upper)
  scale = 1 + np.abs(v) + np.max(np.abs(v), axis=0, keepdims=True)
  slack = relative * np.where(np.isfinite(scale), scale, 0)
  return (v >= lower - slack) & (v <= upper + slack)


def shrunk(bounds, by=.01):
  """The same bounds, each drawn `by` of its width towards its middle: wrong wherever they were exact."""
  def shrink(b):
    return b if b.lower.dtype == bool else Interval(b.lower + by / 2 * b.width, b.upper - by / 2 * b.width)
  return jax.tree.map(shrink, bounds, is_leaf=is_interval)


def widest_ratio(bounds, values):
  """The greatest width of a bound over the range sampled for it, where that range is not a point."""
  worst = 0.
  for b, v in zip(leaves(bounds), leaves(values), strict=True):
    if b.lower.dtype == bool:
      continue
    reached = np.ptp(np.asarray(v), axis=0)
    width = np.asarray(b.upper) - np.asarray(b.lower)
    scale = 1e-12 * (1 + np.abs(np.asarray(b.upper)))
    worst = max(worst, float(np.max(np.where(reached > scale, width / np.maximum(reached, 1e-300), 0), initial=0)))
  return worst


def contains(outer, inner, slack=1e-11):
  """Whether each interval of `outer` contains that of `inner`."""
  for a, b in zip(leaves(outer), leaves(inner), strict=True):
    if a.lower.dtype == bool:
      if not (np.all(a.lower <= b.lower) and np.all(a.upper >= b.upper)):
        return False
      continue
    scale = slack * (1 + np.maximum(np.abs(a.lower), np.abs(a.upper)))
    scale = np.where(np.isfinite(scale), scale, 0)
    if not (np.all(a.lower - scale <= b.lower) and np.all(a.upper + scale >= b.upper)):
      return False
  return True
