"""Layers of Lipschitz networks: rearrangements, maps of norm 1, and the model that they make."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interpreted import interpreted

from ibpjax import ibp, linf_ball, nn
from ibpjax.methods.lipschitz import lipschitz
from ibpjax.operators.declared import lipschitz_at_most

SHAPES = [(2, 4, 4, 8), (3, 12)]


def norm(f, shape):
  """The norm of the Jacobian of a function of one batch at a random point."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  return np.linalg.svd(np.asarray(interpreted(jax.jacobian(f))(x)).reshape(-1, x.size), compute_uv=False)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('f', [nn.min_max, nn.group_sort, lambda x: nn.group_sort(x, 4)])
def test_rearrangements_keep_every_element(f, shape):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  np.testing.assert_array_equal(np.sort(f(x).ravel()), np.sort(x.ravel()))
  np.testing.assert_allclose(norm(f, shape), 1, rtol=1e-5)  # all singular values


def test_what_they_rearrange():
  x = jnp.array([[1., 5., 3., 2.]])
  np.testing.assert_array_equal(nn.min_max(x), [[3, 5, 1, 2]])
  np.testing.assert_array_equal(nn.group_sort(x), [[1, 5, 2, 3]])
  np.testing.assert_array_equal(nn.group_sort(x, 4), [[1, 2, 3, 5]])
  image = jnp.arange(16.).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(nn.space_to_depth(image)[0, 0, 1], [2, 3, 6, 7])
  for f in (nn.min_max, nn.group_sort):
    with pytest.raises(ValueError, match=r'pairs|neighbours'):
      f(jnp.zeros((1, 3)))
  with pytest.raises(ValueError, match='blocks of 2 x 2'):
    nn.space_to_depth(jnp.zeros((1, 3, 4, 1)))


@pytest.mark.parametrize(('size', 'shape'), [(2, (1, 4, 6, 3)), (3, (2, 6, 3, 2))])
def test_norm_pooling_lengthens_nothing_and_keeps_lengths(size, shape):
  rng = np.random.default_rng(0)
  pool = lambda x: nn.l2_pool(x, size)
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  y = np.asarray(pool(x))
  n, h, w, c = shape
  assert y.shape == (n, h // size, w // size, c)
  assert y[0, 1, 0, 1] == pytest.approx(np.linalg.norm(x[0, size:2 * size, :size, 1]), rel=1e-6)
  assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), rel=1e-6)
  assert lipschitz(pool)(x).value == pytest.approx(1, rel=1e-5)
  assert lipschitz(lambda x: 3 * pool(2 * x))(x).value == pytest.approx(6, rel=1e-5)
  pull = interpreted(jax.jacobian(pool))
  for point in (x, 1e-3 * x, 0 * x, x.at[0, :size, :size].set(0)):
    norms = np.linalg.svd(np.asarray(pull(point)).reshape(y.size, x.size), compute_uv=False)
    assert np.isfinite(norms).all()
    assert norms.max() <= 1 + 1e-5
    assert norms.max() > .99 or not point.any()
  box = linf_ball(x, .1)
  bound = interpreted(ibp(pool))(box)
  for _ in range(20):
    y = pool(box.lower + jnp.asarray(rng.uniform(size=box.shape), jnp.float32) * box.width)
    assert np.all((bound.lower - 1e-5 <= y) & (y <= bound.upper + 1e-5))
  assert 0 < float(bound.width.max()) < 1
  with pytest.raises(ValueError, match='l2_pool cuts images into blocks of 5 x 5'):
    nn.l2_pool(x, 5)


def test_interval_bounds_pass_rearrangements():
  box = linf_ball(jnp.array([[1., 5., 3., 2.]]), .7)
  for f in (nn.min_max, nn.group_sort):
    bound = interpreted(ibp(f))(box)
    for point in (box.lower, box.upper, box.centre):
      assert np.all((bound.lower <= f(point)) & (f(point) <= bound.upper))
    assert np.all(bound.width <= 1.4 + 1e-5)


@pytest.mark.parametrize('size', [3, 5, None])
def test_a_linear_residual_block_is_one_map(size):
  """The norm is that of I + s gamma W, zero padding included; and a block starts near the identity."""
  layer = nn.LinearResidual(4, size=size, scale=.5, rngs=nnx.Rngs(0))
  shape = (1, 4) if size is None else (1, 6, 6, 4)
  assert norm(layer, shape).max() == pytest.approx(1, abs=.4)
  rng = np.random.default_rng(0)
  layer.kernel[...] = jnp.asarray(rng.normal(size=layer.kernel.shape) / 4, jnp.float32)
  layer.gamma[...] = jnp.asarray(rng.normal(size=4), jnp.float32)
  bound = lipschitz(lambda m, x: m(x))(layer, jnp.zeros(shape))
  assert bound.value == pytest.approx(norm(layer, shape).max(), rel=1e-4)
  (_, _, part), = bound.parts
  assert part.kind == 'exact'
  with pytest.raises(ValueError, match='odd kernels only'):
    nn.LinearResidual(4, size=2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('shape', [(4, 4), (3, 7)])
def test_orthogonalised_matrices_lengthen_nothing(shape):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  eta = 1e-3 * np.mean(np.sum(np.asarray(x) ** 2, 1))
  before, after = (np.linalg.svd(np.asarray(a), compute_uv=False) for a in (x, nn.orthogonalised(x)))
  np.testing.assert_allclose(after, before / np.sqrt(before ** 2 + eta), rtol=1e-4)
  assert after.max() < 1
  gradient = interpreted(jax.grad(lambda x: nn.orthogonalised(x).sum()))(x)
  h, direction = 1e-2, np.random.default_rng(1).normal(size=shape)
  def at(t):
    return float(nn.orthogonalised(x + t * jnp.asarray(direction, jnp.float32)).sum())
  assert float(jnp.sum(gradient * direction.astype(np.float32))) == pytest.approx((at(h) - at(-h)) / (2 * h), rel=.05)


@pytest.mark.parametrize(('layer', 'shape'), [
    (lambda: nn.OrthogonalDense(6, 4, rngs=nnx.Rngs(0)), (1, 6)),
    (lambda: nn.OrthogonalDense(4, 6, rngs=nnx.Rngs(0)), (1, 4)),
    (lambda: nn.OrthogonalDense(5, 5, residual=.3, rngs=nnx.Rngs(0)), (1, 5)),
    (lambda: nn.OrthogonalPatches(2, 3, 2, rngs=nnx.Rngs(0)), (1, 4, 4, 2)),
    (lambda: nn.OrthogonalPatches(1, 8, 2, rngs=nnx.Rngs(0)), (1, 4, 4, 1))])
def test_orthogonal_layers_lengthen_nothing(layer, shape):
  layer = layer()
  assert .9 < norm(layer, shape).max() < 1
  bound = lipschitz(lambda m, x: m(x))(layer, jnp.zeros(shape))
  assert norm(layer, shape).max() * (1 - 1e-4) <= bound.value < 1 + 1e-5


def test_rows_of_the_head_have_norm_1():
  head = nn.NormalisedHead(7, 5, rngs=nnx.Rngs(0))
  rows = np.asarray(interpreted(jax.jacobian(lambda x: head(x)[0]))(jnp.zeros((1, 7))))[:, 0]
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
  assert np.all(lipschitz(lambda m, x: m(x[None])[0])(head, jnp.zeros(7)).pairs <= 2 + 1e-5)


def small():
  return nn.liresnet(2, 4, input_shape=(9, 9, 1), classes=3, hidden=6, neck=2, rngs=nnx.Rngs(0))


def test_liresnet_is_a_chain_of_single_maps():
  model = small()
  f = lambda m, x: m(x[None])[0]
  bound = lipschitz(f)(model, jnp.zeros((9, 9, 1)))
  assert [name for name, _, _ in bound.parts] == ['max and min'] * 5 + ['output']
  assert bound.kind == 'upper'
  x = jnp.asarray(np.random.default_rng(0).uniform(size=(20, 9, 9, 1)), jnp.float32)
  jacobians = np.asarray(interpreted(jax.vmap(jax.jacobian(f, 1), (None, 0)))(model, x)).reshape(20, 3, -1)
  assert np.linalg.svd(jacobians, compute_uv=False).max() <= bound.value
  across = np.linalg.norm(jacobians[:, :, None] - jacobians[:, None], axis=-1).max(0)
  assert np.all(across <= bound.pairs + 1e-6)


@pytest.mark.parametrize(('options', 'parameters'), [
    (dict(depth=18, width=256), 16_943_114),
    (dict(depth=18, width=588, input_shape=(224, 224, 3), classes=1000), 108_029_228),
    (dict(depth=12, width=588, input_shape=(224, 224, 3), classes=1000), 89_351_996),
    (dict(depth=18, width=256, input_shape=(64, 64, 3), classes=200), 17_059_016)])
def test_parameter_counts(options, parameters):
  """The authors give 16.9 million, and 106 and 87 without the 2 million of the head."""
  shapes = nnx.eval_shape(lambda: nnx.state(nn.liresnet(**options, rngs=nnx.Rngs(0)), nnx.Param))
  found = sum(x.size for x in jax.tree.leaves(shapes))
  assert found == parameters


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='width is 5'):
    nn.liresnet(1, 5, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='set neck to at most 2'):
    nn.liresnet(1, 4, input_shape=(4, 4, 1), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='as many units out as in'):
    nn.OrthogonalDense(3, 4, residual=1., rngs=nnx.Rngs(0))


def disturbed(layer, seed=0):
  """A layer with random numbers in the place of those that it starts from."""
  rng = np.random.default_rng(seed)
  state = nnx.state(layer, nnx.Param)
  nnx.update(layer, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state))
  return layer


@pytest.mark.parametrize(('layer', 'shape'), [
    (lambda: nn.AOL(4, 3, rngs=nnx.Rngs(0)), (1, 5, 5, 4)),
    (lambda: nn.AOL(2, 6, size=2, rngs=nnx.Rngs(0)), (1, 4, 5, 2)),
    (lambda: nn.AOL(6, 4, size=None, rngs=nnx.Rngs(0)), (1, 6)),
    (lambda: nn.SLL(3, rngs=nnx.Rngs(0)), (1, 5, 5, 3)),
    (lambda: nn.SLL(2, 5, rngs=nnx.Rngs(0)), (1, 1, 4, 2)),
    (lambda: nn.SLL(6, 9, size=None, rngs=nnx.Rngs(0)), (1, 6))])
def test_layers_that_lengthen_nothing_by_construction(layer, shape):
  """Whatever their numbers are; and they are no constants."""
  for seed in range(4):
    made = disturbed(layer(), seed) if seed else layer()
    rng = np.random.default_rng(seed)
    f = interpreted(jax.jacobian(lambda x, m=made: m(x)))
    reached = max(np.linalg.svd(np.asarray(f(jnp.asarray(2 * rng.normal(size=shape), jnp.float32))).reshape(
        -1, int(np.prod(shape))), compute_uv=False).max() for _ in range(10))
    bound = lipschitz(lambda m, x: m(x))(made, jnp.zeros(shape)).value
    assert .3 < reached <= bound * (1 + 1e-5)
    assert bound <= 1 + 1e-5


def test_sll_is_the_published_block():
  layer = disturbed(nn.SLL(4, 3, size=None, rngs=nnx.Rngs(0)))
  w, b, q = (np.asarray(x[...], np.float64) for x in (layer.kernel, layer.bias, layer.log_q))
  t = (np.abs(w.T @ w) * np.exp(q)[None] / np.exp(q)[:, None]).sum(1)
  x = np.random.default_rng(1).normal(size=4)
  expected = x - 2 * w @ (np.maximum(w.T @ x + b, 0) / t)
  np.testing.assert_allclose(layer(jnp.asarray(x[None], jnp.float32))[0], expected, rtol=1e-4, atol=1e-5)


def test_aol_is_the_published_scale():
  layer = disturbed(nn.AOL(4, 3, size=None, rngs=nnx.Rngs(0)))
  w = np.asarray(layer.kernel[...], np.float64).T  # (out, in)
  scaled = w * np.abs(w.T @ w).sum(1) ** -.5
  jacobian = interpreted(jax.jacobian(lambda x: layer(x[None])[0]))(jnp.zeros(4))
  np.testing.assert_allclose(jacobian, scaled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('layer', [lambda: nn.SLL(2, rngs=nnx.Rngs(0)), lambda: nn.AOL(2, 2, rngs=nnx.Rngs(0))])
def test_other_bounds_look_inside_of_them(layer):
  made, rng = disturbed(layer()), np.random.default_rng(0)
  box = linf_ball(jnp.asarray(rng.normal(size=(1, 3, 3, 2)), jnp.float32), .1)
  bound = interpreted(ibp(lambda x: made(x)))(box)
  for _ in range(20):
    y = made(box.lower + jnp.asarray(rng.uniform(size=box.shape), jnp.float32) * box.width)
    assert np.all((bound.lower - 1e-5 <= y) & (y <= bound.upper + 1e-5))
  assert 0 < float(bound.width.max()) < 20


@lipschitz_at_most(1.)
def add(x, y):
  return x + y


@lipschitz_at_most(1.)
def wave(x):
  return jnp.sin(10 * x) / 10


def test_a_declared_constant_is_of_the_function_itself():
  """And not of what vmap over weights, a gradient, another argument or a closure make of it."""
  assert lipschitz(lambda x: add(jnp.abs(x), 2.))(jnp.zeros(3)).value == pytest.approx(1, rel=1e-5)
  assert lipschitz(wave)(jnp.zeros(3)).value == pytest.approx(1, rel=1e-5)
  over_weights = lambda x: jax.vmap(lambda y: add(x, y))(jnp.ones((9, 3)))
  assert lipschitz(over_weights)(jnp.zeros(3)).value >= 3
  with pytest.raises(NotImplementedError, match='no Lipschitz constant'):
    lipschitz(lambda x: add(x, 2 * x))(jnp.zeros(3))
  with pytest.raises(NotImplementedError, match='no Lipschitz constant'):
    lipschitz(lambda w, x: add(x, w), argnum=0)(jnp.zeros(3), jnp.zeros(3))
  assert lipschitz(jax.grad(lambda x: wave(x).sum()))(jnp.zeros(3)).value >= 10 * (1 - 1e-6)
  closed = lambda x: lipschitz_at_most(1.)(lambda y: y + 100 * x)(jnp.ones(3))
  assert lipschitz(closed)(jnp.zeros(3)).value >= 100

  @jax.jit
  def lipschitz_at_most_0(x):
    return 7 * x
  assert lipschitz(lipschitz_at_most_0)(jnp.zeros(3)).value >= 7
  with pytest.raises(ValueError, match='constant is -1'):
    lipschitz_at_most(-1)


@pytest.mark.parametrize('scale', [1e-38, 3e-20, 1e-10, 1e10, 3e19])
@pytest.mark.parametrize('make', [lambda: nn.AOL(64, 64, size=None, rngs=nnx.Rngs(0)),
                                  lambda: nn.SLL(64, 64, size=None, rngs=nnx.Rngs(0)),
                                  lambda: nn.OrthogonalDense(64, 32, rngs=nnx.Rngs(0))])
def test_sums_that_would_vanish_or_overflow_lengthen_nothing(make, scale):
  layer = make()
  layer.kernel[...] = scale * jnp.abs(jnp.asarray(np.random.default_rng(0).normal(size=(64, layer.kernel.shape[1])),
                                                  jnp.float32))
  layer.bias[...] = jnp.full_like(layer.bias[...], 1e-3 * scale)
  assert norm(layer, (1, 64)).max() <= 1 + 1e-5
  if isinstance(layer, nn.SLL):
    layer.log_q[...] = jnp.full(64, -86.).at[0].set(0.)
    assert norm(layer, (1, 64)).max() <= 1 + 1e-5


@pytest.mark.parametrize('make', [lambda: nn.AOL(4, 4, rngs=nnx.Rngs(0)), lambda: nn.SLL(4, rngs=nnx.Rngs(0))])
def test_a_filter_of_zeros_has_a_gradient(make):
  layer = make()
  layer.kernel[...] = layer.kernel[...].at[:, :, 1].set(0.).at[..., 1].set(0.)
  graphdef, state = nnx.split(layer)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), jnp.float32)
  gradient = jax.grad(lambda s: (nnx.merge(graphdef, s)(x) ** 2).sum())(state)
  assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize('block', ['linear', 'conventional', 'sll', 'aol'])
def test_blocks_of_the_network(block):
  model = disturbed(nn.liresnet(2, 4, input_shape=(9, 9, 1), classes=3, hidden=6, neck=2, block=block,
                                rngs=nnx.Rngs(0)))
  f = lambda m, x: m(x[None])[0]
  bound = lipschitz(f)(model, jnp.zeros((9, 9, 1)))
  x = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 9, 9, 1)), jnp.float32)
  jacobians = np.asarray(interpreted(jax.vmap(jax.jacobian(f, 1), (None, 0)))(model, x)).reshape(5, 3, -1)
  reached = np.linalg.svd(jacobians, compute_uv=False).max()
  assert reached <= bound.value < (1e4 if block == 'conventional' else 50) * reached
  with pytest.raises(ValueError, match='block is'):
    nn.liresnet(1, 4, block='dense', rngs=nnx.Rngs(0))
