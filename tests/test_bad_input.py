"""Every bad input gets one clear error that names the thing and the remedy."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ibpjax
from ibpjax import Interval, certify, ibp, linf_ball, lp_ball, margins, training

X = jnp.array([.2, .5, .8])
IMAGES = np.array([[0, 255], [3, 7]], np.uint8)
W = jnp.ones((3, 3))


def f(params, x):
  return params @ x


def scalar(params, x):
  return (params @ x)[None]


@pytest.mark.parametrize(('make', 'error', 'match'), [
    (lambda: ibp(jnp.tanh)(Interval(X + 1, X)), ValueError, r'argument 0 is not a finite box.*lower <= upper'),
    (lambda: ibp(jnp.tanh)(Interval(X * jnp.nan, X)), ValueError, 'argument 0 is not a finite box.*NaN'),
    (lambda: ibp(jnp.tanh)(Interval(X, X + jnp.inf)), ValueError, 'argument 0 is not a finite box'),
    (lambda: ibp(f)(W, Interval(X[:2], X)), ValueError, r'argument 1 has a lower end float32\[2\].*one shape'),
    (lambda: ibp(f)(W, Interval(X.astype(jnp.float16), X)), ValueError, r'argument 1 .*float16.*one dtype'),
    (lambda: ibp(lambda d: d['a'])({'a': Interval(X, X - 1)}), ValueError, r"argument 0\['a'\] is not a finite box"),
    (lambda: ibp(lambda *, x: x)(x=Interval(X, X - 1)), ValueError, "argument 'x' is not a finite box"),
    (lambda: ibp(jnp.tanh)(Interval(IMAGES, IMAGES)), TypeError, r'argument 0 has dtype uint8.*astype'),
    (lambda: ibp(jnp.tanh)(X), TypeError, 'nothing to bound.*linf_ball'),
    (lambda: ibp(lambda x: x.argmax())(linf_ball(X, .1)), TypeError, r'returns int32\[\].*Return the scores'),
    (lambda: ibp(lambda x: (x, jnp.arange(3)))(linf_ball(X, .1)), TypeError, r'returns int32\[3\].*only floats'),
    (lambda: linf_ball(IMAGES, .1), TypeError, 'x has dtype uint8.*astype'),
    (lambda: linf_ball(X, -.1), ValueError, r'eps is -0\.1'),
    (lambda: linf_ball(X, np.nan), ValueError, 'eps is nan'),
    (lambda: linf_ball(X * 255, .1, 0., 1.), ValueError, r'x has values in .* outside \[minimum, maximum\].*scale'),
    (lambda: lp_ball(X, .1, p=.5), ValueError, 'p is 0.5.*1 <= p'),
    (lambda: lp_ball(X, jnp.ones(3)), ValueError, r'eps has shape \(3,\)'),
    (lambda: ibp(jnp.tanh)(ibpjax.LpBall(X, .1, .5)), ValueError, 'argument 0 is a ball of order p = 0.5'),
    (lambda: ibp(jnp.tanh)(ibpjax.LpBall(X, -.1, 2.)), ValueError, 'argument 0 has a centre or eps'),
    (lambda: lp_ball(X, -1.), ValueError, 'eps is -1'),
    (lambda: margins(X, 3), ValueError, 'label 3 is out of range.*3 classes'),
    (lambda: margins(X, -1), ValueError, 'label -1 is out of range'),
    (lambda: margins(X, 1.), TypeError, 'labels have dtype float32'),
    (lambda: margins(jnp.ones((2, 3)), 1), ValueError, 'logits have shape.*jax.vmap'),
    (lambda: certify(f, W, X[None], jnp.array([7]), .1), ValueError, 'label 7 is out of range'),
    (lambda: certify(f, W, X[None], jnp.array([0, 1]), .1), ValueError, 'one label an example'),
    (lambda: certify(f, W, X[None], jnp.array([0]), -.1), ValueError, r'eps is -0\.1'),
    (lambda: certify(f, W, X[None], jnp.array([0]), 8.), ValueError, r'eps is 8.0, more than the whole range.*8/255'),
    (lambda: certify(f, W, 255 * X[None], jnp.array([0]), .1), ValueError, 'xs has values in.*scale'),
    (lambda: certify(f, W, (255 * X[None]).astype(jnp.uint8), jnp.array([0]), .1), TypeError, 'xs has dtype uint8'),
    (lambda: certify(f, W, X[None], jnp.array([0]), .1, method='magic'), ValueError, "method is 'magic'.*ibp"),
    (lambda: certify(f, W, X[None], jnp.array([0]), .1, norm='l3'), ValueError, "norm is 'l3'.*linf, l2, l1"),
    (lambda: certify(lambda p, x: x[None], W, X[None], jnp.array([0]), .1), ValueError, 'ibpjax.batched'),
    (lambda: certify(f, W, X[None], (jnp.ones((1, 5)), jnp.ones(1)), .1), ValueError, r'\(rows, 3\)'),
    (lambda: certify(scalar, X, X[None], jnp.array([0]), .1), ValueError, r'one logit.*rows \(C, d\)'),
    (lambda: certify(lambda p, x: x[:0], W, X[None], jnp.array([0]), .1), ValueError, 'no logits'),
    (lambda: ibpjax.certified_radius(scalar, X, X[None], jnp.array([0]), .1), ValueError, 'one logit'),
    (lambda: certify(f, W, X[None], (jnp.ones((0, 3)), jnp.ones(0)), .1), ValueError, r'no rows.*rows \(C, d\)'),
    (lambda: margins(X[:1], 0), ValueError, 'one logit'),
    (lambda: training.pgd(scalar, X, X[None], jnp.array([0]), .1, jax.random.key(0)), ValueError, 'one logit'),
    (lambda: training.linear(.1, -1, 5), ValueError, 'must be >= 0'),
    (lambda: training.pgd(f, W, X[None], jnp.array([5]), .1, jax.random.key(0)), ValueError, 'label 5 is out of range'),
])
def test_bad_input(make, error, match):
  with pytest.raises(error, match=match):
    make()


@pytest.mark.parametrize('objective', [None, training.ibp_objective])
def test_training_of_one_class_is_refused(objective):
  """Finds a loss of 0 and an error of 0 of a network with nothing to be mistaken for."""
  graphdef, state = training.TrainState.create(
      ibpjax.nn.mlp((4,), input_shape=(3,), classes=1, rngs=nnx.Rngs(0)), optimizer := optax.sgd(.1))
  with pytest.raises(ValueError, match='one logit'):
    training.train_step(state, (X[None], jnp.array([0])), jax.random.key(0), graphdef=graphdef, optimizer=optimizer,
                        eps=lambda step: .1, kappa=lambda step: .5, objective=objective)


def test_a_network_too_large_for_its_images_says_so():
  with pytest.raises(ValueError, match='too small for this network'):
    ibpjax.nn.dm_small(input_shape=(4, 4, 1), valid=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('bad', [
    lambda x: Interval(x + 1, x - 1), lambda x: Interval(x * jnp.nan, x), lambda x: Interval(x, x + jnp.inf),
    lambda x: linf_ball(x, -x[0]), lambda x: linf_ball(x + 5, .1, 0., 1.), lambda x: lp_ball(x, -x[0]),
    lambda x: lp_ball(x, jnp.log(-x[0]))])
def test_under_jit_a_bad_box_bounds_nothing(bad):
  """Values cannot be looked at under a trace, so nothing may be certified from them."""
  bound = jax.jit(lambda x: ibp(lambda x: W @ x + 1, elide=True)(bad(x)))(X)
  assert bool(jnp.all(bound.lower == -jnp.inf))
  assert bool(jnp.all(bound.upper == jnp.inf))


def test_under_jit_a_label_out_of_range_is_never_verified():
  certified = jax.jit(lambda y: certify(f, W, X[None], y, 0.).verified)(jnp.array([3]))
  assert not bool(certified[0])


def test_a_perturbed_second_operand_of_a_registered_function_is_refused():
  ramp = ibpjax.elementwise(ibpjax.Elementwise(lambda k, r: (r,)))(lambda x, r: jnp.minimum(x, r))
  with pytest.raises(NotImplementedError, match='one perturbed operand'):
    ibp(lambda x: ramp(X, x))(linf_ball(X, .1))


def test_an_expected_interval_is_no_bound_of_an_intermediate_value():
  """Alone finds a way in for ranges that hold in expectation: [0, 0] was believed of a range of [0, 2]."""
  g, box = lambda x: jax.nn.relu(jax.nn.relu(x) + jax.nn.relu(-x)), Interval(-jnp.ones(1), jnp.ones(1))
  given = ibp(g, intermediates=True)(box)[1]
  zero = ibpjax.ExpectedInterval(jnp.zeros(1), jnp.zeros(1))
  by_hand = ibpjax.Intermediates(dict.fromkeys(given.bounds, zero))
  for method in (ibp, ibpjax.crown, ibpjax.alpha_crown):
    with pytest.raises(TypeError, match='ExpectedInterval'):
      method(g, intermediate=by_hand)(box)
    with pytest.raises(TypeError, match='ExpectedInterval'):
      method(g, intermediate=ibpjax.etb(g)(box))(box)
  with pytest.raises(TypeError, match='ExpectedInterval'):
    ibpjax.crown(g, intermediate=lambda f, intermediates: lambda *args: (None, by_hand))(box)
  with pytest.raises(TypeError, match=r'etb cannot return the bounds of intermediate values'):
    ibpjax.crown(g, intermediate=ibpjax.etb)(box)
  with pytest.raises(TypeError, match=r'returned Interval: .*\(bounds, Intermediates\)'):
    ibpjax.crown(g, intermediate=lambda f, intermediates: ibp(f))(box)
  with pytest.raises(TypeError, match='LpBall'):
    ibp(g, intermediate=ibpjax.Intermediates({i: lp_ball(b.centre, 1.) for i, b in given.bounds.items()}))(box)
