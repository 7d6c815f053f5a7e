"""Chunks: what is computed for many rows is computed for so many at a time, and only for those that are needed."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


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
  if chunk is None:  # 2**15 float32 are 128 KiB for each example of a batch
    chunk = max(1, (1 << 15 if jax.default_backend() == 'cpu' else 1 << 22) // max(width, 1))
  if n <= chunk:
    return jax.vmap(f)(rows)
  chunk = -(-n // -(-n // chunk))  # as many chunks, of sizes as equal as they can be
  return _all(f, rows, chunk) if needed is None else _needed(f, rows, chunk, needed)


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
