"""Certificates: strict, honest about rounding and NaN, never contradicted by an attack."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interpreted import interpreted

import ibpjax
from ibpjax import certified_radius, certify, linf_ball, margins, nn, training
from ibpjax.verification.certify import METHODS

KEY = jax.random.key(0)
XS = jax.random.uniform(KEY, (64, 6))


def f(params, x):
  return params['w2'] @ jax.nn.relu(params['w1'] @ x)


def params_of(seed=0):
  a, b = jax.random.split(jax.random.key(seed))
  return dict(w1=jax.random.normal(a, (16, 6)) / 2, w2=jax.random.normal(b, (4, 16)) / 4)


@jax.jit
def predictions(params, xs=XS):
  return jax.vmap(f, (None, 0))(params, xs).argmax(-1)


@functools.cache
def certifier(**options):
  """`certify` of f, computed by NumPy."""
  return interpreted(lambda *args: certify(f, *args, **options))


def test_margins():
  z = jnp.array([1., 4., 2.])
  np.testing.assert_allclose(margins(z, 1), [3., 2.])
  np.testing.assert_allclose(margins(z, 0), [-3., -1.])
  np.testing.assert_allclose(jax.jit(margins)(z, 2), [1., -2.])
  assert bool(jnp.all(jnp.isnan(jax.jit(margins)(z, 3))))


@jax.jit
def attacked(params, labels, reach):
  """The worst margins that an attack finds."""
  return training.pgd(f, params, XS, labels, reach, KEY, steps=30, restarts=2)[1]


@pytest.mark.parametrize(('norm', 'method'), [*(('linf', m) for m in METHODS), ('l2', 'crown'), ('l1', 'lbp'),
                                              ('l2', 'ibp')])
def test_no_attack_contradicts_a_certificate(norm, method):
  params = params_of()
  labels = predictions(params)
  certified = []
  for eps in (0., .005, .02, .08):
    certificate = certifier(norm=norm, method=method)(params, XS, labels, eps)
    reach = {'linf': 1, 'l2': 6 ** -.5, 'l1': 1 / 6}[norm] * eps  # an l-infinity ball inside of the ball
    assert bool(jnp.all(attacked(params, labels, reach) >= certificate.lower.min(-1)))
    assert bool(jnp.all(certificate.lower <= certificate.clean))
    certified.append(int(certificate.verified.sum()))
  assert certified[0] == 64  # nothing but the predictions themselves
  assert 0 < certified[2] < 64
  assert certified == sorted(certified, reverse=True)


def test_linear_methods_verify_more_than_interval_bounds():
  params = params_of()
  labels = predictions(params)
  found = {m: certifier(norm='linf', method=m)(params, XS, labels, .03) for m in METHODS}
  for method in METHODS:
    assert bool(jnp.all(found[method].lower >= found['ibp'].lower - 1e-5))
  assert int(found['ibp'].verified.sum()) < int(found['crown-ibp'].verified.sum()) <= int(found['crown'].verified.sum())


@pytest.mark.parametrize('method', ['ibp', 'crown', pytest.param('alpha-crown', marks=pytest.mark.slow)])
def test_certified_radii(method):
  """Each is certified itself, a little more is not; and points that attacks find lie beyond."""
  params = params_of()
  labels = predictions(params).at[0].add(1) % 4
  radii = certified_radius(f, params, XS, labels, .2, steps=10, method=method)
  assert bool(certify(f, params, XS, labels, radii, method=method).verified[1:].all())
  more = certify(f, params, XS, labels, jnp.minimum(radii + .2 / 2 ** 9, .2), method=method).verified
  assert not bool(jnp.any(more & (radii < .2)))
  assert float(radii[0]) == 0
  assert len(set(np.asarray(radii).tolist())) > 20
  _, worst = training.pgd(f, params, XS[1:], labels[1:], float(radii[1:].min()), KEY, steps=30)
  assert bool(jnp.all(worst > 0))
  with pytest.raises(ValueError, match='steps is 0'):
    certified_radius(f, params, XS, labels, .2, steps=0)
  with pytest.raises(ValueError, match='one radius, or one for each'):
    certify(f, params, XS, labels, radii[:5], method=method)


def test_smaller_norm_balls_are_certified_more_often():
  params = params_of()
  labels = predictions(params)
  lower = {n: certifier(norm=n, clip=None)(params, XS, labels, .03).lower for n in ('linf', 'l2', 'l1')}
  assert bool(jnp.all(lower['l1'] >= lower['l2']))
  assert bool(jnp.all(lower['l2'] >= lower['linf']))


def test_certificates_are_cut_to_the_valid_range():
  params, black = params_of(), jnp.zeros((4, 6))
  labels = predictions(params, black)
  cut, whole = (certifier(clip=c)(params, black, labels, .05).lower for c in ((0., 1.), None))
  assert bool(jnp.all(cut >= whole))
  assert bool(jnp.any(cut > whole + 1e-3))


def test_rows_and_labels_agree():
  params, rows = params_of(), np.array([[0, 1., -1, 0], [0, 1, 0, -1], [-1, 1, 0, 0]])
  labels = jnp.ones(64, jnp.int32)
  by_label, by_rows = certify(f, params, XS, labels, .02), certify(f, params, XS, (rows, np.zeros(3)), .02)
  np.testing.assert_allclose(np.sort(by_label.lower, -1), np.sort(by_rows.lower, -1), rtol=1e-4, atol=1e-5)
  shifted = certify(f, params, XS, (rows, np.full(3, 100.)), .02)
  assert bool(jnp.all(shifted.verified))


def test_ties_and_nan_are_never_verified():
  tie = certify(lambda p, x: jnp.stack([x[0], x[0]]), None, XS, jnp.zeros(64, jnp.int32), 0.)
  assert not bool(tie.verified.any() | tie.correct.any())
  broken = certify(lambda p, x: p * x[:2], jnp.array([jnp.nan, 1.]), XS, jnp.zeros(64, jnp.int32), .01)
  assert not bool(broken.verified.any() | broken.correct.any())


def test_a_margin_below_the_rounding_allowance_is_not_verified():
  w = jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32) * 100

  def close(params, x):
    z = jnp.vdot(w, x)
    return jnp.stack([z + params, z])

  x = jnp.full((1, 200), .5)
  assert not bool(certify(close, 1e-4, x, jnp.array([0]), 0.).verified[0])
  assert bool(certify(close, 10., x, jnp.array([0]), 0.).verified[0])


def test_a_function_whose_closure_changes_is_certified_anew():
  model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
  g = lambda _, x: model(x[None])[0]
  labels = jax.vmap(lambda x: g(None, x))(XS).argmax(-1)
  before = certify(g, None, XS, labels, .001)
  model.kernel[...] = -model.kernel[...]
  after = certify(g, None, XS, labels, .001)
  assert bool(before.verified.any())
  assert not bool(after.verified.any())


def test_a_wrong_bound_is_noticed():
  @ibpjax.elementwise(ibpjax.Elementwise(lambda k: (), trend=-1, roundings=0))  # a lie: it increases
  def liar(x):
    return 2 * x

  with pytest.raises(RuntimeError, match='this bound is wrong'):
    certify(lambda p, x: liar(x), None, XS, jnp.zeros(64, jnp.int32), .3)


def test_one_compilation_for_batches_of_one_shape():
  calls = []

  def g(params, x):
    calls.append(1)
    return f(params, x)

  params = params_of()
  labels = predictions(params)
  certify(g, params, XS, labels, .01)
  first = len(calls)
  for eps in (.02, .03):
    certify(g, params, XS, labels, eps)
  assert len(calls) - first == 2  # what it computes, to see whether it is the same; no further compilation


def test_under_jit():
  params = params_of()
  labels = predictions(params)
  inside = jax.jit(lambda p: certify(f, p, XS, labels, .01).lower)(params)
  np.testing.assert_allclose(inside, certify(f, params, XS, labels, .01).lower, rtol=1e-4, atol=1e-5)


def test_pgd_stays_in_the_ball_and_finds_what_there_is():
  params = params_of()
  labels = predictions(params)
  points, worst = training.pgd(f, params, XS, labels, .3, KEY, steps=20, restarts=3)
  box = linf_ball(XS, .3, 0., 1.)
  assert bool(jnp.all((points >= box.lower) & (points <= box.upper)))
  recomputed = interpreted(jax.vmap(lambda x, y: margins(f(params, x), y).min()))(points, labels)
  np.testing.assert_allclose(recomputed, worst, rtol=1e-4, atol=1e-5)
  assert float((worst <= 0).mean()) > .5
  linear = lambda p, x: p['w1'][:2] @ x  # where the worst point is known
  y = jax.jit(jax.vmap(lambda x: linear(params, x)))(XS).argmax(-1)
  _, found = training.pgd(linear, params, XS, y, .01, KEY, steps=20, clip=(-9., 9.))
  bound = ibpjax.ibp(lambda x, y: margins(linear(params, x), y), elide=True)
  exact = interpreted(jax.vmap(bound))(linf_ball(XS, .01), y).lower.min(-1)
  np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)


def test_pgd_counts_logits_that_are_nan_as_broken():
  def f(params, x):  # NaN in a corner of the ball, and with NaN gradients on the way there
    z = params @ x
    return jnp.where(x[0] > .55, jnp.nan, jnp.stack([1 + z, jnp.sqrt(jnp.maximum(z - .6, 0))]))
  _, worst = training.pgd(f, jnp.array([1., .1]), jnp.full((1, 2), .5), jnp.array([0]), .1, KEY, restarts=5)
  assert worst.tolist() == [-jnp.inf]


def test_models_of_batches():
  model = nn.mlp((8,), input_shape=(6,), classes=3, rngs=nnx.Rngs(0))
  one = ibpjax.batched(lambda m, x: m(x))
  certificate = certify(one, model, XS, model(XS).argmax(-1), 1e-4)
  assert float(certificate.verified.mean()) > .9
