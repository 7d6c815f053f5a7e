"""What JAX traces, computed by NumPy: for laws that hold whatever compiles a program, and that are about many programs.

Compiling is three quarters of what a law costs. What NumPy has no operation for is computed by JAX, alone.
"""
from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special as special

from ibpjax.core import versions

FLOATS = {np.dtype(name) for name in ('float32', 'float64')}
HALVES = {np.dtype(jnp.bfloat16), np.dtype('float16')}
KNOWN = FLOATS | {np.dtype(name) for name in ('bool', 'int32', 'int64', 'uint8', 'uint32', 'uint64')}

# Of floats and of what keeps its dtype, by the names of JAX's primitives.
EVERYWHERE = {
    'add': np.add, 'add_any': np.add, 'sub': np.subtract, 'mul': np.multiply, 'max': np.maximum, 'min': np.minimum,
    'neg': np.negative, 'abs': np.abs, 'eq': np.equal, 'ne': np.not_equal, 'lt': np.less, 'le': np.less_equal,
    'gt': np.greater, 'ge': np.greater_equal, 'and': np.bitwise_and, 'or': np.bitwise_or, 'xor': np.bitwise_xor,
    'not': np.invert, 'square': np.square, 'copy': np.positive, 'stop_gradient': lambda x: x,
    'clamp': lambda low, x, high: np.minimum(np.maximum(x, low), high)}
OF_FLOATS = {
    'div': np.divide, 'exp': np.exp, 'exp2': np.exp2, 'log': np.log, 'log2': np.log2, 'log1p': np.log1p,
    'expm1': np.expm1, 'sqrt': np.sqrt, 'rsqrt': lambda x: 1 / np.sqrt(x), 'cbrt': np.cbrt, 'sin': np.sin,
    'cos': np.cos, 'tan': np.tan, 'asin': np.arcsin, 'acos': np.arccos, 'atan': np.arctan, 'sinh': np.sinh,
    'cosh': np.cosh, 'tanh': np.tanh, 'asinh': np.arcsinh, 'acosh': np.arccosh, 'atanh': np.arctanh,
    'atan2': np.arctan2, 'pow': np.power, 'logistic': special.expit, 'erf': special.erf, 'erfc': special.erfc,
    'erf_inv': special.erfinv, 'is_finite': np.isfinite, 'floor': np.floor, 'ceil': np.ceil, 'sign': np.sign,
    'rem': np.fmod, 'nextafter': np.nextafter}
FOLDED = {'reduce_sum': np.add, 'reduce_max': np.maximum, 'reduce_min': np.minimum, 'reduce_prod': np.multiply,
          'reduce_and': np.bitwise_and, 'reduce_or': np.bitwise_or}
RUNNING = {'cumsum': np.add, 'cumprod': np.multiply, 'cummax': np.maximum, 'cummin': np.minimum}


def _broadcast(shape, dims):
  def run(x):
    own = [1] * len(shape)
    for size, d in zip(np.shape(x), dims, strict=True):
      own[d] = size
    return np.broadcast_to(np.reshape(x, own), shape)
  return run


def _padded(sizes, config):
  if any(low < 0 or high < 0 for low, high, _ in config):
    return None
  shape = [low + high + max(n + (n - 1) * inner, 0) for n, (low, high, inner) in zip(sizes, config, strict=True)]
  inside = tuple(slice(low, n - high, inner + 1) for n, (low, high, inner) in zip(shape, config, strict=True))

  def run(x, value):
    out = np.full(shape, value, x.dtype)
    out[inside] = x
    return out
  return run


def _dot(numbers, x, y):
  """A product of two arrays as one of matrices."""
  (left, right), (batch, other) = numbers

  def free(v, *axes):
    return [d for d in range(v.ndim) if d not in sum(axes, ())]
  rows, columns = free(x, left, batch), free(y, right, other)
  inner, outer = [x.shape[d] for d in left], [x.shape[d] for d in batch]
  height, width = [x.shape[d] for d in rows], [y.shape[d] for d in columns]

  def run(x, y):
    x = np.transpose(x, (*batch, *rows, *left)).reshape(*outer, int(np.prod(height)), int(np.prod(inner)))
    y = np.transpose(y, (*other, *right, *columns)).reshape(*outer, int(np.prod(inner)), int(np.prod(width)))
    return np.matmul(x, y).reshape((*outer, *height, *width))
  return run


def _folded(f, axes, dtype):
  return lambda x: f.reduce(x, axis=axes, dtype=dtype)


def _running(f, axis, reverse, dtype):
  def run(x):
    out = f.accumulate(np.flip(x, axis) if reverse else x, axis=axis, dtype=dtype)
    return np.flip(out, axis) if reverse else out
  return run


def _taken(shape, sizes):
  def run(x, *starts):
    starts = [int(np.clip(i, 0, n - size)) for i, n, size in zip(starts, shape, sizes, strict=True)]
    return x[tuple(slice(i, i + size) for i, size in zip(starts, sizes, strict=True))]
  return run


def _shifted(f, bits):
  return lambda x, by: np.where(by < bits, f(x, np.minimum(by, x.dtype.type(bits - 1))), x.dtype.type(0))


def _moving(name, p, x, n):
  """What moves elements about: from the parameters, the type of the first of n operands; None if NumPy has no such."""
  match name:
    case 'broadcast_in_dim' if n == 1:
      return _broadcast(p['shape'], p['broadcast_dimensions'])
    case 'reshape' if n == 1 and p['dimensions'] is None:
      return lambda x: np.reshape(x, p['new_sizes'])
    case 'transpose':
      return lambda x: np.transpose(x, p['permutation'])
    case 'squeeze':
      return lambda x: np.squeeze(x, p['dimensions'])
    case 'slice':
      steps = p['strides'] or (1,) * x.ndim
      return operator.itemgetter(tuple(map(slice, p['start_indices'], p['limit_indices'], steps)))
    case 'rev':
      return lambda x: np.flip(x, p['dimensions'])
    case 'concatenate':
      return lambda *xs: np.concatenate(xs, p['dimension'])
    case 'pad':
      return _padded(x.shape, p['padding_config'])
    case 'iota' if not n:
      along = np.arange(p['shape'][p['dimension']], dtype=p['dtype'])
      return functools.partial(_broadcast(p['shape'], [p['dimension']]), along)
    case 'select_n' if n == 3 and x.dtype == bool:
      return lambda which, no, yes: np.where(which, yes, no)
    case 'convert_element_type' if p['new_dtype'] in KNOWN and (x.dtype not in FLOATS or p['new_dtype'] in FLOATS):
      return lambda x: np.asarray(x, p['new_dtype'])
    case 'dynamic_slice':
      return _taken(x.shape, p['slice_sizes'])
    case 'bitcast_convert_type' if p['new_dtype'] in KNOWN and p['new_dtype'].itemsize == x.dtype.itemsize:
      return lambda x: np.asarray(x).view(p['new_dtype'])
    case 'shift_left' | 'shift_right_logical' if x.dtype.kind == 'u':
      return _shifted(np.left_shift if name == 'shift_left' else np.right_shift, 8 * x.dtype.itemsize)
  return None


def by_numpy(eqn):
  """A function from the operands of an equation to its one output; None where NumPy has no such operation."""
  name, p, types = eqn.primitive.name, eqn.params, [v.aval for v in eqn.invars]
  x = types[0] if types else None
  if any(t.dtype not in KNOWN | HALVES for t in types):
    return None
  if name in EVERYWHERE:
    return EVERYWHERE[name]
  if any(t.dtype in HALVES for t in types):
    return _moving(name, p, x, len(types))
  if name in FOLDED and x.size:
    return _folded(FOLDED[name], p['axes'], x.dtype)
  if name in RUNNING:
    return _running(RUNNING[name], p['axis'], p['reverse'], x.dtype)
  if name in ('argmax', 'argmin') and len(p['axes']) == 1:
    return lambda x: np.asarray(getattr(np, name)(x, p['axes'][0]), p['index_dtype'])
  if types and all(t.dtype in FLOATS for t in types):
    if name in OF_FLOATS:
      return OF_FLOATS[name]
    if name == 'integer_pow':
      return lambda x: x ** p['y']
    if name == 'dot_general' and p['preferred_element_type'] in (None, x.dtype):
      return _dot(p['dimension_numbers'], *types)
  return _moving(name, p, x, len(types))


def _scan(body, first, last, length, reverse):
  step = planned(body)

  def run(*ins):
    carry, outs = ins[first:last], []
    for i in (range(length - 1, -1, -1) if reverse else range(length)):
      out = step(*ins[:first], *carry, *(x[i] for x in ins[last:]))
      carry = out[:last - first]
      outs.append(out[last - first:])
    return [*carry, *(np.stack(ys) for ys in zip(*(outs[::-1] if reverse else outs)))]
  return run


def _while(test, body, skip, first):
  test, body = planned(test), planned(body)

  def run(*ins):
    tested, known, carry = ins[:skip], ins[skip:skip + first], ins[skip + first:]
    while test(*tested, *carry)[0]:
      carry = body(*known, *carry)
    return carry
  return run


def _loop(eqn):
  """A function that computes a loop or branch; None for any other equation."""
  match versions.loop(eqn):
    case versions.Scan(body, first, last, length, reverse) if length:
      return _scan(body, first, last, length, reverse)
    case versions.While(test, body, skip, first):
      return _while(test, body, skip, first)
  if (choices := versions.branches(eqn)) is not None:
    choices = [*map(planned, choices)]
    return lambda i, *ins: choices[int(np.clip(i, 0, len(choices) - 1))](*ins)
  return None


def _by_jax(eqn):
  """A function that computes an equation by JAX, alone."""
  def run(*ins):
    with eqn.ctx.manager:
      out = eqn.primitive.bind(*map(jnp.asarray, ins), **eqn.primitive.get_bind_params(eqn.params))
    return map(_array, out if eqn.primitive.multiple_results else [out])
  return run


def _array(x, dtype=None):
  """NumPy's array of a value; keys of random numbers stay JAX's."""
  return x if jnp.issubdtype(dtype or x.dtype, jax.dtypes.extended) else np.asarray(x, dtype)


def operation(eqn):
  """A function from the operands of an equation to its outputs, in a list."""
  if (loop := _loop(eqn)) is not None:
    return loop
  if eqn.primitive.name == 'split':
    sizes, axis = eqn.params['sizes'], eqn.params['axis']
    return lambda x: np.split(x, np.cumsum(sizes)[:-1], axis)
  inner = versions.called(eqn)
  return _by_jax(eqn) if inner is None else planned(inner)


def planned(code):
  """A function that computes what code (a jaxpr) does."""
  jaxpr, consts = versions.parts(code)
  places, start = {}, []

  def place(v):
    if hasattr(v, 'val'):  # a literal
      start.append(np.asarray(v.val, v.aval.dtype))
      return len(start) - 1
    if v not in places:
      places[v] = len(start)
      start.append(None)
    return places[v]
  inputs = [*map(place, jaxpr.invars)]
  for v, x in zip(jaxpr.constvars, consts, strict=True):
    start[place(v)] = _array(x)
  steps = []
  for eqn in jaxpr.eqns:
    one, ins, outs = by_numpy(eqn), [*map(place, eqn.invars)], [*map(place, eqn.outvars)]
    steps.append((operation(eqn), ins, outs) if one is None else (one, ins, outs[0]))
  results = [*map(place, jaxpr.outvars)]

  def run(*args):
    values = start.copy()
    for i, x in zip(inputs, args, strict=True):
      values[i] = x
    for f, ins, outs in steps:
      out = f(*[values[i] for i in ins])
      if isinstance(outs, int):
        values[outs] = out
      else:
        for i, y in zip(outs, out, strict=True):
          values[i] = y
    return [values[i] for i in results]
  return run


def interpreted(f):
  """A function of arrays that computes what `jax.jit(f)` does, by NumPy. Nothing can be traced through it."""
  plans = {}

  def computed(*args):
    leaves, tree = jax.tree.flatten(args)
    types = tuple(map(jax.typeof, leaves))
    key = tree, types, jax.config.jax_enable_x64
    if key not in plans:
      code, out = jax.make_jaxpr(f, return_shape=True)(*args)
      plans[key] = planned(code), jax.tree.structure(out)
    run, out = plans[key]
    with np.errstate(all='ignore'):
      found = run(*(_array(x, t.dtype) for x, t in zip(leaves, types, strict=True)))
    return jax.tree.unflatten(out, map(_array, found))
  return computed
