"""Values that are computed once, where XLA would compute them anew in each of their uses."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def materialize(chosen: Any) -> Any:
  """The same arrays (floats or booleans), computed once and not again wherever they are used.

  XLA computes cheap values anew in each kernel that needs them, and not always to the same bits: a
  product and a sum may become one instruction, or not. A choice between two that are nearly equal
  would fall here so and there otherwise, and a line have the slope of one and the intercept of the
  other. Loops are not fused; two changes of sign are exact. Barriers do not help: XLA:CPU removes
  them before it fuses.
  """
  floats = jax.tree.map(lambda x: jnp.where(x, 1., -1.) if x.dtype == jnp.bool_ else x, chosen)
  held, _ = lax.scan(_opposite, floats, length=2)
  return jax.tree.map(lambda x, y: y > 0 if x.dtype == jnp.bool_ else y, chosen, held)


def _opposite(x: Any, _: None) -> tuple[Any, None]:
  return jax.tree.map(jnp.negative, x), None


@jax.custom_jvp
def materialize_cotangents(x: Any) -> Any:
  """The same arrays of floats; what their derivatives are multiplied by in reverse mode is computed once.

  For values of two uses before a layer with batch norm, whose sums would each compute that sum of two anew.
  """
  return x


@materialize_cotangents.defjvp
def _materialize_cotangents_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
  return primals[0], materialize(tangents[0])
