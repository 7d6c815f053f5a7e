"""Schedules of the perturbation radius, as functions of the training step.

They are optax schedules: step (an integer, traced or not) -> value.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

Schedule = Callable[[Any], Any]


def linear(value: float, start: int, length: int, initial: float = 0.) -> Schedule:
  """`initial` until step `start`, then in a straight line to `value` within `length` steps."""
  _check(start, length)

  def schedule(step):
    done = jnp.clip((step - start) / max(length, 1), 0., 1.) if length else jnp.where(step >= start, 1., 0.)
    return initial + done * (value - initial)
  return schedule


def smoothed(value: float, start: int, length: int, initial: float = 0., mid: float = 0.25) -> Schedule:
  """`initial` until step `start`, a quartic, then from a fraction `mid` on a line with its slope.

  The quartic keeps the first radii tiny: a network that has met no perturbation yet is not
  thrown off. The curve and its slope are continuous.

  Args:
    value: the final value, reached at step `start + length` and kept.
    start: the last step with the value `initial`.
    length: steps of the ramp.
    initial: value before the ramp.
    mid: fraction of the ramp that is quartic.

  Source: Shi et al. 2021, released code (SmoothedScheduler, exponent 4); Zhang et al. 2020.
  """
  _check(start, length)
  bend = int(mid * length)
  # value(s) = a s**4 up to the bend, where its slope 4 a bend**3 continues as a line to the end.
  scale = 4 * (length - bend) * bend ** 3 + bend ** 4
  top = bend ** 4 / max(scale, 1)

  def schedule(step):
    s = jnp.asarray(step - start, jnp.result_type(float))
    quartic = top * (jnp.clip(s, 0., bend) / max(bend, 1)) ** 4
    line = top + (1 - top) * jnp.clip((s - bend) / max(length - bend, 1), 0., 1.)
    return initial + (value - initial) * jnp.where(s < bend, quartic, jnp.where(s >= length, 1., line))
  return schedule


def _check(start: int, length: int) -> None:
  if start < 0 or length < 0:
    raise ValueError(f'a ramp of {length} steps from step {start}: both must be >= 0')
