"""Chunks: what is computed for many rows is computed for so many at a time, and only for those that are needed."""
from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_axis: contextvars.ContextVar[str | None] = contextvars.ContextVar('axis', default=None)


@contextlib.contextmanager
def dealt_over(axis_name: str | None) -> Iterator[None]:
  """Within it `over_rows` deals rows to the devices of an axis that is mapped by `jax.shard_map`; None for no axis.

  Each device computes its share and is told the others' results: the same as on one device. Not differentiable: each
  device would count the gradient of all.
  """
  before = _axis.set(axis_name)
  try:
    yield
  finally:
    _axis.reset(before)


def over_rows(f: Callable[[Any], Any], rows: Any, width: int, chunk: int | None = None, needed: Any = None) -> Any:
  """`f` on each of some rows, so many at a time.

  Args:
    f: what stands for one row (its number, for instance) -> any pytree of arrays.
    rows: arrays of what stands for each row, along their first axis.
    width: elements that one row may occupy.
    chunk: rows at a time; default as many as stay in the caches of a CPU, or fill an accelerator. Gradients compute
      the rows of one chunk anew and keep nothing of the others.
    needed: (rows,) booleans; the result for other rows does not matter. Where chunks are smaller than the whole,
      only as many are computed as the needed rows fill, or in a batch those of the example with most. Gradients
      compute all.
  """
  n = len(jax.tree.leaves(rows)[0])
  if (axis := _axis.get()) is not None and n >= lax.axis_size(axis) > 1:
    return _dealt(axis, f, rows, width, chunk, needed)
  if chunk is None:  # 2**15 float32 are 128 KiB for each example of a batch
    chunk = max(1, (1 << 15 if jax.default_backend() == 'cpu' else 1 << 22) // max(width, 1))
  if n <= chunk:
    return jax.vmap(f)(rows)
  chunk = -(-n // -(-n // chunk))  # as many chunks, of sizes as equal as they can be
  return _all(f, rows, chunk) if needed is None else _needed(f, rows, chunk, needed)


def sum_over(f: Callable[[Any], Any], rows: Any, width: int) -> Any:
  """`f` of rows that it sums over: on CPUs from as many at a time as stay in the cache of a core.

  Args:
    f: pytree of arrays, whose first axes are that of any number of rows -> array.
    rows: such a pytree.
    width: elements that one row occupies within `f`.
  """
  n, most = len(jax.tree.leaves(rows)[0]), max(1, (1 << 18) // max(width, 1))
  if jax.default_backend() != 'cpu' or n <= most:
    return f(rows)
  chunk = next((size for size in range(most, most // 2, -1) if n % size == 0), most)
  count, rest = divmod(n, chunk)
  last = f(jax.tree.map(lambda x: x[n - rest:], rows))

  # Cut within: what goes into a loop in parts is a copy, and XLA computes it anew from what the rows are made of.
  def add(i, total):
    return total + f(jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * chunk, chunk), rows))
  return lax.fori_loop(0, count, add, last)


def _dealt(axis: str, f: Callable[[Any], Any], rows: Any, width: int, chunk: int | None, needed: Any) -> Any:
  """Rows one by one to each device in turn, as to cards: those that are needed often lie side by side."""
  n, count = len(jax.tree.leaves(rows)[0]), lax.axis_size(axis)
  which = jnp.arange(-(-n // count)) * count + lax.axis_index(axis)
  own = jax.tree.map(lambda x: x[jnp.minimum(which, n - 1)], rows)
  own_needed = None if needed is None else needed[jnp.minimum(which, n - 1)] & (which < n)
  with dealt_over(None):
    found = over_rows(f, own, width, chunk, own_needed)
  gathered = lax.all_gather(found, axis, axis=1)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], gathered)


def _all(f: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
  return lax.map(jax.checkpoint(f, prevent_cse=False), rows, batch_size=chunk)


def _needed(f: Callable[[Any], Any], rows: Any, chunk: int, needed: Any) -> Any:
  """A loop over the needed rows, which are sorted to the front; its derivatives are those of the loop over all."""
  n = len(needed)
  closed, constants = jax.closure_convert(f, jax.tree.map(lambda x: x[0], rows))

  @jax.custom_jvp
  def some(rows, needed, *constants):
    count = jnp.sum(needed)
    order = jnp.argsort(~needed, stable=True)
    padded = jnp.pad(order, (0, -n % chunk))

    def run(which):
      return jax.vmap(lambda row: closed(row, *constants))(jax.tree.map(lambda x: x[which], rows))

    def step(state):
      done, found = state
      part = run(lax.dynamic_slice_in_dim(padded, done, chunk))
      return done + chunk, jax.tree.map(lambda a, x: lax.dynamic_update_slice_in_dim(a, x, done, 0), found, part)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, padded))
    _, found = lax.while_loop(lambda state: state[0] < count, step, (jnp.zeros_like(count), empty))
    return jax.tree.map(lambda x: x[jnp.argsort(order)], found)

  @some.defjvp
  def tangents(primals, tangents):
    (rows, _, *constants), (moving, _, *moved) = primals, tangents

    def every(rows, *constants):
      return _all(lambda row: closed(row, *constants), rows, chunk)
    return jax.jvp(every, (rows, *constants), (moving, *moved))
  return some(rows, needed, *constants)
