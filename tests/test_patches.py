"""Convolutions of windows that do not overlap: their derivatives, batches and bounds are those of JAX's own."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from ibpjax import Interval, ibp, linf_ball, lipschitz
from ibpjax.core.program import trace
from ibpjax.rules import affine
from ibpjax.xla.window_products import as_convolution, patches

pytestmark = pytest.mark.usefixtures('x64')
RNG = np.random.default_rng(0)
CASES = [((4, 6), (2, 2)), ((5, 7), (2, 3)), ((3, 3), (3, 3)), ((4, 3), (1, 1))]  # sides, windows


def reference(x, kernel):
  return lax.conv_general_dilated(x, kernel, kernel.shape[:2], 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def drawn(*shape):
  return jnp.asarray(RNG.normal(size=shape))


@pytest.mark.parametrize(('sides', 'window'), CASES)
def test_derivatives(sides, window):
  x, kernel = drawn(2, *sides, 3), drawn(*window, 3, 4)
  tangents = drawn(*x.shape), drawn(*kernel.shape)
  np.testing.assert_array_equal(patches(x, kernel), reference(x, kernel))

  def all_of(f):
    loss = lambda x, kernel: jnp.sin(f(x, kernel)).sum()
    by_both = jax.grad(loss, (0, 1))(x, kernel)
    twice = jax.grad(lambda k: jnp.square(jax.grad(loss)(x, k)).sum())(kernel)
    alone = jax.jvp(lambda k: f(x, k), (kernel,), tangents[1:])[1], jax.linear_transpose(
        lambda v: jax.jvp(lambda x: f(x, kernel), (x,), (v,))[1], x)(f(x, kernel))[0]
    batched = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(drawn_batch, kernel)
    return by_both, jax.jvp(loss, (x, kernel), tangents)[1], twice, alone, batched
  drawn_batch = drawn(3, *x.shape)
  chex.assert_trees_all_close(jax.jit(lambda: all_of(patches))(), all_of(reference), atol=1e-11)
  assert jnp.abs(jax.jvp(patches, (x, kernel), tangents)[1]).max() > .1


ORDERS = [('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NHWC'), ('HWNC', 'IOHW', 'CNHW')]


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize(('strides', 'padding'), [((2, 3), ((0, 0), (0, 0))), ((1, 1), ((1, 0), (0, 2))),
                                                  ((2, 3), ((1, 0), (0, 0))), ((2, 2), ((0, 0), (0, 0)))])
def test_equations_run_as_they_are(order, strides, padding):
  """Whichever code a convolution is run by."""
  lengths = dict(N=2, H=5, W=7, C=3, I=3, O=4) | dict(zip('hw', (2, 3)))
  x = drawn(*(lengths[c] for c in order[0]))
  kernel = drawn(*(lengths[c.lower() if c in 'HW' else c] for c in order[1]))
  f = lambda x: lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=order)
  eqn, = (e for e in trace(f, (Interval(x, x),), {})[0].equations if e.primitive is lax.conv_general_dilated_p)
  run = lambda x, kernel: affine.run(eqn, x, kernel)[0]
  np.testing.assert_allclose(run(x, kernel), f(x), atol=1e-12)
  np.testing.assert_allclose(jax.grad(lambda x: jnp.sin(run(x, kernel)).sum())(x),
                             jax.grad(lambda x: jnp.sin(f(x)).sum())(x), atol=1e-12)


def test_bounds_and_norms_through_them():
  layer = nnx.Conv(3, 4, (2, 2), strides=2, padding=((0, 0), (0, 0)), use_bias=False,
                   conv_general_dilated=as_convolution, rngs=nnx.Rngs(0))
  x = drawn(5, 4, 3).astype(jnp.float32)
  f, g = lambda x: layer(x[None])[0], lambda x: reference(x[None], layer.kernel[...])[0]
  chex.assert_trees_all_close(ibp(f)(linf_ball(x, .1)), ibp(g)(linf_ball(x, .1)), atol=1e-6)
  bound = lipschitz(f)(x)
  assert bound.kind == 'exact'
  np.testing.assert_allclose(bound.value, np.linalg.norm(layer.kernel[...].reshape(-1, 4), 2), rtol=2e-6)


def test_other_strides_and_padding_are_refused():
  with pytest.raises(ValueError, match='do not overlap'):
    as_convolution(drawn(1, 4, 4, 3), drawn(2, 2, 3, 4), (1, 1), ((0, 0), (0, 0)))
  with pytest.raises(ValueError, match='do not overlap'):
    as_convolution(drawn(1, 4, 4, 3), drawn(2, 2, 3, 4), (2, 2), ((1, 0), (0, 0)))
  for options in (dict(rhs_dilation=(3, 3)), dict(lhs_dilation=(2, 1)), dict(feature_group_count=3)):
    with pytest.raises(ValueError, match='have neither'):
      as_convolution(drawn(1, 4, 4, 3), drawn(2, 2, 3, 4), (2, 2), ((0, 0), (0, 0)), **options)
