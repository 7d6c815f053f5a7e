"""ETB: intervals that hold the range of a ReLU network in expectation over random weights, and sound companions."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives as P

from ibpjax.core.products import dot
from ibpjax.core.program import Equation, Program, Value, evaluate, unsupported
from ibpjax.core.sets import ExpectedInterval, Interval, as_interval, intersection, is_set, pytree
from ibpjax.engine.boxes import Boxes, nan_to_unbounded
from ibpjax.engine.elements import over_elements
from ibpjax.engine.functional import LinearFunctional
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import Prepared, named_as, prepare
from ibpjax.primitives import table


@pytree
class Companion:
  """A sound interval beside the expected one that it widens.

  Attributes:
    expected: the range of the composed affine map, which has a slope in the place of each ReLU.
    slack: value id of what goes into ReLUs -> how far leaving out what the slope does not say of it moves the lower
      end down and the upper end up, two arrays >= 0 of the shape of the output.
    sound: an Interval that holds the range of the function: the expected one widened by all slack.
    sources: (value id, operation, line of the user's code) of each ReLU, for reports.
  """
  expected: ExpectedInterval
  slack: dict[int, tuple[Any, Any]]
  sound: Interval
  sources: tuple[tuple[int, str, str], ...] = dataclasses.field(default=(), metadata=dict(static=True))


def etb(f: Callable, *, masks: str = 'etb', centre: str = 'map', blocks: str = 'prefix',
        chunk: int | None = None) -> Callable:
  """Expected tight bounds: the range of the affine map that `f` is if each ReLU passes all or nothing.

  A ReLU whose upper bound is negative is dropped, all others are the identity. The result has the range of `f` inside
  it in expectation over independent output weights that are symmetric about 0; it is exact if no ReLU is unstable.
  **It is no bound**: for one network, and most of all for one trained with it, it may leave out part of the range, even
  `f` at the centre of the box (relu(x) + relu(-x) on [-1, 1] has the range [0, 1] and ETB [0, 0]). The result is
  therefore an ExpectedInterval, which nothing here certifies with. `etb_companion` has the part that is left out.

  The returned function takes the arguments of `f`, with input sets (Intervals, balls, polytopes) in the place of
  arrays, and returns the tree of `f`'s result with an ExpectedInterval for each array. It is written for one example:
  `jax.vmap` makes the batch. It composes with jit and grad: masks have no gradient, the map has. Its cost is a
  backward pass for each element of the output, and with masks 'etb' and 'sound' for each hidden unit.

  Args:
    f: any JAX function in which all nonlinear operations on perturbed values are ReLUs (maxima with known values).
    masks: which upper bounds of a ReLU's operand decide that it is dropped: the expected ones of the same map up to
      there ('etb', the paper), those of interval arithmetic ('ibp', the authors' code), or those of the sound companion
      of chords with bounds of its own ('sound').
    centre: 'map', the composed map at the centre of the box; or 'network', f itself there (the authors' loss).
    blocks: 'prefix', one map from the inputs to each value; or 'box': of the ReLUs on a way through the network every
      second one acts on the expected interval of what goes into it, and maps begin again from the resulting box.
    chunk: rows that are worked on at a time, as in `crown`.

  Raises:
    NotImplementedError: a nonlinear operation that is no ReLU; names it and the line.
    TypeError, ValueError: as `ibp`; an unknown option.

  Source: Alsubaihi et al., arXiv 1905.12418.
  """
  _check('masks', masks, 'etb', 'ibp', 'sound')
  _check('centre', centre, 'map', 'network')
  _check('blocks', blocks, 'prefix', 'box')
  if blocks == 'box' and masks != 'etb':
    raise ValueError(f"masks={masks!r} are those of one map from the inputs; blocks='box' has its own")

  def bounded(*args, **kwargs):
    prepared = _prepared(f, args, kwargs)
    program, inputs = prepared.program, prepared.inputs
    cut = _seconds(program) if blocks == 'box' else frozenset()
    maps = _Maps(_run(prepared, masks, cut, chunk), 'mask', cut, chunk)
    values = evaluate(program, [_centre(x) for x in inputs]) if centre == 'network' else [None] * len(program.outputs)

    def bound(v, at):
      found = maps.expected(v)
      if at is None or v.id not in program.perturbed:
        return found
      return ExpectedInterval(at - found.radius, at + found.radius)
    return prepared.result(map(bound, program.outputs, values))
  return named_as(f, bounded)


def etb_companion(f: Callable, *, slopes: str = 'mask', masks: str = 'ibp', intersect: bool = False,
                  chunk: int | None = None) -> Callable:
  """Sound bounds by the composed affine map of a ReLU network, and how far these lie from the expected ones.

  relu(z) = d z + e with e in [0, s]: the rest of the network is affine, so that the ends of the map move by the sum of
  the parts of s that a row weighs with the one or the other sign. The returned function is like that of `etb`, with a
  Companion for each array. It is sound in exact arithmetic: there is no allowance for rounding, and certificates
  do not use it.

  Args:
    f: as in `etb`.
    slopes: d of unstable ReLUs. 'mask': 1, and s = -l; the expected interval is that of `etb` with masks 'ibp' or
      'sound'. 'chord': u / (u - l), and s = -u l / (u - l): Fast-Lin.
    masks: where the bounds l and u of what goes into a ReLU come from: interval arithmetic ('ibp'), or rows of their
      own by the companion of chords, intersected with interval arithmetic ('sound').
    intersect: intersect the sound interval with that of interval arithmetic.
    chunk: as in `crown`.

  Raises:
    NotImplementedError, TypeError, ValueError: as `etb`.

  Source: the identity of Alsubaihi et al., arXiv 1905.12418, with the term that it leaves out; Weng et al. 2018.
  """
  _check('slopes', slopes, 'mask', 'chord')
  _check('masks', masks, 'ibp', 'sound')

  def bounded(*args, **kwargs):
    prepared = _prepared(f, args, kwargs)
    maps = _Maps(_run(prepared, masks, frozenset(), chunk), slopes, frozenset(), chunk)

    def bound(v):
      found = maps.companion(v)
      if not intersect:
        return found
      return dataclasses.replace(found, sound=intersection(found.sound, maps.boxes.output(v, elide=True)))
    return prepared.result(map(bound, prepared.program.outputs))
  return named_as(f, bounded)


def _check(name: str, value: Any, *known: str) -> None:
  if value not in known:
    raise ValueError(f'{name} is {value!r}; it is one of {", ".join(known)}')


def _prepared(f: Callable, args: tuple, kwargs: dict) -> Prepared:
  """`f` as a program in which all that is not affine is a ReLU."""
  prepared = prepare(f, args, kwargs, group=False)
  for eqn in prepared.program.equations:
    flags = [v.id in prepared.program.perturbed for v in eqn.inputs]
    if any(flags) and not table.is_affine(eqn, flags) and not (eqn.key is P.max_p and sum(flags) == 1):
      raise unsupported(eqn, 'is no ReLU: expected tight bounds are defined for networks whose nonlinear operations '
                             'are all ReLUs')
  return prepared


def _run(prepared: Prepared, masks: str, cut: frozenset[int], chunk: int | None) -> IntervalPass:
  """The run whose boxes decide the slopes."""
  tighten: dict[str, Any] = dict(
      ibp=None, etb=lambda boxes, v: _taken_for_bounds(_Maps(boxes, 'mask', cut, chunk).expected(v)),
      sound=lambda boxes, v: _Maps(boxes, 'chord', cut, chunk).companion(v).sound)
  return IntervalPass(prepared.program, prepared.inputs, tighten=tighten[masks], intersect=masks == 'sound')


def _taken_for_bounds(x: ExpectedInterval) -> Interval:
  """The same ends, for a run that takes them for bounds: what it finds is expected too."""
  return Interval(x.lower, x.upper)


def _centre(x: Any) -> Any:
  return x.centre if is_set(x) else x


@dataclasses.dataclass(frozen=True)
class _Slope:
  """max(z, c) = slope * z + offset + e with e in [0, slack], element by element.

  Attributes:
    operand: the id of z.
    note: takes down what a row makes of the slack at the least and at the most: -(first number), second number.
  """
  slope: Any
  offset: Any
  slack: Any
  operand: int
  note: Callable[[int, tuple[Any, Any]], None] | None = None

  def at(self, cut: Callable[[Any], Any]) -> _Slope:
    """The same for some elements, which `cut` takes out of an array of the shape of the result."""
    return dataclasses.replace(self, slope=cut(self.slope), offset=cut(self.offset), slack=cut(self.slack))

  def pull_rows(self, rows: Sequence[Any]) -> tuple[list[Any], Any]:
    """The row on z of `<rows[0], slope * z + offset>`, and its offset."""
    row, = rows
    if self.note is not None:
      self.note(self.operand, (dot(jnp.maximum(-row, 0), self.slack), dot(jnp.maximum(row, 0), self.slack)))
    return [row * self.slope], dot(row, self.offset)


@dataclasses.dataclass(frozen=True)
class _Maps:
  """The composed affine maps of a ReLU network, one to each value.

  Attributes:
    boxes: the run whose boxes decide the slopes, as far as it has come.
    slopes: 'mask' or 'chord'.
    cut: the ids of the results of the ReLUs behind which maps begin.
    chunk: rows at a time.
  """
  boxes: Boxes
  slopes: str
  cut: frozenset[int]
  chunk: int | None

  def expected(self, v: Value) -> ExpectedInterval:
    """The range of the map to a value."""
    found, _ = self._rows(v, noting=False)
    return ExpectedInterval(found.lower, found.upper)

  def companion(self, v: Value) -> Companion:
    """The range of the map to a value, and what the range of the value may have beside it."""
    found, slack = self._rows(v, noting=True)
    lower, upper = found.lower, found.upper
    for down, up in slack.values():
      lower, upper = lower - down, upper + up
    sound = nan_to_unbounded(Interval(lower, upper))
    sources = tuple(s for s in self.boxes.sources() if s[0] in slack)
    return Companion(ExpectedInterval(found.lower, found.upper), slack, sound, sources)

  def _passage(self, eqn: Equation) -> _Slope | None:
    """What stands for a ReLU; None where maps begin."""
    if eqn.outputs[0].id in self.cut:
      return None
    return self.boxes.once(_slope, eqn, self.slopes)

  def _rows(self, v: Value, noting: bool) -> tuple[Interval, dict[int, tuple[Any, Any]]]:
    """The ranges of the maps to the elements of a value, and what their rows make of the slack of each ReLU."""
    plain = self.boxes.backward
    back = plain.prepared(v, step=lambda eqn: plain.step(eqn, self._passage))
    if v.id not in back.program.perturbed or v.id in back.ends(v):
      x = back.env[v.id]
      return (as_interval(jnp.asarray(x)) if not is_set(x) else x), {}

    def one(start: LinearFunctional) -> tuple[Interval, dict[int, tuple[Any, Any]]]:
      slack: dict[int, tuple[Any, Any]] = {}

      def note(operand, more):  # several maxima may act on one value
        slack[operand] = jax.tree.map(jnp.add, slack[operand], more) if operand in slack else more
      noted = {i: dataclasses.replace(step, passage=dataclasses.replace(step.passage, note=note)) if isinstance(
          step.passage, _Slope) else step for i, step in back.steps.items()}
      own = dataclasses.replace(back, steps=noted) if noting else back
      return own.concretise(own.back(start)), slack
    return over_elements(back, v, one, self.chunk)


def _slope(boxes: Boxes, eqn: Equation, slopes: str) -> _Slope:
  """What stands for max(z, c), between the ends of z."""
  z, c = boxes.operands(eqn)
  operand, _ = eqn.inputs
  if not is_set(z):
    z, c, operand = c, z, eqn.inputs[1]
  low, high = z.lower - c, z.upper - c
  alive = high >= 0 if slopes == 'mask' else high > 0
  slope = alive.astype(z.dtype)
  if slopes == 'chord':
    bent = (low < 0) & (high > 0) & jnp.isfinite(low) & jnp.isfinite(high)
    slope = jnp.where(bent, high / jnp.where(bent, high - low, 1), slope)
  slack = jnp.where(alive & (low < 0), -slope * low, 0)
  return _Slope(slope, jnp.where(slope == 1, 0, (1 - slope) * c), slack, operand.id)


def _seconds(program: Program) -> frozenset[int]:
  """The ids of the results of every second ReLU on the ways through a program."""
  depth: dict[int, int] = {}
  cut = set()
  for eqn in program.equations:
    flags = [v.id in program.perturbed for v in eqn.inputs]
    passed = max((depth.get(v.id, 0) for v in eqn.inputs), default=0)
    if any(flags) and not table.is_affine(eqn, flags):
      if passed % 2:
        cut.add(eqn.outputs[0].id)
      passed += 1
    depth |= {v.id: passed for v in eqn.outputs}
  return frozenset(cut)
