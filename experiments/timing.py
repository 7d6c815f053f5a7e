"""Wall times of functions, in turn."""
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def timed(f: Callable, *args: Any) -> float:
  """Seconds until the result of a call is there."""
  start = time.perf_counter()
  jax.block_until_ready(f(*args))
  return time.perf_counter() - start


def in_turn(functions: Sequence[Callable], *args: Any, repeats: int) -> list[list[float]]:
  """Seconds of each function, A B A B ..., so that a drift of the machine's speed hits all; after one run of each."""
  for f in functions:
    timed(f, *args)
  return [[timed(f, *args) for f in functions] for _ in range(repeats)]
