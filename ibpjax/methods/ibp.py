"""IBP: bounds of any function by running it on boxes."""
from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from ibpjax.core.sets import (
  Intermediates,
  validated,
)
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import opened, precise


def ibp(f: Callable, *, elide: bool = False, intermediate: Intermediates | None = None,
        intermediates: bool = False, round_outward: bool = False) -> Callable:
  """Interval bound propagation: `f` on boxes instead of arrays.

  The returned function takes the arguments of `f`, any of which (inputs, parameters, parts of
  them) may hold Intervals or LpBalls in the place of arrays, and returns the tree of `f`'s result
  with an Interval for each array: for every choice of points in the sets, f's result lies in it.
  It is pure: it composes with `jax.jit`, `jax.vmap`, `jax.grad` and sharding. Its cost is about
  two runs of `f`.

  Args:
    f: any JAX function of supported primitives. With `elide=False` on one example or on a batch;
      with `elide=True` on one example, and `jax.vmap` makes the batch.
    elide: bound the outputs by pulling them back through the affine operations at the end of
      `f` to the last nonlinear values, so that a margin merges with the last layer. Never looser
      (in exact arithmetic); costs one row per element of the output.
    intermediate: bounds to use for the values inside `f` in place of computed ones, e.g. tighter
      ones of another method, or split ones.
    intermediates: also return the bounds of the operands of all nonlinear operations, so that
      the result is the pair (bounds, Intermediates).
    round_outward: widen every step by what floating point may have moved it, so that the bounds
      hold for the exact and for the computed `f` (see `rounding`). Certificates use it.

  Raises:
    NotImplementedError: `f` does something to a perturbed value that no rule bounds; names the
      operation, the shapes and the line.
    TypeError, ValueError: an input set is not a finite float box; `f` returns integers.

  Source: Gowal et al. 2018; elision: Lyu et al. 2021, section 5.1 of the supplement.
  """
  if not isinstance(intermediate, Intermediates | None):
    raise TypeError(f'intermediate is {type(intermediate).__name__}; it is Intermediates, as a transformation called '
                    'with intermediates=True returns beside its bounds')

  def bounded(*args, **kwargs):
    with precise(round_outward):
      args, kwargs = validated(args, kwargs)
      program, inputs, out_tree = opened(f, args, kwargs)
      intervals = IntervalPass(program, inputs, intermediate, round_outward, returned=intermediates)
      result = jax.tree.unflatten(out_tree, [intervals.output(v, elide) for v in program.outputs])
    return (result, intervals.intermediates()) if intermediates else result
  return functools.update_wrapper(bounded, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())
