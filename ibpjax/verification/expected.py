"""What expected tight bounds are worth for one network: beside attacks and sound bounds, example by example."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.balls import linf_ball
from ibpjax.core.sets import Interval
from ibpjax.core.specification import margins
from ibpjax.methods.etb import etb, etb_companion

_ROUNDINGS = 1e3  # of a margin in which two values may differ and be the same


def expectations(f: Callable, params: Any, xs: Any, labels: Any, eps: Any, points: Any,
                 clip: tuple[float, float] = (0., 1.)) -> dict[str, Any]:
  """Lower ends of margins by expected tight bounds and their companions, and what refutes them.

  ETB has the masks of interval arithmetic. Its witness is the corner of the ball at which the composed map of the
  least expected margin is least: one evaluation, no search.

  Args:
    f: (params, x) -> (classes,) logits of one example.
    params: its first argument.
    xs: (batch, ...) examples.
    labels: (batch,) integers.
    eps: radius of the l-infinity balls around them, cut to `clip`.
    points: (batch, ...), what an attack has found in these balls.

  Returns:
    Arrays (batch, classes - 1): clean and attacked, the margins at xs and at points; expected, by ETB; centred, its
    radius around the network itself; mask and chord, sound by the companions of these slopes, the latter intersected
    with interval bounds. Booleans of that shape: missed and missed_centred, attacked lies below these ends; outside,
    the network at the centre of the ball lies below `expected`; all by more than rounding. (batch,): refuted, the
    witness lies below `expected`. slack: (batch, layers), how much of
    the distance of `mask` to `expected` each ReLU layer makes, at the least margin.
  """
  def of(params, x, label):
    return margins(f(params, x), label)

  def one(x, label, point):
    ball = linf_ball(x, eps, *clip)
    mask = etb_companion(of)(params, ball, label)
    expected, least = mask.expected.lower, jnp.argmin(mask.expected.lower)

    def lowest(centre):
      moved = Interval(centre - ball.radius, centre + ball.radius)
      return jnp.take(etb(of, masks='ibp')(params, moved, label).lower, least)
    centred = of(params, ball.centre, label) - mask.expected.radius
    error = _ROUNDINGS * jnp.finfo(expected.dtype).eps * (jnp.abs(expected) + jnp.abs(centred) + mask.expected.radius)

    def below(value, end):
      return value < end - error
    corner = jnp.where(jax.grad(lowest)(ball.centre) > 0, ball.lower, ball.upper)
    attacked = of(params, point, label)
    return dict(
        clean=of(params, x, label), attacked=attacked, expected=expected, centred=centred, mask=mask.sound.lower,
        chord=etb_companion(of, slopes='chord', intersect=True)(params, ball, label).sound.lower,
        missed=below(attacked, expected), missed_centred=below(attacked, centred),
        outside=below(of(params, ball.centre, label), expected),
        refuted=jnp.take(below(of(params, corner, label), expected), least),
        slack=jnp.asarray([jnp.take(down, least) for down, _ in mask.slack.values()]))
  return jax.vmap(one)(xs, labels, points)


def drops(found: dict[str, Any]) -> dict[str, Any]:
  """What `expectations` come to, over examples: fractions in [0, 1], and ratios.

  Returns:
    ratio, ratio_centred, ratio_mask, ratio_chord: the mean drop of the least margin by each, over that of the attack;
    None where the attack lowers nothing. Below 1 the first two are false on average: training has destroyed what they
    rest on. missed, missed_centred: at least this fraction of margins is attacked below its end; outside: of margins
    whose value at the centre lies below; refuted: of examples whose witness lies below.
    says, says_centred, says_mask, says_chord: fractions with all
    margins > 0 by each; false, false_centred: those among them, as fractions of all, that the attack breaks.
    robust: fraction with all attacked margins > 0. slack: for each layer the mean of what it adds.
  """
  least = {k: found[k].min(-1) for k in ('clean', 'attacked', 'expected', 'centred', 'mask', 'chord')}
  least['attacked'] = jnp.minimum(least['clean'], least['attacked'])
  says = {k: v > 0 for k, v in least.items()}
  drop = {k: jnp.mean(least['clean'] - v) for k, v in least.items()}
  broken = ~says['attacked']
  least_drop = 1e-6 * jnp.mean(jnp.abs(least['clean']))
  ratios = {name: float(drop[k] / drop['attacked']) if drop['attacked'] > least_drop else None for name, k in (
      ('ratio', 'expected'), ('ratio_centred', 'centred'), ('ratio_mask', 'mask'), ('ratio_chord', 'chord'))}
  numbers = dict(
      natural=says['clean'].mean(), robust=says['attacked'].mean(), says=says['expected'].mean(),
      says_centred=says['centred'].mean(), says_mask=says['mask'].mean(), says_chord=says['chord'].mean(),
      false=jnp.mean(says['expected'] & broken), false_centred=jnp.mean(says['centred'] & broken),
      **{k: jnp.mean(found[k]) for k in ('missed', 'missed_centred', 'outside', 'refuted')})
  return {k: float(v) for k, v in numbers.items()} | ratios | dict(slack=[float(s) for s in found['slack'].mean(0)])
