"""Whether float bounds hold what a program is: its exact values, and those that it computes."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from checks import leaves, samples
from interpreted import interpreted


@functools.lru_cache(maxsize=1)
def jacobians(f):
  """Points -> the derivatives of all outputs, flattened."""
  def flat(x):
    return jnp.concatenate([jnp.ravel(y) for y in jax.tree.leaves(f(x))])
  return interpreted(jax.vmap(jax.jacfwd(flat)))


@functools.lru_cache(maxsize=1)
def ways(f):
  """How values are computed at many points."""
  many = jax.vmap(f)
  return {'exact': interpreted(many), 'computed': many, 'compiled': jax.jit(many)}


def attacked(f, box, count, seed):
  """Points of a box: within it, at its corners, and at the corners to which gradients of the outputs point."""
  points = samples(box, count, seed)
  starts = points[:: max(1, len(points) // 4)]
  signs = np.nan_to_num(np.sign(jacobians(f)(starts))).reshape(-1, *box.shape)
  lower, upper = np.asarray(box.lower), np.asarray(box.upper)
  corners = np.where(np.concatenate([signs, -signs]) > 0, upper, lower)
  return jnp.concatenate([points, jnp.asarray(corners)])


def escapes(f, bounds, box, points):
  """What bounds in float32 exclude: name -> [(output, point, value, how it was computed)], one for each way at most.

  Float64 stands for exact arithmetic, up to its own rounding at the sizes that float32 can have. A value that is NaN
  in float32 lies in no interval but the whole line; one that is NaN in float64 is not defined.

  Args:
    f: a function of one array.
    bounds: name -> tree of Intervals, its bounds over the box by some method.
    box: of float32.
    points: (count, *shape), of the box.
  """
  runs = {how: run(points.astype(jnp.float64) if how == 'exact' else points) for how, run in ways(f).items()}
  found = {name: [] for name in bounds}
  for how, values in runs.items():
    for name, tree in bounds.items():
      for k, (bound, value) in enumerate(zip(leaves(tree), jax.tree.leaves(values), strict=True)):
        lower, upper, value = (np.asarray(a, np.float64) for a in (bound.lower, bound.upper, value))
        slack = 1e-13 * np.abs(value) if how == 'exact' else 0.
        with np.errstate(invalid='ignore'):
          inside = (value >= lower - slack) & (value <= upper + slack)
        fine = inside | ((lower == -np.inf) & (upper == np.inf)) | (np.isnan(value) & (how == 'exact'))
        if not fine.all():
          at = np.argwhere(~fine)[0]
          found[name].append((k, np.asarray(points)[at[0]].tolist(), float(value[tuple(at)]), how))
  return found
