"""From a function and its arguments to the program that methods bound."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.composites.patterns import grouped
from ibpjax.core.program import Program, Value, trace


def precise(round_outward: bool) -> contextlib.AbstractContextManager:
  """The context that bounds are computed in. Certificates assume products of full precision.

  GPUs and TPUs multiply float32 in less by default.
  """
  return jax.default_matmul_precision('highest') if round_outward else contextlib.nullcontext()


def opened(f: Callable, args: tuple, kwargs: dict) -> tuple[Program, list, Any]:
  """`f` as a program that every method bounds, groups of equations as one; its inputs; the tree of its result."""
  program, inputs, out_tree = ungrouped(f, args, kwargs)
  return grouped(program), inputs, out_tree


def ungrouped(f: Callable, args: tuple, kwargs: dict, **options: Any) -> tuple[Program, list, Any]:
  """`f` as a program of its own equations, its outputs checked; its inputs; the tree of its result; as `trace`."""
  program, inputs, out_tree = trace(f, args, kwargs, **options)
  for v in program.outputs:
    _check_output(v)
  return program, inputs, out_tree


def _check_output(v: Value) -> None:
  if not (jnp.issubdtype(v.dtype, jnp.floating) or v.dtype == jnp.bool_):
    raise TypeError(f'the function returns {v.dtype}{list(v.shape)}; only floats (and comparisons) have bounds. '
                    'Return the scores and not their argmax, or leave this output out')
