"""States of neurons: each neuron in one, by the linear pieces that its bounds reach."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ibpjax import Interval, nn
from ibpjax.verification.neurons import STATES, neuron_states, states

X = jax.random.uniform(jax.random.key(0), (12, 6, 6, 1))


def test_states_follow_the_bends():
  l = jnp.array([-2., -1., .1, .4, 1., -1., 0., -1., .5])
  u = jnp.array([-1., .3, .4, .9, 2., .8, 0., .5, .6])
  found = states(Interval(l, u), .5)
  expected = ['left dead', 'left unstable', 'alive', 'right unstable', 'right dead', 'unstable', 'left dead',
              'left unstable', 'right dead']
  assert tuple(found) == STATES
  np.testing.assert_array_equal(np.stack(list(found.values())), [[e == s for e in expected] for s in STATES])
  relu = states(Interval(l, u))
  assert not any(bool(relu[s].any()) for s in STATES[3:])


@pytest.mark.parametrize('activation', [jax.nn.relu, functools.partial(nn.ParamRamp, eta=.1)])
def test_layers_of_a_model(activation):
  model = nn.dm_small(input_shape=(6, 6, 1), classes=3, activation=activation, rngs=nnx.Rngs(0))
  if nn.ramps(model):
    assert neuron_states(model, X, .01)[0]['right dead'] == 0
    nn.calibrate(model, [X])
  layers = neuron_states(model, X, .01)
  assert len(layers) == 3
  for layer in layers:
    assert sum(layer.values()) == pytest.approx(1, abs=1e-5)
  points = neuron_states(model, X, 0.)
  assert all(p[s] < 1e-3 for p in points for s in STATES if 'unstable' in s)
  assert (layers[0]['right dead'] > 0) == bool(nn.ramps(model))
  values = model.layers[0](X) if not hasattr(model.layers[0], 'pixels') else model.layers[1](model.layers[0](X))
  assert points[0]['left dead'] == pytest.approx(float(jnp.mean(values <= 0)), abs=1e-3)


def test_other_activations_have_no_states():
  model = nn.mlp((4,), input_shape=(6, 6, 1), activation=jnp.tanh, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='1 nonlinear layers, of which 0'):
    neuron_states(model, X, .1)
