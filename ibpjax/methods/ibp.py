"""IBP: bounds of any function by running it on boxes."""
from __future__ import annotations

from collections.abc import Callable

from ibpjax.core.sets import Intermediates
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import named_as, precise, prepare


def ibp(f: Callable, *, elide: bool = False, intermediate: Intermediates | None = None,
        intermediates: bool = False, round_outward: bool = False) -> Callable:
  """Interval bound propagation: `f` on boxes instead of arrays.

  The returned function takes the arguments of `f`, any of which (inputs, parameters, parts of
  them) may hold input sets (Intervals, balls, polytopes) in the place of arrays, and returns the tree of `f`'s result
  with an Interval for each array: for every choice of points in the sets, f's result lies in it.
  It is pure: it composes with `jax.jit`, `jax.vmap`, `jax.grad` and sharding. Its cost is about
  two runs of `f`.

  Args:
    f: any JAX function of supported primitives. With `elide=False` on one example or on a batch;
      with `elide=True` on one example, and `jax.vmap` makes the batch.
    elide: bound the outputs by pulling them back through the affine operations at the end of
      `f` to the last nonlinear values, so that a margin merges with the last layer. Never looser
      (in exact arithmetic); costs one row per element of the output.
    intermediate: bounds of values inside `f`, of some or of all, e.g. tighter ones of another method, or split ones;
      they are intersected with those computed here.
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
      prepared = prepare(f, args, kwargs)
      boxes = IntervalPass(prepared.program, prepared.inputs, given=intermediate, intersect_given=True,
                           round_outward=round_outward, returned=intermediates)
      result = prepared.result([boxes.output(v, elide) for v in prepared.program.outputs])
    return (result, boxes.intermediates()) if intermediates else result
  return named_as(f, bounded)
