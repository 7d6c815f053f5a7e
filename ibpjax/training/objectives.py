"""Robust objectives: what a training step minimises beside the natural loss.

An objective is `(f, params, logits, images, labels, eps, key) -> (loss, metrics)` with
`f(params, x)` the logits of one example, `logits` those of the clean batch, eps in the units of
the images, and a scalar loss in nats; those of attacks also take `points`, what an attack has found
for the images. A metric `penalty` is added to the loss of a step, whatever weight the natural loss
has. `functools.partial` sets options.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ibpjax.core.balls import linf_ball
from ibpjax.core.row import chord
from ibpjax.core.sets import Intermediates, Interval
from ibpjax.core.specification import margins
from ibpjax.methods.crown import crown
from ibpjax.methods.ibp import ibp
from ibpjax.rules.slopes import Lines, adaptive
from ibpjax.training.attacks import usual_step
from ibpjax.training.losses import kl_divergence, natural_loss, robust_loss
from ibpjax.training.regularizers import LEAST_RADIUS, Regularizer
from ibpjax.xla.materialize import materialize

Objective = Callable[..., tuple[Any, dict[str, Any]]]
_ROOM = 1 << 19  # elements of all rows of an example, wherever these are widest


def margins_of(f: Callable) -> Callable:
  """(params, x, label) -> the margins of one example."""
  return lambda params, x, label: margins(f(params, x), label)


def margin_bounds(f: Callable, params: Any, images: Any, labels: Any, eps: Any,
                  clip: tuple[Any, Any] = (0., 1.)) -> Any:
  """Lower bounds of the margins of a batch, by elided IBP without an allowance: (batch, classes - 1)."""
  return lower_margins(f, params, None, linf_ball(images, eps, *clip), labels, eps, None)[0]


def ibp_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                  regularizer: Regularizer | None = None,
                  clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """The robust loss by elided interval bounds; an upper bound of the loss at every point of the ball.

  Args:
    regularizer: a penalty of the bounds of what goes into activations (of all operands of nonlinear operations), from
      the same pass. With one, a radius below 1e-6 is that for it, and the robust loss is the natural one.

  Metrics: verified_error, the fraction that these bounds do not verify; with a regularizer also penalty, and its own.
  Source: Gowal et al. 2018; Lyu et al. 2021, section 5.1 of the supplement; Shi et al. 2021, section 3.3.
  """
  del key
  box = linf_ball(images, radius_for(eps, regularizer), *clip)
  lower, more = lower_margins(f, params, logits, box, labels, eps, regularizer)
  return robust_loss(lower), dict(verified_error=unverified(lower), **more)


def unverified(lower: Any) -> Any:
  """The fraction of examples of which some lower bound of a margin, (batch, classes - 1), is not above 0."""
  return jnp.mean(~(lower.min(-1) > 0))


def radius_for(eps: Any, regularizer: Regularizer | None) -> Any:
  """The radius that bounds are computed for: eps, but with a regularizer at least 1e-6."""
  return eps if regularizer is None else jnp.maximum(eps, LEAST_RADIUS)


def lower_margins(f: Callable, params: Any, logits: Any, box: Interval, labels: Any, eps: Any,
                  regularizer: Regularizer | None) -> tuple[Any, dict[str, Any]]:
  """Lower bounds of the margins on boxes, by elided IBP: (batch, classes - 1); and the metrics of a regularizer.

  Args:
    f, params, logits, labels, eps: as of an objective.
    box: (batch, ...).
    regularizer: as in `ibp_objective`.
  """
  one = margins_of(f)
  if regularizer is None:
    return jax.vmap(ibp(one, elide=True), (None, 0, 0))(params, box, labels).lower, {}
  bounds, inside = jax.vmap(ibp(one, elide=True, intermediates=True), (None, 0, 0))(params, box, labels)
  penalty, metrics = regularizer(list(inside.bounds.values()), box, eps)
  lower = jnp.where(eps < LEAST_RADIUS, jax.vmap(margins)(logits, labels), bounds.lower)
  return lower, dict(metrics, penalty=penalty)


def crown_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                    beta: Callable[[Any], Any], intermediate: str = 'ibp', lines: Lines = adaptive,
                    clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """The robust loss by beta * (bounds of CROWN) + (1 - beta) * (elided interval bounds) of the margins.

  A mixture of lower bounds is one. While beta is 0, and at eps 0, where all bounds are equal, CROWN is not run.

  Args:
    beta: eps -> weight in [0, 1]; from 1 at small radii to 0 at the last (CROWN-IBP), for instance.
    intermediate: where the bounds of values inside the network come from: 'ibp' or 'lbp' (see `crown`).
    lines: the choice of slopes.

  Metrics: verified_error, the fraction that the mixed bounds do not verify; beta.
  Source: Zhang et al. 2020; Lyu et al. 2021, section 5.1 of the supplement.
  """
  del logits, key
  one = margins_of(f)

  def linear(params, box, label, bounds, inside):
    given, rows = inside if intermediate == 'ibp' else intermediate, bounds.lower.size
    widest = max((x.lower.size for x in inside.bounds.values()), default=1)
    # All rows at a time, if they have room: of several chunks gradients compute each anew.
    chunk = rows if rows * widest <= _ROOM else None
    return crown(one, intermediate=given, lines=lines, chunk=chunk)(params, box, label).lower

  lower, weight = _mixed(one, linear, params, linf_ball(images, eps, *clip), labels, eps, beta, lambda b: b.lower)
  return robust_loss(lower), dict(verified_error=unverified(lower), beta=weight)


def fused_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                    beta: Callable[[Any], Any], lines: Lines = adaptive,
                    clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """The robust loss by CROWN-IBP of one scalar, the sum over the other classes of exp(-margin): loss fusion.

  Between interval bounds [a, b] of -margin, exp lies below its chord. The chords of all classes sum to one linear
  function of the margins, which one row bounds, however many classes there are.

  Args:
    beta: as in `crown_objective`; the mixture is of the bounds of the sum.
    lines: the choice of slopes.

  Metrics: beta. What is verified is not known, as margins have no bounds of their own.
  Source: Xu et al. 2020, section 3.3.
  """
  del logits, key
  one = margins_of(f)

  def linear(params, box, label, bounds, inside):
    # -margins, less the greatest that they may be: their exponents neither overflow nor all vanish
    shift = lax.stop_gradient(-bounds.lower.min())
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    a, b = -bounds.upper - shift, -bounds.lower - shift
    slope = chord(jnp.exp, a, b)
    least = crown(one, intermediate=inside, lines=lines, rows=slope[None])(params, box, label).lower[0]
    total = jnp.sum(jnp.exp(a) - slope * (a + shift)) - least
    total = jnp.maximum(total, jnp.maximum(jnp.exp(a).sum(), jnp.finfo(total.dtype).tiny))
    return jnp.logaddexp(jnp.log(total) + shift, 0)

  loss, weight = _mixed(one, linear, params, linf_ball(images, eps, *clip), labels, eps, beta,
                        lambda b: robust_loss(b.lower))
  return loss.mean(), dict(beta=weight)


def _mixed(one: Callable, linear: Callable[[Any, Interval, Any, Interval, Intermediates], Any], params: Any,
           box: Interval, labels: Any, eps: Any, beta: Callable[[Any], Any],
           plain: Callable[[Interval], Any]) -> tuple[Any, Any]:
  """beta * linear + (1 - beta) * plain of the elided interval bounds of `one`, for each example; and beta."""
  over = (None, 0, 0)
  bounds, inside = jax.vmap(ibp(one, elide=True, intermediates=True), over)(params, box, labels)
  by_ibp, weight = jax.vmap(plain)(bounds), jnp.asarray(beta(eps), jnp.float32)

  def mixture():
    # pinned, and so are the sums of all gradients to them
    found = jax.vmap(linear, (*over, 0, 0))(params, box, labels, bounds, materialize(inside))
    part = weight.astype(by_ibp.dtype)
    return part * found + jnp.where(part < 1, (1 - part) * jnp.where(part < 1, by_ibp, 0), 0)
  return lax.cond((weight > 1e-5) & (eps > 0), mixture, lambda: by_ibp), weight


def adversarial_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                          points: Any) -> tuple[Any, dict[str, Any]]:
  """The cross-entropy at the points of an attack: adversarial training (Madry et al. 2018).

  Metrics: attacked_error, the fraction misclassified there.
  """
  del logits, images, eps, key
  attacked = jax.vmap(margins_of(f), (None, 0, 0))(params, points, labels)
  return robust_loss(attacked), dict(attacked_error=unverified(attacked))


def trades_objective(f: Callable, params: Any, logits: Any, images: Any, labels: Any, eps: Any, key: Any, *,
                     weight: float = 6., steps: int = 10, step_size: Any = None,
                     clip: tuple[Any, Any] = (0., 1.)) -> tuple[Any, dict[str, Any]]:
  """TRADES (Zhang et al. 2019): natural loss + weight * KL(clean || attacked), the attack maximising the KL.

  Metrics: attacked_error, the fraction misclassified at the points found.
  """
  box = linf_ball(images, eps, *clip)
  step_size = usual_step(eps, steps) if step_size is None else step_size
  apply, fixed = jax.vmap(f, (None, 0)), lax.stop_gradient((params, logits))

  def ascend(x, _):
    gradient = jax.grad(lambda x: kl_divergence(fixed[1], apply(fixed[0], x)))(x)
    return jnp.clip(x + step_size * jnp.sign(gradient), box.lower, box.upper), None

  start = box.lower + box.width * jax.random.uniform(key, images.shape, images.dtype)
  points, _ = lax.scan(ascend, start, length=steps)
  attacked = apply(params, points)
  loss = natural_loss(logits, labels) + weight * kl_divergence(logits, attacked)
  return loss, dict(attacked_error=jnp.mean(attacked.argmax(-1) != labels))
