"""Spectral norms: every bound against the singular values of the matrix that JAX's own convolution is."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import interpreted

from ibpjax.operators import spectral, spectral_convolutions
from ibpjax.operators.spectral import NormBound, power_iteration, random_start
from ibpjax.operators.spectral_convolutions import Convolution

pytestmark = pytest.mark.usefixtures('x64')
ZERO = ((0, 0), (0, 0))
SAME = ((1, 1), (1, 1))
# kernel (height, width, in, out), size, strides, padding
SHAPES = {
    'same': ((3, 3, 2, 2), (5, 5), (1, 1), SAME), 'odd': ((3, 3, 2, 3), (3, 3), (1, 1), SAME),
    'wide': ((3, 3, 1, 4), (4, 7), (1, 1), SAME), 'valid': ((3, 3, 3, 2), (6, 5), (1, 1), ZERO),
    'strided': ((3, 3, 2, 3), (7, 7), (2, 2), SAME), 'stem': ((5, 5, 1, 4), (8, 8), (2, 2), ((2, 2), (2, 2))),
    'strides differ': ((3, 3, 2, 2), (6, 7), (1, 2), SAME), 'even kernel': ((4, 4, 2, 2), (6, 6), (2, 2), SAME),
    'one-sided': ((2, 2, 2, 2), (5, 5), (1, 1), ((0, 1), (0, 1))), 'patches': ((2, 2, 3, 4), (6, 6), (2, 2), ZERO),
    'patches with gaps': ((2, 2, 2, 2), (8, 8), (3, 3), ZERO), 'pointwise': ((1, 1, 3, 5), (4, 4), (1, 1), ZERO),
    'larger than the image': ((5, 5, 1, 1), (3, 3), (1, 1), ((2, 2), (2, 2))),
    'far padding': ((2, 2, 1, 2), (3, 3), (1, 1), ((3, 3), (3, 3)))}
KERNELS = {
    'random': lambda rng, shape: rng.normal(size=shape),
    'zero': lambda rng, shape: np.zeros(shape),
    'small': lambda rng, shape: 1e-5 * rng.normal(size=shape),
    'nyquist': lambda rng, shape: np.fromfunction(lambda a, b, i, o: (-1.) ** (a + b) * np.ones_like(i), shape),
    'difference of channels': lambda rng, shape: np.ones(shape) * np.where(np.arange(shape[2]) % 2, -1., 1.)[:, None]}


def made(name, kernel):
  shape, size, strides, padding = SHAPES[name]
  return Convolution(KERNELS[kernel](np.random.default_rng(0), shape), size, strides, padding)


def matrix_of(convolution):
  """The matrix of a convolution by lax.conv_general_dilated alone."""
  x = jnp.zeros((*convolution.size, convolution.kernel.shape[2]))
  def f(x):
    if convolution.circular:
      around = [(k // 2, k - 1 - k // 2) for k in convolution.kernel.shape[:2]]
      x, padding = jnp.pad(x, [*around, (0, 0)], mode='wrap'), 'VALID'
    else:
      padding = convolution.padding
    return jax.lax.conv_general_dilated(x[None], jnp.asarray(convolution.kernel), convolution.strides, padding,
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return np.asarray(interpreted(jax.jacobian(f))(x)).reshape(-1, x.size)


def truth(convolution):
  return np.linalg.svd(matrix_of(convolution), compute_uv=False).max(initial=0)


BOUNDS = {
    'whole matrix': spectral_convolutions.by_matrix, 'torus': spectral_convolutions.by_torus,
    'torus, Gram': functools.partial(spectral_convolutions.by_torus, gram_steps=8),
    'certified': spectral_convolutions.certified,
    'Lanczos': lambda c: spectral_convolutions.by_lanczos(c, np.random.default_rng(1), steps=60),
    'Cholesky': lambda c: spectral_convolutions.by_cholesky(c, truth(c) + 1e-12)}


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('name', SHAPES)
def test_no_bound_is_below_the_norm(name, kernel):
  convolution = made(name, kernel)
  norm = truth(convolution)
  np.testing.assert_allclose(convolution.sparse().toarray(), matrix_of(convolution).reshape(-1, convolution.sparse(
      ).shape[1]), atol=1e-15)
  for method, bound in BOUNDS.items():
    found = bound(convolution)
    assert found.value >= norm, method
    assert found.kind in ('exact', 'upper', 'probabilistic')
    assert found.certifies == (method != 'Lanczos')
    if found.kind == 'exact':
      assert found.value <= norm * (1 + 1e-9) + 1e-300, method
  assert BOUNDS['certified'](convolution).value <= 1.05 * norm + 1e-300
  if norm:
    assert BOUNDS['Cholesky'](convolution).value <= norm * (1 + 1e-6)
    assert BOUNDS['Lanczos'](convolution).value <= 1.01 * norm


@pytest.mark.parametrize('name', ['same', 'odd', 'wide', 'strided', 'stem', 'even kernel', 'one-sided'])
def test_what_is_too_large_for_its_matrix_is_certified_by_a_factorisation(monkeypatch, name):
  """To the norm itself; by the torus alone where the band is too large too."""
  monkeypatch.setattr(spectral_convolutions, 'WHOLE', 0)
  convolution = made(name, 'random')
  norm = truth(convolution)
  found = spectral_convolutions.certified(convolution)
  assert 'Cholesky' in found.method
  assert found.kind == 'upper'
  assert norm <= found.value <= norm * (1 + 1e-3)
  coarse = spectral_convolutions.certified(convolution, band=1)
  assert 'torus' in coarse.method
  assert found.value <= coarse.value <= 1.6 * norm


@pytest.mark.parametrize('scale', [1e-300, 1e-161, 1e-100, 1e-82, 1e78, 1e150])
def test_squares_that_would_vanish_or_overflow_prove_nothing_wrong(scale):
  for seed in range(5):
    kernel = np.random.default_rng(seed).normal(size=(3, 3, 2, 2))
    small = Convolution(kernel, (5, 5), padding=SAME)
    convolution = dataclasses.replace(small, kernel=scale * kernel)
    norm = scale * truth(small)
    for candidate in (norm * (1 + 1e-9), norm * (1 - 1e-9)):
      found = spectral_convolutions.by_cholesky(convolution, candidate, 1e-12)
      assert norm * (1 - 1e-14) <= found.value
    assert spectral_convolutions.by_cholesky(convolution, norm).value <= norm * (1 + 1e-6)
    matrix, rng = small.sparse() * max(scale, 1e-140), np.random.default_rng(1)
    for found, of in ((spectral_convolutions.by_lanczos(convolution, rng), norm),
                      (spectral.lanczos(lambda v, m=matrix: m.T @ (m @ v), matrix.shape[1], rng),
                       max(scale, 1e-140) * truth(small))):
      assert of * (1 - 1e-14) <= found.value <= of * 1.01


@pytest.mark.parametrize('seed', range(40))
def test_torus_is_a_bound_and_that_of_the_image_itself_is_none(seed):
  """Random kernels of many sizes; the published trap of N = n is met among them."""
  rng = np.random.default_rng(seed)
  k = rng.integers(1, 6, 2)
  low, high = rng.integers(0, 3, 2), rng.integers(0, 3, 2)
  size = np.maximum(rng.integers(2, 7, 2), k - low - high)
  strides = rng.integers(1, 4, 2)
  padding = tuple((int(a), int(b)) for a, b in zip(low, high))
  convolution = Convolution(rng.normal(size=(*k, *rng.integers(1, 4, 2))), tuple(map(int, size)),
                            tuple(map(int, strides)), padding)
  norm = truth(convolution)
  assert spectral_convolutions.by_torus(convolution).value >= norm
  assert spectral_convolutions.by_torus(convolution, gram_steps=5).value >= norm


def test_torus_of_the_image_itself_is_too_small():
  """Taps (-1/2, 1, -1/2) on three pixels: the norm is 1.7071, that of three pixels in a circle 1.5, of four 2."""
  kernel = np.array([-.5, 1, -.5]).reshape(1, 3, 1, 1)
  straight = Convolution(kernel, (1, 3), padding=((0, 0), (1, 1)))
  assert truth(straight) == pytest.approx(1 + .5 ** .5)
  circle = spectral_convolutions.by_torus(Convolution(kernel, (1, 3), circular=True))
  assert circle.value == pytest.approx(1.5)
  assert spectral_convolutions.by_torus(straight).value == pytest.approx(2)


def test_slack_is_all_that_a_value_has_beside_the_norm():
  kernel = np.random.default_rng(0).choice([-1., 1.], (5, 5, 1, 1))
  found = spectral_convolutions.by_torus(Convolution(kernel, (5, 5), circular=True))
  norm = truth(Convolution(kernel, (5, 5), circular=True))
  assert 1e-15 < found.value / norm - 1 <= 2 * found.slack


@pytest.mark.parametrize('size', [(4, 4), (5, 7)])
def test_circular_convolutions_are_exact_on_their_own_torus(size):
  convolution = Convolution(np.random.default_rng(0).normal(size=(3, 3, 2, 3)), size, circular=True)
  found = spectral_convolutions.by_torus(convolution)
  assert found.kind == 'exact'
  assert truth(convolution) <= found.value <= truth(convolution) * (1 + 1e-9)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(*size, 2)))
  np.testing.assert_allclose(convolution(x).ravel(), matrix_of(convolution) @ x.ravel(), rtol=1e-9)
  np.testing.assert_allclose(convolution.sparse() @ x.ravel(), convolution(x).ravel(), rtol=1e-9)


def test_factorisation_proves_what_is_true_and_nothing_else():
  convolution = made('same', 'random')
  norm = truth(convolution)
  for share, proved in ((1e-6, True), (1e-9, True), (-1e-9, False), (-1e-6, False)):
    found = spectral_convolutions.by_cholesky(convolution, norm * (1 + share / 2), margin=0.)
    assert np.isfinite(found.value) == proved


def test_windows_that_overlap_are_no_patches():
  for name in ('same', 'strided', 'stem'):
    with pytest.raises(ValueError, match='overlap or leave the image'):
      spectral_convolutions.by_patches(made(name, 'random'))
  for name in ('patches', 'patches with gaps', 'pointwise'):
    found = spectral_convolutions.by_patches(made(name, 'random'))
    assert found.value == pytest.approx(truth(made(name, 'random')), rel=1e-9)


# ------------------------------------------------------------------------------------ matrices
@pytest.mark.parametrize('shape', [(7, 4), (4, 7), (1, 5), (6, 6)])
def test_gram_iteration_is_above_and_comes_near(shape):
  matrix = np.random.default_rng(0).normal(size=shape)
  flat = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
  for a in (matrix, flat, matrix * 1e-150, matrix * 1e150, np.zeros(shape), matrix + 1j * matrix[::-1]):
    norm = spectral.dense(a).value
    previous = np.inf
    for steps in (0, 2, 4, 8):
      found = spectral.gram(a, steps).value
      assert norm * (1 - 1e-12) <= found <= previous
      previous = found * (1 + 1e-9)
    assert found <= norm * 1.01
  assert spectral.gram(matrix, 0).value == pytest.approx(np.linalg.norm(matrix))


def test_gram_iteration_says_nothing_wrong_of_tiny_and_undefined_numbers():
  a = np.random.default_rng(0).normal(size=(4, 3))
  for scale in (1e-165, 1e-200, 1e-300):
    assert spectral.gram(a * scale).value >= spectral.dense(a * scale).value > 0
  for bad in (np.nan, np.inf):
    assert spectral.gram(np.full((2, 2), bad)).value == np.inf
    kernel = np.full((3, 3, 1, 1), bad)
    for bound in (spectral_convolutions.by_torus, spectral_convolutions.certified):
      assert bound(Convolution(kernel, (4, 4), padding=SAME)).value == np.inf
  tiny = float(jnp.exp(spectral.log_gram(jnp.full((2, 2), 1e-25, jnp.float32), 3)))
  assert tiny == pytest.approx(2e-25, rel=1e-3)


def test_power_iteration_recovers_from_overflow():
  v = random_start(jax.random.key(0), jnp.zeros(3, jnp.float32))
  for scale in (1., 1e20, 1e-20, 1.):
    found, v = power_iteration(lambda x, s=scale: jnp.float32(s) * x, v, 5)
  assert float(found) == pytest.approx(1)


def test_gram_iteration_is_differentiable_also_at_zero():
  a = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
  u, s, vt = np.linalg.svd(a)
  gradient = jax.grad(lambda a: jnp.exp(spectral.log_gram(a, 12)))(a)
  np.testing.assert_allclose(gradient, np.outer(u[:, 0], vt[0]), atol=1e-6)
  assert float(jnp.exp(spectral.log_gram(a, 12))) == pytest.approx(s[0], rel=1e-3)
  for gradient in (jax.grad(lambda a: jnp.exp(spectral.log_gram(a)))(0 * a), ):
    assert bool(jnp.isfinite(gradient).all())


def test_lanczos_states_what_it_claims():
  """Fewer steps and smaller probabilities cost tightness; a space that is exhausted leaves next to none."""
  matrix = np.random.default_rng(0).normal(size=(300, 200))
  norm = spectral.dense(matrix).value
  def run(**options):
    return spectral.lanczos(lambda v: matrix.T @ (matrix @ v), 200, np.random.default_rng(1), **options)
  few, many, sure = run(steps=20), run(steps=60), run(steps=60, failure=1e-15)
  assert norm < many.value < sure.value < few.value < 1.2 * norm
  assert (many.failure, sure.failure, many.kind) == (1e-9, 1e-15, 'probabilistic')
  assert run(steps=500).value == pytest.approx(norm, rel=1e-6)


def test_lanczos_fails_no_more_often_than_it_says():
  """With failure 1/2 and very few steps the bound may be wrong; over many starts less than half of the time."""
  values = np.linspace(.1, 1, 400) ** .5
  wrong = [spectral.lanczos(lambda v: values ** 2 * v, 400, np.random.default_rng(seed), steps=3, failure=.5).value < 1
           for seed in range(300)]
  assert np.mean(wrong) <= .5


# ------------------------------------------------------------------------------ power iteration
@pytest.mark.parametrize('kernel', ['random', 'small', 'nyquist', 'difference of channels'])
def test_power_iteration_is_below_and_comes_near_from_random_starts(kernel):
  convolution = made('same', kernel)
  norm = truth(convolution)
  v = random_start(jax.random.key(0), jnp.zeros((5, 5, 2)))
  previous = 0.
  for steps in (1, 10, 100, 1000):
    found, end = power_iteration(convolution, v, steps)
    assert previous * (1 - 1e-9) <= float(found) <= norm * (1 + 1e-9)
    assert float(jnp.linalg.norm(end.ravel())) == pytest.approx(1)
    previous = float(found)
  assert previous == pytest.approx(norm, rel=1e-3)


def test_a_start_of_ones_is_blind():
  """What it is orthogonal to it never finds: the reason why starts are random."""
  apply = lambda x: jnp.stack([x[0] - x[1], .25 * (x[0] + x[1])])
  ones = jnp.ones(2) / 2 ** .5
  assert float(power_iteration(apply, ones, 500)[0]) == pytest.approx(.25 * 2 ** .5)
  assert float(power_iteration(apply, random_start(jax.random.key(0), jnp.zeros(2)), 500)[0]) == (
      pytest.approx(2 ** .5))


def test_derivative_of_power_iteration_is_that_of_the_singular_value():
  a = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
  u, _, vt = np.linalg.svd(a)

  @jax.grad
  def gradient(a):
    return power_iteration(lambda x: a @ x, random_start(jax.random.key(0), jnp.zeros(4)), 200)[0]
  np.testing.assert_allclose(gradient(a), np.outer(u[:, 0], vt[0]), atol=1e-8)
  assert bool(jnp.isfinite(gradient(0 * a)).all())


def test_state_carried_on_follows_the_weights():
  a = jnp.asarray(np.random.default_rng(0).normal(size=(30, 30)))
  v = random_start(jax.random.key(0), jnp.zeros(30))
  run = jax.jit(lambda a, v: power_iteration(lambda x: a @ x, v, 5))
  for step in range(60):
    a = a + .001 * jnp.asarray(np.random.default_rng(step).normal(size=(30, 30)))
    found, v = run(a, v)
  cold, _ = power_iteration(lambda x: a @ x, random_start(jax.random.key(1), jnp.zeros(30)), 5)
  norm = spectral.dense(a).value
  assert float(cold) < float(found) <= norm
  assert float(found) == pytest.approx(norm, rel=1e-3)


# -------------------------------------------------------------------------------------- values
def test_bounds_say_what_they_are():
  with pytest.raises(ValueError, match=r"kind is 'tight'; it is one of upper, lower, exact, probabilistic"):
    NormBound(1., 'tight', 0.)
  assert [NormBound(1., kind, 0.).certifies for kind in spectral.KINDS] == [True, False, True, False]
  assert spectral.dense(np.array([[np.nan, 1.]])).value == np.inf
  assert spectral.dense(np.zeros((0, 3))).value == 0
  with pytest.raises(ValueError, match='does not fit on images'):
    Convolution(np.ones((3, 3, 1, 1)), (2, 2))
  with pytest.raises(ValueError, match='the kernel has shape'):
    Convolution(np.ones((3, 3, 1)), (5, 5))
