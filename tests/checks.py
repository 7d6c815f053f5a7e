"""What the laws are made of: samples of a box, containment, shrinking."""
import jax
import jax.numpy as jnp
import numpy as np

from ibpjax import Interval


def is_interval(x):
  return isinstance(x, Interval)


def leaves(tree):
  return jax.tree.leaves(tree, is_leaf=is_interval)


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
  return jnp.asarray(np.clip(np.where(t == 1, upper, points), lower, upper).astype(lower.dtype))


def jacobian(f):
  """The derivative of all float outputs of a function of one array, flattened: (outputs, *shape)."""
  def flat(x):
    out = [jnp.ravel(y) for y in jax.tree.leaves(f(x)) if jnp.issubdtype(y.dtype, jnp.floating)]
    return jnp.concatenate([*out, jnp.zeros(0)])
  return jax.jacfwd(flat)


def extremal(f, box, count, jac=None):
  """Samples of a box, and the corners at which the gradients of the outputs point: near the range of each."""
  signs = np.sign(np.asarray((jac or jax.jit(jacobian(f)))(box.centre)))
  corners = box.centre[None] + jnp.asarray(np.concatenate([signs, -signs])) * box.radius[None]
  return jnp.concatenate([samples(box, count), corners])


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
