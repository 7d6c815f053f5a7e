"""The checks for functions of users: they pass what is right, and find each fault of a row."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibpjax import Elementwise, Interval, elementwise, testing


def sine(stationary=True, roundings=16., trend=0):
  def critical(k):
    x = jnp.arccos(jnp.clip(k, -1, 1))
    return (x, -x) if stationary else ()
  return elementwise(Elementwise(critical, period=2 * np.pi if stationary else None, trend=trend,
                                 roundings=roundings))(jnp.sin)


def exponential(critical, roundings):
  return elementwise(Elementwise(critical, trend=1, roundings=roundings))(jnp.exp)


@pytest.mark.parametrize(('fn', 'known'), [
    (sine(), ()), (elementwise(Elementwise(lambda k: (-1., 1.), roundings=0))(lambda x: jnp.clip(x, -1, 1)), ()),
    (elementwise(Elementwise(lambda k, c: (c,), critical_is_trained=True, roundings=0))(jnp.maximum), (.3,)),
    (jax.nn.gelu, ()), (jnp.tanh, ()), (jnp.square, ())])
def test_right_rows_pass(fn, known):
  testing.check_elementwise(fn, *known)


@pytest.mark.parametrize(('fn', 'message'), [
    (sine(stationary=False), 'the range of sin is wrong: the value'), (sine(trend=1), 'the range of sin is wrong'),
    (exponential(lambda k: (jnp.log(jnp.maximum(k, 1e-30)),), 0), 'the accuracy of exp in float32'),
    (exponential(lambda k: (jnp.log(jnp.maximum(k, 1e-30)) + .1,), 16), 'the line below exp is wrong')])
def test_faults_of_rows_are_found(fn, message):
  """A sine without its stationary points; a claim to rise; too little rounding; points of slope k that are not."""
  with pytest.raises(AssertionError, match=message):
    testing.check_elementwise(fn)


def test_a_row_without_accuracy_is_checked_for_the_rest():
  testing.check_elementwise(sine(roundings=None))
  with pytest.raises(ValueError, match='log is not finite at'):
    testing.check_elementwise(jnp.log)
  testing.check_elementwise(jnp.log, low=.1)


BOX = Interval(np.asarray([-.5, .2, 1.]), np.asarray([.5, .4, 1.5]))


@pytest.mark.parametrize('f', [
    lambda x: jnp.max(x), lambda x: x * x[::-1], lambda x: dict(a=jax.nn.softmax(x), b=x > .3), jnp.cumsum])
def test_rules_that_hold(f):
  testing.check_rule(f, BOX)


def test_rules_that_do_not_hold():
  with pytest.raises(AssertionError, match='ibp of <lambda> is wrong'):
    testing.check_rule(lambda x: sine(stationary=False)(4 * x).sum(), BOX)
  with pytest.raises(AssertionError, match='is loose'):
    testing.check_rule(lambda x: x - jax.lax.stop_gradient(x), BOX)


def test_a_sum_of_many_elements_is_not_loose():
  testing.check_rule(lambda x: jnp.sum(x), Interval(np.zeros(900), np.ones(900)), points=100)


def test_lines_that_are_not_numbers_are_found():
  with pytest.raises(AssertionError, match='has no line of a slope of its own'):
    testing.check_elementwise(exponential(lambda k: (jnp.nan * k,), 16))


def test_what_is_wrong_in_one_of_more_results_than_arguments_is_said():
  wrong = elementwise(Elementwise(lambda k: (), trend=1, roundings=16))(jnp.square)
  with pytest.raises(AssertionError, match='is wrong: the value'):
    testing.check_rule(lambda x: jnp.concatenate([x, x, wrong(x)]), Interval(-np.ones(2), np.ones(2)))
