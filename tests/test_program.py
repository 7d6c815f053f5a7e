"""Tracing: what is entered, what stays whole, which line is named, how often a function is traced."""
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import holds, leaves, samples
from flax import nnx
from interpreted import interpreted
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import ibpjax
from ibpjax import Interval, LpBall, crown, ibp, lbp, linf_ball
from ibpjax.composites.patterns import grouped
from ibpjax.core.program import trace

X = jnp.array([.5, -1., 2.])
BOX = Interval(X - .1, X + .1)


def equations(f, *args):
  return [e.name for e in grouped(trace(f, args, {})[0]).equations]


def test_two_calls_of_one_jitted_function_are_two_values():
  g = jax.jit(lambda x: x * 2 + 1)
  bound = interpreted(ibp(lambda x: g(g(x))))(BOX)
  np.testing.assert_allclose(bound.lower, 4 * BOX.lower + 3, rtol=1e-6)


def test_constants_of_nested_jit_are_found():
  c = jnp.array([1., 2., 3.])
  np.testing.assert_allclose(interpreted(ibp(jax.jit(lambda x: x + c)))(BOX).lower, BOX.lower + c, rtol=1e-6)
  traced = jax.jit(lambda c: ibp(jax.jit(lambda x: x + c))(BOX).lower)(c)
  np.testing.assert_allclose(traced, BOX.lower + c, rtol=1e-6)


def test_the_gradient_of_a_loop_that_is_computed_again():
  """Its code holds calls of closed jaxprs, whose code has another name than that of other calls."""
  def loop(x):
    return jax.lax.map(jax.checkpoint(lambda y: jnp.tanh(y * y), prevent_cse=False), x)

  def twice(x):
    return jax.lax.scan(lambda c, _: (jax.checkpoint(loop)(c), None), x, length=2)[0].sum()
  x = jnp.array([.5, -1., 2.])
  bound, value = ibp(jax.grad(twice))(Interval(x, x)), jax.grad(twice)(x)
  np.testing.assert_allclose(bound.lower, value, rtol=1e-4)
  np.testing.assert_allclose(bound.upper, value, rtol=1e-4)


def test_calls_on_known_operands_stay_whole_and_keep_their_gradient():
  @jax.custom_vjp
  def straight_through(w):
    return jnp.sign(w)
  straight_through.defvjp(lambda w: (jnp.sign(w), None), lambda _, g: (g,))

  def f(w, x):
    return straight_through(w) * x + lax.stop_gradient(w) * x

  assert 'custom_vjp_call' in equations(f, X, BOX)
  got = jax.grad(lambda w: ibp(f)(w, Interval(X, X)).lower.sum())(X)
  np.testing.assert_allclose(got, jax.grad(lambda w: f(w, X).sum())(X))


def test_stop_gradient_on_perturbed_values_stops_the_gradient_of_both_ends_and_keeps_the_range():
  bound = interpreted(ibp(lambda x: 2 * lax.stop_gradient(x), elide=True))(BOX)
  np.testing.assert_allclose(bound.width, .4 * jnp.ones(3), rtol=1e-5)
  got = jax.grad(lambda e: ibp(lambda x: lax.stop_gradient(x) + x)(linf_ball(X, e)).upper.sum())(.1)
  np.testing.assert_allclose(got, 3.)


def test_functions_are_recognised_by_their_code_and_not_by_their_name():
  assert equations(jax.nn.softplus, BOX) == ['softplus']

  @jax.jit
  def softplus(x):
    return jnp.log(jnp.abs(x) + 3)

  assert equations(softplus, BOX) == ['abs', 'add', 'log']
  assert equations(lambda z: jnp.logaddexp(z, 0.), BOX) == ['softplus']  # the same code under another name
  assert equations(lambda z: jnp.logaddexp(z, .5), BOX) == ['function of one value']
  assert equations(lambda x: jax.nn.sigmoid(x) * x, BOX) == ['silu']  # factors in the other order
  assert equations(lambda x: x * jax.nn.sigmoid(-x), BOX)[-1] == 'function of one value'
  assert equations(lambda x, y: jax.nn.leaky_relu(x, y), BOX, BOX)[-1] != 'leaky_relu'


def test_scan_is_one_equation_whatever_its_length():
  def f(n):
    return lambda x: lax.scan(lambda c, _: (jnp.tanh(c) * .9, c), x, length=n)
  assert equations(f(3), BOX) == equations(f(300), BOX) == ['scan']
  text = [jax.jit(ibp(f(n))).lower(BOX).as_text() for n in (30, 300)]
  assert len(text[0].splitlines()) == len(text[1].splitlines())


def test_a_carry_that_becomes_perturbed_in_a_later_step_is_perturbed():
  def f(x):
    step = lambda c, _: ((x.sum(), c[0], c[1] + 0 * c[0]), c[2])
    return lax.scan(step, (jnp.float32(0), jnp.float32(1), jnp.float32(2)), length=4)
  values = interpreted(jax.vmap(f))(X[None] + .1 * jax.random.uniform(jax.random.key(0), (100, 3), minval=-1))
  bounds = interpreted(ibp(f))(BOX)
  assert holds(bounds, values, 1e-5)
  assert max(float(b.width.max()) for b in leaves(bounds)) < 1.3


def test_unsupported_primitive_names_itself_its_shapes_and_the_users_line():
  def f(x):
    return lax.lgamma(x)

  with pytest.raises(NotImplementedError) as e:
    ibp(f)(BOX)
  line = inspect.getsourcelines(f)[1] + 1
  assert '`lgamma` (float32[3])' in str(e.value)
  assert f'test_program.py:{line} (' in str(e.value)
  assert str(e.value).endswith('.f)')


def test_the_line_named_is_the_users_even_inside_of_jax_and_flax_functions():
  jax.scipy.special.gammaln(X)  # cached by jax with the line of this call
  layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

  def f(x):
    return jax.scipy.special.gammaln(x)

  def g(layer, x):
    return layer(x)

  with pytest.raises(NotImplementedError) as e:
    ibp(f)(BOX)
  assert f'test_program.py:{inspect.getsourcelines(f)[1] + 1} (' in str(e.value)
  _, found = interpreted(ibp(g, intermediates=True))(layer, Interval(X[None] - 1, X[None] + 1))
  lines = {line for _, operation, line in found.sources if operation == 'normalise'}
  assert len(lines) == 1
  assert f'test_program.py:{inspect.getsourcelines(g)[1] + 1} (' in lines.pop()


@pytest.mark.parametrize(('f', 'match'), [
    (lambda x: x.astype(jnp.int32).astype(x.dtype), 'integers that depend on the input have no bounds'),
    (lambda x: x[x.argmax()], '`argmax`'),
    (lambda x: lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, x), 'a known number of steps'),
    (lambda x: x[jnp.argsort(x)], 'positions that depend on perturbed values'),
    (lambda x: x.at[lax.top_k(x, 1)[1]].set(0.), 'positions that depend on perturbed values'),
    (lambda x: lax.cond(x[0] > 0, lambda: 1, lambda: 2) * x, 'Return floats from the branches'),
    (lambda x: jnp.abs(jnp.fft.fft(x)), 'the real and the imaginary part'),
    (lambda x: jnp.linalg.inv(jnp.outer(x, x)), 'no bound rule'),
])
def test_unsupported_things_raise(f, match):
  with pytest.raises(NotImplementedError, match=match):
    ibp(f)(BOX)


def test_one_trace_for_each_shape():
  @chex.assert_max_traces(2)
  def f(x):
    return jnp.tanh(x)

  bound = jax.jit(ibp(f))
  for shift in range(3):
    bound(Interval(X - shift, X + shift))
  bound(Interval(jnp.zeros(2), jnp.ones(2)))
  with pytest.raises(AssertionError, match='traced > 2 times'):
    bound(Interval(jnp.zeros(4), jnp.ones(4)))


def test_flags_stay_static_and_trees_are_kept():
  def f(params, x, *, double, names=('a', 2)):
    assert double is True
    return dict(y=params['w'] * x['in'], rest=(x['in'], None, 1. if names[0] == 'a' else 0.))

  out = ibp(f)(dict(w=2.), {'in': BOX}, double=True)
  assert set(out) == {'y', 'rest'}
  assert out['rest'][1] is None
  np.testing.assert_allclose(out['y'].upper, 2 * BOX.upper)
  np.testing.assert_allclose(out['rest'][0].upper, BOX.upper)


def test_known_outputs_are_degenerate_intervals():
  out = interpreted(ibp(lambda x: (x, jnp.ones(2), x > 0)))(BOX)
  np.testing.assert_array_equal(out[1].lower, out[1].upper)
  assert out[2].dtype == bool


def test_intermediates_can_be_read_replaced_and_handed_in_again():
  w = jax.random.normal(jax.random.key(0), (3, 3))
  f = lambda x: jax.nn.relu(w @ jax.nn.relu(w @ x))
  out, found = interpreted(ibp(f, intermediates=True))(BOX)
  assert [operation for _, operation, _ in found.sources] == ['max', 'max']
  assert all('test_program.py' in line for _, _, line in found.sources)
  again = interpreted(ibp(f, intermediate=found))(BOX)
  np.testing.assert_array_equal(out.lower, again.lower)
  first = next(iter(found.bounds))
  z = found.bounds[first]
  split = {first: Interval(z.lower, jnp.minimum(z.upper, jnp.maximum(z.lower, .1)))}
  half = interpreted(ibp(f, intermediate=ibpjax.Intermediates(split)))(BOX)
  hidden = Interval(*(jax.nn.relu(end) for end in (split[first].lower, split[first].upper)))
  expected = interpreted(ibp(lambda h: jax.nn.relu(w @ h)))(hidden)
  np.testing.assert_allclose([half.lower, half.upper], [expected.lower, expected.upper], rtol=1e-6)
  assert half.width.sum() < out.width.sum()
  jitted = jax.jit(ibp(f, intermediates=True))(BOX)
  assert list(jitted[1].bounds) == list(found.bounds)
  for bad in ({first: Interval(jnp.zeros(9), jnp.ones(9))}, {999: BOX}):
    with pytest.raises(ValueError, match='belong to another function'):
      ibp(f, intermediate=ibpjax.Intermediates(bad))(BOX)


@pytest.mark.parametrize('method', [ibp, ibpjax.crown, ibpjax.zonotope])
def test_names_for_checkpoints_change_nothing(method):
  """Alone finds a name that hides a normalisation: the bounds of its steps are many times wider."""
  def norm(x, name):
    y = name(x - x.mean())
    return y * jax.lax.rsqrt(name((y * y).mean()) + 1e-5)
  named, plain = (interpreted(method(functools.partial(norm, name=name)))(BOX) for name in (
      lambda x: checkpoint_name(x, 'kept'), lambda x: x))
  np.testing.assert_array_equal(named.lower, plain.lower)
  np.testing.assert_array_equal(named.upper, plain.upper)
  assert np.isfinite(named.width).all()


def test_dead_code_needs_no_rule():
  def f(x):
    jnp.sin(x)
    return 2 * x
  np.testing.assert_allclose(interpreted(ibp(f))(BOX).upper, 2 * BOX.upper)
  assert equations(f, BOX) == ['mul']


@pytest.mark.parametrize('f', [jnp.bitwise_and.reduce, jnp.bitwise_or.reduce])
def test_bits_of_many_perturbed_integers_are_refused(f):
  """Alone finds that what is monotone on booleans passes for monotone on bits: 4 & 3 is less than 3 & 3."""
  def g(x):
    return f(jnp.stack([(x[0] > 1).astype(jnp.int32) + 3, jnp.full((), 3, jnp.int32)])).astype(jnp.float32)
  with pytest.raises(NotImplementedError, match='bits of perturbed integers'):
    ibp(g)(Interval(jnp.zeros(2), jnp.full(2, 2.)))


def test_bits_of_perturbed_integers_are_refused():
  with pytest.raises(NotImplementedError, match='bits of perturbed integers'):
    ibp(lambda x: jnp.where((jnp.where(x > 0, 2, 1) & 1) > 0, 1., 0.))(BOX)


def test_a_value_that_overflows_may_be_nan_and_its_comparison_with_itself_is_open():
  box = Interval(jnp.full(1, 100.), jnp.full(1, 101.))
  bound = interpreted(ibp(lambda x: jnp.where(jnp.isnan(jnp.exp(x) - jnp.exp(x)), 7., 0.)))(box)
  assert (float(bound.lower[0]), float(bound.upper[0])) == (0., 7.)


def test_a_registered_function_keeps_shape_and_dtype_or_is_refused():
  rule = ibpjax.Elementwise(lambda k: ())
  for fn in (lambda x: x.sum(), lambda x: x > 0):
    with pytest.raises(TypeError, match='keeps shape and dtype'):
      ibpjax.elementwise(rule)(fn)(X)


def test_registered_functions_are_ordinary_jax_functions():
  rule = ibpjax.Elementwise(lambda k, r: (0. * r, r), trend=1)
  f = ibpjax.elementwise(rule)(lambda x, r: .1 * x + jnp.clip(x, 0 * r, r))
  plain = f.__wrapped__
  r = jnp.array([.5, 1., 2.])
  np.testing.assert_allclose(f(X, r), plain(X, r))
  np.testing.assert_allclose(jax.jit(f)(X, 1.), plain(X, jnp.ones(3)))
  np.testing.assert_allclose(jax.grad(lambda x, r: f(x, r).sum(), (0, 1))(X, r),
                             jax.grad(lambda x, r: plain(x, r).sum(), (0, 1))(X, r))
  batch = jnp.stack([X, -X])
  np.testing.assert_allclose(jax.vmap(f, (0, None))(batch, r), jax.vmap(plain, (0, None))(batch, r))
  assert equations(jax.vmap(f, (0, None)), Interval(batch, batch), r)[-1] == 'elementwise_call'


def test_coefficients_of_zero_hide_infinite_ends():
  box = Interval(jnp.array([-1., 1.]), jnp.array([1., 2.]))
  bound = interpreted(ibp(lambda x: jnp.concatenate([x, jnp.log(x)]), elide=True))(box)
  np.testing.assert_allclose(bound.lower, [-1, 1, -jnp.inf, 0], atol=1e-6)
  np.testing.assert_allclose(bound.upper, [1, 2, jnp.inf, jnp.log(2.)], rtol=1e-6)
  masked = interpreted(ibp(lambda x: jnp.where(jnp.array([True, False]), x, -jnp.inf).max() * 2, elide=True))(box)
  np.testing.assert_allclose([masked.lower, masked.upper], [-2, 2])


@pytest.mark.parametrize('x', [BOX, LpBall(jnp.array([.5, -1., 2.]), .1, 2)])
@pytest.mark.parametrize('elide', [False, True])
def test_masks_of_minus_infinity(x, elide):
  mask = jnp.array([True, True, False])
  for f, want in ((lambda x: jnp.where(mask, x, -jnp.inf).max(), (.4, .6)),
                  (lambda x: jnp.max(x, where=mask, initial=-jnp.inf), (.4, .6)),
                  (lambda x: lax.pad(x, jnp.array(-jnp.inf), [(1, 1, 0)]).reshape(5, 1)[:2].max(), (.4, .6)),
                  (lambda x: jnp.concatenate([x, jnp.array([jnp.inf])]).min(), (-1.1, -.9)),
                  (lambda x: jnp.where(~mask, -x, -jnp.inf)[:2].max(), (-jnp.inf, -jnp.inf))):
    bound = interpreted(ibp(f, elide=elide))(x)
    np.testing.assert_allclose([bound.lower, bound.upper], want, rtol=1e-5)
  for f in (lambda x: jnp.where(jnp.arange(3) < 1, -1e20 * x * 1e20, -jnp.inf).max(),
            lambda x: jnp.where(mask, x, jnp.nan).max()):
    assert interpreted(ibp(f, elide=elide))(x).upper == jnp.inf


def test_a_recognised_function_of_two_perturbed_operands_is_entered():
  slope = Interval(jnp.full(3, .1), jnp.full(3, .3))
  bound = interpreted(ibp(jax.nn.leaky_relu))(BOX, slope)
  np.testing.assert_allclose(bound.lower, [.4, -1.1 * .3, 1.9], rtol=1e-5)
  np.testing.assert_allclose(bound.upper, [.6, -.9 * .1, 2.1], rtol=1e-5)


@pytest.mark.parametrize('method', [ibp, crown, lbp])
def test_elements_taken_by_columns(method):
  """A reshape that takes elements in another order of the axes is a transposition and a reshape."""
  def f(x):
    return jnp.cumsum(jax.nn.relu(jax.lax.reshape(x, (3, 3), (1, 0))), 0) + jnp.ravel(x ** 2, order='F').reshape(3, 3)
  box = linf_ball(jnp.asarray(np.random.default_rng(0).normal(size=(3, 3))), .01)
  bounds = interpreted(method(f))(box)
  assert holds(bounds, interpreted(jax.vmap(f))(samples(box, 300)), 1e-5)
  assert float(bounds.width.max()) < .2


def test_what_jax_does_in_a_loop_is_blamed_on_the_line_that_called_it():
  with pytest.raises(NotImplementedError, match=r'as in jnp\.interp.*\n  at .*test_program\.py:\d+ \(test_what'):
    ibp(lambda x: jnp.interp(x, jnp.arange(3.), jnp.arange(3.)))(BOX)
