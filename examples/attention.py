"""A transformer block: attention, layer norm and gelu, each bounded as one operation, wherever it stands in the code.

    python examples/attention.py
"""
import jax
import jax.numpy as jnp
from flax import nnx

import ibpjax

TOKENS, FEATURES = 6, 16


class Block(nnx.Module):
  """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)); (tokens, features) to the same."""

  def __init__(self, rngs: nnx.Rngs):
    self.norms = nnx.List([nnx.LayerNorm(FEATURES, rngs=rngs) for _ in range(2)])
    self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=FEATURES, decode=False, rngs=rngs)
    self.up, self.down = nnx.Linear(FEATURES, 32, rngs=rngs), nnx.Linear(32, FEATURES, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.norms[0](x))
    return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


def f(block, x):
  """Two scores of a sequence."""
  return block(x).mean(0)[:2]


def main(radii: tuple[float, ...] = (.001, .01, .05)) -> dict[float, dict[str, float]]:
  block = Block(nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (TOKENS, FEATURES))
  methods = dict(ibp=ibpjax.ibp(f), lbp=ibpjax.lbp(f), crown=ibpjax.crown(f))
  values = jax.jit(jax.vmap(f, (None, 0)))
  run = jax.jit(lambda block, box: {name: bound(block, box) for name, bound in methods.items()})
  result = {}
  print('width of bounds over that of what 2000 random points reach')
  for eps in radii:
    box = ibpjax.linf_ball(x, eps)
    corners = jnp.sign(jax.random.normal(jax.random.key(2), (2000, TOKENS, FEATURES)))
    reached = values(block, x + eps * corners)
    result[eps] = {}
    for name, found in run(block, box).items():
      assert bool(jnp.all((found.lower <= reached.min(0)) & (reached.max(0) <= found.upper)))
      result[eps][name] = float((found.width / jnp.ptp(reached, 0)).mean())
    print(f'eps {eps:<6}', *(f'{name} {ratio:9.2f}' for name, ratio in result[eps].items()))
  return result


if __name__ == '__main__':
  main()
