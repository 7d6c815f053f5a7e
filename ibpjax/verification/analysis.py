"""What training does to bounds: how they grow from layer to layer, how many neurons are unstable, how tight IBP is."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.balls import linf_ball
from ibpjax.core.sets import Interval
from ibpjax.methods.ibp import ibp


def layer_growth(f: Callable, params: Any, xs: Any, eps: Any,
                 clip: tuple[float, float] = (0., 1.)) -> dict[str, Any]:
  """How interval bounds grow from layer to layer, means over examples and neurons.

  Args:
    f: (params, x) -> outputs of one example.
    params: its first argument.
    xs: (batch, ...) examples.
    eps: radius of the l-infinity balls around them, cut to `clip`.

  Returns:
    Of what goes into each activation, in order, arrays (layers,): radius; gain, by how much the layer before it made
    that larger; active, inactive and unstable, the fractions of neurons that lie above 0, below it, and on both sides.

  Source: Shi et al. 2021, sections 3.1 and 3.2.
  """
  box = linf_ball(xs, eps, *clip)
  _, inside = jax.vmap(ibp(f, intermediates=True), (None, 0))(params, box)
  bounds = list(inside.bounds.values())
  radius = jnp.asarray([b.radius.mean() for b in bounds])
  before = jnp.concatenate([box.radius.mean()[None], radius[:-1]])[:len(bounds)]
  active, inactive = (jnp.asarray([where.mean() for where in kinds]) for kinds in (
      [b.lower >= 0 for b in bounds], [(b.upper <= 0) & (b.lower < 0) for b in bounds]))
  return dict(radius=radius, gain=radius / jnp.maximum(before, jnp.finfo(before.dtype).tiny), active=active,
              inactive=inactive, unstable=1 - active - inactive)


def propagation_tightness(f: Callable, params: Any, xs: Any) -> Any:
  """How near interval bounds are to the range of a network, were all activations the lines that they are at an example.

  Of the linear network at x, with weights W and slopes D: |W_L D .. D W_1| r / (|W_L| D .. D |W_1| r), the exact radius
  of an output over that of interval bounds, for a box of the same radius r in all directions; the mean over outputs. 1
  where interval bounds are exact.

  Args:
    f: (params, x) -> outputs of one example.
    params: its first argument.
    xs: (batch, ...) examples.

  Returns:
    (batch,) ratios in [0, 1].

  Source: Mao et al. 2024, section 3.
  """
  def one(params, x):
    def linear(params, x, move):
      return jax.jvp(lambda x: f(params, x), (x,), (move,))[1]
    exact = jnp.abs(jax.jacrev(lambda x: f(params, x))(x)).reshape(-1, x.size).sum(1)
    bound = ibp(linear)(params, x, Interval(-jnp.ones_like(x), jnp.ones_like(x))).radius.ravel()
    return jnp.mean(exact / jnp.maximum(bound, jnp.finfo(bound.dtype).tiny))
  return jax.vmap(one, (None, 0))(params, xs)
