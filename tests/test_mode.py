"""Models in training mode are refused, however they reach certify; those in evaluation mode are not."""
import functools

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibpjax
from ibpjax import batched, certified_radius, certify
from ibpjax.verification.radii import certified_lipschitz_radii

pytestmark = pytest.mark.usefixtures('promotion')
XS, LABELS, EPS = jnp.full((2, 4), .5), jnp.zeros(2, jnp.int32), 1e-3
KEY = jax.random.key(0)


class Net(nnx.Module):
  """A layer, batch norm or dropout, and a layer."""

  def __init__(self, middle):
    self.first, self.middle, self.last = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), middle, nnx.Linear(8, 3, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.last(nnx.relu(self.middle(self.first(x))))


def dropout(rate=.5, **options):
  return Net(nnx.Dropout(rate, rngs=nnx.Rngs(2), **options))


def batch_norm():
  return Net(nnx.BatchNorm(8, rngs=nnx.Rngs(2)))


def refused(f, params, match):
  with pytest.raises(ValueError, match=match) as found:
    certify(f, params, XS, LABELS, EPS, method='ibp')
  assert 'model.eval()' in str(found.value)
  assert 'use_running_average=True' in str(found.value)
  assert 'inference_mode' in str(found.value)


def accepted(f, params, **options):
  """Traced, not compiled: what is refused is refused before. Keys may be closed over where `certify` is traced."""
  found = jax.eval_shape(lambda xs: certify(f, params, xs, LABELS, EPS, method='ibp', **options), XS)
  assert found.lower.shape == (2, 2)


class Holder:
  """A user's own wrapper, with a method and a call."""

  def __init__(self, model):
    self.model = model

  def logits(self, params, x):
    return self.model(x[None])[0]

  __call__ = logits


GLOBAL = batch_norm()


def reads_a_global(params, x):
  return GLOBAL(x[None])[0]


def writings(model):
  """Ways to hand an NNX model to certify: name -> (f, params)."""
  graphdef, state = nnx.split(model)
  other, params, rest = nnx.split(model, nnx.Param, ...)
  one = batched(lambda m, x: m(x))
  return {
      'argument': (one, model),
      'in a container': (lambda ms, x: one(ms['a'][0], x), {'a': [model]}),
      'closure': (lambda _, x: model(x[None])[0], None),
      'closure of a closure': (batched(lambda _, x: model(x)), None),
      'partial': (functools.partial(lambda m, _, x: m(x[None])[0], model), None),
      'partial by name': (functools.partial(lambda _, x, m: m(x[None])[0], m=model), None),
      'default': (lambda _, x, m=model: m(x[None])[0], None),
      'method': (Holder(model).logits, None),
      'callable object': (Holder(model), None),
      'graph definition': (lambda s, x: nnx.merge(graphdef, s)(x[None])[0], state),
      'graph definition and two states': (lambda s, x: nnx.merge(other, *s)(x[None])[0], (params, rest)),
      'compiled': (jax.jit(lambda s, x: nnx.merge(graphdef, s)(x[None])[0]), state),
      'recomputed': (jax.checkpoint(lambda s, x: nnx.merge(graphdef, s)(x[None])[0]), state),
  }


WRITINGS = list(writings(dropout()))


@pytest.mark.parametrize('name', WRITINGS)
@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize(('make', 'kind'), [(dropout, 'Dropout'), (batch_norm, 'BatchNorm')])
def test_nnx(make, kind, mode, name):
  """Finds a certificate of one mask, or of a batch of one; and the refusal of a model in evaluation mode."""
  model = make()
  getattr(model, mode)()
  f, params = writings(model)[name]
  if mode == 'train':
    refused(f, params, f'middle \\({kind}\\) has ')
  else:
    accepted(f, params)


def test_nnx_global():
  """Finds a model that a script has as a global, which is no argument and no cell of a closure."""
  GLOBAL.train()
  refused(reads_a_global, None, r'GLOBAL.middle \(BatchNorm\)')
  refused(lambda p, x: reads_a_global(p, x), None, r'GLOBAL.middle \(BatchNorm\)')
  GLOBAL.eval()
  accepted(reads_a_global, None)


def test_flags_at_the_call():
  """Finds batch norm that is told at the call to train, whatever its flags say; and a dropout that is told not to."""
  model = batch_norm()
  model.eval()
  graphdef, state = nnx.split(model)

  def f(state, x):
    model = nnx.merge(graphdef, state)
    return model.last(model.middle(model.first(x[None]), use_running_average=False))[0]
  refused(f, state, 'takes its statistics from the one example')
  refused(jax.jit(f), state, 'takes its statistics from the one example')
  dropping = dropout()
  accepted(lambda m, x: m.last(m.middle(m.first(x), deterministic=True)), dropping)
  refused(lambda m, x: m.last(m.middle(m.first(x), deterministic=False)), dropping, 'draws random numbers')


def test_layers_without_a_mode_are_accepted_after_training():
  """Finds a refusal by what another layer was traced as before: jax keeps the code of means and variances."""
  batch_norm()(jnp.ones((2, 4)))
  for middle in (nnx.LayerNorm(8, rngs=nnx.Rngs(0)), nnx.GroupNorm(8, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.),
                 nnx.Dropout(.5, deterministic=True), nnx.RMSNorm(8, rngs=nnx.Rngs(0))):
    accepted(batched(lambda m, x: m(x)), Net(middle))


class Linen(linen.Module):
  train: bool = False
  rate: float = .5
  norm: bool = True

  @linen.compact
  def __call__(self, x, train=None):
    train = self.train if train is None else train
    x = linen.Dense(8)(x)
    if self.norm:
      x = linen.BatchNorm(use_running_average=not train, name='norm')(x)
    return linen.Dense(3)(linen.relu(linen.Dropout(self.rate, deterministic=not train, name='drop')(x)))


def linen_writings():
  variables = Linen().init(KEY, jnp.ones((1, 4)))
  rngs = dict(dropout=KEY)
  without = Linen(norm=False).init(KEY, jnp.ones((1, 4)))
  return {
      'mutable': (lambda v, x: Linen(rate=0.).apply(v, x[None], train=True, mutable=['batch_stats'])[0][0], variables,
                  'batch norm in Linen/norm'),
      'mutable, by the constructor': (lambda v, x: Linen(True, 0.).apply(v, x[None], mutable='batch_stats')[0][0],
                                      variables, 'batch norm in Linen/norm'),
      'compiled': (jax.jit(lambda v, x: Linen(True, 0.).apply(v, x[None], mutable='batch_stats')[0][0]), variables,
                   'batch norm in Linen/norm'),
      'fixed key': (lambda v, x: Linen(True, norm=False).apply(v, x[None], rngs=rngs)[0], without, 'in Linen/drop'),
      'key among the parameters': (lambda v, x: Linen(True, norm=False).apply(v[0], x[None], rngs=v[1])[0],
                                   (without, rngs), 'in Linen/drop'),
  }


@pytest.mark.parametrize('name', list(linen_writings()))
def test_linen(name):
  """Finds a certificate of Linen layers that train, which leave no flag behind."""
  f, params, match = linen_writings()[name]
  refused(f, params, match)
  jax.eval_shape(f, params, XS[0])  # traced before: JAX keeps the code of a compiled function
  refused(f, params, match)


def test_linen_in_evaluation_mode():
  """Finds the refusal of a key that is given and not used, and of a model that has just been trained."""
  variables = Linen().init(KEY, jnp.ones((1, 4)))
  Linen(True).apply(variables, jnp.ones((2, 4)), mutable=['batch_stats'], rngs=dict(dropout=KEY))
  accepted(lambda v, x: Linen().apply(v, x[None])[0], variables)
  accepted(lambda v, x: Linen().apply(v[0], x[None], rngs=dict(dropout=v[1]))[0], (variables, KEY))
  accepted(lambda v, x: Linen().apply(v[0], x[None], rngs=dict(dropout=jax.random.split(v[1])[0]))[0], (variables, KEY))
  accepted(lambda v, x: Linen().apply(v, x[None], mutable=['batch_stats'])[0][0], variables)


def test_equinox_dropout():
  """Finds a certificate of an Equinox model with inference=False, a key fixed or among the parameters."""
  model = eqx.nn.Sequential([eqx.nn.Linear(4, 8, key=KEY), eqx.nn.Dropout(.5), eqx.nn.Linear(8, 3, key=KEY)])
  for writing in ('closure', 'key'):
    for training in (True, False):
      params, static = eqx.partition(eqx.nn.inference_mode(model, value=not training), eqx.is_array)
      f, given = {'closure': (lambda p, x, static=static: eqx.combine(p, static)(x, key=KEY), params),
                  'key': (lambda p, x, static=static: eqx.combine(p[0], static)(x, key=p[1]), (params, KEY))}[writing]
      if training:
        refused(f, given, r'static.layers\[1\] \(Dropout\) has inference=False|layers\[1\]')
      else:
        accepted(f, given)
        accepted(eqx.filter_jit(f), given)


@pytest.mark.filterwarnings('ignore')
def test_equinox_batch_norm():
  """Finds a certificate of an Equinox batch norm that trains on a batch of one."""
  norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis_name='batch', mode='ema')
  _, state = jax.vmap(norm, axis_name='batch', in_axes=(0, None), out_axes=(0, None))(jnp.ones((2, 3)), state)

  def of(norm):
    def f(weights, x):
      call = lambda x: norm(weights @ x, state)[0]
      return jax.vmap(call, axis_name='batch')(x[None])[0]
    return f
  refused(of(norm), jnp.ones((3, 4)), r'norm \(BatchNorm\) has inference=False')
  accepted(of(eqx.nn.inference_mode(norm)), jnp.ones((3, 4)))
  told = lambda w, x: jax.vmap(lambda x: eqx.nn.inference_mode(norm)(w @ x, state, inference=False)[0],
                               axis_name='batch')(x[None])[0]
  refused(told, jnp.ones((3, 4)), r'norm \(BatchNorm\)|takes its statistics')


@pytest.mark.parametrize('draw', [
    lambda x: jax.random.normal(KEY, x.shape), lambda x: jax.random.normal(jax.random.PRNGKey(0), x.shape),
    lambda x: jax.random.bits(jax.random.key(0, impl='rbg'), x.shape).astype(x.dtype),
    lambda x: jax.random.normal(jax.random.fold_in(KEY, 1), x.shape), lambda x: jax.random.gamma(KEY, 2., x.shape),
    lambda x: jax.lax.cond(x.sum() > 0, lambda: jax.random.uniform(KEY, x.shape), lambda: x),
    lambda x: jax.lax.scan(lambda c, k: (c + jax.random.uniform(k, x.shape), None), x, jax.random.split(KEY, 2))[0],
    lambda x: jax.lax.rng_uniform(0., 1., x.shape)])
def test_random_draws_are_seen_wherever_they_are(draw):
  """Finds random numbers of other makes, and in calls, branches and loops."""
  f = lambda _, x: (x * draw(x))[:3]
  refused(f, None, 'draws random numbers')
  refused(jax.jit(f), None, 'draws random numbers')


def test_random_draws_that_are_meant_are_allowed():
  """Finds allow_random without effect; and a draw that no output depends on, which is no reason to refuse."""
  f = lambda w, x: (w + jax.random.normal(KEY, w.shape)) @ x
  w = jnp.ones((3, 4))
  accepted(f, w, allow_random=True)
  assert certified_radius(f, w, XS, LABELS, .1, steps=1, allow_random=True).shape == (2,)
  with pytest.raises(ValueError, match='draws random numbers'):
    certified_radius(f, w, XS, LABELS, .1, steps=1)

  def dead(w, x):
    jax.random.normal(KEY, w.shape)
    return w @ x
  accepted(dead, w)


def test_lipschitz_radii_are_refused_too():
  """Finds radii of a model in training mode."""
  model = dropout()
  model.train()
  graphdef, state = nnx.split(model)
  bound = ibpjax.LipschitzBound(1., np.ones((3, 3)), 'upper', 0., 0., ())
  with pytest.raises(ValueError, match='draws random numbers'):
    certified_lipschitz_radii(lambda s, x: nnx.merge(graphdef, s)(x), state, XS, LABELS, bound)


def test_models_of_this_library_are_accepted():
  """Finds a refusal of ibpjax.nn.BatchNorm, whose statistics are the stored ones unless others are given."""
  model = ibpjax.nn.Sequential([nnx.Linear(4, 8, rngs=nnx.Rngs(0)), ibpjax.nn.BatchNorm(8), nnx.relu,
                                nnx.Linear(8, 3, rngs=nnx.Rngs(0))])
  accepted(batched(lambda m, x: m(x)), model)
  graphdef, state = nnx.split(model)
  accepted(batched(lambda s, x: nnx.merge(graphdef, s)(x)), state)
