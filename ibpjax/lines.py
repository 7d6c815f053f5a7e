"""Lines: the choice of slopes for the two lines that enclose an elementwise function.

A choice maps (fn, l, u) to (slope below, slope above), arrays of the shape of l. Any choice is
sound: the intercepts are computed afterwards (`elementwise.enclose`).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Slopes = tuple[Any, Any]
Function = Callable[[Any], Any]


def slope_at(fn: Function, x: Any) -> Any:
  """The derivative of an elementwise function at each element of `x`."""
  return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


def chord(fn: Function, l: Any, u: Any) -> Any:
  """The slope between the ends of [l, u]; the derivative where they coincide."""
  wide = u > l
  return jnp.where(wide, (fn(u) - fn(l)) / jnp.where(wide, u - l, 1), slope_at(fn, l))


def constant(fn: Function, l: Any, u: Any) -> Slopes:
  """Slope 0: the lines are the ends of the range, and linear methods give the IBP box.

  Source: Lyu et al. 2021, Figure 1a.
  """
  return jnp.zeros_like(l), jnp.zeros_like(l)


def tight(fn: Function, l: Any, u: Any) -> Slopes:
  """Lines inside the range of a monotone function: below through (l, f(l)), above through (u, f(u)).

  The premise of the ordering IBP <= LBP, CROWN-IBP <= CROWN-LBP <= CROWN.
  Source: Lyu et al. 2021, Figure 1b and Theorem 2.
  """
  c = chord(fn, l, u)
  return jnp.minimum(slope_at(fn, l), c), jnp.minimum(slope_at(fn, u), c)


def adaptive(fn: Function, l: Any, u: Any) -> Slopes:
  """CROWN's choice for ReLU: above the chord, below 0 or 1 by the sign of the midpoint.

  Source: Zhang et al. 2018; Lyu et al. 2021, Figures 1c and 1d.
  """
  return slope_at(fn, l / 2 + u / 2), chord(fn, l, u)
