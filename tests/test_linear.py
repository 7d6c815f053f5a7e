"""Laws of the linear methods over every row of every table: the function lies between its linear bounds."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AFFINE, CASES, FIRST, centre_of
from checks import at, box_around, contains, holds, in_batches, inside, samples, waiting, widest_ratio
from interpreted import interpreted
from networks import ACTIVATIONS, NETWORKS, dense, random_network

from ibpjax import Interval, adaptive, constant, crown, ibp, lbp, linear_bounds, linf_ball, lp_ball, tight
from ibpjax.core.program import trace

pytestmark = pytest.mark.usefixtures('x64')


def bounded_outputs(f, x):
  """Which outputs of a function of one array have linear bounds."""
  program, _, _ = trace(f, (Interval(x, x),), {})
  return [v.id in program.perturbed and jnp.issubdtype(v.dtype, jnp.floating) for v in program.outputs]


def floats(f):
  """The outputs of a function that have linear bounds."""
  def g(x):
    return list(itertools.compress(jax.tree.leaves(f(x)), bounded_outputs(f, x)))
  return g


FLOATS = [name for name, case in CASES.items() if any(bounded_outputs(case.f, centre_of(case)))]


@functools.cache
def bounds_of(name):
  """box -> linear bounds of a case by full CROWN with adaptive lines and by LBP with tight ones, and its IBP bounds."""
  f = floats(CASES[name].f)
  return interpreted(lambda box: (linear_bounds(f)(box), linear_bounds(f, method='lbp', lines=tight)(box),
                              ibp(f, elide=name in AFFINE)(box)))


@functools.cache
def values(name):
  """What a case computes at 1000 samples of a box; many tests, one compilation."""
  return interpreted(jax.vmap(floats(CASES[name].f)))


def extreme(affine, box, sign):
  """The least (-1) or greatest (+1) value of an affine function over a box."""
  a, n = np.asarray(affine.coeffs[0]), np.ndim(box.lower)
  return np.asarray(affine.bias) + np.tensordot(a, box.centre, n) + sign * np.tensordot(np.abs(a), box.radius, n)


@pytest.mark.parametrize('name', waiting(FLOATS, {*FLOATS} - FIRST))
def test_the_function_lies_between_its_linear_bounds(name):
  case = CASES[name]
  for seed, radius in enumerate(case.radii):
    box = box_around(centre_of(case, seed), radius)
    points = samples(box, 1000, seed)
    *found, _ = bounds_of(name)(box)
    for bounds in found:
      for bound, value in zip(bounds, values(name)(points), strict=True):
        lower, upper = at(bound.lower, points), at(bound.upper, points)
        assert np.all(inside(Interval(lower, upper), value, 1e-10))
        if not radius and case.point:
          np.testing.assert_allclose(lower, value, rtol=1e-9, atol=1e-9)
          np.testing.assert_allclose(upper, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', waiting(FLOATS, {*FLOATS} - FIRST))
def test_linear_bounds_are_not_vacuous(name):
  """At radius 1e-3 no wider than twice the range, or than interval bounds where these are loose themselves."""
  box = box_around(centre_of(CASES[name]), 1e-3)
  reached = values(name)(samples(box, 1000))
  *found, plain = bounds_of(name)(box)
  allowed = max(2., 1.05 * widest_ratio(plain, reached))
  for bounds in found:
    for bound, value in zip(bounds, reached, strict=True):
      ranges = Interval(extreme(bound.lower, box, -1), extreme(bound.upper, box, 1))
      assert widest_ratio([ranges], [value]) <= allowed


def methods(f):
  """IBP, LBP, CROWN-IBP, CROWN-LBP and CROWN with tight lines."""
  return [ibp(f, elide=True), lbp(f), *(crown(f, intermediate=name, lines=tight) for name in ('ibp', 'lbp', 'crown'))]


@pytest.mark.parametrize('f', [jnp.tanh, jax.nn.relu, jax.nn.sigmoid, jnp.sin, jax.nn.softmax, jnp.exp, jnp.square,
                               lambda x: x * jnp.exp(-x * x), lambda x: x.reshape(2, 3).max(1), jnp.sort,
                               lambda x: x[:3] * x[3:], lambda x: x[:3] / x[3:], jax.nn.standardize])
def test_unbounded_values_inside(f):
  """Boxes with infinite ends inside of a program: bounds hold, are no NaN, and as good as interval bounds."""
  def g(x):
    return f(1 / x)  # the real line where x may be 0
  x = np.array([.5, -.2, 1., .1, -2., .3])
  box = Interval(x - .4, x + .4)
  values = in_batches(g)(samples(box, 3000))
  plain, *found = (interpreted(m)(box) for m in (ibp(g), crown(g, intermediate='ibp'), crown(g), lbp(g)))
  for bound in found:
    assert not np.any(np.isnan(bound.lower) | np.isnan(bound.upper))
    assert np.all(np.isnan(values) | inside(bound, values))
    assert np.all(np.isfinite(plain.lower) <= np.isfinite(bound.lower))
    assert np.all(np.isfinite(plain.upper) <= np.isfinite(bound.upper))


@pytest.mark.parametrize(('network', 'activation'), [
    pytest.param(n, a, marks=[] if n is dense or a == 'relu' else pytest.mark.slow) for a in ACTIVATIONS
    for n in NETWORKS])
def test_tight_lines_give_the_order_of_theorem_2(network, activation):
  """IBP <= LBP, CROWN-IBP <= CROWN-LBP <= CROWN (Lyu et al. 2021), on 270 networks; all of them sound."""
  def f(params, x):
    return network(params, x, ACTIVATIONS[activation])
  bounds = interpreted(lambda params, box: [m(params, box) for m in methods(f)])
  values = interpreted(jax.vmap(f, (None, 0)))
  improved = 0
  for seed in range(30):
    params, x = random_network(network, seed)
    box = box_around(x, (.01, .1, .4)[seed % 3])
    found = bounds(params, box)
    for looser, tighter in ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4)):
      assert contains(found[looser], found[tighter], 1e-9)
    improved += bool(found[4].width.sum() < .9 * found[0].width.sum())
    assert holds(found[-1], values(params, samples(box, 300, seed)))
  assert improved > 15


def unrolled(params, x, row, boxes):
  """An independent lower bound of `<row, dense network>`: one `jax.vjp` of it, its ReLUs replaced by lines."""
  @jax.custom_vjp
  def relu(z, l, u):
    return jax.nn.relu(z)

  def backward(ends, g):
    l, u = ends
    slope = jnp.where(l >= 0, 1., jnp.where(u <= 0, 0., u / (u - l)))
    lower = jnp.where(l >= 0, 1., 0.)
    return jnp.where(g >= 0, g * lower, g * slope), g, jnp.zeros_like(u)
  relu.defvjp(lambda z, l, u: (relu(z, l, u), (l, u)), backward)

  def network(x, lows, offsets):
    for (w, b), (_, u), l, offset in zip(params[:-1], boxes, lows, offsets):
      x = relu(w @ x + b + offset, l, u)
    return params[-1][0] @ x + params[-1][1]
  lows, zeros = [l for l, _ in boxes], [jnp.zeros_like(l) for l, _ in boxes]
  _, pull = jax.vjp(network, x.centre, lows, zeros)
  at_input, at_relu, at_sum = pull(row)
  total = jnp.vdot(at_input, x.centre) - jnp.vdot(jnp.abs(at_input), x.radius) + jnp.vdot(row, params[-1][1])
  for g, pulled, (l, u), (_, b) in zip(at_relu, at_sum, boxes, params):
    chord = jnp.where((l < 0) & (u > 0), -l * u / (u - l), 0)
    total += jnp.vdot(jnp.minimum(g, 0), chord) + jnp.vdot(pulled, b)
  return total


def test_the_backward_walk_is_one_vjp_of_the_network():
  bounded = interpreted(crown(functools.partial(dense, activation=jax.nn.relu), lines=tight, intermediates=True))
  for seed in range(20):
    params, x = random_network(dense, seed)
    box = box_around(x, .2)
    bound, found = bounded(params, box)
    boxes = [(jnp.asarray(b.lower), jnp.asarray(b.upper)) for b in found.bounds.values()]
    for i in range(2):
      row = jnp.eye(2)[i]
      np.testing.assert_allclose(bound.lower[i], unrolled(params, box, row, boxes), rtol=1e-10)
      np.testing.assert_allclose(bound.upper[i], -unrolled(params, box, -row, boxes), rtol=1e-10)


def small(params, x):
  return dense(params, x, jax.nn.relu)


def test_transformations_compose():
  params, x = random_network(dense, 3)
  boxes = linf_ball(jnp.stack([x, -x, 2 * x]), .1)
  for method, run in (
      (lbp(small), interpreted), (crown(small), jax.jit), (crown(small, intermediate='ibp'), interpreted),
      (crown(small, intermediate='lbp', chunk=2), jax.jit)):
    batched, single = run(jax.vmap(method, (None, 0)))(params, boxes), interpreted(method)
    for i in range(3):
      one = single(params, Interval(boxes.lower[i], boxes.upper[i]))
      np.testing.assert_allclose(batched.lower[i], one.lower, rtol=1e-10)
      np.testing.assert_allclose(batched.upper[i], one.upper, rtol=1e-10)


@pytest.mark.parametrize('lines', [tight, adaptive])
def test_gradients_are_those_of_finite_differences(lines):
  params, x = random_network(dense, 5)
  for method in (lbp(small, lines=lines), crown(small, lines=lines), crown(small, intermediate='ibp', lines=lines)):
    def loss(t, eps, method=method):
      def moved(a):
        return a + t * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape)
      return method(jax.tree.map(moved, params), linf_ball(x, eps)).lower.sum()
    both, d = interpreted(jax.value_and_grad(loss, (0, 1))), 1e-6
    _, slopes = both(0., .1)
    for slope, (t, e) in zip(slopes, ((d, 0.), (0., d)), strict=True):
      np.testing.assert_allclose(slope, (both(t, .1 + e)[0] - both(-t, .1 - e)[0]) / (2 * d), rtol=1e-4)


def test_gradients_are_finite_on_dead_units_and_points():
  params, x = random_network(dense, 5)
  dead = [(0 * w, 0 * b - float(i == 1)) for i, (w, b) in enumerate(params)]
  for method in (lbp(small), crown(small), crown(small, intermediate='lbp')):
    gradient = interpreted(jax.grad(lambda p, eps, method=method: method(p, linf_ball(0 * x, eps)).lower.sum()))
    for weights, eps in itertools.product((params, dead), (0., .1)):
      slopes = gradient(weights, eps)
      assert all(np.isfinite(g).all() for g in jax.tree.leaves(slopes))


def test_balls_are_bounded_by_dual_norms():
  w, x = random_network(dense, 1)[0][1][0], jnp.arange(6.)
  for p, q in ((1., np.inf), (2., 2.), (3., 1.5)):
    norms = np.linalg.norm(np.asarray(w), q, axis=1)
    for method in (crown, lbp):
      bound = method(lambda x: w @ x)(lp_ball(x, .3, p))
      np.testing.assert_allclose(bound.lower, w @ x - .3 * norms, rtol=1e-10)
      np.testing.assert_allclose(bound.upper, w @ x + .3 * norms, rtol=1e-10)


def test_balls_are_tighter_than_their_hulls_and_sound():
  params, x = random_network(dense, 2)
  rng = np.random.default_rng(0)
  steps = rng.normal(size=(2000, 3))
  points = x[None] + jnp.asarray(.3 * steps / np.linalg.norm(steps, axis=1, keepdims=True))
  for method in methods(small)[1:]:
    ball, box = (interpreted(method)(params, near(x, .3)) for near in (lp_ball, linf_ball))
    assert holds(ball, interpreted(jax.vmap(small, (None, 0)))(params, points))
    assert float(ball.width.sum()) < .95 * float(box.width.sum())


def test_perturbed_weights():
  params, x = random_network(dense, 4)
  boxes = [tuple(linf_ball(a, .01) for a in params[0]), *params[1:]]
  found = interpreted(lambda boxes, x: [method(boxes, x) for method in methods(small)])(boxes, linf_ball(x, .02))
  rng = np.random.default_rng(0)
  signs = [jnp.asarray(rng.choice([-1., 1.], (500, *a.shape))) for a in (*params[0], x)]

  def moved(w, b, s):
    (first, bias), *rest = params
    return small([(first + .01 * w, bias + .01 * b), *rest], x + .02 * s)
  values = interpreted(jax.vmap(moved))(*signs)
  assert all(holds(bound, values) for bound in found)
  assert float(found[-1].width.sum()) < float(found[0].width.sum())


def test_rows_are_bounded_as_functionals():
  params, x = random_network(dense, 6)
  rows = jnp.array([[1., -1.], [0., 2.], [.5, .5]])
  box = linf_ball(x, .1)
  merged = interpreted(crown(lambda params, x: rows @ small(params, x)))(params, box)
  found = interpreted(crown(small, rows=rows))(params, box)
  np.testing.assert_allclose(found.lower, merged.lower, rtol=1e-10)
  np.testing.assert_allclose(found.upper, merged.upper, rtol=1e-10)
  with pytest.raises(ValueError, match=r'rows have shape \(3, 3\); for an output of shape \(2,\)'):
    crown(small, rows=jnp.eye(3))(params, box)


def test_intermediate_bounds_go_in_and_come_out():
  params, x = random_network(dense, 7)
  box = linf_ball(x, .2)
  whole, found = interpreted(crown(small, lines=tight, intermediates=True))(params, box)

  def given(found, params, box):
    return crown(small, intermediate=found, lines=tight)(params, box)
  again = interpreted(given)(found, params, box)
  np.testing.assert_allclose(again.lower, whole.lower, rtol=1e-12)
  by_name, by_method = (interpreted(crown(small, intermediate=how, lines=tight))(params, box) for how in ('lbp', lbp))
  np.testing.assert_array_equal(by_name.lower, by_method.lower)
  first = next(iter(found.bounds))
  split = Interval(found.bounds[first].lower, jnp.minimum(found.bounds[first].upper, 0))
  halves = interpreted(given)(type(found)(found.bounds | {first: split}), params, box)
  assert float(halves.width.sum()) < float(whole.width.sum())
  with pytest.raises(ValueError, match="intermediate is 'exact'; it is one of crown, ibp, lbp"):
    crown(small, intermediate='exact')
  with pytest.raises(ValueError, match="method is 'ibp'; it is one of"):
    linear_bounds(small, method='ibp')


def test_linear_bounds_of_a_network():
  """They hold at every point, and their range is what the methods return."""
  params, x = random_network(dense, 8)
  box = linf_ball(x, .3)
  points = samples(box, 900)
  values = interpreted(jax.vmap(small, (None, 0)))(params, points)
  named = {'crown': crown(small), 'crown-ibp': crown(small, intermediate='ibp'),
           'crown-lbp': crown(small, intermediate='lbp'), 'lbp': lbp(small, lines=adaptive, elide=False)}
  for name, method in named.items():
    bound, total = interpreted(lambda params, box, name=name, method=method: (
        linear_bounds(small, method=name)(params, box), method(params, box)))(params, box)
    assert bound.lower.coeffs[0] is None or not jax.tree.leaves(bound.lower.coeffs[0])
    assert bound.lower.coeffs[1].shape == (2, 3)
    lower, upper = (interpreted(jax.vmap(side, (None, 0)))(params, points) for side in (bound.lower, bound.upper))
    assert np.all(inside(Interval(lower, upper), values))
    a = bound.lower.coeffs[1]
    np.testing.assert_allclose(bound.lower.bias + a @ box.centre - jnp.abs(a) @ box.radius, total.lower, rtol=1e-10)


def test_outputs_that_nothing_is_known_of():
  """Boolean, constant and unperturbed outputs beside others; a program that is a single input."""
  box = linf_ball(jnp.array([1., -2.]), .5)
  def f(x):
    return x, x > 0, jnp.ones(3), jnp.tanh(x)
  for method in (crown(f), lbp(f), crown(f, lines=constant)):
    same, positive, known, bent = interpreted(method)(box)
    np.testing.assert_array_equal(same.lower, box.lower)
    np.testing.assert_array_equal(positive.upper, [True, False])
    np.testing.assert_array_equal(known.upper, 1)
    np.testing.assert_allclose(bent.lower, np.tanh(box.lower), rtol=.1)
  with pytest.raises(TypeError, match='boolean or does not depend on the sets'):
    linear_bounds(lambda x: x > 0)(box)
