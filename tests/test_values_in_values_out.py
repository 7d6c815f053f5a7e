"""Values in, values out: no result depends on what was called before; bounds, slopes are values that go in and out."""
import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from checks import box_around, contains, holds, leaves, samples
from interpreted import interpreted
from networks import dense, random_network, shallow

import ibpjax
from ibpjax import Intermediates, Interval, adaptive, alpha_crown, constant, crown, ibp, lbp, linear_bounds, tight

pytestmark = pytest.mark.usefixtures('x64')


def relu_network(params, x):
  return shallow(params, x, jax.nn.relu)


def logits(params, x):
  return jnp.tanh(relu_network(params, x))


PARAMS, X = random_network(shallow, 0)
BOX = box_around(X, .3)
CALLS = {
    'ibp': lambda f: ibp(f)(PARAMS, BOX),
    'ibp, elided, outward': lambda f: ibp(f, elide=True, round_outward=True)(PARAMS, BOX),
    'ibp, intermediates': lambda f: ibp(f, intermediates=True)(PARAMS, BOX),
    'lbp, tight': lambda f: lbp(f, lines=tight)(PARAMS, BOX),
    'lbp, adaptive': lambda f: lbp(f, lines=adaptive, elide=False)(PARAMS, BOX),
    'crown, tight': lambda f: crown(f, lines=tight)(PARAMS, BOX),
    'crown, adaptive': lambda f: crown(f, lines=adaptive, chunk=2)(PARAMS, BOX),
    'crown, constant': lambda f: crown(f, lines=constant)(PARAMS, BOX),
    'crown, outward': lambda f: crown(f, round_outward=True)(PARAMS, BOX),
    'crown-ibp': lambda f: crown(f, intermediate='ibp', rows=jnp.ones((1, 2)))(PARAMS, BOX),
    'zonotope': lambda f: ibpjax.zonotope(f)(PARAMS, BOX),
    'alpha-crown': lambda f: alpha_crown(f, steps=2)(PARAMS, BOX),
    'linear bounds': lambda f: linear_bounds(f)(PARAMS, BOX),
    'jacobian': lambda f: ibpjax.jacobian_bounds(f)(PARAMS, BOX),
    'local Lipschitz': lambda f: ibpjax.local_lipschitz(f)(PARAMS, BOX),
    'etb': lambda f: ibpjax.etb(relu_network)(PARAMS, BOX),
    'companion': lambda f: ibpjax.etb_companion(relu_network, slopes='chord', masks='sound')(PARAMS, BOX),
    'certify': lambda f: ibpjax.certify(f, PARAMS, X[None], jnp.zeros(1, int), 1e-3, clip=None, method='crown'),
}


def test_no_result_depends_on_the_order_of_calls():
  """Every public call twice, and in both orders. Alone finds planes, forms or slopes of one call kept for another."""
  runs = {name: interpreted(functools.partial(call, logits)) for name, call in CALLS.items() if name != 'certify'}
  runs['certify'] = functools.partial(CALLS['certify'], logits)
  forward = {name: run() for name, run in runs.items()}
  backward = {name: run() for name, run in reversed(runs.items())}
  chex.assert_trees_all_equal(forward, backward)


@pytest.mark.parametrize('method', ['crown', 'crown-ibp', 'lbp'])
def test_linear_bounds_in_chunks(method):
  """Alone finds planes that are computed first inside of a loop over rows, where they cannot leave it."""
  whole, parts = (jax.jit(linear_bounds(relu_network, method=method, chunk=chunk))(PARAMS, BOX) for chunk in (None, 1))
  chex.assert_trees_all_close(whole, parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('method', [crown, functools.partial(alpha_crown, steps=1), ibp])
def test_bounds_of_some_values_tighten_them_and_leave_the_method_on(method):
  """Alone finds that one split layer turns off the bounds of all others."""
  params, x = random_network(dense, 1)
  def f(params, x):
    return dense(params, x, jax.nn.relu)
  box = box_around(x, .4)
  plain, inside = interpreted(method(f, intermediates=True))(params, box)
  for name, bounds in inside.bounds.items():
    middle = jnp.where(jnp.arange(bounds.size) == 0, bounds.centre, bounds.upper)
    split = Intermediates({name: Interval(bounds.lower, middle)})
    half = interpreted(method(f, intermediate=split))(params, box)
    assert half.width.sum() < 1.02 * plain.width.sum()  # slopes are chosen anew, for better or for worse
    loose = Intermediates({name: Interval(bounds.lower - 100, bounds.upper + 100)})
    again = interpreted(method(f, intermediate=loose))(params, box)
    assert again.width.sum() < (2.5 if method is ibp else 1.5) * plain.width.sum()


def test_bounds_that_miss_each_other_are_no_empty_box():
  """Alone finds ends in the wrong order, from which NaN or a bound of nothing may follow."""
  _, inside = interpreted(ibp(relu_network, intermediates=True))(PARAMS, BOX)
  name, bounds = next(iter(inside.bounds.items()))
  missed = Intermediates({name: Interval(bounds.upper + 1e-9, bounds.upper + 1)})
  found = interpreted(crown(relu_network, intermediate=missed))(PARAMS, BOX)
  assert (found.lower <= found.upper).all()


def test_slopes_go_out_and_come_in():
  """Alone finds slopes that are not those of the bounds, or that another call does not take up."""
  plain = interpreted(crown(relu_network))(PARAMS, BOX)
  found, slopes = interpreted(alpha_crown(relu_network, steps=5, return_slopes=True))(PARAMS, BOX)
  again = interpreted(alpha_crown(relu_network, steps=0, slopes=slopes))(PARAMS, BOX)
  assert contains(plain, again, 1e-12)
  assert again.width.sum() < (found.width.sum() + plain.width.sum()) / 2
  part = Interval(BOX.lower, BOX.centre)
  there = interpreted(alpha_crown(relu_network, steps=0, slopes=slopes))(PARAMS, part)
  assert holds(there, interpreted(jax.vmap(relu_network, (None, 0)))(PARAMS, samples(part, 2000)), 1e-6)
  one, two = interpreted(alpha_crown(relu_network, steps=1, return_slopes=True, intermediates=True))(PARAMS, BOX)[1:]
  assert isinstance(one, Intermediates)
  assert jax.tree.structure(two) == jax.tree.structure(slopes)
  assert all((t >= 0).all() and (t <= 1).all() for t in jax.tree.leaves(slopes))
  with pytest.raises(ValueError, match='slopes belong to another function'):
    alpha_crown(logits, slopes=slopes, intermediate='ibp')(PARAMS, BOX)
  batch = jax.vmap(lambda x: alpha_crown(relu_network, steps=1, return_slopes=True)(PARAMS, box_around(x, .1)))
  assert all(len(t) == 2 for t in jax.tree.leaves(interpreted(batch)(jnp.stack([X, -X]))[1]))


def test_leaves_of_all_results_are_arrays():
  assert all(isinstance(b, Interval) for b in leaves(CALLS['ibp'](logits)))
