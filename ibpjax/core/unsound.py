"""Objectives that bound nothing: a type of their own, which certification refuses."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class UnsoundObjective:
  """An objective whose bounds are not bounds over the whole ball; with `functools.partial`, a decorator.

  Attributes:
    objective: itself.
    reason: why it is not.
  """

  def __init__(self, objective: Callable, reason: str):
    functools.update_wrapper(self, objective)
    self.objective, self.reason = objective, reason

  def __repr__(self) -> str:
    return f'<unsound {self.objective.__name__}>'

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """As the objective."""
    return self.objective(*args, **kwargs)


def why_unsound(f: Any) -> str | None:
  """Why something is no bound: the reason of an UnsoundObjective, also with options set; None for all else."""
  while isinstance(f, functools.partial):
    f = f.func
  return f.reason if isinstance(f, UnsoundObjective) else None
