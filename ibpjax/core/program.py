"""A function as straight-line code: traced once, calls entered, every value bound once.

Only this file and `versions` know what a jaxpr is.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import primitives as P

from ibpjax.core import versions
from ibpjax.core.sets import is_set


@dataclasses.dataclass(frozen=True)
class Value:
  """The name of one intermediate array: an id that depends on the program alone."""
  id: int
  shape: tuple[int, ...]
  dtype: np.dtype

  size = property(lambda self: int(np.prod(self.shape, dtype=np.int64)))


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
  """outputs = primitive(*inputs, **params), with the user's line it came from.

  `key` is what the tables of rules are indexed by: the primitive, or what a group of equations
  was found to compute together. Such a group has no primitive; `fn` computes it on arrays. `bodies` are
  the programs of the step of a scan, the branches of a cond, the test and the step of a while; `loop` says how these
  are repeated.
  """
  primitive: Any
  params: dict[str, Any]
  inputs: tuple[Value, ...]
  outputs: tuple[Value, ...]
  source: Any
  context: Any
  key: Any
  bodies: tuple[Program, ...] = ()
  fn: Callable | None = None
  loop: Any = None

  @property
  def name(self) -> str:
    """What the equation is called in messages."""
    return getattr(self.key, '__name__', str(self.key))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """Equations in order of computation. Values not in `perturbed` do not depend on any set."""
  equations: tuple[Equation, ...]
  inputs: tuple[Value, ...]
  outputs: tuple[Value, ...]
  constants: dict[int, Any]
  perturbed: frozenset[int]

  def environment(self, inputs: Sequence[Any]) -> dict[int, Any]:
    """Value id -> array or set, for the constants and the inputs."""
    return self.constants | dict(zip((v.id for v in self.inputs), inputs, strict=True))


def rebind(eqn: Equation, *operands: Any) -> list[Any]:
  """Runs one equation on arrays or tracers, under the user's source line."""
  if eqn.fn is not None:
    return [eqn.fn(*operands)]
  with eqn.context.manager, source_info_util.user_context(eqn.source.traceback, name_stack=eqn.source.name_stack):
    out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
  return list(out) if eqn.primitive.multiple_results else [out]


def evaluate(program: Program, inputs: Sequence[Any]) -> list[Any]:
  """The outputs of a program on arrays."""
  env = program.environment(inputs)
  for eqn in program.equations:
    env |= zip((v.id for v in eqn.outputs), rebind(eqn, *[env[v.id] for v in eqn.inputs]), strict=True)
  return [env[v.id] for v in program.outputs]


_JAX = os.path.dirname(jax.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _folder(library: str) -> str:
  """Where a library lies, which is not imported for it; what no absolute path begins with, if it is not installed."""
  found = importlib.util.find_spec(library)
  return os.path.dirname(found.origin) + os.sep if found is not None and found.origin is not None else library


# Frames of these say how a layer is written; the user wants to know which of their lines called it.
_LIBRARIES = (_JAX, _OWN, _folder('flax'), contextlib.__file__, functools.__file__)


def source_line(eqn: Equation) -> str:
  """`file:line (function)` of the user's code that produced an equation."""
  return user_line(eqn.source)


def user_line(source: Any) -> str:
  """`file:line (function)` of the user's code in the source of an equation."""
  if source.traceback is not None:
    for frame in source.traceback.frames:
      if not frame.file_name.startswith(_LIBRARIES):
        return f'{frame.file_name}:{frame.line_num} ({frame.function_name})'
  return source_info_util.summarize(source)


def unsupported(eqn: Equation, why: str) -> NotImplementedError:
  """The error for an equation that no rule bounds: primitive, shapes, user's line."""
  shapes = ', '.join(f'{v.dtype}[{",".join(map(str, v.shape))}]' for v in eqn.inputs)
  return NotImplementedError(f'`{eqn.name}` ({shapes}) {why}\n  at {source_line(eqn)}')


# These broadcast scalars and axes of size 1 by themselves. In a Program their perturbed operands
# have the shape of the result, so that rules need not think of it.
BROADCASTING = frozenset({
    P.add_p, P.sub_p, P.mul_p, P.div_p, P.rem_p, P.pow_p, P.max_p, P.min_p, P.atan2_p, P.clamp_p,
    P.select_n_p, P.eq_p, P.ne_p, P.lt_p, P.le_p, P.gt_p, P.ge_p, P.and_p, P.or_p, P.xor_p, P.nextafter_p,
})


def _aval(atom: Any) -> Any:
  """Shape, dtype and weak type of a variable or literal of a jaxpr."""
  return atom.aval


def _internal(body: Any) -> bool:
  """Whether code is jax's own, or this library's: its lines, cached from its first caller, are not the user's."""
  filename = versions.parts(body)[0].debug_info.func_filename
  return filename is not None and filename.startswith((_JAX, _OWN))


def _merging_key(primitive: jex.Primitive, params: dict[str, Any], inputs: Sequence[Value]) -> Any:
  """What two equations that compute the same have in common; None if that cannot be told."""
  try:
    key = primitive, tuple(sorted(params.items())), tuple(v.id for v in inputs)
    hash(key)
  except TypeError:
    return None
  return key


class _Builder:
  """Collects equations while nested code is entered; knows which values are perturbed."""

  def __init__(self, keep: Callable[[dict[str, Any]], Any] = lambda params: None, caller: Any = None) -> None:
    self.keep = keep
    self.equations: list[Equation] = []
    self.constants: dict[int, Any] = {}
    self.perturbed: set[int] = set()
    self.next_id = 0
    self.caller = caller  # the source of the call into jax's own code that is being entered
    self.made: dict[Any, Any] = {}  # what has been computed already, so that it is one value wherever it occurs

  def value(self, shape, dtype, *, perturbed: bool) -> Value:
    v = Value(self.next_id, tuple(shape), dtype)
    self.next_id += 1
    if perturbed:
      self.perturbed.add(v.id)
    return v

  def constant(self, x: Any) -> Value:
    key = (str(x.dtype), x.tobytes()) if isinstance(x, np.ndarray) and x.ndim == 0 else id(x)
    if key not in self.made:
      self.made[key] = self.value(np.shape(x), x.dtype, perturbed=False)
      self.constants[self.made[key].id] = x
    return self.made[key]

  def is_perturbed(self, v: Value) -> bool:
    return v.id in self.perturbed

  def read(self, env: dict[Any, Value], atom: Any) -> Value:
    if isinstance(atom, jex.Literal):  # .val is no ndarray in general and may be weakly typed
      return self.constant(np.asarray(atom.val, _aval(atom).dtype))
    return env[atom]

  def emit(self, eqn: jex.JaxprEqn, inputs: Sequence[Value], bodies: tuple[Program, ...] = (),
           perturbed: Sequence[bool] | None = None, loop: Any = None) -> tuple[Value, ...]:
    key = None if bodies or eqn.effects else _merging_key(eqn.primitive, eqn.params, inputs)
    if key in self.made:
      return self.made[key]
    if perturbed is None:
      perturbed = [any(map(self.is_perturbed, inputs))] * len(eqn.outvars)
    outputs = tuple(self.value(_aval(v).shape, _aval(v).dtype, perturbed=p) for v, p in zip(eqn.outvars, perturbed))
    self.equations.append(Equation(eqn.primitive, eqn.params, tuple(inputs), outputs, self.caller or eqn.source_info,
                                   eqn.ctx, eqn.primitive, bodies, loop=loop))
    if key is not None:
      self.made[key] = outputs
    return outputs

  def before(self, eqn: jex.JaxprEqn, primitive: jex.Primitive, params: dict[str, Any], v: Value,
             shape: tuple[int, ...]) -> Value:
    """What another operation makes of the operand `v` of an equation, as an equation of its own."""
    key = _merging_key(primitive, params, (v,))
    if key in self.made:
      return self.made[key][0]
    out = self.value(shape, v.dtype, perturbed=True)
    self.equations.append(Equation(primitive, params, (v,), (out,), self.caller or eqn.source_info, eqn.ctx, primitive))
    self.made[key] = (out,)
    return out

  def broadcast(self, eqn: jex.JaxprEqn, v: Value, shape: tuple[int, ...]) -> Value:
    """`v` broadcast to `shape` by an equation of its own."""
    params = dict(shape=shape, broadcast_dimensions=tuple(range(len(v.shape))) if v.shape else (), sharding=None)
    return self.before(eqn, lax.broadcast_in_dim_p, params, v, shape)

  def inline(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
    """Adds the equations of `jaxpr`, its calls entered where something perturbed goes in.

    A call on known operands stays one equation: custom gradients, straight-through tricks and
    `stop_gradient` on weights keep their meaning.
    """
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(self.constant, consts), *args), strict=True))
    for eqn in jaxpr.eqns:
      inputs = [self.read(env, v) for v in eqn.invars]
      outputs: Sequence[Value]
      if not any(map(self.is_perturbed, inputs)):
        outputs = self.emit(eqn, inputs)
      elif not (eqn.primitive is P.jit_p and self.keep(eqn.params)) and (body := versions.called(eqn)) is not None:
        caller, self.caller = self.caller, self.caller_in(eqn, body)
        outputs = self.inline(*versions.parts(body), inputs)
        self.caller = caller
      elif (loop := versions.loop(eqn)) is not None:
        outputs = self.loop(eqn, loop, inputs)
      elif (branches := versions.branches(eqn)) is not None:
        outputs = self.cond(eqn, branches, inputs)
      else:
        if eqn.primitive in BROADCASTING:
          shape = _aval(eqn.outvars[0]).shape
          inputs = [self.broadcast(eqn, v, shape) if self.is_perturbed(v) and v.shape != shape else v for v in inputs]
        if eqn.primitive is P.reshape_p and (order := eqn.params['dimensions']) is not None:  # elements by columns
          v, = inputs
          inputs = [self.before(eqn, P.transpose_p, dict(permutation=tuple(order)), v,
                                tuple(v.shape[i] for i in order))]
          eqn = eqn.replace(params=eqn.params | dict(dimensions=None))
        outputs = self.emit(eqn, inputs)
      env.update(zip(eqn.outvars, outputs, strict=True))
    return [self.read(env, v) for v in jaxpr.outvars]

  def caller_in(self, eqn: jex.JaxprEqn, code: Any) -> Any:
    """The source that equations of code that `eqn` runs have, where it is jax's own; None where they have theirs."""
    return eqn.source_info if self.caller is None and _internal(code) else self.caller

  def build(self, eqn: jex.JaxprEqn, code: Any, perturbed: Sequence[bool]) -> Program:
    """The program of code that `eqn` repeats or chooses."""
    return _build(code, perturbed, caller=self.caller_in(eqn, code))

  def loop(self, eqn: jex.JaxprEqn, loop: versions.Scan | versions.While, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """A scan or a while as one equation. A carry is perturbed if it starts so or if a step makes it so."""
    skip = loop.skip if isinstance(loop, versions.While) else 0
    flags = [self.is_perturbed(v) for v in inputs[skip:]]
    first, last = loop.first, loop.last if isinstance(loop, versions.Scan) else len(flags)
    while True:
      body = self.build(eqn, loop.body, flags)
      out = [v.id in body.perturbed for v in body.outputs]
      carry = [a or b for a, b in zip(flags[first:last], out[:last - first])]
      if carry == flags[first:last]:
        break
      flags[first:last] = carry
    bodies: tuple[Program, ...] = (body,)
    if isinstance(loop, versions.While):
      test = self.build(eqn, loop.test, [*map(self.is_perturbed, inputs[:skip]), *carry])
      bodies = test, body
    return self.emit(eqn, inputs, bodies, [*carry, *out[last - first:]], loop)

  def cond(self, eqn: jex.JaxprEqn, codes: Sequence[Any], inputs: Sequence[Value]) -> tuple[Value, ...]:
    """A cond or switch as one equation; every output may depend on a perturbed predicate."""
    which, *operands = inputs
    flags = list(map(self.is_perturbed, operands))
    branches = tuple(self.build(eqn, code, flags) for code in codes)
    perturbed = [self.is_perturbed(which) or any(b.outputs[i].id in b.perturbed for b in branches)
                 for i in range(len(eqn.outvars))]
    return self.emit(eqn, inputs, branches, perturbed)


def _build(code: Any, perturbed: Sequence[bool], keep: Callable[[dict[str, Any]], Any] = lambda params: None,
           caller: Any = None) -> Program:
  builder, (jaxpr, consts) = _Builder(keep, caller), versions.parts(code)
  inputs = tuple(builder.value(_aval(v).shape, _aval(v).dtype, perturbed=p)
                 for v, p in zip(jaxpr.invars, perturbed, strict=True))
  outputs = tuple(builder.inline(jaxpr, consts, inputs))
  return live(Program(tuple(builder.equations), inputs, outputs, builder.constants, frozenset(builder.perturbed)))


def live(program: Program) -> Program:
  """A program without the equations that no output depends on: dead code must not be refused for lack of a rule."""
  needed, equations = {v.id for v in program.outputs}, []
  for eqn in reversed(program.equations):
    if any(v.id in needed for v in eqn.outputs):
      equations.append(eqn)
      needed |= {v.id for v in eqn.inputs}
  return dataclasses.replace(program, equations=tuple(reversed(equations)))


def trace(f: Callable, args: tuple, kwargs: dict, keep: Callable[[dict[str, Any]], Any] = lambda params: None,
          ) -> tuple[Program, list, Any]:
  """`f` as a Program, its inputs, and the tree of its result.

  Arrays and sets of values become inputs; every other leaf (flags, names, None) stays static.

  Args:
    f: any JAX function.
    args, kwargs: its arguments, where sets may stand for arrays.
    keep: which calls of compiled functions, by their parameters, stay single equations.
  """
  leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_set)
  dynamic = [is_set(x) or isinstance(x, (jax.Array, np.ndarray, np.generic)) for x in leaves]
  inputs = [x for x, d in zip(leaves, dynamic) if d]
  if not any(map(is_set, inputs)):
    raise TypeError('none of the arguments is an Interval, a ball or another set, so there is nothing to bound: '
                    'make one, e.g. with ibpjax.linf_ball(x, eps)')
  out_tree = None

  def flat(*xs):
    nonlocal out_tree
    it: Iterator = iter(xs)
    a, k = jax.tree.unflatten(tree, [next(it) if d else x for x, d in zip(leaves, dynamic)])
    try:
      out, out_tree = jax.tree.flatten(f(*a, **k))
    except Exception as e:
      if is_trace_context_error(e):
        e.add_note('A Flax module that the function closes over changed its state while it was bounded. Call '
                   'model.eval() first; or pass the module as an argument, which an nnx.RNN needs in any mode.')
      raise
    return out

  representatives = [x.representative if is_set(x) else x for x in inputs]
  closed = jax.make_jaxpr(flat)(*representatives)
  return _build(closed, [is_set(x) for x in inputs], keep), inputs, out_tree


def is_trace_context_error(error: Exception) -> bool:
  """Whether a Flax module refused to change its state from within a trace; Flax is not imported to know."""
  errors = sys.modules.get('flax.errors')
  return errors is not None and isinstance(error, errors.TraceContextError)


def code_of(f: Callable, *args: Any) -> tuple[jex.ClosedJaxpr, Any]:
  """What `f` computes on arguments of these shapes, and the shapes of its result. Traced anew at each call."""
  return jax.make_jaxpr(lambda *xs: f(*xs), return_shape=True)(*args)  # traces are cached by the function's identity


def performed(code: Any, caller: Any = None) -> Iterator[tuple[str, Any]]:
  """(name of the primitive, its source) of each equation that a result depends on, what it calls or repeats too."""
  jaxpr, _ = versions.parts(code)
  needed = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
  for eqn in reversed(jaxpr.eqns):
    if needed.isdisjoint(eqn.outvars) and not eqn.effects:
      continue
    needed.update(v for v in eqn.invars if not isinstance(v, jex.Literal))
    source = caller or eqn.source_info
    yield eqn.primitive.name, source
    for value in eqn.params.values():
      for body in value if isinstance(value, tuple | list) else (value,):
        if versions.is_code(body):
          yield from performed(body, source if _internal(body) else caller)


def digest(closed: jex.ClosedJaxpr) -> str:
  """A hash of what code computes: its equations and the arrays it closes over.

  Two functions of one digest compute the same. For keys of caches: a function that reads state
  which has changed since has another digest.
  """
  found = hashlib.sha256(str(closed.jaxpr).encode())

  def add(x: Any) -> None:
    if versions.is_code(x):
      jaxpr, consts = versions.parts(x)
      for c in consts:
        add(c)
      for eqn in jaxpr.eqns:
        for value in eqn.params.values():
          add(value)
    elif isinstance(x, (tuple, list)):
      for value in x:
        add(value)
    elif isinstance(x, (jax.Array, np.ndarray)) and not isinstance(x, jax.core.Tracer):
      with jax.ensure_compile_time_eval():  # or keys are traced where a function is certified under jit
        data = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
      found.update(f'{x.dtype}{x.shape}'.encode() + np.asarray(data).tobytes())
  add(closed)
  return found.hexdigest()
