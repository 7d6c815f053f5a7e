"""The convolution that rows are pulled back by: its derivatives and batches are those of JAX's own."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ibpjax import Interval, crown, ibp, linf_ball
from ibpjax.xla.convolutions import convolve

pytestmark = pytest.mark.usefixtures('x64')
RNG = np.random.default_rng(0)
# Spaces, windows, paddings.
CASES = [((7,), (3,), ((2, 2),)), ((6, 5), (3, 2), ((1, 1), (0, 0))), ((4, 6), (1, 4), ((0, 0), (3, 3))),
         ((3, 4, 5), (2, 1, 3), ((1, 1), (0, 0), (2, 2))), ((5, 4), (4, 3), ((3, 1), (0, 2))),
         ((1, 5), (4, 3), ((3, 0), (1, 0))), ((2, 3), (3, 3), ((2, 4), (2, 2)))]
LETTERS = {1: 'W', 2: 'HW', 3: 'DHW'}


def reference(x, kernel, padding):
  s = LETTERS[len(padding)]
  return lax.conv_general_dilated(x, kernel, (1,) * len(padding), padding,
                                  dimension_numbers=(f'N{s}C', f'{s}IO', f'N{s}C'))


@pytest.mark.parametrize(('space', 'window', 'padding'), CASES)
def test_derivatives(space, window, padding):
  x, kernel = jnp.asarray(RNG.normal(size=(2, *space, 3))), jnp.asarray(RNG.normal(size=(*window, 3, 4)))
  out = convolve(x, kernel, padding)
  np.testing.assert_allclose(out, reference(x, kernel, padding), atol=1e-12)
  weights = jnp.asarray(RNG.normal(size=out.shape))
  tangents = jnp.asarray(RNG.normal(size=x.shape)), jnp.asarray(RNG.normal(size=kernel.shape))

  def loss(f):
    return lambda x, kernel: jnp.vdot(weights, jnp.sin(f(x, kernel, padding)))

  def both(f):
    by_x, by_kernel = jax.grad(loss(f), (0, 1))(x, kernel)
    forward = jax.jvp(loss(f), (x, kernel), tangents)[1]
    twice = jax.grad(lambda k: jnp.square(jax.grad(loss(f))(x, k)).sum())(kernel)
    one = jax.jvp(lambda k: f(x, k, padding), (kernel,), (tangents[1],))[1]
    return by_x, by_kernel, forward, twice, one
  for a, b in zip(jax.jit(lambda: both(convolve))(), both(reference), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize('padding', [((1, 1), (0, 0)), ((2, 2), (1, 0))])  # few zeros beside the image, many
@pytest.mark.parametrize(('of_x', 'of_kernel'), [(0, None), (2, None), (None, 0), (None, 3), (1, 2)])
def test_batches(of_x, of_kernel, padding):
  def batched(shape, axis):
    return jnp.asarray(RNG.normal(size=shape if axis is None else (*shape[:axis], 5, *shape[axis:])))
  x, kernel = batched((2, 6, 5, 3), of_x), batched((3, 2, 3, 4), of_kernel)
  def both(f):
    def run(x, kernel):
      return f(x, kernel, padding), jax.grad(lambda *a: jnp.sin(f(*a, padding)).sum(), (0, 1))(x, kernel)
    return jax.tree.leaves(jax.vmap(run, (of_x, of_kernel))(x, kernel))
  for a, b in zip(both(convolve), both(reference), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize('n', [4, 12, 13])  # at once, in parts of one size, with a rest
def test_derivatives_of_many_examples(n):
  """More than stay in the cache of a core: the derivative by the kernel is a sum over parts."""
  x, kernel = jnp.asarray(RNG.normal(size=(n, 40, 40, 8))), jnp.asarray(RNG.normal(size=(3, 2, 8, 8)))
  weights = jnp.asarray(RNG.normal(size=(n, 42, 39, 8)))
  a, b = (jax.jit(jax.grad(lambda k, f=f: jnp.vdot(weights, f(x, k, ((2, 2), (0, 0))))))(kernel)
          for f in (convolve, reference))
  np.testing.assert_allclose(a, b, atol=1e-9)


def test_rows_through_convolutions_of_any_geometry():
  """Strides, windows and paddings that differ from side to side, are greater than the window, or cut the image."""
  rng, padded = np.random.default_rng(1), 0
  for _ in range(24):
    size, window, strides = rng.integers(1, 8, 2), rng.integers(1, 6, 2), rng.integers(1, 4, 2)
    padding = [(int(rng.integers(-1, k + 2)), int(rng.integers(-1, k + 2))) for k in window]
    if any(m + sum(p) < k or m + min(*p, 0) < 1 for m, p, k in zip(size, padding, window)):
      continue
    kernel = jnp.asarray(rng.normal(size=(*window, 2, 3)))

    def f(x, kernel=kernel, strides=strides, padding=padding):
      return lax.conv_general_dilated(x[None], kernel, tuple(map(int, strides)), padding,
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))[0]
    x = rng.normal(size=(*size, 2))
    row = rng.normal(size=jax.eval_shape(f, x).shape)

    @jax.jit
    def run(x, row, f=f):
      out, pull = jax.vjp(f, x)
      return crown(f, rows=row[None])(linf_ball(x, .1)), out, *pull(row)
    found, out, at_input = run(x, row)
    radius = .1 * np.abs(at_input).sum()
    np.testing.assert_allclose(found.lower[0], np.vdot(row, out) - radius, atol=1e-10)
    np.testing.assert_allclose(found.upper[0], np.vdot(row, out) + radius, atol=1e-10)
    padded += max(map(max, padding)) > 0
  assert padded > 8


@pytest.mark.parametrize(('space', 'window', 'padding', 'numbers'), [
    ((6, 5), (3, 2), ((1, 1), (0, 0)), ('NHWC', 'HWIO', 'NHWC')),
    ((5, 4), (4, 3), ((3, 2), (-1, 4)), ('NCHW', 'OIHW', 'NCHW')),
    ((1, 5), (2, 3), ((0, 1), (2, 2)), ('HNCW', 'WOHI', 'CHNW'))])
def test_boxes_through_convolutions_without_strides(space, window, padding, numbers):
  """Bounds and their derivatives by boxes and kernels are those of centres and radii through JAX's own."""
  where = lax.conv_dimension_numbers((9,) * 4, (9,) * 4, numbers)
  shape, window_shape = np.zeros(4, int), np.zeros(4, int)
  shape[list(where.lhs_spec)], window_shape[list(where.rhs_spec)] = (3, 2, *space), (5, 2, *window)
  box, kernel = linf_ball(jnp.asarray(RNG.normal(size=shape)), .1), jnp.asarray(RNG.normal(size=window_shape))

  def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=where)

  def direct(box, kernel):
    centre, radius = conv(box.centre, kernel), conv(box.radius, jnp.abs(kernel))
    return Interval(centre - radius, centre + radius)
  weights = Interval(*jnp.asarray(RNG.normal(size=(2, *conv(box.centre, kernel).shape))))

  def both(f):
    def loss(box, kernel):
      out = f(box, kernel)
      return jnp.vdot(weights.lower, jnp.sin(out.lower)) + jnp.vdot(weights.upper, jnp.sin(out.upper))
    return jax.tree.leaves((f(box, kernel), jax.grad(loss, (0, 1))(box, kernel)))
  for a, b in zip(jax.jit(lambda: both(ibp(conv)))(), jax.jit(lambda: both(direct))(), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_convolution_over_no_axes():
  """A product of matrices by another name."""
  kernel, x = jnp.asarray(RNG.normal(size=(2, 3))), jnp.asarray(RNG.normal(size=3))
  def f(x):
    where = lax.ConvDimensionNumbers((0, 1), (0, 1), (0, 1))
    return lax.conv_general_dilated(x[None], kernel, (), [], dimension_numbers=where)[0]
  for bound in (ibp, crown):
    found = bound(f)(linf_ball(x, .1))
    np.testing.assert_allclose(found.centre, kernel @ x, atol=1e-12)
    np.testing.assert_allclose(found.radius, .1 * jnp.abs(kernel).sum(1), atol=1e-12)
