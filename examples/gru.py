"""A GRU over a sequence: the scan stays one compiled loop, walked forward by LBP and backward by CROWN.

    python examples/gru.py
"""
import jax
import jax.numpy as jnp
from flax import nnx

import ibpjax

FEATURES, HIDDEN = 4, 12


class Recurrent(nnx.Module):
  """(steps, features) to one score, from the last state."""

  def __init__(self, rngs: nnx.Rngs):
    self.cell = nnx.GRUCell(FEATURES, HIDDEN, rngs=rngs)
    self.last = nnx.Linear(HIDDEN, 1, rngs=rngs)

  def __call__(self, sequence):
    step = lambda state, x: (self.cell(state, x)[0], None)
    state, _ = jax.lax.scan(step, jnp.zeros(HIDDEN), sequence)
    return self.last(state)[0]


def f(model, sequence):
  return model(sequence)


def main(lengths: tuple[int, ...] = (5, 20), eps: float = .01) -> dict[int, dict[str, float]]:
  model, result = Recurrent(nnx.Rngs(0)), {}
  for length in lengths:
    sequence = jax.random.normal(jax.random.key(length), (length, FEATURES))
    box = ibpjax.linf_ball(sequence, eps)
    corners = jnp.sign(jax.random.normal(jax.random.key(1), (5000, length, FEATURES)))
    gradient = jax.jit(jax.grad(f, 1))(model, sequence)
    points = jnp.concatenate([corners, jnp.sign(gradient)[None], -jnp.sign(gradient)[None]])
    reached = jax.jit(jax.vmap(f, (None, 0)))(model, sequence + eps * points)
    result[length] = dict(reached=float(jnp.ptp(reached)))
    for name, method in dict(ibp=ibpjax.ibp, lbp=ibpjax.lbp, crown=ibpjax.crown).items():
      found = jax.jit(method(f))(model, box)
      assert found.lower <= reached.min()
      assert reached.max() <= found.upper
      result[length][name] = float(found.width)
    print(f'{length} steps, width:', *(f'{name} {width:.4f}' for name, width in result[length].items()))
  return result


if __name__ == '__main__':
  main()
