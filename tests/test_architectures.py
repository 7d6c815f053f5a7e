"""Whole networks of stock layers, in float32 with outward rounding: no sampled value leaves its bounds at all."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import box_around, holds, samples, shrunk
from flax import nnx
from interpreted import interpreted

from ibpjax import Interval, ibp
from ibpjax.cli import architectures
from ibpjax.composites.patterns import grouped
from ibpjax.core.program import trace

pytestmark = pytest.mark.usefixtures('promotion')

NETWORKS = {
    'transformer block': (lambda rngs: architectures.TransformerBlock(8, 2, rngs), (2, 4, 8)),
    'mixer block': (lambda rngs: architectures.MixerBlock(3, 8, rngs), (2, 3, 8)),
    'residual network': (lambda rngs: architectures.ResNet(1, 4, 3, rngs), (2, 8, 8, 1)),
    'U-Net': (lambda rngs: architectures.UNet(1, 4, 1, rngs), (2, 8, 8, 1)),
    'GRU': (lambda rngs: architectures.Recurrent(nnx.GRUCell, 3, 4, 2, rngs), (2, 20, 3)),
    'LSTM': (lambda rngs: architectures.Recurrent(nnx.OptimizedLSTMCell, 3, 4, 2, rngs), (2, 20, 3)),
}


def run(model, x):
  return model(x)


@pytest.mark.parametrize('name', NETWORKS)
def test_network(name):
  make, shape = NETWORKS[name]
  model = make(nnx.Rngs(0))
  model.eval()
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  bound = interpreted(ibp(run, round_outward=True))
  values = jax.jit(jax.vmap(run, (None, 0)))
  for radius in (0., 1e-5, 1e-2):
    box = box_around(x, radius)
    found, reached = bound(model, box), values(model, samples(box, 300))
    assert holds(found, reached, 0.)
  assert np.all(np.isfinite(found.width))
  assert not holds(shrunk(found, 1.), reached, 0.)


def test_recurrent_networks_are_one_loop_whatever_their_length():
  """The program of 200 steps is as long as that of 20, so both compile in the same time."""
  lengths = set()
  for steps in (20, 200):
    model = architectures.Recurrent(nnx.GRUCell, 3, 4, 2, nnx.Rngs(0))
    x = jnp.zeros((1, steps, 3))
    program = grouped(trace(run, (model, Interval(x, x)), {})[0])
    lengths.add((len(program.equations), *(len(b.equations) for e in program.equations for b in e.bodies)))
  assert len(lengths) == 1


def test_unknown_architecture():
  with pytest.raises(ValueError, match="unknown architecture 'perceptron'"):
    architectures.build('perceptron')
