"""The accuracy that rows state, over the whole domain of each function, beside arithmetic of many digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import keys_of
from references import REFERENCES, Reference, exact_values, mp, points

import ibpjax
from ibpjax import Elementwise, Interval, elementwise, ibp
from ibpjax.primitives import table

pytestmark = [pytest.mark.optimized, pytest.mark.usefixtures('x64')]
DTYPES = np.float32, np.float64


def escapes(reference, dtype, count=500):
  """The points whose value (exact, compiled, or run operation by operation) a bound excludes; and the bounds."""
  x = points(reference, dtype, count)
  box = Interval(jnp.asarray(x), jnp.asarray(x))
  bound = jax.jit(ibp(reference.f, round_outward=True))(box)
  lower, upper = np.asarray(bound.lower), np.asarray(bound.upper)
  exact = exact_values(reference, x)
  out = [e is not None and not (mp.mpf(float(l)) <= e <= mp.mpf(float(u))) for e, l, u in zip(exact, lower, upper)]
  unknown = (lower == -np.inf) & (upper == np.inf)
  for run in (jax.jit(reference.f), reference.f):
    y = np.asarray(run(box.lower))
    with np.errstate(invalid='ignore'):
      out |= ~(unknown | ((y >= lower) & (y <= upper)))
  return x[np.asarray(out)], x, lower, upper, exact


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', REFERENCES)
def test_values_lie_inside_over_the_whole_domain(name, dtype):
  """Alone finds a row whose error is large where no case looks: beside a zero or a pole, far out, in float64."""
  reference = REFERENCES[name]
  out, x, lower, upper, exact = escapes(reference, dtype)
  assert out.size == 0, out[:5]
  info = np.finfo(dtype)
  kept = [e is not None and abs(v) >= info.tiny and abs(e) < float(info.max) / 2 for e, v in zip(exact, x)]
  size = np.asarray([float(abs(e)) if k else 0 for e, k in zip(exact, kept)])
  u, x = float(info.eps) / 2, np.float64(x)
  allowed = u * reference.loosest[dtype is np.float64] * size + u * reference.beside * (1 + np.abs(x))
  with np.errstate(invalid='ignore', over='ignore'):
    loose = np.asarray(kept) & ~(np.float64(upper) - np.float64(lower) <= allowed + 1e4 * float(info.tiny))
  assert loose.mean() < reference.poles, x[loose][:5]


def test_every_row_has_a_reference():
  x = jnp.asarray([.5])
  covered = set().union(*(keys_of(r.f, x + (2 if name == 'acosh' else 0)) for name, r in REFERENCES.items()))
  assert {key for key, row in table.ROWS.items() if row.elementwise is not None} <= covered



def lgamma(**stated):
  """The logarithm of the gamma function, its slope k at the inverse of digamma; on x > 0."""
  def critical(k):
    y = jnp.where(k > -2.22, jnp.exp(k) + .5, -1 / (k - jax.scipy.special.digamma(1.)))
    for _ in range(6):
      y = y - (jax.scipy.special.digamma(y) - k) / jax.scipy.special.polygamma(1, y)
    return (y,)
  rule = Elementwise(critical, stationary=(1.4616321449683622,), domain=(0., np.inf), **stated)
  return elementwise(rule)(jax.lax.lgamma)


def test_the_law_finds_a_row_that_states_too_little():
  """16 units are right around 0, where a case would lie, and wrong where exp(x) is lost beside 1."""
  f = elementwise(Elementwise(lambda k: (), trend=1, roundings=16))(lambda x: jnp.log(1 + jnp.exp(x)))
  out, *_ = escapes(Reference(f, lambda x: mp.log1p(mp.exp(x)), (), 30.), np.float32)
  assert out.size > 20
  assert np.all(out < -2)


def test_what_states_no_accuracy_is_refused_by_name_where_rounding_counts():
  f, x = lgamma(), jnp.asarray([3.5], jnp.float32)
  box = Interval(x - .5, x + .5)
  assert float(ibp(f)(box).upper[0]) == pytest.approx(float(jax.lax.lgamma(4.)), rel=1e-5)
  for method in (ibp, ibpjax.crown, ibpjax.lbp):
    with pytest.raises(NotImplementedError, match=r'`lgamma`, which states no accuracy: .*roundings='):
      method(f, round_outward=True)(box)
  with pytest.raises(NotImplementedError, match='lgamma'):
    ibpjax.certify(lambda p, x: jnp.concatenate([f(x), x]), (), x[None], jnp.zeros(1, int), .1, clip=None)
  stated = ibp(lgamma(roundings=1e3), round_outward=True)(box)
  assert np.all(np.isfinite(stated.lower) & np.isfinite(stated.upper))
