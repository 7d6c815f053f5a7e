"""What expected tight bounds are worth for one network: beside attacks and sound bounds, example by example."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.etb import etb, etb_companion
from ibpjax.interval import Interval, linf_ball
from ibpjax.margins import margins


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
    with interval bounds. (batch,): refuted, the witness lies below `expected`. slack: (batch, layers), how much of
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
    corner = jnp.where(jax.grad(lowest)(ball.centre) > 0, ball.lower, ball.upper)
    return dict(
        clean=of(params, x, label), attacked=of(params, point, label), expected=expected,
        centred=of(params, ball.centre, label) - mask.expected.radius, mask=mask.sound.lower,
        chord=etb_companion(of, slopes='chord', intersect=True)(params, ball, label).sound.lower,
        refuted=jnp.take(of(params, corner, label), least) < jnp.take(expected, least),
        slack=jnp.asarray([jnp.take(down, least) for down, _ in mask.slack.values()]))
  return jax.vmap(one)(xs, labels, points)


def drops(found: dict[str, Any]) -> dict[str, Any]:
  """What `expectations` come to, over examples.

  Returns:
    ratio: the mean drop of the least margin that ETB expects, over that of the attack. Below 1 ETB is false on average:
    training has destroyed what it rests on. missed: fraction of margins attacked below their expected end; refuted:
    fraction of examples whose witness lies below. says, says_centred, says_mask, says_chord: fractions with all
    margins > 0 by each; false, false_centred: those among them, as fractions of all, that the attack breaks.
    robust: fraction with all attacked margins > 0. slack: for each layer the mean of what it adds.
  """
  least = {k: v.min(-1) for k, v in found.items() if k not in ('refuted', 'slack')}
  says = {k: v > 0 for k, v in least.items()}
  drop = {k: jnp.mean(least['clean'] - v) for k, v in least.items()}
  broken = ~says['attacked']
  numbers = dict(
      natural=says['clean'].mean(), robust=says['attacked'].mean(), says=says['expected'].mean(),
      says_centred=says['centred'].mean(), says_mask=says['mask'].mean(), says_chord=says['chord'].mean(),
      false=jnp.mean(says['expected'] & broken), false_centred=jnp.mean(says['centred'] & broken),
      missed=jnp.mean(found['attacked'] < found['expected']), refuted=found['refuted'].mean(),
      missed_centred=jnp.mean(found['attacked'] < found['centred']),
      ratio=drop['expected'] / drop['attacked'], ratio_centred=drop['centred'] / drop['attacked'],
      ratio_mask=drop['mask'] / drop['attacked'], ratio_chord=drop['chord'] / drop['attacked'])
  return {k: float(v) for k, v in numbers.items()} | dict(slack=[float(s) for s in found['slack'].mean(0)])
