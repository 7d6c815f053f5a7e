"""Linear functionals of the values of a program: what a backward pass carries.

A row has one coefficient for each element of a value, or for each element of the window of it that the functional
rests on. Which of the two is invisible to the methods.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from ibpjax.core.program import Value
from ibpjax.core.sets import pytree
from ibpjax.engine.patches import Patch


@pytree
class Dense:
  """A linear functional with one stored coefficient for each element of its value."""
  coefficients: Any


Row = Dense | Patch


@pytree
class LinearFunctional:
  """sum_i <rows[i], value i> + offset: an affine functional of some values of a program, by their ids."""
  rows: dict[int, Row]
  offset: Any

  def scaled(self, factor: Any) -> LinearFunctional:
    """The functional times a number."""
    rows = {i: dataclasses.replace(row, coefficients=factor * row.coefficients) for i, row in self.rows.items()}
    return LinearFunctional(rows, factor * self.offset)

  def dense(self) -> LinearFunctional:
    """The functional with a coefficient for each element of each value."""
    return LinearFunctional({i: Dense(dense(row)) for i, row in self.rows.items()}, self.offset)


def dense(row: Row) -> Any:
  """The coefficients of a functional for all elements of its value."""
  return row.dense() if isinstance(row, Patch) else row.coefficients


def add(row: Row, other: Row) -> Row:
  """The sum of two functionals of the same value."""
  if isinstance(row, Patch) and isinstance(other, Patch) and (total := row.joined(other)) is not None:
    return total
  return Dense(dense(row) + dense(other))


def resting_on(value: Value, row: Row) -> LinearFunctional:
  """`<row, value>` as a functional."""
  return LinearFunctional({value.id: row}, jnp.zeros((), value.dtype))


def element(value: Value, i: Any, factor: Any = 1) -> LinearFunctional:
  """`factor` times element number `i` of a value as a functional."""
  return resting_on(value, Dense(factor * (jnp.arange(value.size) == i).astype(value.dtype).reshape(value.shape)))
