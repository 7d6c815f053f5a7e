"""Bounds against exact ranges of ReLU networks, by mixed-integer programs that share no code with them."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interpreted import interpreted
from networks import dense, random_network
from scipy.optimize import Bounds, LinearConstraint, milp

from ibpjax import Interval, adaptive, alpha_crown, crown, ibp, lbp, tight, zonotope

pytestmark = pytest.mark.usefixtures('x64')
RELU = functools.partial(dense, activation=jax.nn.relu)
METHODS = {
    'ibp': functools.partial(ibp, elide=True), 'lbp': lbp, 'lbp, adaptive': functools.partial(lbp, lines=adaptive),
    'crown-ibp': functools.partial(crown, intermediate='ibp'),
    'crown-lbp': functools.partial(crown, intermediate='lbp'), 'zonotope': zonotope,
    'crown': crown, 'crown, tight': functools.partial(crown, lines=tight),
    'alpha-crown': functools.partial(alpha_crown, steps=100)}


def exact(params, lower, upper, relaxed=False):
  """The ranges of the outputs of a dense ReLU network over a box: (lower, upper), and how many neurons are unstable.

  Variables are the input, the outputs of the ReLUs, and whether each of them is active. Pre-activation bounds, by
  interval arithmetic in NumPy, make the constraints of an unstable neuron. Relaxed: neurons may be active in part, and
  what is found is the linear program between triangles.
  """
  sizes = [len(lower), *(len(b) for _, b in params[:-1])]
  starts = np.cumsum([0, *sizes])
  count = starts[-1] + sum(sizes[1:])
  least, greatest, whole = np.zeros(count), np.ones(count), np.zeros(count)
  least[:sizes[0]], greatest[:sizes[0]] = lower, upper
  rows, floor, ceiling, unstable = [], [], [], 0

  def constrain(row, low, high):
    rows.append(row)
    floor.append(low)
    ceiling.append(high)
  for k, (w, b) in enumerate(params[:-1]):
    w, b = np.asarray(w), np.asarray(b)
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    l, u = w @ centre + b - abs(w) @ radius, w @ centre + b + abs(w) @ radius
    for i in range(len(b)):
      z, a, active = np.zeros(count), starts[k + 1] + i, starts[-1] + starts[k + 1] - sizes[0] + i
      z[starts[k]:starts[k + 1]] = w[i]
      own = np.eye(count)[a]
      least[a], greatest[a] = max(l[i], 0), max(u[i], 0)
      if l[i] >= 0:
        constrain(own - z, b[i], b[i])
      elif u[i] > 0:
        unstable += 1
        whole[active] = 1
        switch = np.eye(count)[active]
        constrain(own - z, b[i], np.inf)
        constrain(own - z - l[i] * switch, -np.inf, b[i] - l[i])
        constrain(own - u[i] * switch, -np.inf, 0)
    lower, upper = np.maximum(l, 0), np.maximum(u, 0)
  w, b = map(np.asarray, params[-1])
  ends = []
  for sign in (1, -1):
    found = []
    for row, bias in zip(w, b):
      cost = np.zeros(count)
      cost[starts[-2]:starts[-1]] = sign * row
      constraints = LinearConstraint(np.stack(rows), floor, ceiling) if rows else ()
      solved = milp(cost, integrality=0 * whole if relaxed else whole, bounds=Bounds(least, greatest),
                    constraints=constraints, options=dict(mip_rel_gap=0))
      assert solved.success
      found.append(sign * solved.fun + bias)
    ends.append(np.array(found))
  return *ends, unstable


@functools.cache
def bounds():
  """(params, box) -> bounds by every method; slopes are optimised by a compiled loop."""
  alpha, others = 'alpha-crown', METHODS.keys() - {'alpha-crown'}
  optimised = jax.jit(METHODS[alpha](RELU))
  plain = interpreted(lambda *inputs: {name: METHODS[name](RELU)(*inputs) for name in others})
  return lambda *inputs: plain(*inputs) | {alpha: optimised(*inputs)}


def test_no_bound_lies_inside_of_the_exact_range():
  """On 60 networks of 17 neurons; and the tight methods are not far from it."""
  loose = {name: [] for name in METHODS}
  for seed in range(60):
    params, x = random_network(dense, seed)
    radius = (.02, .1, .4)[seed % 3]
    lower, upper, _ = exact(params, np.asarray(x) - radius, np.asarray(x) + radius)
    for name, bound in bounds()(params, Interval(x - radius, x + radius)).items():
      assert np.all(bound.lower <= lower + 1e-7), name
      assert np.all(bound.upper >= upper - 1e-7), name
      loose[name].append(float(bound.width.sum()) / max(float((upper - lower).sum()), 1e-9))
  medians = {name: np.median(ratios) for name, ratios in loose.items()}
  assert medians['crown'] < 1.1
  assert medians['alpha-crown'] < medians['crown'] < medians['crown-ibp'] < medians['ibp']


def test_optimised_slopes_reach_the_linear_program():
  """Between fixed bounds of the neurons, its dual is the best choice of slopes (Salman et al., NeurIPS 2019)."""
  optimised = jax.jit(alpha_crown(RELU, steps=1000, intermediate='ibp',
                                  optimizer=optax.adam(optax.exponential_decay(.1, 1, .995))))
  gained, missed = [], []
  for seed in range(30):
    params, x = random_network(dense, seed)
    lower, upper, _ = exact(params, np.asarray(x) - .2, np.asarray(x) + .2, relaxed=True)
    bound = optimised(params, Interval(x - .2, x + .2))
    plain = bounds()(params, Interval(x - .2, x + .2))['crown-ibp']
    scale = np.maximum(upper - lower, 1e-9)
    assert np.all(bound.lower <= lower + 1e-7)
    assert np.all(bound.upper >= upper - 1e-7)
    missed.extend((bound.width - (upper - lower)) / scale)
    gained.extend((plain.width - bound.width) / scale)
  assert np.median(missed) < 1e-6
  assert np.max(missed) < 1e-3
  assert np.mean(gained) > .05


@pytest.mark.slow
def test_one_unstable_neuron_on_a_segment_is_bounded_exactly():
  """There the function is convex or concave: CROWN finds one end of its range, the best slope also the other.

  In more dimensions a chord loses: the least value of y - relu(x + y) on [-1, 1]^2 is -1, that of y - (x + y + 2) / 2
  is -2.
  """
  tested, better = 0, 0
  for seed in range(400):
    params, x = random_network(dense, seed)
    direction = np.random.default_rng(seed).normal(size=3)
    params = [(params[0][0] @ direction[:, None], params[0][1] + params[0][0] @ x), *params[1:]]
    for radius in (.05, .2, .4):
      lower, upper, unstable = exact(params, np.array([-radius]), np.array([radius]))
      if unstable == 1:
        break
    else:
      continue
    tested += 1
    found = bounds()(params, Interval(jnp.array([-radius]), jnp.array([radius])))
    width = np.maximum(upper - lower, 1e-9)
    for name in ('crown', 'crown, tight', 'alpha-crown'):
      gaps = np.stack([lower - found[name].lower, found[name].upper - upper]) / width
      assert np.all(gaps > -1e-6)
      assert np.all(gaps.min(0) < 1e-6)  # exact on the side where the function is concave
      if name == 'alpha-crown':
        assert np.all(gaps < .01)
      better += bool(np.any(gaps.max(0) > .02))
  assert tested >= 50
  assert better > 0  # plain CROWN is not exact on the other side
