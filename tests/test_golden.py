"""Numbers that were worked out independently, in float64, from the formulas of the papers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ramp

from ibpjax import ibp, linf_ball, margins

B = [[.1, -.2, 0], [0, .1, -.1], [-.1, -.2, 0], [.2, -.1]]
R = [[.6, .4, .3], [.5, .3, .4], [.3, .3, .3]]
NUMBERS = [[[1, -.5], [.8, .6], [-.7, .9]], [[.5, -1, .3], [-.4, .7, .9], [1, .2, -.6]],
           [[.6, .8, -.5], [-.9, .4, 1], [.7, -.3, .2]], [[1, -.5, .25], [-.75, .5, 1]]]


def network(activation):
  def f(x):
    for k in range(3):
      x = activation(jnp.array(NUMBERS[k]) @ x + jnp.array(B[k]), k)
    return jnp.array(NUMBERS[3]) @ x + jnp.array(B[3])
  return f


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(('activation', 'lower', 'upper'), [
    (lambda z, k: jax.nn.relu(z), -1.280388, 1.035350),
    (lambda z, k: jax.nn.leaky_relu(z, .1), -1.547531, 1.127604),
    (lambda z, k: ramp(z, jnp.array(R[k])), -.297311, .768738)])
def test_elided_margins_of_a_four_layer_network(activation, lower, upper):
  """Networks with ReLU, LeakyReLU(.1) and ParamRamp(.1); l-infinity radius .3 around (.5, -.25)."""
  box = linf_ball(jnp.array([.5, -.25]), .3)
  margin = ibp(lambda x: margins(network(activation)(x), 0), elide=True)(box)
  assert float(margin.lower[0]) == pytest.approx(lower, abs=6e-7)
  assert float(margin.upper[0]) == pytest.approx(upper, abs=6e-7)


@pytest.mark.usefixtures('x64')
def test_bounds_of_the_first_layer():
  box = linf_ball(jnp.array([.5, -.25]), .3)
  z = ibp(lambda x: jnp.array(NUMBERS[0]) @ x + jnp.array(B[0]))(box)
  np.testing.assert_allclose(z.lower, [.275, -.37, -1.055], atol=1e-12)
  np.testing.assert_allclose(z.upper, [1.175, .47, -.095], atol=1e-12)
