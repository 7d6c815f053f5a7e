"""The laws over programs that hypothesis draws from the tables: the best finder of bugs.

HYPOTHESIS_PROFILE=nightly runs 20 000 of them, a fifth with linear methods, and a third in float32 with rounding.
"""
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import keys_of, regrouped
from checks import contains, holds, leaves, samples
from hypothesis import given
from hypothesis import strategies as st
from interpreted import interpreted
from programs import BINARY, LINES, OPERATIONS, RADII, SIZE, UNARY, program
from weighing import attacked, escapes

import ibpjax
from ibpjax import Interval, crown, ibp, lbp, tight, zonotope
from ibpjax.composites.normalization import Normalise
from ibpjax.composites.softmax import Average
from ibpjax.composites.univariate import Univariate

drawn = 0


def steps(names):
  return st.tuples(st.sampled_from([*names]), st.integers(0, 10), st.integers(0, 10), st.integers(0, 2))


MODERATE, ANY = steps(UNARY | BINARY), steps(OPERATIONS | BINARY)


@pytest.mark.usefixtures('x64')
@given(st.lists(MODERATE, min_size=1, max_size=8), st.sampled_from([1e-3, .1, .6]), st.integers(0, 1000))
def test_laws_hold_for_random_programs(steps, radius, seed):
  global drawn
  drawn += 1
  if drawn % 2500 == 0:  # each program compiles something; 20 000 of them would fill the memory
    jax.clear_caches()
  f, x = program(steps), jnp.asarray(np.random.default_rng(seed).normal(size=SIZE))
  box = Interval(x - radius, x + radius)
  values, plain, here = interpreted(jax.vmap(f))(samples(box, 96, seed)), interpreted(ibp(f)), interpreted(f)(x)
  for a, b in zip(interpreted(functools.partial(regrouped, f))(x), here, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
  wider, point = plain(Interval(box.lower - .05, box.upper + .1)), plain(Interval(x, x))
  plain, elided = plain(box), interpreted(ibp(f, elide=True))(box)
  assert holds(plain, values)
  assert holds(elided, values)
  assert contains(plain, elided, slack=1e-9)
  monotone = not keys_of(f, x) & {Univariate, Normalise, Average}  # these are made around the centre of a box
  outward = interpreted(ibp(f, elide=True, round_outward=True))(box)
  assert contains(outward, elided, slack=0 if monotone else 1e-8)
  if monotone:
    assert contains(wider, plain)
  for bound, value in zip(leaves(point), here, strict=True):
    np.testing.assert_allclose(bound.lower, value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(bound.upper, value, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures('x64')
@hypothesis.settings(max_examples=max(hypothesis.settings.default.max_examples // 5, 1))
@given(st.lists(MODERATE, min_size=1, max_size=6), st.sampled_from([1e-3, .1, .6]), st.integers(0, 1000),
       st.sampled_from([*LINES]))
def test_linear_bounds_hold_for_random_programs_and_slopes(steps, radius, seed, slopes):
  """Alone finds a relaxation that is sound for the slopes of the library and not for any others."""
  f, x = program(steps), jnp.asarray(np.random.default_rng(seed).normal(size=SIZE))
  box = Interval(x - radius, x + radius)
  values = interpreted(jax.vmap(f))(attacked(f, box, 96, seed))
  for method in (lbp(f), lbp(f, lines=LINES[slopes]), crown(f, lines=LINES[slopes]),
                 crown(f, intermediate='lbp', lines=tight), zonotope(f)):
    bound = interpreted(method)(box)
    assert holds(bound, values)
    assert not any(np.isnan(b.lower).any() or np.isnan(b.upper).any() for b in leaves(bound))


@pytest.mark.usefixtures('x64')
@hypothesis.settings(max_examples=max(hypothesis.settings.default.max_examples // 3, 1))
@given(st.lists(ANY, min_size=1, max_size=5), st.sampled_from(RADII), st.integers(0, 1000), st.booleans(),
       st.sampled_from(['ibp', 'ibp', 'crown', 'lbp', 'zonotope']))
def test_bounds_allow_for_what_floats_make_of_random_programs(steps, radius, seed, far, method):
  """Alone finds what overflows, vanishes or is rounded more than a bound allows for, where operations meet."""
  f, rng = program(steps), np.random.default_rng(seed)
  scale = 10. ** rng.uniform(-44, 38) if far else 1.
  x = jnp.asarray(np.clip(rng.normal(size=SIZE) * scale, -3e38, 3e38), jnp.float32)
  box = ibpjax.linf_ball(x, radius * min(scale, 1e37), -3e38, 3e38)
  bound = interpreted(getattr(ibpjax, method)(f, round_outward=True))(box)
  assert not escapes(f, {method: bound}, box, attacked(f, box, 96, seed))[method]
