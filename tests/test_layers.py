"""Every layer of Flax NNX and Linen, and the functions of jax.nn that work on whole arrays, under IBP."""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import regrouped
from checks import box_around, extremal, holds, in_batches, leaves, samples, shrunk, widest_ratio
from flax import nnx
from interpreted import interpreted

from ibpjax import Interval, ibp

pytestmark = pytest.mark.usefixtures('x64', 'promotion')

MASK = np.tril(np.ones((1, 1, 3, 3), bool))
WORDS = np.array([[4, 0, 2], [1, 1, 3]])


class Layer(NamedTuple):
  """A layer, the shape of its input, the greatest ratio of bound and sampled range at radius 1e-3, its precision.

  That is 1e-6 for what computes in float32 whatever its input: the softmax of attention, statistics.
  """
  make: Callable[[], Callable]
  shape: tuple[int, ...]
  loosest: float = 2.
  precision: float = 1e-11


def pure(module: nnx.Module) -> Callable:
  """A module as a function of its input, its numbers moved away from the 0 and 1 of initialisers."""
  module.eval()
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: a + .2 * rng.normal(size=a.shape), params)
  return lambda x: nnx.merge(graphdef, params, rest, copy=True)(x)


def model(kind: type, *args, **kwargs) -> Callable[[], Callable]:
  return lambda: pure(kind(*args, **kwargs, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))


def applied(kind: type, *args, shape, call=lambda m, x: m(x), **kwargs) -> Callable[[], Callable]:
  """A module of Linen as a function of its input."""
  def make():
    module = kind(*args, **kwargs)
    variables = module.init(jax.random.key(0), jnp.zeros(shape), method=call)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + .2 * rng.normal(size=a.shape), variables['params'])
    return lambda x: module.apply({**variables, 'params': params}, x, method=call)
  return make


def over_time(cell: type) -> Callable[[], Callable]:
  return lambda: pure(nnx.RNN(cell(3, 4, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))))


def linen_over_time(cell: type, *args) -> Callable[[], Callable]:
  shape = (1, 4, 3) if len(args) == 1 else (1, 3, 4, 2)
  return applied(linen.RNN, cell(*args, param_dtype=jnp.float64), shape=shape)


def function(f: Callable) -> Callable[[], Callable]:
  return lambda: f


def attended(**kwargs) -> Callable[[], Callable]:
  def make():
    return lambda x: jax.nn.dot_product_attention(x, x * 2, x + 1, **kwargs)
  return make


def masked_attention() -> Callable:
  layer = pure(Masked())
  return layer


class Masked(nnx.Module):
  """Causal self-attention."""

  def __init__(self):
    self.attention = nnx.MultiHeadAttention(2, 4, decode=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.attention(x, mask=jnp.asarray(MASK))


def embedded() -> Callable:
  table = nnx.Embed(5, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  return lambda x: table(jnp.asarray(WORDS)) * x


def embedding_perturbed() -> Callable:
  graphdef, state = nnx.split(nnx.Embed(5, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
  return lambda w: nnx.merge(graphdef, jax.tree.map(lambda _: w, state))(jnp.asarray(WORDS))


def normalised_weights() -> Callable:
  linear = nnx.Linear(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
  return pure(nnx.WeightNorm(linear, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))


def weights_perturbed_and_normalised() -> Callable:
  inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))
  return lambda w: inputs @ (w / jnp.sqrt(jnp.sum(jnp.square(w), 0, keepdims=True) + 1e-6))


LAYERS = {
    'nnx.Linear': Layer(model(nnx.Linear, 3, 4), (2, 3)),
    'nnx.LinearGeneral': Layer(model(nnx.LinearGeneral, (3, 2), (2, 2), axis=(-2, -1)), (2, 3, 2)),
    'nnx.Einsum': Layer(model(nnx.Einsum, 'bij,jkl->bikl', (3, 2, 2), (2, 2)), (1, 2, 3)),
    'nnx.Conv': Layer(model(nnx.Conv, 2, 3, (3, 3), strides=2), (1, 5, 5, 2)),
    'nnx.Conv, circular, grouped': Layer(model(nnx.Conv, 2, 4, (3,), padding='CIRCULAR', feature_group_count=2),
                                         (1, 5, 2)),
    'nnx.ConvTranspose': Layer(model(nnx.ConvTranspose, 2, 3, (3, 3), strides=(2, 2)), (1, 3, 3, 2)),
    'nnx.ConvTranspose, valid': Layer(model(nnx.ConvTranspose, 2, 3, (2, 3), strides=(1, 2), padding='VALID'),
                                      (1, 3, 2, 2)),
    'nnx.Embed': Layer(embedded, (2, 3, 4)),
    'nnx.Embed, its table perturbed': Layer(embedding_perturbed, (5, 4)),
    'nnx.BatchNorm': Layer(model(nnx.BatchNorm, 4), (3, 4)),
    'nnx.LayerNorm': Layer(model(nnx.LayerNorm, 6), (2, 6)),
    'nnx.LayerNorm, two axes': Layer(model(nnx.LayerNorm, 3, reduction_axes=(1, 2)), (2, 2, 3)),
    'nnx.LayerNorm, slow variance': Layer(model(nnx.LayerNorm, 6, use_fast_variance=False), (2, 6)),
    'nnx.RMSNorm': Layer(model(nnx.RMSNorm, 6), (2, 6)),
    'nnx.GroupNorm': Layer(model(nnx.GroupNorm, 4, num_groups=2), (1, 2, 2, 4)),
    'nnx.GroupNorm, of a batch': Layer(model(nnx.GroupNorm, 6, num_groups=2), (2, 1, 2, 6)),
    'nnx.InstanceNorm': Layer(model(nnx.InstanceNorm, 2), (2, 3, 2, 2)),
    'nnx.WeightNorm': Layer(normalised_weights, (2, 3)),
    'perturbed weights, normalised': Layer(weights_perturbed_and_normalised, (3, 4)),
    'nnx.MultiHeadAttention': Layer(model(nnx.MultiHeadAttention, 2, 4, decode=False), (1, 3, 4), 10., 1e-6),
    'nnx.MultiHeadAttention, causal': Layer(masked_attention, (1, 3, 4), 10., 1e-6),
    'nnx.MultiHeadAttention, normalised': Layer(
        model(nnx.MultiHeadAttention, 2, 4, normalize_qk=True, decode=False), (1, 3, 4), 10., 1e-6),
    'nnx.LSTM': Layer(over_time(nnx.LSTMCell), (1, 4, 3), 10.),
    'nnx.OptimizedLSTM': Layer(over_time(nnx.OptimizedLSTMCell), (1, 4, 3), 10.),
    'nnx.GRU': Layer(over_time(nnx.GRUCell), (1, 4, 3), 10.),
    'nnx.SimpleCell': Layer(over_time(nnx.SimpleCell), (1, 4, 3), 10.),
    'nnx.PReLU': Layer(lambda: pure(nnx.PReLU(param_dtype=jnp.float64)), (2, 3)),
    'nnx.max_pool, padded': Layer(function(lambda x: nnx.max_pool(x, (3, 3), (2, 2), 'SAME')), (1, 4, 4, 1)),
    'nnx.avg_pool, padded': Layer(function(lambda x: nnx.avg_pool(x, (3, 3), (2, 2), 'SAME')), (1, 4, 4, 1)),
    'nnx.avg_pool, of what is there': Layer(
        function(lambda x: nnx.avg_pool(x, (3, 3), (2, 2), 'SAME', count_include_pad=False)), (1, 4, 4, 1)),
    'linen.Dense': Layer(applied(linen.Dense, 4, shape=(2, 3)), (2, 3)),
    'linen.DenseGeneral': Layer(applied(linen.DenseGeneral, (2, 2), axis=(-2, -1), shape=(1, 3, 2)), (1, 3, 2)),
    'linen.Conv': Layer(applied(linen.Conv, 3, (3, 3), strides=2, padding=((1, 0), (2, 1)), shape=(1, 5, 5, 2)),
                        (1, 5, 5, 2)),
    'linen.ConvLocal': Layer(applied(linen.ConvLocal, 2, (2,), shape=(1, 4, 2)), (1, 4, 2)),
    'linen.ConvTranspose': Layer(applied(linen.ConvTranspose, 2, (3, 3), strides=(2, 2), shape=(1, 3, 3, 2)),
                                 (1, 3, 3, 2)),
    'linen.BatchNorm': Layer(applied(linen.BatchNorm, use_running_average=True, shape=(3, 4)), (3, 4), precision=1e-6),
    'linen.LayerNorm': Layer(applied(linen.LayerNorm, shape=(2, 6)), (2, 6)),
    'linen.RMSNorm': Layer(applied(linen.RMSNorm, shape=(2, 6)), (2, 6)),
    'linen.GroupNorm': Layer(applied(linen.GroupNorm, 2, shape=(1, 2, 2, 4)), (1, 2, 2, 4)),
    'linen.InstanceNorm': Layer(applied(linen.InstanceNorm, shape=(2, 3, 2, 2)), (2, 3, 2, 2)),
    'linen.WeightNorm': Layer(applied(linen.WeightNorm, linen.Dense(4), shape=(2, 3)), (2, 3)),
    'linen.SpectralNorm': Layer(applied(linen.SpectralNorm, linen.Dense(4), shape=(2, 3),
                                        call=lambda m, x: m(x, update_stats=False)), (2, 3)),
    'linen.MultiHeadDotProductAttention': Layer(
        applied(linen.MultiHeadDotProductAttention, 2, deterministic=True, shape=(1, 3, 4),
                call=lambda m, x: m(x, mask=jnp.asarray(MASK))), (1, 3, 4), 10., 1e-6),
    'linen.LSTM': Layer(linen_over_time(linen.LSTMCell, 3), (1, 4, 3), 10.),
    'linen.OptimizedLSTM': Layer(linen_over_time(linen.OptimizedLSTMCell, 3), (1, 4, 3), 10.),
    'linen.GRU': Layer(linen_over_time(linen.GRUCell, 3), (1, 4, 3), 10.),
    'linen.MGU': Layer(linen_over_time(linen.MGUCell, 3), (1, 4, 3), 10.),
    'linen.ConvLSTM': Layer(linen_over_time(linen.ConvLSTMCell, 2, (2,)), (1, 3, 4, 2), 10.),
    'linen.PReLU': Layer(applied(linen.PReLU, shape=(2, 3)), (2, 3)),
    'linen.max_pool': Layer(function(lambda x: linen.max_pool(x, (2, 2), (1, 1), 'SAME')), (1, 4, 4, 1)),
    'linen.avg_pool': Layer(function(lambda x: linen.avg_pool(x, (2, 2), (1, 1), 'SAME')), (1, 4, 4, 1)),
    'jax.nn.glu': Layer(function(jax.nn.glu), (2, 4)),
    'jax.nn.standardize': Layer(function(jax.nn.standardize), (2, 6)),
    'jax.nn.logmeanexp': Layer(function(jax.nn.logmeanexp), (6,)),
    'jax.nn.log1mexp': Layer(function(lambda x: jax.nn.log1mexp(jnp.exp(x))), (6,)),
    'jnp.logaddexp': Layer(function(lambda x: jnp.logaddexp(x[:3], x[3:])), (6,)),
    'jax.nn.dot_product_attention': Layer(attended(), (1, 3, 2, 4), 10., 1e-6),
    'jax.nn.dot_product_attention, causal': Layer(attended(is_causal=True), (1, 3, 2, 4), 10., 1e-6),
    'jax.nn.dot_product_attention, biased': Layer(attended(bias=jnp.asarray(MASK * 1.)), (1, 3, 2, 4), 10., 1e-6),
    'jax.image.resize': Layer(function(lambda x: jax.image.resize(x, (1, 6, 6, 1), 'bilinear')), (1, 3, 3, 1)),
}


@pytest.mark.parametrize('name', LAYERS)
def test_layer(name):
  """Sound on every box, and at radius 1e-3 not much wider than what is reached; nothing is regrouped wrongly."""
  layer = LAYERS[name]
  f, close = layer.make(), dict(rtol=layer.precision, atol=layer.precision)
  x = np.random.default_rng(1).normal(size=layer.shape)
  values, bound, again = in_batches(f, run=interpreted), interpreted(ibp(f)), interpreted(lambda x: regrouped(f, x))
  value, = values(x[None])
  for a, b in zip(again(x), leaves(value), strict=True):
    np.testing.assert_allclose(a, b, **close)
  for radius in (0., 1e-3, .1, 1.):
    box = box_around(x, radius)
    assert holds(bound(box), values(samples(box, 6_000)), layer.precision)
  point = bound(Interval(x, x))
  np.testing.assert_allclose(point.lower, value, **close)
  np.testing.assert_allclose(point.upper, value, **close)
  box = box_around(x, 1e-3)
  reached = values(extremal(values, box, 1_500))
  assert widest_ratio(bound(box), reached) <= layer.loosest
  assert not holds(shrunk(bound(box), 1 - 1e-2), reached, 0.)
