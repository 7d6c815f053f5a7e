"""Schedules of the perturbation radius and of the weights tied to it, as functions of the training step.

They are optax schedules: step (an integer, traced or not) -> value.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

Schedule = Callable[[Any], Any]


def linear(value: float, start: int, length: int, initial: float = 0.) -> Schedule:
  """`initial` until step `start`, then in a straight line to `value` within `length` steps."""
  _check(start, length)

  if not length:
    return lambda step: jnp.where(step >= start, value, initial)
  return optax.linear_schedule(initial, value, length, start)


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


def tied(eps: Schedule, maximum: float, initial: float, final: float) -> Schedule:
  """A weight that follows the radius: `initial` while eps is 0, `final` once eps is `maximum`, linear in eps between.

  kappa, beta and lambda of the certified-training papers: kappa = 1 - (eps_t / eps)(1 - kappa_end)
  and beta likewise (Lyu et al. 2021, section 5 of the supplement; Zhang et al. 2020), lambda =
  lambda_0 (1 - eps_t / eps) (Shi et al. 2021, section 3.2).

  Args:
    eps: schedule of the radius.
    maximum: its final value; 0 for natural training, where the weight is `final`.
    initial, final: values of the weight. Where they are equal it is this number and no array.
  """
  if maximum < 0:
    raise ValueError(f'the greatest radius is {maximum}; it is >= 0')
  if initial == final:
    return lambda step: initial

  def schedule(step):
    done = jnp.clip(eps(step) / maximum, 0., 1.) if maximum else 1.
    return initial + done * (final - initial)
  return schedule


def _check(start: int, length: int) -> None:
  if start < 0 or length < 0:
    raise ValueError(f'a ramp of {length} steps from step {start}: both must be >= 0')
