"""NumPy computes of a traced program what XLA does: laws are checked by it."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import EVERYWHERE, FOLDED, OF_FLOATS, RUNNING, interpreted
from jax import lax

pytestmark = pytest.mark.usefixtures('x64')
X = np.array([0., -0., .5, -.25, 1., -1., 2.5, -3.7, 80., 1e30, -1e-30, np.inf, -np.inf, np.nan])
WORDS = {'and': 'bitwise_and', 'or': 'bitwise_or', 'xor': 'bitwise_xor', 'not': 'bitwise_not'}
OF_TWO = ['add', 'sub', 'mul', 'max', 'min', 'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'and', 'or', 'xor', 'div', 'atan2',
          'pow', 'rem', 'nextafter']
NAMES = [name for name in (*EVERYWHERE, *OF_FLOATS) if callable(getattr(lax, WORDS.get(name, name), None))]


def same(f, *args, rtol=1e-14):
  found, expected = jax.tree.leaves(interpreted(f)(*args)), jax.tree.leaves(jax.jit(f)(*args))
  for a, b in zip(found, expected, strict=True):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=0)


@pytest.mark.parametrize(('name', 'dtype'), [
    *((name, dtype) for dtype in (np.float32, np.float64) for name in NAMES),
    *((name, dtype) for dtype in (np.float16, jnp.bfloat16) for name in NAMES if name in EVERYWHERE)])
def test_operations_on_numbers_infinities_and_nan(name, dtype):
  """Alone finds an operation that differs from JAX's where bounds would not show it: at NaN, at -0, in dtype."""
  f, x = getattr(lax, WORDS.get(name, name)), jnp.asarray(X).astype(dtype)
  if name in ('and', 'or', 'xor', 'not'):
    x = x > 0
  if name == 'clamp':
    args = jnp.full_like(x, -1), x, jnp.full_like(x, 2)
  else:
    args = (jnp.repeat(x, x.size), jnp.tile(x, x.size)) if name in OF_TWO else (x,)
  if name in ('sin', 'cos', 'tan', 'rem'):  # far from 0 these depend on how arguments are reduced
    args = [jnp.where(jnp.abs(a) < 100, a, 1) for a in args]
  same(f, *args, rtol={np.float32: 2e-5, np.float64: 1e-12}.get(dtype, 0))


A = np.random.default_rng(0).normal(size=(2, 3, 4))
PROGRAMS = {
    'sums': lambda x: (x.sum((0, 2)), x.max(1), x.min(), x.prod(2), (x > 0).all(1), (x > 1).any(0)),
    'counts': lambda x: ((x > 0).sum(1, dtype=jnp.int32), jnp.argmax(x, 1), jnp.argmin(x.astype(jnp.float32), 0)),
    'running': lambda x: [f(x, axis=1, reverse=r) for r in (False, True)
                          for f in (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin)],
    'products': lambda x: (jnp.einsum('bij,bkj->bik', x, 2 * x), jnp.einsum('bij,cij->cb', x, x), jnp.vdot(x, x),
                           jnp.outer(x[0, 0], x[1, 0])),
    'moves': lambda x: (x.T, x.reshape(4, 6)[::-1, 1::2], lax.reshape(x, (8, 3), (2, 0, 1)), x[:, None],
                        x[:1].squeeze(0), jnp.concatenate([x, x], 1), lax.broadcast_in_dim(x[0], (3, 5, 4), (0, 2))),
    'pads': lambda x: (lax.pad(x, jnp.zeros(()), [(1, 0, 0), (0, 2, 1), (0, 0, 0)]),
                       lax.pad(x, jnp.ones(()), [(0, 0, 0), (-1, 1, 0), (0, 0, 0)])),
    'choices': lambda x: (jnp.where(x > 0, x, -x), lax.select_n(
        (x > 0).astype(jnp.int32) + (x > 1).astype(jnp.int32), x, x * 2, x * 3)),
    'casts': lambda x: (x.astype(jnp.float32), (3 * x).astype(jnp.int32), (x > 0).astype(x.dtype),
                        x.astype(jnp.bfloat16).astype(x.dtype), x.astype(bool),
                        jnp.where(x > 0, x, 2).astype(jnp.float16)[:, ::-1].T.astype(jnp.float32)),
    'places': lambda x: (lax.dynamic_slice(x, (1, 2, jnp.argmax(x[0, 0])), (1, 2, 2)), x[jnp.array([1, 0, 1])],
                         jnp.split(x, [1, 2], 1), lax.iota(jnp.int32, 5), x.at[0].set(1.)),
    'powers': lambda x: (x ** 3, lax.integer_pow(x, -2), jnp.log2(jnp.abs(x)), jnp.exp2(x)),
    'bits': lambda x: [f(lax.bitcast_convert_type(x, jnp.uint64), jnp.arange(24, dtype=jnp.uint64).reshape(2, 3, 4) * 3)
                       for f in (lax.shift_left, lax.shift_right_logical, jnp.bitwise_xor)],
    'scan': lambda x: lax.scan(lambda c, a: (c * a.sum() + 1, (c, a[0])), jnp.float64(1), x[0], reverse=True),
    'loops': lambda x: (lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, c[1] * .5 + x), (0, x)),
                        lax.fori_loop(0, 3, lambda i, c: c + i, x), lax.map(jnp.tanh, x)),
    'branches': lambda x: (lax.cond(x[0, 0, 0] > 0, jnp.sin, jnp.cos, x), lax.switch(
        jnp.argmax(x[0, 0]), [lambda x: x, lambda x: -x, lambda x: x * 2, lambda x: x * 3], x)),
    'calls': lambda x: (jax.nn.relu(x), jax.checkpoint(jnp.tanh)(x), jax.jit(lambda x: x + 1)(x), jax.nn.gelu(x)),
    'others': lambda x: (jnp.sort(x, 1), lax.top_k(x, 2), jnp.linalg.norm(x), jax.nn.softmax(x),
                         jax.random.normal(jax.random.key(0), (3,)), jnp.convolve(x[0, 0], x[1, 0])),
    'gradient': jax.grad(lambda x: jnp.sum(jax.nn.softmax(jnp.tanh(x) @ x[0].T) ** 2)),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_programs(name):
  same(PROGRAMS[name], jnp.asarray(A), rtol=1e-12)


def test_every_operation_is_among_them():
  text = ' '.join(str(jax.make_jaxpr(f)(jnp.asarray(A))) for f in PROGRAMS.values())
  assert all(f'{name}[' in text for name in (*FOLDED, *RUNNING))
  assert {*EVERYWHERE, *OF_FLOATS} - {*NAMES} <= {'add_any', 'copy', 'log2', 'stop_gradient'}


def test_programs_are_traced_once_for_each_shape_and_kind_of_number():
  traced = []

  def f(x, t):
    traced.append(x.shape)
    return x * t
  g = interpreted(f)
  for x in (jnp.ones(3), jnp.zeros(3), jnp.ones(2)):
    assert g(x, 2.).dtype == x.dtype
  assert g(jnp.ones(3, jnp.float32), 2.).dtype == np.float32
  assert traced == [(3,), (2,), (3,)]
