"""ParamRamp: its function, its lines in six states, its heights and slopes in a model and in training."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import box_around, holds, samples
from flax import nnx
from interpreted import interpreted

from ibpjax import Interval, adaptive, batched, crown, ibp, linear_bounds, nn, tight, training
from ibpjax.nn.param_ramp import param_ramp

RNG = np.random.default_rng(0)


@pytest.mark.usefixtures('x64')
def test_the_function_and_its_derivatives():
  z, r, eta = jnp.array([-2., -.5, .2, .5, 3.]), .5, .1
  np.testing.assert_allclose(param_ramp(z, r, eta), [-.2, -.05, .2, .5, .75])
  np.testing.assert_allclose(param_ramp(z, r), [0, 0, .2, .5, .5])
  def ramp(z, r, eta):
    return param_ramp(z, r, eta).sum()
  by_z, by_r = interpreted(jax.grad(ramp, (0, 1)))(z, jnp.full(5, r), eta)
  np.testing.assert_allclose(by_z, [.1, .1, 1, .1, .1])
  np.testing.assert_allclose(by_r, [0, 0, 0, .9, .9])


@pytest.mark.usefixtures('x64')
def test_without_an_upper_bend_it_is_leaky_relu():
  z = jnp.concatenate([jnp.asarray(RNG.normal(size=50)), jnp.zeros(1)])
  for eta, other in ((0., jax.nn.relu), (.1, lambda z: jax.nn.leaky_relu(z, .1))):
    def ramp(z, eta=eta):
      return param_ramp(z, jnp.inf, eta)
    np.testing.assert_array_equal(ramp(z), other(z))
    slopes, expected = (interpreted(jax.grad(lambda z, f=f: f(z).sum()))(z) for f in (ramp, other))
    np.testing.assert_array_equal(slopes[:-1], expected[:-1])
    assert slopes[-1] == eta
    box = box_around(z.at[-1].set(.1), .4)  # around 0 two lines below leave the same area
    for lines in (tight, adaptive):
      for method in (ibp, functools.partial(crown, lines=lines)):
        found = (jax.tree.leaves(interpreted(method(f))(box)) for f in (ramp, other))
        for a, b in zip(*found, strict=True):
          np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.usefixtures('x64')
def test_heights_are_positive_and_slopes_proper():
  z = jnp.linspace(-1, 1, 9)
  np.testing.assert_allclose(param_ramp(z, -3.), param_ramp(z, 1e-4), rtol=1e-9)
  np.testing.assert_array_equal(param_ramp(z, .5, 7.), z)
  np.testing.assert_array_equal(param_ramp(z, .5, -1.), param_ramp(z, .5, 0.))
  assert jax.grad(lambda r: param_ramp(jnp.ones(1), r)[0])(-3.) == 1  # it can grow again


ETA, R = .1, .5
B = (1 - ETA) * R
CHORD = {'left': lambda l, u: ((u - ETA * l) / (u - l), (ETA - 1) * l * u / (u - l)),
         'right': lambda l, u: ((ETA * u + B - l) / (u - l), l * ((1 - ETA) * u - B) / (u - l))}
OUTSIDE, BEYOND, INSIDE = (ETA, 0.), (ETA, B), (1., 0.)
# (l, u): lines (slope, intercept) below and above, tight and adaptive: Lyu et al. 2021, section 3 and supplement.
STATES = {
    'left dead': [(-2., -.3, OUTSIDE, OUTSIDE, OUTSIDE, OUTSIDE)],
    'left unstable': [(-2., .3, OUTSIDE, CHORD['left'](-2., .3), OUTSIDE, CHORD['left'](-2., .3)),
                      (-.2, .3, OUTSIDE, CHORD['left'](-.2, .3), INSIDE, CHORD['left'](-.2, .3))],
    'alive': [(.1, .4, INSIDE, INSIDE, INSIDE, INSIDE)],
    'right unstable': [(.3, .9, CHORD['right'](.3, .9), BEYOND, CHORD['right'](.3, .9), BEYOND),
                       (.1, .6, CHORD['right'](.1, .6), BEYOND, CHORD['right'](.1, .6), INSIDE)],
    'right dead': [(.7, 2., BEYOND, BEYOND, BEYOND, BEYOND)],
    'unstable': [(-2., 3., OUTSIDE, BEYOND, ((ETA * 3 + B) / 3, 0.), BEYOND),
                 (-2., .6, OUTSIDE, BEYOND, OUTSIDE, ((R + 2 * ETA) / (R + 2), (ETA - 1) * -2 * R / (R + 2)))]}


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('state', STATES)
def test_lines_are_those_of_the_paper(state):
  for l, u, *expected in STATES[state]:
    found = []
    for lines in (tight, adaptive):
      box = Interval(jnp.array([l]), jnp.array([u]))
      bounds = interpreted(linear_bounds(lambda z: param_ramp(z, R, ETA), lines=lines))(box)
      found += [(float(a.coeffs[0][0, 0]), float(a.bias[0])) for a in (bounds.lower, bounds.upper)]
    np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=f'[{l}, {u}]')


def model_of(eta=0., **options):
  return nn.mlp((12, 8), input_shape=(5,), classes=3, activation=functools.partial(nn.ParamRamp, eta=eta),
                rngs=nnx.Rngs(0), **options)


def test_heights_are_the_mean_outputs_before_they_bend():
  model = model_of(.1)
  assert not any(bool(ramp.bent[...]) for ramp in nn.ramps(model))
  batches = [jnp.asarray(RNG.normal(size=(n, 5)), jnp.float32) for n in (7, 4, 1)]
  x = jnp.concatenate(batches)
  expected = []
  for w, b in [(m.kernel[...], m.bias[...]) for m in model.layers if isinstance(m, nnx.Linear)][:2]:
    x = jax.nn.leaky_relu(x @ w + b[None], .1)
    expected.append(np.maximum(x.mean(0), 1e-4))
  for _ in range(2):  # from whatever heights there are
    nn.calibrate(model, batches)
    for ramp, mean in zip(nn.ramps(model), expected, strict=True):
      np.testing.assert_allclose(ramp.r[...], mean, rtol=1e-5)
      assert bool(ramp.bent[...])
  with pytest.raises(ValueError, match='no batch'):
    nn.calibrate(model, [])


def test_bounds_of_a_model_are_sound_and_tighter_with_low_heights():
  model = model_of()
  x = jnp.asarray(RNG.normal(size=(64, 5)), jnp.float32)
  one = batched(lambda m, x: m(x))
  def width():
    box = Interval(x[0] - .2, x[0] + .2)
    found = [interpreted(method(one))(model, box) for method in (ibp, crown)]
    values = interpreted(jax.vmap(one, (None, 0)))(model, samples(box, 2000))
    assert all(holds(bound, values, 1e-5) for bound in found)
    return sum(float(bound.width.sum()) for bound in found)
  before = width()
  nn.calibrate(model, [x])
  assert width() < .8 * before


def test_models_have_a_height_for_each_neuron():
  for name, heights in (('dm_small', 11_892), ('dm_medium', 51_808)):
    models = [getattr(nn, name)(activation=a, rngs=nnx.Rngs(0)) for a in (jax.nn.relu, nn.ParamRamp)]
    relu, ramp = (sum(w.size for w in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in models)
    assert ramp - relu == heights
  norm = nn.cnn7(width=2, input_shape=(8, 8, 1), activation=nn.ParamRamp, rngs=nnx.Rngs(0))
  assert norm(jnp.zeros((2, 8, 8, 1))).shape == (2, 10)
  assert len(nn.ramps(norm)) == 6


def test_training_moves_heights_once_they_bend_and_slopes_by_schedule():
  model = model_of(.01)
  optimizer = optax.sgd(.1)
  x, labels = jnp.asarray(RNG.normal(size=(32, 5)), jnp.float32), jnp.asarray(RNG.integers(0, 3, 32))
  eta = training.linear(0., 1, 2, initial=.01)
  graphdef, state = training.TrainState.create(model, optimizer)
  step = interpreted(functools.partial(
      training.train_step, graphdef=graphdef, optimizer=optimizer, eps=lambda t: .01, kappa=lambda t: .5, eta=eta,
      objective=functools.partial(training.ibp_objective, clip=(-10., 10.))))
  heights = lambda s: [ramp.r[...] for ramp in nn.ramps(nnx.merge(graphdef, s.params, s.batch_stats))]
  slopes = lambda s: [float(ramp.eta[...]) for ramp in nn.ramps(nnx.merge(graphdef, s.params, s.batch_stats))]
  after, _ = step(state, (x, labels), jax.random.key(0))
  assert all(np.all(r == 1) for r in heights(after))
  bent = nnx.merge(graphdef, *jax.tree.map(jnp.asarray, (after.params, after.batch_stats)))
  nn.calibrate(bent, [x])
  _, (params, batch_stats) = training.split(bent)
  states = [training.TrainState(params, batch_stats, after.opt_state, after.step)]
  for _ in range(3):
    states.append(step(states[-1], (x, labels), jax.random.key(0))[0])
  np.testing.assert_allclose([slopes(s) for s in states], np.outer([.01, .01, .005, 0], [1, 1]), atol=1e-9)
  assert all(np.any(a != b) for a, b in zip(heights(states[0]), heights(states[1]), strict=True))


def test_heights_that_fell_to_the_least_can_grow_again():
  """Updates are projected (Lyu et al. 2021, section 3.1): a height does not drift below what counts."""
  model = nn.mlp((40,), input_shape=(5,), classes=3, activation=nn.ParamRamp, rngs=nnx.Rngs(0))
  x, labels = jnp.asarray(RNG.normal(size=(32, 5)), jnp.float32), jnp.asarray(RNG.integers(0, 3, 32))
  nn.calibrate(model, [x])
  graphdef, state = training.TrainState.create(model, optax.sgd(1.))
  step = interpreted(functools.partial(
      training.train_step, graphdef=graphdef, optimizer=optax.sgd(3.), eps=lambda t: .3, kappa=lambda t: t / 40,
      objective=functools.partial(training.ibp_objective, clip=(-10., 10.))))
  history = []
  for _ in range(40):
    state, _ = step(state, (x, labels), jax.random.key(0))
    ramp, = nn.ramps(nnx.merge(graphdef, state.params, state.batch_stats))
    history.append(np.asarray(ramp.r[...]))
  least = np.isclose(history, np.float32(1e-4))
  assert np.min(history) >= np.float32(1e-4)
  assert least.any()
  assert (least[:-1].any(0) & ~least[-1]).any()


def test_heights_are_jittered_once_they_bend():
  model = nn.mlp((2000,), input_shape=(5,), classes=3, activation=nn.ParamRamp, rngs=nnx.Rngs(0))
  ramp, = nn.ramps(model)
  ramp.r[...] = jnp.full(2000, 2.)
  nn.jittered(model, jax.random.key(0), .01)
  np.testing.assert_array_equal(ramp.r[...], 2)
  ramp.bent[...] = jnp.ones((), bool)
  nn.jittered(model, jax.random.key(0), .01)
  noise = ramp.r[...] - 2
  assert abs(float(noise.std()) - .02) < .002
  assert abs(float(noise.mean())) < .002
  step = functools.partial(training.train_step, optimizer=optax.sgd(0.), eps=lambda t: .01, kappa=lambda t: .5)
  graphdef, state = training.TrainState.create(model, optax.sgd(0.))
  batch = jnp.ones((4, 5)), jnp.zeros(4, int)
  for share, moves in ((0., False), (.1, True)):
    run = interpreted(functools.partial(step, graphdef=graphdef, height_noise=share))
    after, _ = run(state, batch, jax.random.key(1))
    now, = nn.ramps(nnx.merge(graphdef, after.params, after.batch_stats))
    assert bool(jnp.any(now.r[...] != ramp.r[...])) == moves


def test_leaky_relu_is_a_ramp_that_never_bends():
  model = nn.mlp((12, 8), input_shape=(5,), classes=3, activation=functools.partial(nn.LeakyReLU, eta=.2),
                 rngs=nnx.Rngs(0))
  x = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)
  straight = model_of(.2)
  np.testing.assert_allclose(model(x), straight(x), rtol=1e-6)
  nn.set_slope(model, .5)
  nn.set_slope(straight, .5)
  np.testing.assert_allclose(model(x), straight(x), rtol=1e-6)
  box = Interval(x[0] - .2, x[0] + .2)
  one = batched(lambda m, x: m(x))
  values = interpreted(jax.vmap(one, (None, 0)))(model, samples(box, 500))
  for method in (ibp, crown):
    assert holds(interpreted(method(one))(model, box), values, 1e-5)
  assert nn.ramps(model) == []


def test_weight_penalties_leave_heights_out():
  model = nn.dm_small(input_shape=(8, 8, 1), activation=nn.ParamRamp, rngs=nnx.Rngs(0))
  _, (params, _) = training.split(model)
  kernels = sum(float(jnp.abs(w[...]).sum()) for p, w in nnx.to_flat_state(nnx.state(model)) if p[-1] == 'kernel')
  assert float(training.l1_norm(params)) == pytest.approx(kernels, rel=1e-5)


def test_a_slope_outside_of_0_and_1_is_refused():
  with pytest.raises(ValueError, match='eta is 2'):
    nn.ParamRamp((3,), eta=2.)


def test_infinite_boxes_and_low_heights():
  box = Interval(-jnp.ones(1), jnp.ones(1))
  for r, upper in ((2., 2.), (jnp.inf, jnp.inf)):
    bound = interpreted(ibp(lambda x, r=r: param_ramp(1 / x, r)))(box)
    assert (float(bound.lower[0]), float(bound.upper[0])) == (0, upper)
  for dtype in (jnp.float32, jnp.bfloat16):
    assert float(param_ramp(jnp.ones(1, dtype), -1e4)[0]) == pytest.approx(1e-4, rel=1e-2)


def test_ramps_inside_of_modules_are_not_forgotten():
  class Hidden(nnx.Module):
    def __init__(self):
      self.inner = nn.ParamRamp((4,))

    def __call__(self, x):
      return self.inner(x)
  with pytest.raises(ValueError, match='inside of modules'):
    nn.calibrate(nn.Sequential([nn.ParamRamp((4,)), Hidden()]), [jnp.ones((2, 4))])
