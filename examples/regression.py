"""Regression with a specification: no measurement error may move a prediction by more than it is allowed to.

    python examples/regression.py
"""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import ibpjax

ALLOWED = .3   # of a prediction, in standard deviations of the target


def f(params, x):
  """(1,): the prediction."""
  *layers, (w, b) = params
  for v, a in layers:
    x = jax.nn.softplus(v @ x + a)
  return w @ x + b


def difference(given, x):
  """(1,): the prediction at x less that at the person itself."""
  params, own = given
  return f(params, x) - f(params, own)


def trained(xs, ys):
  rng, sizes = np.random.default_rng(0), (10, 16, 16, 1)
  params = [(jnp.asarray(rng.normal(size=(m, n)) / n ** .5, jnp.float32), jnp.zeros(m))
            for n, m in itertools.pairwise(sizes)]
  optimizer = optax.adamw(3e-3, weight_decay=.01)
  loss = lambda params: jnp.mean((jax.vmap(f, (None, 0))(params, xs)[:, 0] - ys) ** 2)

  def step(carry, _):
    params, moments = carry
    updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
    return (optax.apply_updates(params, updates), moments), None
  return jax.lax.scan(step, (params, optimizer.init(params)), length=400)[0][0]


def main(radii: tuple[float, ...] = (.05, .1, .2)) -> dict[float, float]:
  xs, ys = (jnp.asarray(v / v.std(0), jnp.float32) for v in load_diabetes(return_X_y=True))
  params = jax.jit(trained)(xs, ys - ys.mean())
  print(f'prediction certain to stay within {ALLOWED} while all ten measurements move by')
  rows = jnp.array([[1.], [-1.]]), jnp.full(2, ALLOWED)   # C z + d > 0: z > -ALLOWED and -z > -ALLOWED
  result = {}
  for eps in radii:
    certain = [ibpjax.certify(difference, (params, x), x[None], rows, eps, clip=None, method='crown').verified[0]
               for x in xs[:64]]
    result[eps] = float(jnp.mean(jnp.array(certain)))
    print(f'  {eps:<4} of their deviation: {result[eps]:.0%} of people')
  return result


if __name__ == '__main__':
  main()
