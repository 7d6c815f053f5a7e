"""alpha-CROWN: CROWN with the slopes that an optimiser finds for the bounds that are wanted."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.composites.univariate import Univariate
from ibpjax.core.composite import Composite
from ibpjax.core.program import Equation, Program, Value
from ibpjax.core.sets import Intermediates, Interval, intersection, is_set
from ibpjax.engine.backward import backward_pass
from ibpjax.engine.functional import BackwardPass, Passage
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.patches import on_windows
from ibpjax.engine.prepare import precise
from ibpjax.methods.crown import checked_intermediate, prepared, unstable
from ibpjax.rules.elementwise import row as rule_of
from ibpjax.rules.rounding_backward import Errors
from ibpjax.rules.slopes import Lines, Steered, adaptive, with_gradient_of

if TYPE_CHECKING:
  import optax

# Start of a walk -> output of an equation that it passes -> shares (below, above) of the slopes there, for each
# function enclosed: one for each sign of the rows; of the starts under 'own', also one for each element, where its
# row rests on a window for this window alone.
Shares = dict[str, dict[int, dict[int, list[tuple[Any, Any]]]]]
_MOST_OWN = 1 << 22   # slopes for one start, up to which its elements have their own


def alpha_crown(f: Callable, *, steps: int = 20, optimizer: optax.GradientTransformation | None = None,
                objective: Callable[[Any], Any] | None = None, intermediate: str | Intermediates | Callable = 'crown',
                lines: Lines = adaptive, chunk: int | None = None, intermediates: bool = False,
                intersect: bool = False, round_outward: bool = False) -> Callable:
  """alpha-CROWN: bounds of `f` by CROWN, with slopes that are optimised for them.

  The returned function takes the arguments of `f` with Intervals or LpBalls in the place of
  arrays, as for `ibp`, and returns the tree of `f`'s result with an Interval for each array. It
  is written for one example: `jax.vmap` makes the batch, each example with slopes of its own.
  The bounds are the tightest of all steps, element by element: never looser than those of `crown`.

  Every element of an output or of a value inside `f` has slopes of its own for its lower and for
  its upper bound, in images for the window that it sees, as long as these are no more than 4 million; the elements
  of larger values share theirs. Slopes inside of `lax.scan` and what products and composites choose stay as they start.
  Gradients are those of the bounds of the last step, at fixed shares; these bounds may be looser.

  Args:
    f: any JAX function of supported primitives, on one example.
    steps: of the optimiser; a step costs three to four times what `crown` does.
    optimizer: of shares in [0, 1] of the way between the least and the greatest slope; default Adam, with a rate of
      0.25 that falls by 0.98 a step.
    objective: tree of Intervals -> scalar to minimise. Default the sum of all widths; a certificate wants no more than
      lower bounds above 0.
    intermediate: where the bounds of the operands of nonlinear operations come from. 'crown': from walks of their own,
      whose slopes are optimised for the same objective. Else as in `crown`; then they are fixed.
    lines: the choice of slopes to start from.
    chunk, intermediates, intersect, round_outward: as in `crown`.

  Raises:
    NotImplementedError, TypeError, ValueError: as `crown`; and for less than one step.

  Source: Xu et al., Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively Parallel
    Incomplete Verifiers, ICLR 2021.
  """
  checked_intermediate(intermediate)
  if steps < 1:
    raise ValueError(f'steps is {steps}: alpha-CROWN optimises in at least one; `crown` does not optimise')
  if optimizer is None:
    import optax
    optimizer = optax.adam(optax.exponential_decay(.25, 1, .98), eps=1e-12)
  objective = total_width if objective is None else objective

  def bounded(*args, **kwargs):
    with precise(round_outward):
      given, (program, inputs, out_tree) = prepared(f, intermediate, args, kwargs, lines=lines, intersect=intersect,
                                                    round_outward=round_outward)
      slopes = Slopes(program, lines, chunk, functools.partial(
          IntervalPass, round_outward=round_outward, intersect=intersect), given)

      def loss(shares):
        found = slopes.run(fixed, shares)
        return objective(jax.tree.unflatten(out_tree, found[0])), found
      fixed = lax.stop_gradient(inputs)
      best, shares = slopes.start(fixed)
      if jax.tree.leaves(shares):
        shares, best = _descend(loss, optimizer, steps, shares, best)
      bounds, inside = jax.tree.map(_tightest, slopes.run(inputs, lax.stop_gradient(shares)), lax.stop_gradient(best),
                                    is_leaf=is_set)
    result = jax.tree.unflatten(out_tree, bounds)
    return (result, inside) if intermediates else result
  return functools.update_wrapper(bounded, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())


def total_width(bounds: Any) -> Any:
  """The sum of the widths of all bounds that are finite."""
  widths = [x.width for x in jax.tree.leaves(bounds, is_leaf=is_set) if jnp.issubdtype(x.dtype, jnp.floating)]
  widest = max((w.dtype for w in widths), key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.dtype(jnp.float32))
  return sum((jnp.where(jnp.isfinite(w), w, 0).astype(widest).sum() for w in widths), start=jnp.zeros((), widest))


def _descend(loss: Callable, optimizer: optax.GradientTransformation, steps: int, shares: Shares,
             best: Any) -> tuple[Shares, Any]:
  """The shares after so many steps, and the tightest bounds on the way."""
  import optax

  def step(state, _):
    shares, moments, best = state
    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(shares)
    gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient)
    with jax.numpy_dtype_promotion('standard'):
      updates, moments = optimizer.update(gradient, moments, shares)
      moved = optax.apply_updates(shares, updates)
    shares = jax.tree.map(lambda t, old: jnp.clip(t, 0, 1).astype(old.dtype), moved, shares)
    return (shares, moments, jax.tree.map(intersection, best, found, is_leaf=is_set)), None
  (shares, _, best), _ = lax.scan(step, (shares, optimizer.init(shares), best), length=steps)
  return shares, best


def _tightest(last: Interval, best: Interval) -> Interval:
  """The intersection of two bounds, with the gradient of the first."""
  x = intersection(last, best)
  if x.dtype == jnp.bool_:
    return x
  return Interval(with_gradient_of(last.lower, x.lower), with_gradient_of(last.upper, x.upper))


@dataclasses.dataclass(frozen=True)
class _Noted:
  """Planes of an equation that note the shares of those slopes that a row on a window meets."""
  planes: Any
  shares: list[tuple[Any, Any]]
  key: int
  met: dict[int, Any]

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    return self.planes.pull_rows(rows)

  def at(self, cut: Callable[[Any], Any]) -> Passage:
    self.met[self.key] = jax.tree.map(cut, self.shares)
    return self.planes.at(cut)


@dataclasses.dataclass(frozen=True)
class _Own:
  """Planes of an equation, with slopes that belong to one row: for all of its elements, or for the row's window."""
  eqn: Equation
  intervals: IntervalPass
  lines: Lines
  shares: list[tuple[Any, Any]]

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    return self._planes(self.eqn).pull_rows(rows)

  def at(self, cut: Callable[[Any], Any]) -> Passage:
    operands = [jax.tree.map(cut, x) if is_set(x) or jnp.ndim(x) else x for x in self.intervals.operands(self.eqn)]
    shape = next(x.shape for x in operands if is_set(x))
    return self._planes(on_windows(self.eqn, [x.shape for x in operands], shape), operands)

  def _planes(self, eqn: Equation, operands: Sequence[Any] | None = None) -> Any:
    return self.intervals.relaxation(eqn, Steered(self.lines, self.shares), operands)


@dataclasses.dataclass(frozen=True)
class Slopes:
  """CROWN on one program, as a function of the slopes of its lines.

  Attributes:
    program: the program.
    lines: the choice that they start from.
    chunk: as in `crown`.
    intervals: (program, inputs, given, tighten=) -> a run on boxes.
    given: bounds of the operands of nonlinear equations; None for those that walks find.
  """
  program: Program
  lines: Lines
  chunk: int | None
  intervals: Callable[..., IntervalPass]
  given: Intermediates | None

  def start(self, inputs: list[Any]) -> tuple[tuple[list[Interval], Intermediates], Shares]:
    """The bounds that the choice of lines gives, and the shares that are its slopes."""
    passed, used = list[tuple[IntervalPass, Value, set[int]]](), dict[int, Steered]()

    def bound(intervals, v):
      keys = set[int]()
      passed.append((intervals, v, keys))

      def planes(eqn):
        key = eqn.outputs[0].id
        keys.add(key)
        return intervals.planes(eqn, used.setdefault(key, Steered(self.lines)))
      return self._backward(intervals, planes).bound_elements(v, self.chunk)
    found = self._run(inputs, bound)
    spread: Shares = dict(own={}, shared={})
    for intervals, v, keys in passed:
      shares = {key: used[key].starts for key in keys if used[key].starts}
      own = functools.partial(self._own, intervals, v, shares)
      sizes = [below.size for pairs in jax.eval_shape(own).values() for below, _ in pairs]
      kind, each = ('own', own()) if sum(sizes) <= _MOST_OWN else ('shared', shares)
      spread[kind][v.id] = jax.tree.map(lambda t: jnp.broadcast_to(t, (2, *t.shape)), each)
    return found, spread

  def _own(self, intervals: IntervalPass, v: Value, shares: dict[int, list[tuple[Any, Any]]]) -> dict[int, Any]:
    """The same shares for each element of a value: of the slopes that its row meets, which may be those of windows."""
    def element(start):
      met = dict(shares)

      def planes(eqn):
        found, key = intervals.planes(eqn, self.lines), eqn.outputs[0].id
        return _Noted(found, shares[key], key, met) if key in shares and self._by_windows(intervals, eqn) else found
      self._backward(intervals, planes).least(start)
      return met
    if intervals.round_outward:
      return jax.tree.map(lambda t: jnp.broadcast_to(t, (*v.shape, *t.shape)), shares)
    return intervals.backward.over_elements(v, element, self.chunk)

  def _by_windows(self, intervals: IntervalPass, eqn: Equation) -> bool:
    """Whether slopes may be those of a window: an equation that acts element by element, and no errors of the whole."""
    slots = [i for i, v in enumerate(eqn.inputs) if v.id in intervals.program.perturbed]
    return (not intervals.round_outward and not isinstance(eqn.key, Composite | Univariate) and len(slots) == 1
            and rule_of(eqn, slots[0]) is not None)

  def run(self, inputs: list[Any], shares: Shares) -> tuple[list[Interval], Intermediates]:
    """The bounds that given slopes give."""
    def steered(intervals, shares, own):
      relaxed: dict[int, Passage | None] = {}

      def planes(eqn):
        key = eqn.outputs[0].id
        if id(eqn) not in relaxed:
          if own and key in shares and self._by_windows(intervals, eqn):
            relaxed[id(eqn)] = _Own(eqn, intervals, self.lines, shares[key])
          else:
            relaxed[id(eqn)] = intervals.relaxation(eqn, Steered(self.lines, shares.get(key)))
        return relaxed[id(eqn)]
      return self._backward(intervals, planes)

    def bound(intervals, v):
      self._prepare_scans(intervals)

      def of_all(sign, shared):
        back = steered(intervals, shared, False)
        back.ends(v)
        return back.over_elements(v, functools.partial(back.least, sign=sign), self.chunk)

      def of_each(sign, own):
        def element(start, slopes):
          if intervals.round_outward:
            start = start.dense()
          return steered(intervals, slopes, True).least(start, sign)
        return intervals.backward.over_elements(v, element, self.chunk, own)
      for kind, least in (('own', of_each), ('shared', of_all)):
        if v.id in shares[kind]:
          lower, negative = jax.vmap(least)(jnp.asarray([1, -1], v.dtype), shares[kind][v.id])
          return Interval(lower, -negative)
      return backward_pass(intervals, self.lines).bound_elements(v, self.chunk)
    return self._run(inputs, bound)

  def _run(self, inputs: list[Any], bound: Callable[[IntervalPass, Value], Interval]) -> tuple[list[Interval], Any]:
    def tighten(intervals, v):
      return intervals.backward.kept_unless(unstable(intervals, v, self.lines), v, bound(intervals, v))
    intervals = self.intervals(self.program, inputs, self.given, tighten=tighten if self.given is None else None)
    return [intervals.output_by(v, functools.partial(bound, intervals)) for v in self.program.outputs], (
        intervals.intermediates())

  def _prepare_scans(self, intervals: IntervalPass) -> None:
    """Computes what walks through the scans need that have been bounded so far: outside of loops over rows."""
    planes = backward_pass(intervals, self.lines).planes
    for eqn in self.program.equations:
      if planes is not None and eqn.key is P.scan_p and eqn.outputs[0].id in intervals.env and any(
          v.id in self.program.perturbed for v in eqn.inputs):
        planes(eqn)

  def _backward(self, intervals: IntervalPass, planes: Callable[[Equation], Passage | None]) -> BackwardPass:
    """A walk between planes of its own; through scans, between those of the choice of lines."""
    plain = backward_pass(intervals, self.lines).planes

    def passage(eqn: Equation) -> Passage | None:
      if eqn.key is P.scan_p:
        return None if plain is None else plain(eqn)
      return planes(eqn)
    errors = Errors(self.program, intervals.env, {}) if intervals.round_outward else None
    return dataclasses.replace(intervals.backward, planes=passage, errors=errors)
