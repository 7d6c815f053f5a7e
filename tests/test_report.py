"""Summaries: confidence intervals as published, verdicts, errors that count every example."""
import math

import pytest

from ibpjax.verification.report import VERDICTS, radius_text, summarise, verdict, wilson


@pytest.mark.parametrize(('successes', 'n', 'low', 'high'), [  # Newcombe 1998, Statistics in Medicine 17, table I
    (81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0., .1611), (1, 29, .0061, .1718)])
def test_published_intervals(successes, n, low, high):
  assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize('level', [.5, .95, .999])
@pytest.mark.parametrize('n', [1, 2, 17, 10_000])
def test_intervals_hold_their_proportion(n, level):
  for successes in {0, 1, n // 3, n // 2, n - 1, n}:
    low, high = wilson(successes, n, level)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n, level) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_none_and_all():
  low, high = wilson(0, 500)
  assert low == 0.
  assert 0 < high < .01
  low, high = wilson(500, 500)
  assert high == 1.
  assert .99 < low < 1


@pytest.mark.parametrize(('arguments', 'message'), [
    ((1, 0), 'not a proportion'), ((3, 2), 'not a proportion'), ((-1, 2), 'not a proportion'), ((1, 2, 95), 'level')])
def test_what_is_no_proportion(arguments, message):
  with pytest.raises(ValueError, match=message):
    wilson(*arguments)


@pytest.mark.parametrize(('correct', 'verified', 'broken', 'expected'), [
    (True, True, False, 'verified'), (True, False, False, 'unknown'), (True, False, True, 'attacked'),
    (False, False, True, 'misclassified'), (False, False, False, 'misclassified'), (True, True, True, 'contradiction'),
    (False, True, True, 'contradiction'), (False, True, False, 'contradiction')])
def test_verdicts(correct, verified, broken, expected):
  assert verdict(correct, verified, broken) == expected
  assert expected in VERDICTS


def record(verdict, method=None, seconds=1., eps=.1):
  return dict(eps=eps, verdict=verdict, method=method, seconds=seconds)


def test_summary():
  records = [record('misclassified', seconds=5.), record('attacked'), record('unknown'), record('verified', 'ibp'),
             record('verified', 'ibp'), record('verified', 'tighter', 2.), record('contradiction', 'ibp'),
             record('unknown')]
  found = summarise(records)
  assert found['eps'] == .1
  assert found['examples'] == 8
  assert (found['natural_error'], found['attacked_error'], found['verified_error']) == (12.5, 37.5, 62.5)
  assert found['attacked_interval'] == pytest.approx([100 * end for end in wilson(3, 8)])
  assert found['verified_by'] == dict(ibp=2, tighter=1)
  assert found['verdicts'] == dict(misclassified=1, attacked=1, verified=3, unknown=2, contradiction=1)
  assert found['median_seconds'] == 1.
  assert math.isclose(found['total_seconds'], 13.)


@pytest.mark.parametrize('records', [[], [record('unknown'), record('unknown', eps=.2)]])
def test_one_radius_at_a_time(records):
  with pytest.raises(ValueError, match='one radius at a time'):
    summarise(records)


@pytest.mark.parametrize(('eps', 'text'), [
    (0., '0'), (.1, '0.1'), (8 / 255, '8/255'), (1 / 255, '1/255'), (.2, '0.2'), (1., '1'), (.123456, '0.123456')])
def test_radii_as_people_write_them(eps, text):
  assert radius_text(eps) == text
