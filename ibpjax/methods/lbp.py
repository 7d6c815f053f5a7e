"""LBP: linear bounds of every value in the inputs, carried forward through the program."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.program import Equation, Value
from ibpjax.core.row import SUMS
from ibpjax.core.sets import Interval, is_set, validated
from ibpjax.engine.forward import Form, PatchForm, elementwise, identity, push_local
from ibpjax.engine.functional import Dense, LinearFunctional, Row, dense, resting_on
from ibpjax.engine.intervals import IntervalPass
from ibpjax.engine.prepare import opened, precise
from ibpjax.primitives import control, table
from ibpjax.rules import affine
from ibpjax.rules.accuracy import roundings
from ibpjax.rules.planes import Slopes
from ibpjax.rules.rounding import gamma, magnitude
from ibpjax.rules.rounding_backward import of_affine, of_planes
from ibpjax.rules.slopes import Lines, constant, tight
from ibpjax.xla.batching import over_rows


def lbp(f: Callable, *, lines: Lines = tight, elide: bool = True, intermediates: bool = False,
        intersect: bool = False, round_outward: bool = False) -> Callable:
  """LBP: bounds of `f` by linear functions of its inputs, carried forward through `f` in one pass.

  The returned function takes the arguments of `f` with Intervals or LpBalls in the place of
  arrays, as for `ibp`, and returns the tree of `f`'s result with an Interval for each array. It
  is written for one example: `jax.vmap` makes the batch. It carries two coefficients for each
  pair of an element of the inputs and an element of a value; where convolutions have only seen
  windows of an image, for these windows alone.

  Args:
    f: any JAX function of supported primitives, on one example.
    lines: the choice of slopes: `tight`, `adaptive`, `constant`, or a function like these.
    elide: bound the outputs by pulling them back through the affine operations at the end of `f`
      before linear functions are put in, so that a margin merges with the last layer.
    intermediates: also return the bounds of the operands of nonlinear operations: (bounds, Intermediates).
    intersect, round_outward: as in `crown`.

  Raises:
    NotImplementedError, TypeError, ValueError: as `ibp`.

  Source: Lyu et al. 2021, section 3.2 (LBP is Relaxed-CROWN-1).
  """
  def bounded(*args, **kwargs):
    with precise(round_outward):
      args, kwargs = validated(args, kwargs)
      program, inputs, out_tree = opened(f, args, kwargs)
      forms: dict[int, Form | PatchForm] = {}
      intervals = IntervalPass(program, inputs, None, round_outward, intersect=intersect,
                        tighten=lambda intervals, v: ForwardBounds(intervals, lines, forms).bound_elements(v))
      last = ForwardBounds(intervals, lines, forms)
      found = [intervals.output_by(v, last.bound_by_rows if elide else last.bound_elements) for v in program.outputs]
      result = jax.tree.unflatten(out_tree, found)
    return (result, intervals.intermediates()) if intermediates else result
  return functools.update_wrapper(bounded, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())


@dataclasses.dataclass(frozen=True)
class ForwardBounds:
  """The linear bounds of the values of a program, each computed when it is asked for.

  Attributes:
    intervals: a run on boxes that has come as far as these are asked for.
    lines: the choice of slopes.
    made: value id -> its form, what has been computed.
    of_whole: in the body of a scan, the forms of the program that the inputs are those of.
  """
  intervals: IntervalPass
  lines: Lines
  made: dict[int, Form | PatchForm]
  of_whole: ForwardBounds | None = None

  @property
  def root(self) -> ForwardBounds:
    return self if self.of_whole is None else self.of_whole

  @property
  def inputs(self) -> list[Value]:
    program = self.root.intervals.program
    return [v for v in program.inputs if v.id in program.perturbed]

  def of(self, value: Value) -> Form:
    """The form of a perturbed value, with coefficients for the whole inputs."""
    return self._of(value).dense()

  def _of(self, value: Value) -> Form | PatchForm:
    if not jnp.issubdtype(value.dtype, jnp.floating):
      return self._box(value)
    for eqn in self._needed(value):
      self._add(eqn)
    if value.id not in self.made:  # an input
      self.made[value.id] = self._identity(value)
    return self.made[value.id]

  def _needed(self, value: Value) -> list[Equation]:
    """The equations whose forms are missing on the way to a value."""
    needed, found = {value.id}, []
    for eqn in reversed(self.intervals.program.equations):
      if any(v.id in needed and v.id not in self.made for v in eqn.outputs):
        found.append(eqn)
        needed |= {v.id for v in eqn.inputs if v.id in self.intervals.program.perturbed}
    return found[::-1]

  def _identity(self, value: Value) -> Form | PatchForm:
    number = [v.id for v in self.inputs].index(value.id)
    if len(self.inputs) == 1:
      return identity(value.shape, value.dtype)
    sizes = [v.size for v in self.inputs]
    start = sum(sizes[:number])
    a = jnp.eye(sum(sizes), value.size, -start, dtype=value.dtype).reshape(sum(sizes), *value.shape)
    zero = jnp.zeros(value.shape, value.dtype)
    return Form(Interval(a, a), Interval(zero, zero))

  def _point(self, x: Any) -> Form:
    """The form of a known array."""
    zero = jnp.zeros((sum(v.size for v in self.inputs), *x.shape), x.dtype)
    return Form(Interval(zero, zero), Interval(x, x))

  def _box(self, v: Value) -> Form:
    """A form of coefficients 0: the box of a value. Predicates have one that is 0, which nothing is multiplied by."""
    floating = jnp.issubdtype(v.dtype, jnp.floating)
    zero = jnp.zeros((sum(v.size for v in self.inputs), *v.shape), v.dtype if floating else self.inputs[0].dtype)
    return Form(Interval(zero, zero), self.intervals.env[v.id] if floating else Interval(zero[0], zero[0]))

  def _add(self, eqn: Equation) -> None:
    env = self.intervals.env
    flags = [v.id in self.intervals.program.perturbed for v in eqn.inputs]
    if not any(flags):
      return
    operands = [env[v.id] for v in eqn.inputs]
    linear = table.is_affine(eqn, flags)
    if eqn.key is P.scan_p and self.lines is not constant and not self.intervals.round_outward:
      self._scan(eqn)
      return
    planes = None if linear or self.lines is constant else self.intervals.planes(eqn, self.lines)
    if planes is None and not linear:
      self.made.update((v.id, self._box(v)) for v in eqn.outputs)
      return
    forms = [self._of(v) if p else None for v, p in zip(eqn.inputs, flags)]
    found = self._pushed(eqn, planes, operands, forms)
    error = self._error(eqn, planes, operands, forms)
    for v, form in zip(eqn.outputs, found, strict=True):
      if error is not None:
        form = dataclasses.replace(form, bias=Interval(form.bias.lower - error, form.bias.upper + error))
      self.made[v.id] = jax.tree.map(lambda x, v=v: x.astype(v.dtype), form)

  def _pushed(self, eqn: Equation, planes: Any, operands: list[Any],
              forms: list[Form | PatchForm | None]) -> list[Form | PatchForm]:
    """The forms of the outputs of an equation, but for rounding; local ones where they save coefficients."""
    own = [f for f in forms if f is not None]
    slots = [i for i, f in enumerate(forms) if f is not None]
    if planes is None:
      biases = affine.image(eqn, [x if f is None else f.bias for f, x in zip(forms, operands)])
    else:
      bias = planes.push([f.bias for f in own])
      biases = [Interval(bias.lower + planes.low, bias.upper + planes.high)]

    def push(*xs):
      return affine.push_forward(eqn, operands, dict(zip(slots, xs))) if planes is None else [planes.push(xs)]
    narrow = [f for f in own if isinstance(f, PatchForm)]
    if len(narrow) == len(own) and len(biases) == 1:
      local = None
      if planes is None:
        local = push_local(eqn, operands, [f is not None for f in forms], narrow, *biases)
      elif isinstance(planes, Slopes):
        local = elementwise(lambda *xs: push(*xs)[0], narrow, *biases)
      if local is not None:
        saves = isinstance(local, PatchForm) and np.prod(local.window) < np.prod(local.shape)
        return [local if saves else local.dense()]
    whole = jax.vmap(push)(*(f.dense().coefficients for f in own))
    return [Form(a, b) for a, b in zip(whole, biases, strict=True)]

  def _error(self, eqn: Equation, planes: Any, operands: list[Any],
             forms: list[Form | PatchForm | None]) -> Any:
    """How far rounding may move the forms of the one output of an equation, and the output; None where it does not."""
    if self.intervals.backward.errors is None or (planes is None and table.of(eqn).accuracy != SUMS):
      return None
    sizes = [magnitude(x) if f is None else self._size(f) for x, f in zip(operands, forms)]
    v, flags = eqn.outputs[0], [f is not None for f in forms]
    if planes is None:
      error = of_affine(eqn, sizes, flags)
    else:
      error = of_planes(eqn, planes, operands, sizes, self.intervals.env[v.id], 8)
    reach: Any = sum(map(jnp.sum, self._reach(error.dtype)))
    terms = sum(roundings(eqn, flags)) if planes is None else sum(x.size for x in sizes)
    vanished = (terms + 8) * float(jnp.finfo(v.dtype).tiny) * (1 + reach)  # what is too small to be kept
    return error + vanished.astype(error.dtype)

  def _reach(self, *dtypes: Any) -> list[Any]:
    """The absolute values of the inputs, in float32, or in float64 if that is one of these dtypes or theirs."""
    inputs = [self.root.intervals.env[v.id] for v in self.inputs]
    wide = jnp.float64 if jnp.float64 in (*dtypes, *(x.dtype for x in inputs)) else jnp.float32
    return [magnitude(x).astype(wide) for x in inputs]

  def _size(self, form: Form | PatchForm) -> Any:
    """What the absolute values of the terms of a form sum to: an array of the shape and dtype of the value."""
    dtype, reach = form.bias.dtype, self._reach(form.bias.dtype)
    form = jax.tree.map(lambda a: a.astype(reach[0].dtype), form)
    if isinstance(form, PatchForm):
      sizes = jax.tree.map(lambda x: Interval(magnitude(x), magnitude(x)), form, is_leaf=is_set)
      found = sizes.over_elements(lambda row, bias: bias + affine.dot(row.coefficients, row.cut(reach[0])), 'upper')
    else:
      whole = jnp.concatenate([x.ravel() for x in reach])
      found = jnp.tensordot(whole, magnitude(form.coefficients), 1) + magnitude(form.bias)
    return found.astype(dtype)

  def _scan(self, eqn: Equation) -> None:
    """The forms of the outputs of a scan: one compiled loop, whose carry are forms."""
    body, = eqn.bodies
    first, last = eqn.loop.first, eqn.loop.last
    operands = control.lift(self.intervals.operands(eqn), body.inputs, body)

    def floats(values, program):
      return [v.id in program.perturbed and jnp.issubdtype(v.dtype, jnp.floating) for v in values]

    def enter(v, x):
      return self.of(v) if v.id in self.intervals.program.perturbed else self._point(x.lower)
    entered = [enter(v, x) if m else x for v, x, m in zip(eqn.inputs, operands, floats(body.inputs, body), strict=True)]
    carried = floats(body.inputs[first:last], body) + floats(eqn.outputs[last - first:], self.intervals.program)

    def step(carry, xs):
      given = [*entered[:first], *carry, *xs]
      made: dict[int, Form | PatchForm] = {
          v.id: x for v, x in zip(body.inputs, given, strict=True) if isinstance(x, Form)}

      def forms(intervals):
        return ForwardBounds(intervals, self.lines, made, self.root)
      boxes = [self.concretise(x) if isinstance(x, Form) else x for x in given]
      inner = IntervalPass(body, boxes, tighten=lambda intervals, v: forms(intervals).bound_elements(v), related=True)

      def leave(v):
        return forms(inner).of(v) if v.id in body.perturbed else self._point(jnp.asarray(inner.env[v.id]))
      plain = [inner.env[v.id] for v in body.outputs]
      plain[:last - first] = control.lift(plain[:last - first], body.inputs[first:last], body)
      out = [leave(v) if w else x for v, x, w in zip(body.outputs, plain, carried, strict=True)]
      return control.typed(out[:last - first], carry), out[last - first:]

    carry, ys = lax.scan(step, entered[first:last], _scanned_axis(entered[last:], 1, 0), length=eqn.loop.length,
                         reverse=eqn.loop.reverse)
    for v, x in zip(eqn.outputs, [*carry, *_scanned_axis(ys, 0, 1)], strict=True):
      self.made[v.id] = x if isinstance(x, Form) else self._box(v)

  def _least(self, a: Any, bias: Any) -> Any:
    """The least of an affine function of the inputs, of coefficients (inputs,)."""
    parts = jnp.split(a, np.cumsum([v.size for v in self.inputs])[:-1])
    rows: dict[int, Row] = {v.id: Dense(part.reshape(v.shape).astype(v.dtype)) for v, part in zip(self.inputs, parts)}
    return self.root.intervals.backward.concretise(LinearFunctional(rows, bias)).lower

  def bound_elements(self, value: Value) -> Interval:
    """Bounds of each element of a value."""
    return self.concretise(self._of(value))

  def concretise(self, form: Form | PatchForm) -> Interval:
    """The range of a form over the inputs."""
    if isinstance(form, PatchForm):
      x, backward = self.inputs[0], self.root.intervals.backward

      def end(which):
        def range_(row, bias):
          return getattr(backward.concretise(LinearFunctional({x.id: row}, bias)), which)
        return form.over_elements(range_, which)
      return Interval(end('lower'), end('upper'))
    shape = form.bias.shape
    a, bias = (jax.tree.map(lambda x: x.reshape(*x.shape[:x.ndim - len(shape)], -1), x)
               for x in (form.coefficients, form.bias))
    least = jax.vmap(self._least, (1, 0))
    return Interval(least(a.lower, bias.lower).reshape(shape), -least(-a.upper, -bias.upper).reshape(shape))

  def bound_by_rows(self, value: Value) -> Interval:
    """Bounds of each element of a value, pulled back through affine equations before forms are put in."""
    back = self.intervals.backward
    forms = {j: self.of(v) for j, v in back.ends(value).items()}
    sizes = {j: self._size(form) for j, form in forms.items()} if back.errors is not None else {}

    def least(i, sign):
      hot = sign * (jnp.arange(value.size) == i).astype(value.dtype).reshape(value.shape)
      found = back.back(resting_on(value, Dense(hot)))
      bias = found.offset
      total = jnp.zeros((sum(v.size for v in self.inputs),), value.dtype)
      for j, row in found.rows.items():
        a, form = dense(row), forms[j]
        for part, end in ((jnp.maximum(a, 0), 'lower'), (jnp.minimum(a, 0), 'upper')):
          total += jnp.tensordot(getattr(form.coefficients, end), part, part.ndim).astype(value.dtype)
          bias += affine.dot(part, getattr(form.bias, end)).astype(bias.dtype)
        if back.errors is not None:
          u = float(jnp.finfo(a.dtype).eps) / 2
          bias -= 2 * gamma(a.size + back.errors.steps, u) * affine.dot(jnp.abs(a), sizes[j]).astype(bias.dtype)
      return self._least(total, bias)

    def element(i):
      return Interval(least(i, 1), -least(i, -1))
    flat = over_rows(element, jnp.arange(value.size), back.width())
    return Interval(flat.lower.reshape(value.shape), flat.upper.reshape(value.shape))


def _scanned_axis(xs: list[Any], source: int, destination: int) -> list[Any]:
  """Forms among `xs` with an axis of their coefficients moved: the scanned one, and that of the inputs."""
  def moved(form):
    return Form(jax.tree.map(lambda a: jnp.moveaxis(a, source, destination), form.coefficients), form.bias)
  return [moved(x) if isinstance(x, Form) else x for x in xs]
