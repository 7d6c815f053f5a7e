"""Residual networks: statistics, initialisation and heights in chains inside of chains; sound bounds; training."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import holds, samples, shrunk
from flax import nnx
from interpreted import interpreted

from ibpjax import batched, ibp, linf_ball, nn, training

IMAGES, LABELS = jax.random.uniform(jax.random.key(0), (12, 8, 8, 1)), jnp.arange(12) % 3
SHAPES = dict(input_shape=(8, 8, 1), classes=3)


def resnext(**kwargs):
  return nn.resnext(stem=4, bottleneck=2, blocks=2, **SHAPES, rngs=nnx.Rngs(0), **kwargs)


def norms(model):
  return [layer for layer in model.flat() if isinstance(layer, nn.BatchNorm)]


def test_a_block_is_the_sum_of_two_chains():
  dense = [nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(3)]
  x = jax.random.normal(jax.random.key(1), (5, 3))
  both = nn.Residual([dense[0], jax.nn.relu, dense[1]], [dense[2]])
  np.testing.assert_allclose(both(x), dense[1](jax.nn.relu(dense[0](x))) + dense[2](x), rtol=1e-6)
  np.testing.assert_allclose(nn.Residual([dense[0]])(x), dense[0](x) + x, rtol=1e-6)
  chain = nn.Sequential([jnp.tanh, both, nn.Sequential([jnp.abs]), dense[0]])
  assert list(chain.flat()) == [jnp.tanh, dense[0], jax.nn.relu, dense[1], dense[2], jnp.abs, dense[0]]
  np.testing.assert_allclose(chain(x), dense[0](jnp.abs(both(jnp.tanh(x)))), rtol=1e-6)


def test_statistics_of_chains_inside_of_chains():
  model = resnext()
  assert len(norms(model)) == 1 + 3 * (4 + 3) + 1  # a stem, three stages of two blocks, a hidden layer
  logits, stats = interpreted(lambda m, x: m.with_statistics(x))(model, IMAGES)
  run = interpreted(lambda m, *inputs: m(*inputs))
  np.testing.assert_allclose(logits, run(model, IMAGES, stats), rtol=1e-4, atol=1e-5)
  stored = run(model, IMAGES)
  assert not np.allclose(logits, stored, atol=1e-2)
  model.replace(stats)
  np.testing.assert_allclose(run(model, IMAGES), logits, rtol=1e-4, atol=1e-5)
  inside = []

  def apply(layer, x):
    y = layer(x)
    inside.extend([y] if isinstance(layer, nn.BatchNorm) else [])
    return y
  model.walk(IMAGES, apply)
  for y in inside:  # each was normalised by its own statistics
    np.testing.assert_allclose(y.reshape(-1, y.shape[-1]).mean(0), 0, atol=1e-4)


@pytest.mark.parametrize('make', [resnext, lambda: nn.wide_resnet8(width=1, **SHAPES, rngs=nnx.Rngs(0))])
def test_bounds_are_sound(make):
  model = make()
  model.replace(interpreted(lambda m, x: m.with_statistics(x)[1])(model, IMAGES))
  one = batched(lambda m, x: m(x))
  box = linf_ball(IMAGES[0], 1e-4)
  values = interpreted(jax.vmap(one, (None, 0)))(model, samples(box, 500))
  bound = interpreted(ibp(one))(model, box)
  assert holds(bound, values, 1e-5)
  assert not holds(shrunk(bound, 1.), values, 1e-5)


@pytest.mark.usefixtures('promotion')
def test_training_moves_everything():
  optimizer = optax.adam(1e-3)
  rngs = nnx.Rngs(0)
  layers = [nnx.Conv(1, 3, (3, 3), rngs=rngs), nn.BatchNorm(3), jax.nn.relu,
            nn.Residual([nnx.Conv(3, 3, (3, 3), rngs=rngs), nn.BatchNorm(3)], [nn.BatchNorm(3)]), jax.nn.relu,
            nn.flatten, nnx.Linear(192, 3, rngs=rngs)]
  graphdef, state = training.TrainState.create(nn.Sequential(layers), optimizer)
  new, metrics = interpreted(lambda state: training.train_step(
      state, (IMAGES, LABELS), jax.random.key(0), graphdef=graphdef, optimizer=optimizer, eps=lambda _: 1e-4,
      kappa=lambda _: .5))(state)
  assert np.isfinite(float(metrics['loss']))
  kept = [jax.tree_util.keystr(path) for (path, a), b in zip(
      jax.tree.leaves_with_path((state.params, state.batch_stats)), jax.tree.leaves((new.params, new.batch_stats)),
      strict=True) if jnp.array_equal(a, b)]
  assert not kept
  measured = training.measured_batch_stats(graphdef, new.params, new.batch_stats, [IMAGES])
  model = nnx.merge(graphdef, new.params, measured)
  np.testing.assert_allclose(model(IMAGES), model.with_statistics(IMAGES)[0], rtol=1e-3, atol=1e-4)


def test_kernels_behind_the_activation_of_a_sum_are_halved():
  """Of the second and the third block the first convolution and that of the short cut; not the dense layer."""
  model = nn.wide_resnet8(width=4, input_shape=(8, 8, 1), rngs=nnx.Rngs(0))
  nn.reinitialize(model, jax.random.key(0))
  kernels = [layer.kernel[...] for layer in model.flat() if hasattr(layer, 'kernel')]
  assert len(kernels) == 12
  for i, kernel in enumerate(kernels[1:-1], 1):
    share = float(jnp.std(kernel)) * math.prod(kernel.shape[:-1]) / math.sqrt(2 * math.pi)
    assert share == pytest.approx(.5 if i in (4, 6, 7, 9) else 1., rel=.1), i
  dense = [nnx.Linear(64, 64, rngs=nnx.Rngs(i)) for i in range(5)]
  model = nn.Sequential([nn.Residual(dense[:1], dense[1:2]), nn.Sequential([jax.nn.relu]), dense[2], jax.nn.relu,
                         dense[3], dense[4]])
  nn.reinitialize(model, jax.random.key(0))
  gains = [float(nn.difference_gain(layer.kernel[...])) for layer in dense[:4]]
  assert gains == [pytest.approx(g, rel=.05) for g in (1, 1, .5, 1)]


def test_heights_inside_of_blocks():
  model = resnext(activation=nn.ParamRamp)
  assert len(nn.ramps(model)) == 1 + 3 * 2 * 3 + 1
  model.replace(model.with_statistics(IMAGES)[1])
  nn.calibrate(model, [IMAGES[:5], IMAGES[5:]])
  assert all(bool(ramp.bent[...]) for ramp in nn.ramps(model))
  found, straight = [], resnext()
  straight.replace([(norm.mean[...], norm.var[...]) for norm in norms(model)])

  def apply(layer, x):
    y = layer(x)
    found.extend([y.mean(0)] if layer is jax.nn.relu else [])
    return y
  straight.walk(IMAGES, apply)
  for ramp, mean in zip([layer for layer in model.flat() if isinstance(layer, nn.ParamRamp)], found, strict=True):
    np.testing.assert_allclose(ramp.r[...], np.maximum(mean, 1e-4), rtol=1e-4, atol=1e-5)
