"""What the curves of a run measure after an epoch: errors on a whole split, and how bounds come about."""
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

import ibpjax
from ibpjax import training
from ibpjax.cli import recipe
from ibpjax.data import datasets, pipeline
from ibpjax.training import augment, parallel
from ibpjax.verification.analysis import layer_growth
from ibpjax.verification.expected import drops, expectations
from ibpjax.verification.radii import lipschitz_radii, rivals, verified_accuracy

FLAGS = flags.FLAGS
_CLAIMED_ERROR = 1e-5   # of logits in float32, for curves; ibpjax certify bounds it
_ANALYSED = 200   # examples whose bounds are looked at layer by layer
one = ibpjax.batched(lambda model, x: model(x))


def evaluator(graphdef: Any, facts: datasets.Facts, split: Any, name: str, eps: float) -> Callable[..., Any]:
  """What measures a network on a whole split.

  Takes params, batch_stats and what it has seen (first `unseen`); returns natural and verified error in per cent, named
  after the split, and more, and what it has seen now.
  """
  make = _of_lipschitz if FLAGS.loss in recipe.LIPSCHITZ else _of_boxes
  return make(graphdef, facts, split, name, eps)


def unseen(split: Any) -> Any:
  """What an evaluator compares the next time, at first: the nearest other class of each example; None of nothing."""
  return jnp.full(len(split), -1, jnp.int32) if FLAGS.loss in recipe.LIPSCHITZ else None


def pixels(facts: datasets.Facts, images: Any) -> Any:
  """Stored images as a model takes them."""
  return facts.pixels(augment.centre_crop(images, facts.shape[0]))


def _of_boxes(graphdef: Any, facts: datasets.Facts, split: Any, name: str, eps: float) -> Callable[..., Any]:
  """Verified by IBP on l-infinity balls, as trained: no allowance. And how bounds of the first examples grow from
  layer to layer; with --loss=etb, what expected bounds are worth."""
  @functools.partial(jax.jit, compiler_options=training.compiler_options())
  def wrong(params, batch_stats, images, labels, counted):
    model, x = nnx.merge(graphdef, params, batch_stats), pixels(facts, images)
    with jax.default_matmul_precision('highest'):
      clean = jax.vmap(ibpjax.margins)(jax.vmap(one, (None, 0))(model, x), labels)
      bound = training.margin_bounds(one, model, x, labels, eps)
    return jnp.stack([jnp.sum(~(m.min(-1) > 0) & counted) for m in (clean, bound)])

  @functools.partial(jax.jit, compiler_options=training.compiler_options())
  def growth(params, batch_stats, images):
    return layer_growth(one, nnx.merge(graphdef, params, batch_stats), pixels(facts, images), eps)

  @functools.partial(jax.jit, compiler_options=training.compiler_options())
  def expected(params, batch_stats, images, labels):
    model, x = nnx.merge(graphdef, params, batch_stats), pixels(facts, images)
    points = training.attacked(one, model, x, labels, eps, jax.random.key(0), steps=FLAGS.pgd_steps)
    return expectations(one, model, x, labels, eps, points)
  first, mesh = next(iter(pipeline.evaluation_batches(split, _ANALYSED, 0))), parallel.data_mesh()

  def evaluate(params, batch_stats, seen):
    layers = {k: np.asarray(v, float).tolist() for k, v in growth(params, batch_stats, first[0]).items()}
    batches = pipeline.evaluation_batches(split, 1000, FLAGS.workers)
    counts = np.sum([wrong(params, batch_stats, *parallel.spread(mesh, *b)) for b in batches], axis=0)
    errors = {f'{name}_{kind}': 100 * float(n) / len(split) for kind, n in zip(('error', 'verified_error'), counts)}
    if FLAGS.loss == 'etb':
      found = drops(expected(params, batch_stats, *first))
      layers['slack'] = found.pop('slack')
      errors |= {f'expected_{k}': v for k, v in found.items() if v is not None}
    return errors | dict(layers=layers), seen
  return evaluate


def _of_lipschitz(graphdef: Any, facts: datasets.Facts, split: Any, name: str, eps: float) -> Callable[..., Any]:
  """Verified by the Lipschitz bound on l2 balls, the error of logits claimed and not bounded; that bound; and of how
  many examples another class is now nearest."""
  @functools.partial(jax.jit, compiler_options=training.compiler_options())
  def logits(params, batch_stats, images):
    with jax.default_matmul_precision('highest'):
      return nnx.merge(graphdef, params, batch_stats)(pixels(facts, images))
  mesh = parallel.data_mesh()

  def evaluate(params, batch_stats, seen):
    whole = parallel.gathered((params, batch_stats))
    bound = ibpjax.lipschitz(one)(nnx.merge(graphdef, *whole), jnp.zeros(facts.shape))
    batches = list(pipeline.evaluation_batches(split, 1000, FLAGS.workers))
    z = np.concatenate([parallel.gathered(logits(params, batch_stats, parallel.spread(mesh, images)[0]))[:len(images)]
                        for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    near, radii = rivals(z, labels, bound), lipschitz_radii(z, labels, bound, claimed_error=_CLAIMED_ERROR)
    measured = {f'{name}_error': 100 * float(np.mean(z.argmax(-1) != labels)),
                f'{name}_verified_error': 100 * (1 - verified_accuracy(radii, eps)),
                'lipschitz': bound.value}
    before = parallel.gathered(seen)
    if (before >= 0).all():
      measured['rotation'] = float(np.mean(near != before))
    return measured, near.astype(np.int32)
  return evaluate
