"""Certified radii: how far an example may be perturbed before its certificate is lost."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ibpjax.core.directed import UP, converted
from ibpjax.verification.certify import certify


def certified_radius(f: Callable, params: Any, xs: Any, spec: Any, greatest: float, *, steps: int = 12,
                     **options: Any) -> Any:
  """For each example a radius at which `certify` verifies it, found by bisection of [0, greatest].

  Every radius that is returned has been certified itself, so that smaller ones hold too. It is within
  greatest / 2 ** steps of the greatest certified one, where bounds are monotone in the radius, and else of one at which
  certificates begin to fail.

  Args:
    f, params, xs, spec: as in `certify`.
    greatest: the greatest radius that is tried, in the units of `xs`; rounded up to their dtype, as by `certify`.
    steps: of the bisection, each as expensive as `certify`.
    **options: of `certify`: norm, clip, method, intersect, allow_random, mesh.

  Returns:
    (batch,) radii; 0 also for examples that no radius is certified for, as misclassified ones.

  Raises:
    TypeError, ValueError, RuntimeError: as `certify`; and for less than one step.
  """
  if steps < 1:
    raise ValueError(f'steps is {steps}: a bisection has at least one')
  xs = jnp.asarray(xs)

  def verified(eps):
    return certify(f, params, xs, spec, eps, **options).verified
  high = jnp.broadcast_to(converted(greatest, xs.dtype, UP), xs.shape[:1])
  low = jnp.where(verified(high), high, 0)
  for _ in range(steps):
    middle = low + (high - low) / 2
    holds = verified(middle)
    low, high = jnp.where(holds, middle, low), jnp.where(holds, high, middle)
  return low
