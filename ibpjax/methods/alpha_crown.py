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
from ibpjax.engine.backward import BackwardPass, Passage, Step
from ibpjax.engine.boxes import Boxes
from ibpjax.engine.elements import bound_elements, kept_unless, over_elements
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.patches import on_windows
from ibpjax.engine.prepare import named_as, precise, prepare
from ibpjax.engine.scans import backward_pass, passage
from ibpjax.methods.crown import unstable
from ibpjax.methods.registry import checked_intermediate, given
from ibpjax.rules.elementwise import row as rule_of
from ibpjax.rules.slopes import Alpha, Lines, adaptive, constant, with_gradient_of

if TYPE_CHECKING:
  import optax

# Start of a pass -> output of an equation that it passes -> shares (below, above) of the slopes there, for each
# function enclosed: one for each sign of the rows; of the starts under 'own', also one for each element, where its
# row rests on a window for this window alone.
Shares = dict[str, dict[int, dict[int, list[tuple[Any, Any]]]]]
_MOST_OWN = 1 << 22   # slopes for one start, up to which its elements have their own


def alpha_crown(f: Callable, *, steps: int = 20, optimizer: optax.GradientTransformation | None = None,
                objective: Callable[[Any], Any] | None = None, intermediate: str | Intermediates | Callable = 'crown',
                lines: Lines = adaptive, chunk: int | None = None, intermediates: bool = False,
                intersect: bool = False, round_outward: bool = False, slopes: Any = None,
                return_slopes: bool = False) -> Callable:
  """alpha-CROWN: bounds of `f` by CROWN, with slopes that are optimised for them.

  The returned function takes the arguments of `f` with input sets (Intervals, balls, polytopes) in the place
  of arrays, as for `ibp`, and returns the tree of `f`'s result with an Interval for each array. It
  is written for one example: `jax.vmap` makes the batch, each example with slopes of its own.
  The bounds are the tightest of all steps, element by element: never looser than those of `crown`.

  Every element of an output or of a value inside `f` has slopes of its own for its lower and for
  its upper bound, in images for the window that it sees, as long as these are no more than 4 million; the elements
  of larger values share theirs. Slopes inside of `lax.scan` and what products and composites choose stay as they start.
  Gradients are those of the bounds of the last step, at fixed shares; these bounds may be looser.

  Args:
    f: any JAX function of supported primitives, on one example.
    steps: of the optimiser; a step costs three to four times what `crown` does. 0 where `slopes` are given.
    optimizer: of shares in [0, 1] of the way between the least and the greatest slope; default Adam, with a rate of
      0.25 that falls by 0.98 a step.
    objective: tree of Intervals -> scalar to minimise. Default the sum of all widths; a certificate wants no more than
      lower bounds above 0.
    intermediate: where the bounds of the operands of nonlinear operations come from. 'crown': from walks of their own,
      whose slopes are optimised for the same objective. Else as in `crown`; then they are fixed.
    lines: the choice of slopes to start from.
    chunk, intermediates, intersect, round_outward: as in `crown`.
    slopes: those to start from, in the place of those of `lines`, whose bounds are intersected with theirs: what
      another call with `return_slopes` returned, of the same function and options, on other sets for instance.
    return_slopes: also return the slopes of the last step, as shares in [0, 1] of the way from the least to the
      greatest: a pytree of arrays, which `jax.vmap` batches, by the ids of the values that are bounded and of the
      operations passed. The result is (bounds, slopes), with `intermediates` (bounds, Intermediates, slopes).

  Raises:
    NotImplementedError, TypeError, ValueError: as `crown`; for less than one step without `slopes`; and for slopes of
      another function.

  Source: Xu et al., Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively Parallel
    Incomplete Verifiers, ICLR 2021.
  """
  checked_intermediate(intermediate)
  if steps < (1 if slopes is None else 0):
    raise ValueError(f'steps is {steps}: alpha-CROWN optimises in at least one; `crown` does not optimise')
  if optimizer is None:
    import optax
    optimizer = optax.adam(optax.exponential_decay(.25, 1, .98), eps=1e-12)
  objective = total_width if objective is None else objective

  def bounded(*args, **kwargs):
    with precise(round_outward):
      prepared = prepare(f, args, kwargs)
      inside = given(f, intermediate, args, kwargs, lines=lines, intersect=intersect, round_outward=round_outward)
      method = SlopeBounds(prepared.program, lines, chunk, dict(
          round_outward=round_outward, intersect=intersect, **inside))

      def loss(alpha):
        found = method.run(fixed, alpha)
        return objective(prepared.result(found[0])), found
      fixed = lax.stop_gradient(prepared.inputs)
      best, alpha = method.start(fixed)
      if slopes is not None:
        alpha = _accepted(slopes, alpha)
        best = jax.tree.map(intersection, best, method.run(fixed, alpha), is_leaf=is_set)
      if steps and jax.tree.leaves(alpha):
        alpha, best = _descend(loss, optimizer, steps, alpha, best)
      bounds, found = jax.tree.map(_tightest, method.run(prepared.inputs, lax.stop_gradient(alpha)),
                                   lax.stop_gradient(best), is_leaf=is_set)
    beside = [x for x, wanted in ((found, intermediates), (alpha, return_slopes)) if wanted]
    return (prepared.result(bounds), *beside) if beside else prepared.result(bounds)
  return named_as(f, bounded)


def _accepted(slopes: Shares, own: Shares) -> Shares:
  """Slopes handed in, checked for their structure and shapes, in the dtypes of those of this function."""
  structures: list[Any] = [jax.tree.structure(x) for x in (slopes, own)]
  if structures[0] != structures[1] or any(
      jnp.shape(a) != b.shape for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(own))):
    raise ValueError('slopes belong to another function, to other shapes or to other options: give those that '
                     'alpha_crown(f, return_slopes=True) of the same function and options returned')
  return jax.tree.map(lambda a, b: jnp.clip(jnp.nan_to_num(jnp.asarray(a, b.dtype), nan=.5), 0, 1), slopes, own)


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
  boxes: Boxes
  shares: list[tuple[Any, Any]]

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    return self._planes(self.eqn).pull_rows(rows)

  def at(self, cut: Callable[[Any], Any]) -> Passage:
    operands = [jax.tree.map(cut, x) if is_set(x) or jnp.ndim(x) else x for x in self.boxes.operands(self.eqn)]
    shape = next(x.shape for x in operands if is_set(x))
    return self._planes(on_windows(self.eqn, [x.shape for x in operands], shape), operands)

  def _planes(self, eqn: Equation, operands: Sequence[Any] | None = None) -> Any:
    return self.boxes.relaxation(eqn, Alpha(self.boxes.lines, self.shares), operands)


@dataclasses.dataclass(frozen=True)
class SlopeBounds:
  """CROWN on one program, as a function of the slopes of its lines.

  Attributes:
    program: the program.
    lines: the choice that they start from.
    chunk: as in `crown`.
    options: of the interval pass, with the bounds that are `given` of operands of nonlinear equations.
  """
  program: Program
  lines: Lines
  chunk: int | None
  options: dict[str, Any]

  def start(self, inputs: list[Any]) -> tuple[tuple[list[Interval], Intermediates], Shares]:
    """The bounds that the choice of lines gives, and the shares that are its slopes."""
    passed = list[tuple[Boxes, Value, BackwardPass]]()
    made: dict[int, tuple[Passage | None, list[tuple[Any, Any]]]] = {}  # planes, the shares that they start from

    def bound(boxes, v):
      def planes(eqn):
        key = eqn.outputs[0].id
        if key not in made:
          alpha = Alpha(self.lines)
          made[key] = boxes.relaxation(eqn, alpha), alpha.starts
        return made[key][0]
      back = self._backward(boxes, v, planes)
      passed.append((boxes, v, back))
      return bound_elements(back, v, self.chunk)
    found = self._run(inputs, bound)
    spread: Shares = dict(own={}, shared={})
    for boxes, v, back in passed:
      shares = {key: made[key][1] for key in sorted(back.steps) if key in made and made[key][1]}
      own = functools.partial(self._own, boxes, v, back, shares)
      sizes = [below.size for pairs in jax.eval_shape(own).values() for below, _ in pairs]
      kind, each = ('own', own()) if sum(sizes) <= _MOST_OWN else ('shared', shares)
      spread[kind][v.id] = jax.tree.map(lambda t: jnp.broadcast_to(t, (2, *t.shape)), each)
    return found, spread

  def _own(self, boxes: Boxes, v: Value, back: BackwardPass,
           shares: dict[int, list[tuple[Any, Any]]]) -> dict[int, Any]:
    """The same shares for each element of a value: of the slopes that its row meets, which may be those of windows."""
    if boxes.round_outward:
      return jax.tree.map(lambda t: jnp.broadcast_to(t, (*v.shape, *t.shape)), shares)
    local = [key for e in self.program.equations if (key := e.outputs[0].id) in shares and _by_windows(boxes, e)]

    def element(start):
      met = dict(shares)
      noted = {key: Step(_Noted(back.steps[key].passage, shares[key], key, met), None) for key in local}
      dataclasses.replace(back, steps=back.steps | noted).least(start)
      return met
    return over_elements(back, v, element, self.chunk)

  def run(self, inputs: list[Any], shares: Shares) -> tuple[list[Interval], Intermediates]:
    """The bounds that given slopes give."""
    def steered(boxes, v, shares, own):
      def planes(eqn):
        key = eqn.outputs[0].id
        if own and key in shares and _by_windows(boxes, eqn):
          return _Own(eqn, boxes, shares[key])
        return boxes.relaxation(eqn, Alpha(self.lines, shares.get(key)))
      return self._backward(boxes, v, planes)

    def bound(boxes, v):
      self._prepare_scans(boxes)

      def of_all(sign, shared):
        back = steered(boxes, v, shared, False)
        return over_elements(back, v, functools.partial(back.least, sign=sign), self.chunk)

      def of_each(sign, own):
        def element(start, slopes):
          return steered(boxes, v, slopes, True).least(start.dense() if boxes.round_outward else start, sign)
        return over_elements(boxes.backward.prepared(v), v, element, self.chunk, own)
      for kind, least in (('own', of_each), ('shared', of_all)):
        if v.id in shares[kind]:
          lower, negative = jax.vmap(least)(jnp.asarray([1, -1], v.dtype), shares[kind][v.id])
          return Interval(lower, -negative)
      return bound_elements(backward_pass(boxes, v), v, self.chunk)
    return self._run(inputs, bound)

  def _run(self, inputs: list[Any], bound: Callable[[Boxes, Value], Interval]) -> tuple[list[Interval], Any]:
    def tighten(boxes, v):
      return kept_unless(unstable(boxes, v), bound(boxes, v), boxes.env[v.id])
    boxes = IntervalPass(self.program, inputs, lines=self.lines, tighten=tighten, **self.options)
    return [boxes.output_by(v, functools.partial(bound, boxes)) for v in self.program.outputs], boxes.intermediates()

  def _prepare_scans(self, boxes: Boxes) -> None:
    """Computes what passes through the scans need that have been bounded so far: outside of loops over rows."""
    for eqn in self.program.equations:
      if eqn.key is P.scan_p and eqn.outputs[0].id in boxes.env and any(
          v.id in self.program.perturbed for v in eqn.inputs):
        self._through_scan(boxes, eqn)

  def _through_scan(self, boxes: Boxes, eqn: Equation) -> Passage | None:
    """What pulls rows back through a scan: its steps, between the planes of the choice of lines."""
    return None if self.lines is constant else passage(boxes, eqn)

  def _backward(self, boxes: Boxes, v: Value, planes: Callable[[Equation], Passage | None]) -> BackwardPass:
    """The pass from a value between planes of its own; through scans, between those of the choice of lines."""
    def way(eqn: Equation) -> Passage | None:
      return self._through_scan(boxes, eqn) if eqn.key is P.scan_p else planes(eqn)
    return boxes.backward.prepared(v, step=lambda eqn: boxes.backward.step(eqn, way))


def _by_windows(boxes: Boxes, eqn: Equation) -> bool:
  """Whether slopes may be those of a window: an equation that acts element by element, and no errors of the whole."""
  slots = [i for i, v in enumerate(eqn.inputs) if v.id in boxes.program.perturbed]
  return (not boxes.round_outward and not isinstance(eqn.key, Composite | Univariate) and len(slots) == 1
          and rule_of(eqn, slots[0]) is not None)
