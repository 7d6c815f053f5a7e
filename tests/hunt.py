"""A hunt for wrong bounds: random programs, each under six methods, attacked; what escapes is printed.

    python tests/hunt.py --programs=1000 --seed=0

Half of the programs run in float64 without an allowance for rounding, at moderate sizes; half in float32 with it, at
any size. Slopes are drawn too, those of no use among them. Bounds are computed operation by operation, in float64 by
NumPy, in float32 by JAX, which rounds and flushes as users' programs do; tests compile them.
"""
import argparse
import collections
import json
import time

import conftest  # noqa: F401  sets what JAX reads when it is imported
import jax
import jax.numpy as jnp
import numpy as np
from checks import inside, leaves
from interpreted import interpreted
from programs import BINARY, LINES, OPERATIONS, RADII, SIZE, UNARY, program
from weighing import attacked, escapes

import ibpjax

METHODS = {
    'ibp': lambda f, lines, outward: ibpjax.ibp(f, elide=True, round_outward=outward),
    'crown-ibp': lambda f, lines, outward: ibpjax.crown(f, intermediate='ibp', lines=lines, round_outward=outward),
    'lbp': lambda f, lines, outward: ibpjax.lbp(f, lines=lines, round_outward=outward),
    'crown-lbp': lambda f, lines, outward: ibpjax.crown(f, intermediate='lbp', lines=lines, round_outward=outward),
    'crown': lambda f, lines, outward: ibpjax.crown(f, lines=lines, round_outward=outward),
    'zonotope': lambda f, lines, outward: ibpjax.zonotope(f, round_outward=outward),
}
POINTS = 200
LONG = 64


def traced(make_jaxpr):
  """`jax.make_jaxpr` as it is where functions are compiled: loops and calls stay whole."""
  def made(f, **options):
    inner = make_jaxpr(f, **options)

    def run(*args):
      with jax.disable_jit(False):
        return inner(*args)
    return run
  return made


def whole(loop, place):
  """A loop over arrays, the operand at a place, compiled if it is long: elsewhere each of its slices would be."""
  def run(*args, **options):
    over = jax.tree.leaves(args[place:])
    with jax.disable_jit(jax.config.jax_disable_jit and not (over and np.shape(over[0])[0] > LONG)):
      return loop(*args, **options)
  return run


def drawn(rng, names):
  """Steps of a program."""
  return [(str(rng.choice(names)), *map(int, rng.integers(0, 11, 2)), int(rng.integers(0, 3)))
          for _ in range(rng.integers(1, 4))]


def moderate(rng):
  """A program in float64, its box, and whether rounding counts."""
  x = jnp.asarray(rng.normal(size=SIZE))
  radius = float(rng.choice([1e-3, .125, .6, 2.]))
  return drawn(rng, [*UNARY, *BINARY]), ibpjax.Interval(x - radius, x + radius), False


def extreme(rng):
  """The same in float32, at any size."""
  scale = 10. ** rng.uniform(-44, 38) if rng.uniform() < .5 else 1.
  x = jnp.asarray(np.clip(rng.normal(size=SIZE) * scale, -3e38, 3e38), jnp.float32)
  radius = min(float(rng.choice(RADII)) * scale, 1e37)
  return drawn(rng, [*OPERATIONS, *BINARY]), ibpjax.linf_ball(x, radius, -3e38, 3e38), True


def weighed(f, box, outward, lines, seed):
  """(method, what it excludes) for each method that a program has, and how many points were tried."""
  bounds = {}
  for name, method in METHODS.items():
    try:
      bound = method(f, lines, outward)
      with jax.disable_jit(outward):
        bounds[name] = (bound if outward else interpreted(bound))(box)
    except NotImplementedError as e:
      bounds[name] = e
  usable = {name: b for name, b in bounds.items() if not isinstance(b, Exception)}
  found, points = [], attacked(f, box, POINTS, seed)
  if outward:
    out = escapes(f, usable, box, points)
    found = [(name, what) for name, what in out.items() if what]
  else:
    values = jax.vmap(f)(points)
    for name, bound in usable.items():
      if not all(inside(b, v).all() for b, v in zip(leaves(bound), leaves(values), strict=True)):
        found.append((name, 'float64'))
  infinite = sum(bool(np.isinf(b.lower).all() and np.isinf(b.upper).all()) for bound in usable.values()
                 for b in leaves(bound)[:1])
  return found, len(points), len(usable), infinite


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--programs', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--minutes', type=float, default=1e9, help='stop after so many')
  options = parser.parse_args()
  jax.make_jaxpr = traced(jax.make_jaxpr)
  jax.lax.scan, jax.lax.map = whole(jax.lax.scan, 2), whole(jax.lax.map, 1)
  jax.config.update('jax_enable_x64', True)
  jax.config.update('jax_disable_most_optimizations', True)
  start, cpu, total = time.time(), time.process_time(), collections.Counter()
  for k in range(options.programs):
    if time.time() - start > 60 * options.minutes:
      break
    rng = np.random.default_rng((options.seed, k))
    steps, box, outward = (extreme if k % 2 else moderate)(rng)
    slopes = str(rng.choice([*LINES]))
    try:
      found, points, methods, infinite = weighed(program(steps), box, outward, LINES[slopes], k)
    except Exception as e:
      print(json.dumps(dict(program=k, error=f'{type(e).__name__}: {e}'[:300], steps=steps, slopes=slopes)), flush=True)
      total['errors'] += 1
      continue
    total.update(programs=1, points=points, bounds=methods, infinite=infinite, violations=len(found))
    if found:
      ends = [np.asarray(end).tolist() for end in (box.lower, box.upper)]
      print(json.dumps(dict(program=k, steps=steps, slopes=slopes, box=ends, found=found)), flush=True)
    if k % 500 == 499:
      jax.clear_caches()
    if k % 100 == 99:
      print(json.dumps(dict(total) | dict(drawn=k + 1, cpu_s=round(time.process_time() - cpu))), flush=True)
  print(json.dumps(dict(total) | dict(cpu_s=round(time.process_time() - cpu))), flush=True)


if __name__ == '__main__':
  main()
