"""An Equinox network: its arrays are the parameters, the rest is code; bounds of each method, and of noisy weights.

    python examples/equinox_model.py        (after pip install equinox)
"""
import equinox as eqx
import jax
import jax.numpy as jnp

import ibpjax


def main(eps: float = .02) -> dict[str, float]:
  model = eqx.nn.MLP(in_size=6, out_size=3, width_size=32, depth=2, key=jax.random.key(0))
  params, static = eqx.partition(model, eqx.is_array)

  def f(params, x):
    return eqx.combine(params, static)(x)

  x = jax.random.normal(jax.random.key(1), (6,))
  box = ibpjax.linf_ball(x, eps)
  methods = dict(ibp=ibpjax.ibp(f), lbp=ibpjax.lbp(f), crown_ibp=ibpjax.crown(f, intermediate='ibp'),
                 crown=ibpjax.crown(f), alpha_crown=ibpjax.alpha_crown(f, steps=20))
  points = jax.random.uniform(jax.random.key(2), (10_000, 6), minval=box.lower, maxval=box.upper)
  reached = jax.jit(jax.vmap(f, (None, 0)))(params, points)
  span = jnp.ptp(reached, 0).mean()
  print(f'{"sampled":>12} width {span:.4f}')
  result = dict(sampled=float(span))
  for name, bound in methods.items():
    found = jax.jit(bound)(params, box)
    assert bool(jnp.all((found.lower <= reached.min(0)) & (reached.max(0) <= found.upper)))
    result[name] = float(found.width.mean())
    print(f'{name:>12} width {result[name]:.4f}')

  # Any argument may be a set: here all weights are known to a tenth of a per cent only.
  weights = jax.tree.map(lambda w: ibpjax.Interval(w - 1e-3 * abs(w), w + 1e-3 * abs(w)), params)
  result['weights'] = float(jax.jit(ibpjax.crown(f))(weights, x).width.mean())
  print(f'{"of weights":>12} width {result["weights"]:.4f}')
  return result


if __name__ == '__main__':
  main()
