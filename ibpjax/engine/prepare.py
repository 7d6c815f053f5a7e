"""From a function and its arguments to the program that methods bound, and back to the function's result."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.composites.patterns import grouped
from ibpjax.core.program import Program, Value, trace
from ibpjax.core.sets import validated


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A function of sets as a program and what goes into it: where every method starts.

  Attributes:
    program: the program.
    inputs: sets and arrays for its inputs.
    tree: the structure of the function's result.
  """
  program: Program
  inputs: list[Any]
  tree: Any

  def result(self, found: Iterable[Any]) -> Any:
    """What was found of each output, in the structure of the function's result."""
    return jax.tree.unflatten(self.tree, list(found))


def prepare(f: Callable, args: tuple, kwargs: dict, *, group: bool = True) -> Prepared:
  """A function and its arguments, these validated, ready for any method.

  Args:
    f: the function.
    args, kwargs: its arguments, sets in the place of arrays.
    group: whether groups of equations that are bounded as one are put together.
  """
  program, inputs, tree = ungrouped(f, *validated(args, kwargs))
  return Prepared(grouped(program) if group else program, inputs, tree)


def ungrouped(f: Callable, args: tuple, kwargs: dict, **options: Any) -> tuple[Program, list, Any]:
  """`f` as a program of its own equations, its outputs checked; its inputs; the tree of its result; as `trace`."""
  program, inputs, tree = trace(f, args, kwargs, **options)
  for v in program.outputs:
    _check_output(v)
  return program, inputs, tree


def named_as(f: Callable, bounded: Callable) -> Callable:
  """A transformed function, with the name and the docstring of the original."""
  return functools.update_wrapper(bounded, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())


def precise(round_outward: bool) -> contextlib.AbstractContextManager:
  """The context that bounds are computed in. Certificates assume products of full precision.

  GPUs and TPUs multiply float32 in less by default.
  """
  return jax.default_matmul_precision('highest') if round_outward else contextlib.nullcontext()


def _check_output(v: Value) -> None:
  if not (jnp.issubdtype(v.dtype, jnp.floating) or v.dtype == jnp.bool_):
    raise TypeError(f'the function returns {v.dtype}{list(v.shape)}; only floats (and comparisons) have bounds. '
                    'Return the scores and not their argmax, or leave this output out')
