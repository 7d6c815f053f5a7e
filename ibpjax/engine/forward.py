"""Linear bounds carried forward: of every value of a program, in its inputs."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax.core.products import dot
from ibpjax.core.program import Equation, Value
from ibpjax.core.sets import Interval, is_set
from ibpjax.engine.boxes import Boxes
from ibpjax.engine.forms import Form, PatchForm, elementwise, identity, push_local
from ibpjax.engine.functional import Dense, LinearFunctional, Row
from ibpjax.engine.intervals import IntervalPass
from ibpjax.primitives import control, table
from ibpjax.rules import affine
from ibpjax.rules.planes import Slopes
from ibpjax.rules.rounding import magnitude
from ibpjax.rules.rounding_backward import of_forms
from ibpjax.rules.slopes import constant


@dataclasses.dataclass(frozen=True)
class ForwardBounds:
  """The linear bounds of the values of a program, each computed when it is asked for.

  Attributes:
    boxes: a run that has come as far as these are asked for; its choice of slopes is theirs.
    made: value id -> its form, what has been computed.
    of_whole: in the body of a scan, the forms of the program that the inputs are those of.
  """
  boxes: Boxes
  made: dict[int, Form | PatchForm]
  of_whole: ForwardBounds | None = None

  @property
  def root(self) -> ForwardBounds:
    return self if self.of_whole is None else self.of_whole

  @property
  def inputs(self) -> list[Value]:
    program = self.root.boxes.program
    return [v for v in program.inputs if v.id in program.perturbed]

  def of(self, value: Value) -> Form:
    """The form of a perturbed value, with coefficients for the whole inputs."""
    return self.stored(value).dense()

  def stored(self, value: Value) -> Form | PatchForm:
    """The form of a perturbed value, with coefficients for windows where that saves some."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
      return self.box(value)
    for eqn in self._needed(value):
      self._add(eqn)
    if value.id not in self.made:  # an input
      self.made[value.id] = self._identity(value)
    return self.made[value.id]

  def _needed(self, value: Value) -> list[Equation]:
    """The equations whose forms are missing on the way to a value."""
    needed, found = {value.id}, []
    for eqn in reversed(self.boxes.program.equations):
      if any(v.id in needed and v.id not in self.made for v in eqn.outputs):
        found.append(eqn)
        needed |= {v.id for v in eqn.inputs if v.id in self.boxes.program.perturbed}
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

  def point(self, x: Any) -> Form:
    """The form of a known array."""
    zero = jnp.zeros((sum(v.size for v in self.inputs), *x.shape), x.dtype)
    return Form(Interval(zero, zero), Interval(x, x))

  def box(self, v: Value) -> Form:
    """A form of coefficients 0: the box of a value. Predicates have one that is 0, which nothing is multiplied by."""
    floating = jnp.issubdtype(v.dtype, jnp.floating)
    zero = jnp.zeros((sum(v.size for v in self.inputs), *v.shape), v.dtype if floating else self.inputs[0].dtype)
    return Form(Interval(zero, zero), self.boxes.env[v.id] if floating else Interval(zero[0], zero[0]))

  def _add(self, eqn: Equation) -> None:
    env = self.boxes.env
    flags = [v.id in self.boxes.program.perturbed for v in eqn.inputs]
    if not any(flags):
      return
    operands = [env[v.id] for v in eqn.inputs]
    if eqn.key is P.scan_p and self.boxes.lines is not constant and not self.boxes.round_outward:
      self.made.update(zip((v.id for v in eqn.outputs), _scanned(self, eqn), strict=True))
      return
    linear = table.is_affine(eqn, flags)
    planes = None if linear else self.boxes.once(Boxes.relaxation, eqn)
    if planes is None and not linear:
      self.made.update((v.id, self.box(v)) for v in eqn.outputs)
      return
    forms = [self.stored(v) if p else None for v, p in zip(eqn.inputs, flags)]
    error = None
    if self.boxes.round_outward and len(eqn.outputs) == 1:
      sizes = [magnitude(x) if form is None else self.size(form) for x, form in zip(operands, forms)]
      reach: Any = sum(map(jnp.sum, self.root.boxes.reach(eqn.outputs[0].dtype).values()))
      error = of_forms(eqn, planes, operands, sizes, flags, env[eqn.outputs[0].id], reach)
    for v, form in zip(eqn.outputs, _pushed(eqn, planes, operands, forms), strict=True):
      if error is not None:
        form = dataclasses.replace(form, bias=Interval(form.bias.lower - error, form.bias.upper + error))
      self.made[v.id] = jax.tree.map(lambda x, v=v: x.astype(v.dtype), form)

  def size(self, form: Form | PatchForm) -> Any:
    """What the absolute values of the terms of a form sum to: an array of the shape and dtype of the value."""
    dtype = form.bias.dtype
    reach = [*self.root.boxes.reach(dtype).values()]
    form = jax.tree.map(lambda a: a.astype(reach[0].dtype), form)
    if isinstance(form, PatchForm):
      sizes = jax.tree.map(lambda x: Interval(magnitude(x), magnitude(x)), form, is_leaf=is_set)
      found = sizes.over_elements(lambda row, bias: bias + dot(row.coefficients, row.cut(reach[0])), 'upper')
    else:
      whole = jnp.concatenate([x.ravel() for x in reach])
      found = jnp.tensordot(whole, magnitude(form.coefficients), 1) + magnitude(form.bias)
    return found.astype(dtype)

  def least(self, a: Any, bias: Any) -> Any:
    """The least of an affine function of the inputs, of coefficients (inputs,)."""
    parts = jnp.split(a, np.cumsum([v.size for v in self.inputs])[:-1])
    rows: dict[int, Row] = {v.id: Dense(part.reshape(v.shape).astype(v.dtype)) for v, part in zip(self.inputs, parts)}
    return self.root.boxes.backward.concretise(LinearFunctional(rows, bias)).lower

  def bound_elements(self, value: Value) -> Interval:
    """Bounds of each element of a value."""
    return self.concretise(self.stored(value))

  def concretise(self, form: Form | PatchForm) -> Interval:
    """The range of a form over the inputs."""
    if isinstance(form, PatchForm):
      x, backward = self.inputs[0], self.root.boxes.backward

      def end(which):
        def range_(row, bias):
          return getattr(backward.concretise(LinearFunctional({x.id: row}, bias)), which)
        return form.over_elements(range_, which)
      return Interval(end('lower'), end('upper'))
    shape = form.bias.shape
    a, bias = (jax.tree.map(lambda x: x.reshape(*x.shape[:x.ndim - len(shape)], -1), x)
               for x in (form.coefficients, form.bias))
    least = jax.vmap(self.least, (1, 0))
    return Interval(least(a.lower, bias.lower).reshape(shape), -least(-a.upper, -bias.upper).reshape(shape))


def _pushed(eqn: Equation, planes: Any, operands: list[Any],
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


def _scanned(outer: ForwardBounds, eqn: Equation) -> list[Form | PatchForm]:
  """The forms of the outputs of a scan: one compiled loop, whose carry are forms."""
  body, = eqn.bodies
  first, last = eqn.loop.first, eqn.loop.last
  operands = control.lift(outer.boxes.operands(eqn), body.inputs, body)

  def floats(values, program):
    return [v.id in program.perturbed and jnp.issubdtype(v.dtype, jnp.floating) for v in values]

  def enter(v, x):
    return outer.of(v) if v.id in outer.boxes.program.perturbed else outer.point(x.lower)
  entered = [enter(v, x) if m else x for v, x, m in zip(eqn.inputs, operands, floats(body.inputs, body), strict=True)]
  carried = floats(body.inputs[first:last], body) + floats(eqn.outputs[last - first:], outer.boxes.program)

  def step(carry, xs):
    given = [*entered[:first], *carry, *xs]
    made: dict[int, Form | PatchForm] = {
        v.id: x for v, x in zip(body.inputs, given, strict=True) if isinstance(x, Form)}

    def forms(boxes):
      return ForwardBounds(boxes, made, outer.root)
    boxes = [outer.concretise(x) if isinstance(x, Form) else x for x in given]
    inner = IntervalPass(body, boxes, lines=outer.boxes.lines, related=True,
                         tighten=lambda boxes, v: forms(boxes).bound_elements(v))

    def leave(v):
      return forms(inner).of(v) if v.id in body.perturbed else outer.point(jnp.asarray(inner.env[v.id]))
    plain = [inner.env[v.id] for v in body.outputs]
    plain[:last - first] = control.lift(plain[:last - first], body.inputs[first:last], body)
    out = [leave(v) if w else x for v, x, w in zip(body.outputs, plain, carried, strict=True)]
    return control.typed(out[:last - first], carry), out[last - first:]

  carry, ys = lax.scan(step, entered[first:last], _scanned_axis(entered[last:], 1, 0), length=eqn.loop.length,
                       reverse=eqn.loop.reverse)
  return [x if isinstance(x, Form) else outer.box(v)
          for v, x in zip(eqn.outputs, [*carry, *_scanned_axis(ys, 0, 1)], strict=True)]


def _scanned_axis(xs: list[Any], source: int, destination: int) -> list[Any]:
  """Forms among `xs` with an axis of their coefficients moved: the scanned one, and that of the inputs."""
  def moved(form):
    return Form(jax.tree.map(lambda a: jnp.moveaxis(a, source, destination), form.coefficients), form.bias)
  return [moved(x) if isinstance(x, Form) else x for x in xs]
