"""What an evaluation found: verdicts of examples, and their summary as errors with confidence intervals."""
from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

VERDICTS = ('misclassified', 'attacked', 'verified', 'unknown', 'contradiction')


def wilson(successes: int, n: int, level: float = .95) -> tuple[float, float]:
  """Wilson score interval of a binomial proportion.

  Args:
    successes: how often it happened, of `n`.
    n: how often it was tried, at least once.
    level: confidence, in (0, 1).

  Returns:
    (low, high), fractions.

  Source: Wilson 1927; recommended by Brown, Cai and DasGupta 2001 (Interval estimation for a
  binomial proportion).
  """
  if not 0 <= successes <= n or n < 1:
    raise ValueError(f'{successes} of {n} is not a proportion')
  if not 0 < level < 1:
    raise ValueError(f'level is {level}; a confidence lies between 0 and 1, as .95 does')
  from scipy import stats
  low, high = stats.binomtest(successes, n).proportion_ci(level, method='wilson')
  return float(low), float(high)


def verdict(correct: bool, verified: bool, broken: bool) -> str:
  """One of VERDICTS.

  Args:
    correct: the example itself is classified as its label, without a tie.
    verified: a bound says that nothing within the radius changes that.
    broken: an attack found a point within the radius that does, or NaN.
  """
  if verified and (broken or not correct):
    return 'contradiction'
  if not correct:
    return 'misclassified'
  return 'attacked' if broken else 'verified' if verified else 'unknown'


def summarise(records: Sequence[dict[str, Any]], level: float = .95) -> dict[str, Any]:
  """Errors of the examples of one radius.

  Args:
    records: one an example, with eps, verdict, method (that verified it, or None) and seconds.
    level: confidence of the intervals.

  Returns:
    eps, examples; natural_error, attacked_error, verified_error in per cent, each with its Wilson
    interval (natural_interval, ... as [low, high] in per cent); verdicts: how many of each;
    verified_by: how many by each method; median_seconds, total_seconds. What is not verified
    counts as a verified error, what is misclassified or a contradiction as an attacked one too.
  """
  radii = {r['eps'] for r in records}
  if len(radii) != 1:
    raise ValueError(f'records are of eps {sorted(radii)}; summarise those of one radius at a time')
  n, verdicts = len(records), Counter(r['verdict'] for r in records)
  wrong = dict(natural=verdicts['misclassified'], verified=n - verdicts['verified'],
               attacked=verdicts['misclassified'] + verdicts['attacked'] + verdicts['contradiction'])
  errors = dict[str, Any]()
  for kind in ('natural', 'attacked', 'verified'):
    errors[f'{kind}_error'] = 100 * wrong[kind] / n
    errors[f'{kind}_interval'] = [100 * end for end in wilson(wrong[kind], n, level)]
  seconds = [r['seconds'] for r in records]
  return dict(eps=radii.pop(), examples=n, **errors, verdicts={v: verdicts[v] for v in VERDICTS},
              verified_by=dict(Counter(r['method'] for r in records if r['verdict'] == 'verified')),
              median_seconds=statistics.median(seconds), total_seconds=sum(seconds))


def radius_text(eps: float) -> str:
  """A radius as people write it: 0.1, or 8/255 where the decimal is long."""
  if float(f'{eps:.4g}') == eps:
    return f'{eps:.4g}'
  levels = round(255 * eps)
  return f'{levels}/255' if levels / 255 == eps else repr(float(eps))
