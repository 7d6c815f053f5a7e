"""Integers that depend on perturbed values in other types of integers: exact, unless they may not fit."""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ibpjax.core.sets import Interval


def cast(x: Interval, out: Interval) -> Interval:
  """An integer in another integer type, given its cast ends: anything if it might not fit."""
  least, greatest = (float(e) for e in (jnp.iinfo(out.dtype).min, jnp.iinfo(out.dtype).max))
  fits = (real(x.lower) >= .99 * least) & (real(x.upper) <= .99 * greatest)
  return unless(~fits, out)


def real(x: Any) -> Any:
  return x.astype(jnp.float32)


def unless(wraps: Any, x: Interval) -> Interval:
  info = jnp.iinfo(x.dtype)
  return Interval(jnp.where(wraps, info.min, x.lower), jnp.where(wraps, info.max, x.upper))
