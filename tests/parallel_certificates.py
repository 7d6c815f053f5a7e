"""Certificates of thirteen examples by CROWN on eight virtual devices, in float64, beside those on one."""
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np

import ibpjax
from ibpjax.training import parallel
from ibpjax.verification.certify import _bounds


def f(params, x):
  *layers, last = params
  for w in layers:
    x = jax.nn.relu(w @ x)
  return last @ x


def main():
  rng, sizes = np.random.default_rng(0), [20, 48, 48, 5]
  params = [jnp.asarray(rng.normal(size=(m, n)) * (2 / n) ** .5) for n, m in itertools.pairwise(sizes)]
  x, y, radii = jnp.asarray(rng.uniform(size=(13, 20))), jnp.arange(13) % 5, jnp.linspace(.01, .05, 13)
  rows = jnp.asarray(rng.normal(size=(9, 5))), jnp.linspace(-1, 1, 9)

  def lower(spec, eps, mesh):
    return np.asarray(ibpjax.certify(f, params, x, spec, eps, method='crown', mesh=mesh).lower)
  examples, dealt = parallel.data_mesh(), parallel.data_mesh(rows=4)
  alone = lower(y, .02, None)
  apart = [np.abs(lower(y, .02, examples) - alone).max(),
           np.abs(lower(rows, radii, dealt) - lower(rows, radii, None)).max()]

  def operations(mesh):
    """Of one device, before XLA compiles them."""
    options = dict(code='', norm='linf', clip=(0., 1.), labelled=False, method='crown', intersect=True, mesh=mesh)
    return _bounds.lower(f, params, x, rows, radii, **options).cost_analysis()['flops']
  share = operations(dealt) / operations(parallel.data_mesh(jax.devices()[:2]))   # both have 7 examples
  print(json.dumps(dict(apart=float(max(apart)), spread=float(np.ptp(alone)), share=share)))


if __name__ == '__main__':
  jax.config.update('jax_enable_x64', True)
  jax.config.update('jax_disable_most_optimizations', True)
  main()
