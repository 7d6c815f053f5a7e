"""Functions that users register: one primitive that carries the row of what it calls."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from ibpjax.core.row import OWN, Elementwise, Row

elementwise_call_p = jex.Primitive('elementwise_call')


def elementwise(rule: Elementwise) -> Callable[[Callable], Callable]:
  """Decorator: bounds `fn(x, *known)` by `rule` as a whole, not primitive by primitive.

  Args:
    rule: where the slope of `fn` in its first argument equals k; see `Elementwise`.

  Returns:
    A decorator of functions of one array `x` and any number of known arrays, all elementwise and
    broadcast to one shape. The decorated function is an ordinary JAX function (jit, vmap, grad).
    A second argument that is perturbed too is refused when bounds are computed.
  """
  def register(fn: Callable) -> Callable:
    @functools.wraps(fn)
    def registered(x, *known):
      x = jnp.asarray(x)
      operands = [x, *(jnp.asarray(c, x.dtype) for c in known)]
      shape = jnp.broadcast_shapes(*(a.shape for a in operands))
      out = jax.eval_shape(fn, *(jax.ShapeDtypeStruct(shape, x.dtype) for _ in operands))
      if (out.shape, out.dtype) != (shape, x.dtype):
        raise TypeError(f'{fn.__name__} maps {x.dtype}{list(shape)} to {out.dtype}{list(out.shape)}: a registered '
                        'function is elementwise and keeps shape and dtype')
      return elementwise_call_p.bind(*(jnp.broadcast_to(a, shape) for a in operands), fn=fn, rule=rule)
    return registered
  return register


def _call(*xs, fn, rule):
  del rule
  return fn(*xs)


def _batch(args, dims, *, fn, rule):
  size = next(x.shape[d] for x, d in zip(args, dims) if d is not None)
  args = [jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims)]
  return elementwise_call_p.bind(*args, fn=fn, rule=rule), 0


def _jvp(primals, tangents, *, fn, rule):
  del rule
  return jax.jvp(fn, primals, tuple(map(ad.instantiate_zeros, tangents)))


elementwise_call_p.def_impl(jax.jit(_call, static_argnames=('fn', 'rule')))
elementwise_call_p.def_abstract_eval(lambda x, *known, fn, rule: jax.core.ShapedArray(x.shape, x.dtype))
ad.primitive_jvps[elementwise_call_p] = _jvp
batching.primitive_batchers[elementwise_call_p] = _batch
mlir.register_lowering(elementwise_call_p, mlir.lower_fun(_call, multiple_results=False))

ROWS: dict[Any, Row] = {
    elementwise_call_p: Row(accuracy=OWN, elementwise=lambda params, slot: params['rule'], undefined_at_infinity=True)}
