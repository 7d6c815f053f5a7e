"""Lipschitz bounds of traced networks: against exact norms of affine maps, and above what samples reach."""
import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flax import nnx
from interpreted import interpreted

from ibpjax import linf_ball, nn
from ibpjax.methods.lipschitz import lipschitz
from ibpjax.methods.lipschitz_estimates import lipschitz_estimate
from ibpjax.operators import spectral

pytestmark = pytest.mark.usefixtures('x64')
RNG = np.random.default_rng(0)
KERNEL, POINT = .3 * RNG.normal(size=(3, 3, 2, 2)), RNG.normal(size=(1, 1, 2, 3))
WEIGHT, SQUARE = RNG.normal(size=(32, 5)), RNG.normal(size=(5, 5))
SCALE = np.array([1.5, -.5]).reshape(1, 1, 1, 2)


def conv(x, kernel, strides=(1, 1), padding='SAME'):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, jnp.asarray(kernel), strides, padding, dimension_numbers=numbers)


IMAGE, VECTOR = (4, 4, 2), (5,)
# name: (function, shape of its argument, what its norm is found by)
AFFINE = {
    'convolution': (lambda x: conv(x[None], KERNEL) + 1., IMAGE, 'singular values of the convolution'),
    'linear residual': (lambda x: x + conv(x[None], KERNEL)[0], IMAGE, 'singular values of the convolution'),
    'scaled residual': (lambda x: x[None] - SCALE * conv(x[None], KERNEL), IMAGE, 'singular values of the convolution'),
    'batch norm before': (lambda x: conv((x[None] - .3) * SCALE, KERNEL), IMAGE, 'singular values of the convolution'),
    'pointwise behind': (lambda x: conv(conv(x[None], KERNEL), POINT), IMAGE, 'singular values of the convolution'),
    'strided': (lambda x: conv(x[None], KERNEL, (2, 2)), IMAGE, 'singular values of the convolution'),
    'valid and cut': (lambda x: conv(x[None], KERNEL, (1, 1), 'VALID')[0], IMAGE, 'singular values of the convolution'),
    'patches': (lambda x: conv(x[None], KERNEL[:2, :2], (2, 2), 'VALID'), IMAGE, 'the kernel as a matrix'),
    'two convolutions': (lambda x: conv(conv(x[None], KERNEL), KERNEL), IMAGE, 'singular values of the whole matrix'),
    'padded': (lambda x: conv(jnp.pad(x[None], ((0, 0), (2, 1), (1, 2), (0, 0))), KERNEL), IMAGE,
               'singular values of the convolution'),
    'shuffled channels': (lambda x: conv(jnp.concatenate([x[None, ..., 1:], -2 * x[None, ..., :1]], -1), KERNEL), IMAGE,
                          'singular values of the convolution'),
    'dense': (lambda x: x.reshape(-1) @ WEIGHT + 2., IMAGE, 'the kernel as a matrix'),
    'dense on batch': (lambda x: (x.reshape(1, -1) @ WEIGHT)[0], IMAGE, 'the kernel as a matrix'),
    'linear residual, dense': (lambda x: x + .5 * (SQUARE @ x), VECTOR, 'the kernel as a matrix'),
    'two dense': (lambda x: SQUARE @ (SQUARE.T @ x), VECTOR, 'the kernel as a matrix'),
    'scaled by place': (lambda x: x * jnp.arange(32.).reshape(IMAGE), IMAGE, 'the kernel as a matrix'),
    'average pooling': (lambda x: x.reshape(2, 2, 2, 2, 2).mean((1, 3)), IMAGE, 'singular values of the whole matrix'),
    'convolution and dense': (lambda x: conv(x[None], KERNEL).reshape(-1) @ WEIGHT, IMAGE, 'singular values'),
    'channels first': (lambda x: jnp.transpose(x, (2, 0, 1)) * SCALE.reshape(2, 1, 1), IMAGE, ''),
}


@pytest.mark.parametrize('name', AFFINE)
def test_an_affine_map_has_its_own_norm(name):
  f, shape, method = AFFINE[name]
  x = jnp.zeros(shape)
  norm = np.linalg.svd(np.asarray(interpreted(jax.jacobian(f))(x)).reshape(-1, x.size), compute_uv=False).max()
  found = lipschitz(f)(x)
  assert norm <= found.value <= norm * (1 + 3e-6)
  assert found.certifies
  (_, _, part), = found.parts
  assert method in part.method


def leaky(x):
  return jnp.maximum(x, .1 * x)


def min_max(x):
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b)], -1)


def two_layers(activation, x):
  return SQUARE[:3] @ activation(SQUARE[:4].T @ activation(SQUARE[:4] @ x)[:4])


def residual(x):
  return x + SQUARE @ jax.nn.relu(SQUARE.T @ x)


def pooled(x, window, strides):
  h = jax.lax.reduce_window(conv(x[None], KERNEL), -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), 'VALID')
  return h.reshape(-1)


def lists(x):
  return jnp.sort(SQUARE @ x)[::-1] @ SQUARE


NETWORKS = {
    **{name: (functools.partial(two_layers, activation), VECTOR) for name, activation in (
        ('relu', jax.nn.relu), ('tanh', jnp.tanh), ('sigmoid', jax.nn.sigmoid), ('abs', jnp.abs), ('leaky', leaky))},
    'residual branch': (residual, VECTOR), 'sort': (lists, VECTOR),
    'min and max': (lambda x: SQUARE[:, :4] @ min_max(SQUARE[:4] @ x), VECTOR),
    'pooling': (functools.partial(pooled, window=(2, 2), strides=(2, 2)), IMAGE),
    'overlapping pooling': (functools.partial(pooled, window=(3, 3), strides=(1, 1)), IMAGE),
    'image': (lambda x: jax.nn.relu(conv(jax.nn.relu(conv(x[None], KERNEL)), KERNEL)).reshape(-1) @ WEIGHT, IMAGE)}


@pytest.mark.parametrize('name', NETWORKS)
def test_nothing_that_is_sampled_lies_above(name):
  """Jacobians at random points, and differences of far and of near points; and the bound is not vacuous."""
  f, shape = NETWORKS[name]
  found = lipschitz(f)(jnp.zeros(shape))
  rng, reached = np.random.default_rng(1), []
  jacobian, run = interpreted(jax.jacobian(f)), interpreted(f)
  for scale in (.1, 1., 10.):
    for _ in range(60):
      x = jnp.asarray(scale * rng.normal(size=shape))
      j = np.asarray(jacobian(x)).reshape(-1, x.size)
      reached.append(np.linalg.svd(j, compute_uv=False).max())
      y = x + jnp.asarray(rng.choice([1e-3, 1.]) * rng.normal(size=shape))
      reached.append(float(jnp.linalg.norm(run(x) - run(y)) / jnp.linalg.norm(x - y)))
      if found.pairs is not None:
        across = np.linalg.norm(j[:, None] - j[None], axis=-1)
        assert np.all(across <= found.pairs * (1 + 1e-9))
  assert max(reached) <= found.value
  assert found.value <= (20 if 'pooling' in name else 6) * max(reached)


def test_min_and_max_together_only_exchange_elements():
  f = lambda x: min_max(SQUARE[:4] @ x)
  norm = float(np.linalg.svd(SQUARE[:4], compute_uv=False).max())
  assert lipschitz(f)(jnp.zeros(VECTOR)).value == pytest.approx(norm, rel=1e-5)
  alone = lipschitz(lambda x: jnp.maximum(*jnp.split(SQUARE[:4] @ x, 2)))(jnp.zeros(VECTOR))
  assert alone.value == pytest.approx(norm, rel=1e-5)


def test_convolutions_between_rearrangements_are_convolutions():
  """Of both outputs of MinMax as one image; and so they are of sorted neighbours, but for moves of elements."""
  kernel = np.random.default_rng(2).normal(size=(3, 3, 4, 4)) / 6
  first = np.random.default_rng(3).normal(size=(3, 3, 2, 4))
  f = lambda x: min_max(conv(min_max(conv(x[None], first)), kernel))
  found = lipschitz(f)(jnp.zeros(IMAGE))
  assert [part.method for *_, part in found.parts][:2] == ['singular values of the convolution'] * 2
  jacobians = [jax.jacobian(lambda x, k=k: conv(x[None], k).ravel())(jnp.zeros((4, 4, k.shape[2]))) for k in (
      first, kernel)]
  norms = [np.linalg.svd(np.asarray(j).reshape(len(j), -1), compute_uv=False).max() for j in jacobians]
  assert found.value == pytest.approx(np.prod(norms), rel=1e-5)
  g = lambda x: nn.group_sort(conv(nn.group_sort(conv(x[None], first)), kernel))
  assert lipschitz(g)(jnp.zeros(IMAGE)).value == pytest.approx(np.prod(norms), rel=1e-5)


def test_a_linear_residual_block_is_one_map_and_a_nonlinear_one_a_sum():
  one = np.linalg.svd(np.eye(5) + np.asarray(SQUARE), compute_uv=False).max()
  assert lipschitz(lambda x: x + SQUARE @ x)(jnp.zeros(VECTOR)).value == pytest.approx(one, rel=1e-5)
  norm = np.linalg.svd(np.asarray(SQUARE), compute_uv=False).max()
  assert lipschitz(residual)(jnp.zeros(VECTOR)).value == pytest.approx(1 + norm ** 2, rel=1e-5)


def test_pairs_of_the_worked_example():
  """Rows (1, 0), (0, 1), (-.6, .8) behind features of constant 2."""
  head = jnp.array([[1., 0.], [0., 1.], [-.6, .8]])
  found = lipschitz(lambda x: head @ jax.nn.relu(2 * x))(jnp.zeros(2))
  np.testing.assert_allclose(found.pairs[0], [0, 2 * 2 ** .5, 2 * 1.7888544], rtol=1e-5)
  assert found.pairs[1, 1] == 0
  np.testing.assert_allclose(found.pairs, found.pairs.T)


def test_maps_too_large_for_a_matrix_are_taken_apart(monkeypatch):
  f = lambda x: conv(conv(x[None], KERNEL), KERNEL).reshape(2, 2, 2, 2, 2).mean((1, 3)).reshape(-1) @ WEIGHT[:8]
  whole = lipschitz(f)(jnp.zeros(IMAGE)).value
  monkeypatch.setattr(spectral, 'WHOLE', 100)
  found = lipschitz(f)(jnp.zeros(IMAGE))
  assert found.parts[-1][2].method == 'product of the parts'
  assert whole <= found.value <= 8 * whole


def test_models_of_this_library_have_bounds():
  model = nn.mlp((6, 5), input_shape=(4,), classes=3, rngs=nnx.Rngs(0))
  found = lipschitz(lambda m, x: m(x[None])[0])(model, jnp.zeros(4, jnp.float32))
  kernels = [np.asarray(p, np.float64) for p in jax.tree.leaves(nnx.state(model, nnx.Param)) if p.ndim == 2]
  norms = [np.linalg.svd(k, compute_uv=False).max() for k in kernels]
  assert found.value == pytest.approx(np.prod(norms), rel=1e-5)
  assert [name for name, _, _ in found.parts] == ['max', 'max', 'output']


@pytest.mark.parametrize(('f', 'name'), [(lambda x: x * x, 'mul'), (jnp.exp, 'exp'), (jax.nn.softmax, 'exp'),
                                         (lambda x: jnp.where(x > 0, x, 0.), 'gt')])
def test_what_has_no_constant_is_refused(f, name):
  with pytest.raises(NotImplementedError, match=rf'(?s)`{name}.*has no Lipschitz constant.*test_lipschitz.py'):
    lipschitz(lambda x: f(2 * x))(jnp.zeros(3))


def test_bounds_are_not_traced():
  with pytest.raises(TypeError, match='on the host'):
    jax.jit(lambda w: lipschitz(lambda w, x: w @ x)(w, jnp.zeros(5)).value)(jnp.asarray(SQUARE))


def test_bad_arguments_are_named():
  f = lambda w, x: jnp.abs(w @ x)
  w, x = jnp.asarray(SQUARE), jnp.zeros(5)
  with pytest.raises(TypeError, match='argnum is 2, and there are 2 arguments'):
    lipschitz(f, argnum=2)(w, x)
  with pytest.raises(TypeError, match=r'argument 1 is a set.*local_lipschitz'):
    lipschitz(f)(w, linf_ball(x, .1))
  with pytest.raises(TypeError, match='argument 0 is a set'):
    lipschitz(f)({'w': linf_ball(w, .1)}, x)
  with pytest.raises(ValueError, match='steps is 0'):
    lipschitz_estimate(f, steps=0)
  with pytest.raises(TypeError, match=r'the state, which comes first, is .*Array'):
    lipschitz_estimate(f)(w, x)
  _, state = lipschitz_estimate(f)(jax.random.key(0), w, x)
  with pytest.raises(ValueError, match='of 2 affine maps and the function has 1'):
    lipschitz_estimate(lambda x: 2 * x)(state, x)


# What a review found to be too small, or to crash.
def spread(x):
  return jnp.concatenate([jnp.maximum(x[:2], x[2:]), jnp.maximum(x[2:], x[:2])])


def test_two_maxima_of_one_pair_are_no_rearrangement():
  assert lipschitz(spread)(jnp.zeros(4)).value >= 2 ** .5
  twice = lambda x: jnp.minimum(x[:2], x[2:]) + jnp.minimum(x[2:], x[:2])
  assert lipschitz(twice)(jnp.zeros(4)).value >= 2


def test_parts_with_several_operands_are_not_measured_by_the_first(monkeypatch):
  scattered = lambda x: x[:10].at[jnp.zeros(30, int)].add(x[10:])
  updated = lambda x: jax.lax.dynamic_update_slice(x[:10], 3 * x[10:20], (0,))
  monkeypatch.setattr(spectral, 'WHOLE', 20)
  with pytest.raises(NotImplementedError, match='several perturbed operands'):
    lipschitz(scattered)(jnp.zeros(40))
  assert lipschitz(updated)(jnp.zeros(40)).value >= 3
  both = lambda x: jax.lax.dynamic_update_slice(jnp.abs(x[:4]), 3 * x[4:8], (0,))
  assert lipschitz(both)(jnp.zeros(8)).value >= 3


@pytest.mark.parametrize(('f', 'shape', 'least'), [
    (lambda x: x - jnp.max(x), (3,), 1.5), (lambda x: jax.nn.relu(x.sum()), (3,), 3 ** .5), (jnp.max, (4,), 1.),
    (lambda x: 2 * x, (), 2.), (lambda x: jnp.ones(3) + 0 * x.sum(), (2,), 0.), (lambda x: jnp.ones(3), (2,), 0.),
    (lambda x: conv(x, np.ones((1, 1, 1, 1)), (3, 3), [(1, 1), (1, 1)]), (1, 2, 2, 1), 0.)])
def test_numbers_and_constants(f, shape, least):
  found = lipschitz(f)(jnp.zeros(shape))
  assert least * (1 - 1e-9) <= found.value <= 2 * least + 1e-9
  estimate, _ = lipschitz_estimate(f)(jax.random.key(0), jnp.zeros(shape))
  assert estimate.value <= found.value * (1 + 1e-5)
  size = jax.eval_shape(f, jnp.zeros(shape)).shape
  assert np.shape(found.pairs) == np.shape(estimate.pairs) == (size * 2 if len(size) == 1 else ())


def test_weights_that_are_no_numbers_and_tiny_ones_certify_nothing_wrong():
  for bad in (np.nan, np.inf):
    kernel = np.full((3, 3, 2, 2), bad)
    assert lipschitz(lambda x, k=kernel: conv(x[None], k))(jnp.zeros(IMAGE)).value == np.inf
    assert lipschitz(lambda x, k=bad: 0. * jax.nn.relu(k * x))(jnp.zeros(2)).value == np.inf
  found = lipschitz(lambda x: 1e-170 * jnp.eye(2) @ jax.nn.relu(x))(jnp.zeros(2))
  assert found.pairs[0, 1] == pytest.approx(2 ** .5 * 1e-170, rel=1e-5)


@pytest.mark.parametrize('f', [
    lambda x: (x * np.float64(1e17) + x) - x * np.float64(1e17),
    lambda x: conv(x[None], KERNEL) * 1e17 + x[None] - conv(x[None], KERNEL) * 1e17,
    lambda x: (x.reshape(-1) @ WEIGHT) * 1e17 + x.reshape(-1)[:5] - (x.reshape(-1) @ WEIGHT) * 1e17])
def test_what_cancels_in_float64_has_an_allowance(f):
  """Of each the norm is 1 in exact arithmetic; float64 sees 0."""
  found = lipschitz(f)(jnp.zeros(IMAGE))
  assert found.value >= 1
  assert found.kind == 'upper'
  assert found.slack > 1e-3


def test_rows_that_are_nearly_equal_are_still_apart():
  v = np.random.default_rng(0).normal(size=50)
  for x in np.abs(v):
    rows = np.array([[x], [np.nextafter(x, 9)], [4 * x + 1]])
    found = lipschitz(lambda y, rows=rows: rows @ y)(jnp.zeros(1))
    assert found.pairs[0, 1] >= np.spacing(x) / 2
    assert found.pairs[0, 2] == pytest.approx(3 * x + 1, rel=2e-6)
    assert not np.diagonal(found.pairs).any()


def test_gathers_that_promise_to_stay_inside_do_what_they_do_in_a_run():
  f = lambda x: x.at[jnp.array([7])].get(mode='promise_in_bounds')
  assert f(jnp.arange(3.)) == 2  # the last one; the derivative that JAX says is 0
  assert lipschitz(f)(jnp.zeros(3)).value >= 1


def test_distances_of_rows_that_products_of_matrices_nearly_make_equal():
  """Alone finds that the rounding of the products is forgotten: a tenth of so small a distance, up or down."""
  rng = np.random.default_rng(0)
  for _ in range(8):
    first, row = rng.normal(size=(6, 6)), rng.normal(size=6)
    second = np.stack([row, row + 1e-14 * rng.normal(size=6)])
    found = lipschitz(lambda w, x: w[1] @ (w[0] @ x))((jnp.asarray(first), jnp.asarray(second)), jnp.zeros(6)).pairs
    with mpmath.workdps(50):
      apart = mpmath.matrix(second[1:].tolist()) - mpmath.matrix(second[:1].tolist())
      exact = mpmath.norm(apart * mpmath.matrix(first.tolist()))
    assert exact <= found[0, 1] < 3 * exact
