"""Numbers that were worked out independently, in float64, from the formulas of the papers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ramp
from interpreted import interpreted

from ibpjax import adaptive, constant, crown, ibp, lbp, linf_ball, margins, tight

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


ACTIVATIONS = {'relu': lambda z, k: jax.nn.relu(z), 'leaky relu': lambda z, k: jax.nn.leaky_relu(z, .1),
               'ramp': lambda z, k: ramp(z, jnp.array(R[k]))}
IBP = {'relu': (-1.280388, 1.035350), 'leaky relu': (-1.547531, 1.127604), 'ramp': (-.297311, .768738)}
# CROWN-IBP, LBP, CROWN-LBP, CROWN.
LINEAR = {
    ('relu', tight): [(-.886635, .839463), (-1.126122, .346019), (-.808766, .344054), (-.806624, .297182)],
    ('relu', adaptive): [(-.848947, .928347), (-.819408, .752331), (-.724286, .560831), (-.722723, .498585)],
    ('leaky relu', tight): [(-1.076933, .834012), (-1.261049, .315607), (-.974697, .265837), (-.974697, .265837)],
    ('leaky relu', adaptive): [(-1.006687, .908389), (-.955687, .612164), (-.866385, .447594), (-.865351, .383049)],
    ('ramp', tight): [(-.258005, .566421), (-.285317, .635286), (-.258005, .492777), (-.235745, .323145)],
    ('ramp', adaptive): [(-.122227, .501403), (-.293744, .612604), (-.125257, .440984), (-.126151, .354955)],
}


def close_to(bound, ends):
  return np.allclose([bound.lower[0], bound.upper[0]], ends, rtol=0, atol=6e-7)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(('name', 'lines'), LINEAR)
def test_margins_of_a_four_layer_network(name, lines):
  """Networks with ReLU, LeakyReLU(.1) and ParamRamp(.1); l-infinity radius .3 around (.5, -.25)."""
  box = linf_ball(jnp.array([.5, -.25]), .3)
  def margin(x):
    return margins(network(ACTIVATIONS[name])(x), 0)
  assert close_to(interpreted(ibp(margin, elide=True))(box), IBP[name])
  methods = [crown(margin, intermediate='ibp', lines=lines), lbp(margin, lines=lines),
             crown(margin, intermediate='lbp', lines=lines), crown(margin, lines=lines)]
  for method, ends in zip(methods, LINEAR[name, lines], strict=True):
    assert close_to(interpreted(method)(box), ends)
  for same in (crown(margin, lines=constant), lbp(margin, lines=constant)):
    assert close_to(interpreted(same)(box), IBP[name])


@pytest.mark.usefixtures('x64')
def test_lbp_of_the_third_layer():
  box = linf_ball(jnp.array([.5, -.25]), .3)
  _, found = interpreted(lbp(network(ACTIVATIONS['relu']), intermediates=True))(box)
  last = list(found.bounds.values())[-1]
  np.testing.assert_allclose(last.lower, [-.664357, -.188495, -.0043], atol=6e-7)
  np.testing.assert_allclose(last.upper, [.026297, .948377, .636993], atol=6e-7)


@pytest.mark.usefixtures('x64')
def test_bounds_of_the_first_layer():
  box = linf_ball(jnp.array([.5, -.25]), .3)
  z = ibp(lambda x: jnp.array(NUMBERS[0]) @ x + jnp.array(B[0]))(box)
  np.testing.assert_allclose(z.lower, [.275, -.37, -1.055], atol=1e-12)
  np.testing.assert_allclose(z.upper, [1.175, .47, -.095], atol=1e-12)
