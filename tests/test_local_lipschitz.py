"""Local Lipschitz bounds: Jacobians and differences that are sampled lie inside, and what may jump is refused."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interpreted import interpreted

import ibpjax
from ibpjax import nn
from ibpjax.methods.jacobian import jacobian_bounds, local_lipschitz

pytestmark = pytest.mark.usefixtures('x64')
RNG = np.random.default_rng(0)
WEIGHTS = [RNG.normal(size=s) / s[1] ** .5 for s in ((12, 6), (12, 12), (3, 12))]
KERNEL = .4 * RNG.normal(size=(3, 3, 2, 3))
IMAGE, VECTOR = (4, 4, 2), (6,)


def mlp(activation, x):
  for w in WEIGHTS[:-1]:
    x = activation(w @ x)
  return WEIGHTS[-1] @ x


def image(x):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  h = jax.lax.conv_general_dilated(x[None], jnp.asarray(KERNEL), (1, 1), 'SAME', dimension_numbers=numbers)
  h = jax.nn.relu(h)[0]
  return jnp.stack([h.mean(), h[1:3, 1:3].sum(), jnp.tanh(h).sum()])


def pooled(x):
  h = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), 'SAME')
  return jnp.sin(2 * h).ravel() + jax.lax.reduce_window(x, jnp.inf, jax.lax.min, (3, 3, 1), (1, 1, 1), 'SAME').sum()


def attention(x):
  x = x.reshape(3, 2)
  return (jax.nn.softmax(x @ x.T) @ x).ravel()


def recurrent(x):
  def step(h, x):
    h = jnp.tanh(WEIGHTS[0][:3, :3] @ h + x)
    return h, jnp.sin(h)
  h, ys = jax.lax.scan(step, jnp.zeros(3), x.reshape(2, 3))
  return jnp.append(h, ys.sum())


ACTIVATIONS = {f.__name__: f for f in (
    jax.nn.relu, jax.nn.leaky_relu, jnp.tanh, jax.nn.sigmoid, jax.nn.elu, jax.nn.silu, jax.nn.softplus, jax.nn.gelu,
    jnp.sin, jnp.abs)}
NETWORKS = {**{name: (functools.partial(mlp, f), VECTOR) for name, f in ACTIVATIONS.items()},
            'image': (image, IMAGE), 'pooled': (pooled, IMAGE),
            'attention': (attention, VECTOR),
            'recurrent': (recurrent, VECTOR),
            'products': (lambda x: jnp.stack([x[0] * x[1] / (2 + x[2] ** 2), jnp.exp(x[3]) * jnp.max(x)]), VECTOR)}
METHODS = dict(ibp=ibpjax.ibp, crown=ibpjax.crown)


def sampled(jacobian, box, count=400):
  """Points of a box, half of them corners, and the Jacobians at these."""
  rng = np.random.default_rng(1)
  t = rng.uniform(size=(count, *box.shape))
  t[::2] = np.round(t[::2])
  xs = jnp.asarray(np.asarray(box.lower) + np.asarray(box.width) * t)
  return xs, np.asarray(jacobian(xs)).reshape(count, -1, box.size)


PAIRS = [(name, 'ibp') for name in NETWORKS] + [
    (name, 'crown') for name in ('relu', 'leaky_relu', 'tanh', 'image')]  # others take minutes to compile


@pytest.mark.parametrize(('name', 'method', 'norms'), [
    *((*pair, (1, 2, np.inf) if pair[0] in ('relu', 'pooled', 'attention') else (2,)) for pair in PAIRS),
    *(pytest.param(*pair, (1, np.inf), marks=pytest.mark.slow) for pair in PAIRS)])
def test_what_is_sampled_lies_inside(name, method, norms):
  f, shape = NETWORKS[name]
  centre = jnp.asarray(.5 * np.random.default_rng(2).normal(size=shape))
  lengths = {p: local_lipschitz(f, p=p, method=METHODS[method]) for p in norms}
  values, jacobian = (interpreted(jax.vmap(g)) for g in (f, jax.jacrev(f)))
  run = interpreted(lambda box: (
      jacobian_bounds(f, method=METHODS[method])(box), {p: g(box) for p, g in lengths.items()}))
  for eps in (1e-7, .03, .3):
    box = ibpjax.linf_ball(centre, eps)
    xs, jacobians = sampled(jacobian, box)
    found, lengthened = run(box)
    assert found.shape == (*jax.eval_shape(f, centre).shape, *shape)
    lower, upper = (np.asarray(x).reshape(jacobians.shape[1:]) for x in (found.lower, found.upper))
    assert np.all(jacobians >= lower - 1e-9)
    assert np.all(jacobians <= upper + 1e-9)
    if eps < 1e-6:  # not vacuous: no kinks are near
      assert np.max(upper - lower) < 1e-3
    ys = np.asarray(values(xs)).reshape(len(xs), -1)
    dx, dy = np.asarray(xs[1:] - xs[:-1]).reshape(len(xs) - 1, -1), ys[1:] - ys[:-1]
    for p, length in lengthened.items():
      reached = max(np.linalg.norm(j, p) for j in jacobians)
      assert np.all(np.linalg.norm(dy, p, axis=1) <= float(length) * np.linalg.norm(dx, p, axis=1) * (1 + 1e-9) + 1e-12)
      assert reached <= length * (1 + 1e-12)
      if eps < 1e-6:
        assert length <= reached * (1 + 1e-3)


@pytest.mark.parametrize('name', ['relu', 'tanh'])
def test_crown_is_tighter_and_both_are_tighter_than_global_ones(name):
  f, shape = NETWORKS[name]
  box = ibpjax.linf_ball(jnp.asarray(.5 * RNG.normal(size=shape)), .01)
  wide, narrow = (float(interpreted(local_lipschitz(f, method=m))(box)) for m in METHODS.values())
  _, jacobians = sampled(interpreted(jax.vmap(jax.jacrev(f))), box)
  reached = max(np.linalg.norm(j, 2) for j in jacobians)
  assert reached <= narrow <= wide
  assert narrow < 2 * reached
  assert narrow < ibpjax.lipschitz(f)(box.centre).value


@pytest.mark.usefixtures('promotion')
def test_liresnets_have_local_bounds():
  """Above what is sampled, and in a small box below the global one."""
  model = nn.liresnet(1, 2, input_shape=(6, 6, 1), classes=2, hidden=4, neck=3, rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(model)
  model = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.float64), state))
  f = functools.partial(lambda model, x: model(x[None])[0], model)
  box = ibpjax.linf_ball(jnp.asarray(RNG.uniform(.2, .8, size=(6, 6, 1))), 1e-5)
  found = float(interpreted(local_lipschitz(f))(box))
  _, jacobians = sampled(interpreted(jax.vmap(jax.jacrev(f))), box)
  assert max(np.linalg.norm(j, 2) for j in jacobians) <= found < ibpjax.lipschitz(f)(box.centre).value


def test_known_answers():
  box = ibpjax.Interval(jnp.array([-1., -1.]), jnp.array([1., 2.]))
  found = interpreted(jacobian_bounds(lambda x: jax.nn.relu(x[0]) - jax.nn.relu(-x[0])))(box)
  np.testing.assert_allclose([found.lower[0], found.upper[0]], [0, 2])

  def constant(f, **options):
    return float(interpreted(local_lipschitz(f, **options))(box))
  assert constant(lambda x: jnp.maximum(3 * x, x)) == pytest.approx(3)
  assert constant(lambda x: jnp.abs(x) + jnp.clip(x, -.5, .5)) == pytest.approx(2)
  assert constant(lambda x: jnp.max(x) - jnp.min(x), p=np.inf) == pytest.approx(2)
  assert constant(lambda x: x[0] ** 2 + x[1] ** 2, p=np.inf) == pytest.approx(6)
  assert constant(lambda x: x @ jnp.ones((2, 2)), p=1) == pytest.approx(2)
  assert constant(lambda x: jnp.sqrt(x - box.lower)) == np.inf
  flat = interpreted(jacobian_bounds(lambda x: jnp.ones(2) * jnp.floor(2.5)))(box)
  np.testing.assert_array_equal(flat.upper, np.zeros((2, 2)))


@jax.custom_vjp
def straight_through(x):
  return 3 * x


straight_through.defvjp(lambda x: (3 * x, None), lambda _, g: (0. * g,))


@pytest.mark.parametrize('f', [
    lambda x: straight_through(x), lambda x: jax.lax.stop_gradient(3 * x), lambda x: 2 * x + jax.lax.stop_gradient(x),
    lambda x: jax.lax.scan(lambda c, y: (c + straight_through(y), straight_through(y)), 0., x)[1]])
def test_derivatives_are_those_of_the_values(f):
  """A custom derivative of 0, or a stopped gradient, hides nothing."""
  box = ibpjax.linf_ball(jnp.zeros(2), 1.)
  assert float(local_lipschitz(f)(box)) == pytest.approx(3)


@pytest.mark.parametrize(('f', 'name'), [
    (lambda x: jnp.where(x > 0, 1., 0.) * x, 'gt'), (lambda x: jnp.floor(x), 'floor'), (lambda x: jnp.sign(x), 'sign'),
    (lambda x: jnp.round(x), 'round'), (lambda x: 0. ** x, 'pow'),
    (lambda x: jnp.heaviside(x, 0.), 'select_n|sign|lt|eq'),
    (lambda x: jnp.where(x.sum() > 0, 1., 0.), 'gt'),
    (lambda x: jax.lax.cond(x[0] > 0, lambda: 1., lambda: 0.), 'gt'),
    (lambda x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, 2 * s[1]), (0, x))[1], 'while'),
    (lambda x: ibpjax.elementwise(ibpjax.Elementwise(lambda k: (0 * k,)))(straight_through)(x), 'elementwise_call'),
    (lambda x: jax.lax.scan(lambda c, y: (c, jnp.floor(y)), 0., x)[1], 'floor')])
def test_what_may_jump_is_refused(f, name):
  box = ibpjax.linf_ball(jnp.zeros(2), 1.)
  with pytest.raises(NotImplementedError, match=rf'(?s){name}.*may jump.*test_local_lipschitz.py'):
    local_lipschitz(f)(box)


def test_they_compose_with_batches_gradients_and_other_arguments():
  f = lambda params, x, shift: mlp(jnp.tanh, x + shift) @ params
  params, xs = jnp.ones(3), jnp.asarray(RNG.normal(size=(4, 6)))

  def length(params, x, eps):
    return local_lipschitz(f, argnum=1)(params, ibpjax.linf_ball(x, eps), .1)
  found = interpreted(jax.vmap(length, (None, 0, None)))(params, xs, .05)
  both, h = interpreted(jax.value_and_grad(length)), 1e-6
  np.testing.assert_allclose(found, [both(params, x, .05)[0] for x in xs], rtol=1e-9)
  slope = (both((1 + h) * params, xs[0], .05)[0] - both((1 - h) * params, xs[0], .05)[0]) / (2 * h)
  assert float(both(params, xs[0], .05)[1].sum()) == pytest.approx(float(slope), rel=1e-4)
  ball = interpreted(local_lipschitz(f, argnum=1))(params, ibpjax.lp_ball(xs[0], .05), .1)
  assert float(ball) <= float(found[0]) * 5


def test_bad_arguments():
  with pytest.raises(ValueError, match='p is 3'):
    local_lipschitz(jnp.sin, p=3)
  with pytest.raises(TypeError, match='give an Interval'):
    local_lipschitz(jnp.sin)(jnp.zeros(2))
  box = ibpjax.linf_ball(jnp.zeros(2), .1)
  with pytest.raises(TypeError, match='argnum is 1, and there are 1 arguments'):
    local_lipschitz(jnp.sin, argnum=1)(box)
  with pytest.raises(TypeError, match='several arguments are sets'):
    local_lipschitz(jnp.multiply)(box, box)
