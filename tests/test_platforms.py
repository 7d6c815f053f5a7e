"""Programs for TPUs and GPUs, lowered without one: no float64, and certificates whose products have full precision."""
import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import export

import ibpjax
from ibpjax import nn, training
from ibpjax.training import parallel
from ibpjax.verification.certify import METHODS, _bounds

PLATFORMS = ['tpu', 'cuda']
pytestmark = pytest.mark.usefixtures('promotion')   # optax


def lowered(f, *args):
  """StableHLO for both platforms."""
  found = export.export(jax.jit(f), platforms=PLATFORMS)(*args)
  assert found.platforms == tuple(PLATFORMS)
  text = found.mlir_module()
  assert not re.search(r'\bf64\b|xf64>', text), 'float64, which TPUs do not have'
  return text


def products(text):
  return re.findall(r'stablehlo\.(?:dot_general|convolution)[^\n]*', text)


def classifier(batch_norm=True):
  return nn.models.convolutional([(4, 3, 1, 1), (4, 3, 2, 1)], [8], input_shape=(8, 8, 1), classes=3,
                                 batch_norm=batch_norm, rngs=nnx.Rngs(0))


one = ibpjax.batched(lambda model, images: model(images))


@pytest.mark.parametrize('method', METHODS)
def test_certificates_multiply_in_full_precision(method):
  """The defaults of these platforms are bfloat16 or TF32, of 8 or 11 bits."""
  bounds = functools.partial(_bounds, one, code='', norm='linf', clip=(0., 1.), labelled=True, method=method,
                             intersect=True, mesh=None)
  model = nn.mlp((8,), input_shape=(8, 8, 1), classes=3, rngs=nnx.Rngs(0)) if method == 'alpha-crown' else classifier()
  found = products(lowered(bounds, model, jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, int), jnp.asarray(.01)))
  assert len(found) > 5
  assert all('HIGHEST' in line for line in found)


def test_certificates_over_devices_lower():
  mesh = parallel.data_mesh(rows=2)
  bounds = functools.partial(_bounds, one, code='', norm='linf', clip=(0., 1.), labelled=True, method='crown',
                             intersect=True, mesh=mesh)
  text = lowered(bounds, classifier(), jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, int), jnp.asarray(.01))
  assert 'all_gather' in text
  assert all('HIGHEST' in line for line in products(text))


OBJECTIVES = dict(ibp=training.ibp_objective, crown=functools.partial(training.crown_objective, beta=lambda eps: .5),
                  emma=functools.partial(training.lipschitz_objective, loss=training.emma_loss))


@pytest.mark.parametrize('name', OBJECTIVES)
def test_steps_of_training_lower(name):
  model, optimizer, estimate, carried = classifier(), optax.adam(1e-3), None, None
  if name == 'emma':
    model = nn.liresnet(depth=1, width=4, input_shape=(8, 8, 1), classes=3, neck=2, rngs=nnx.Rngs(0))
    estimate = functools.partial(ibpjax.lipschitz_estimate, steps=2)
    carried = training.carried_at_start(model, estimate, jnp.zeros((8, 8, 1)), jax.random.key(0))
  graphdef, state = training.TrainState.create(model, optimizer, carried)
  eps = training.linear(.1, start=0, length=10)
  step = functools.partial(training.train_step, graphdef=graphdef, optimizer=optimizer, eps=eps,
                           kappa=training.tied(eps, .1, initial=1., final=.5), objective=OBJECTIVES[name],
                           estimate=estimate)
  text = lowered(step, state, (jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, int)), jax.random.key(0))
  assert len(products(text)) > 10

