"""Measures what a step of training costs: certified losses beside natural, and the input pipeline beside both.

    python -m experiments.step_cost --models=mlp,dm_small --batch_size=256
    python -m experiments.step_cost --models=dm_small,dm_medium --valid --losses=ibp,etb,companion --batch_size=32
    python -m experiments.step_cost --models=cnn7 --width=8 --losses=ibp,shi --batch_size=128
    python -m experiments.step_cost --models=liresnet --depth=4 --width=32 --losses=emma

Natural steps, steps of the losses (kappa 0: the natural loss is but measured) and of `mixed`, IBP and the natural loss,
run in turn (A B C A B C ...), optimizer and metrics included, on images of MNIST's shape made at random and held on
the device as stored bytes. XLA cost is the number of floating-point operations that the compiled program reports, that
of a natural step for each example. Drawing a batch is timed by itself, beside the first loss.
"""
import dataclasses
import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import ibpjax
from experiments.timing import in_turn, timed
from ibpjax import training
from ibpjax.cli import commands
from ibpjax.data import datasets, pipeline
from ibpjax.runs import directory

FLAGS = flags.FLAGS
flags.DEFINE_list('models', ['mlp', 'dm_small'], 'Networks to measure.')
flags.DEFINE_enum('dataset', 'mnist', list(datasets.FACTS), 'Whose shapes to use; the images are random.')
flags.DEFINE_integer('batch_size', 256, 'Examples a step.', 1)
flags.DEFINE_integer('repeats', 15, 'Rounds to time; the median counts.', 3)
flags.DEFINE_float('eps', .1, 'Radius.', 0., 1.)
flags.DEFINE_bool('valid', False, 'No padding in dm_small and dm_medium.')
flags.DEFINE_integer('width', None, 'Channels of the first layer of networks of which it is an option.', 1)
flags.DEFINE_integer('depth', None, 'Blocks of networks of which it is an option.', 1)


OBJECTIVES: dict[str, Any] = {
    'ibp': training.ibp_objective, 'mixed': training.ibp_objective, 'etb': training.etb_objective,
    'companion': training.companion_objective,
    'shi': functools.partial(training.ibp_objective, regularizer=functools.partial(
        training.warm_up_regularizer, weight=lambda _: .5)),
    'crown-ibp': functools.partial(training.crown_objective, beta=lambda _: 1.), 'emma': training.lipschitz_objective}
ESTIMATES = {'emma': ibpjax.lipschitz_estimate}
flags.DEFINE_list('losses', ['ibp', 'mixed'], f'What is measured beside natural steps: {", ".join(OBJECTIVES)}.')


def measure(name: str, feed: pipeline.Resident) -> dict[str, Any]:
  """Seconds and XLA cost of a natural step and of the others, over the natural one; the part that drawing takes."""
  facts = datasets.FACTS[FLAGS.dataset]
  optimizer = optax.adam(1e-4)
  config = dict(model=name) | {option: FLAGS[option].value for option in ('valid', 'width', 'depth')
                               if name in directory.OPTIONS[option]}
  model = directory.build_model(config, facts, 0)
  graphdef, state = training.TrainState.create(model, optimizer)
  key = jax.random.key(0)
  mixed = training.linear(.5, 0, 100, initial=1.)
  batch = next(iter(feed.batches(0)))

  def step(objective, kappa, estimate=None):
    carried = estimate and training.carried_at_start(model, estimate, jnp.zeros(facts.shape), key)
    start = dataclasses.replace(state, carried=carried)

    def run(start, images, labels):
      return training.train_step(start, (facts.pixels(images), labels), key, graphdef=graphdef, optimizer=optimizer,
                                 eps=lambda _: FLAGS.eps, kappa=kappa, objective=objective, estimate=estimate)
    return jax.jit(run, compiler_options=training.compiler_options()).lower(start, *batch).compile(), start
  contestants, starts = zip(step(None, mixed), *(
      step(OBJECTIVES[loss], mixed if loss == 'mixed' else lambda _: 0., ESTIMATES.get(loss)) for loss in FLAGS.losses))
  costs = [program.cost_analysis()['flops'] for program in contestants]
  rounds = in_turn([functools.partial(f, start) for f, start in zip(contestants, starts)], *batch,
                   repeats=FLAGS.repeats)
  drawn = feed.batches(1)
  draws = [timed(next, drawn) for _ in range(min(FLAGS.repeats, len(feed)))]
  seconds = [statistics.median(times) for times in zip(*rounds)]
  ratios = [statistics.median(r[i] / r[0] for r in rounds) for i in range(len(seconds))]
  draw = statistics.median(draws[1:])
  return dict(seconds=seconds, ratios=ratios, costs=[c / costs[0] for c in costs],
              cost=costs[0] / FLAGS.batch_size, input=draw / (seconds[1] + draw))


def main() -> None:
  if unknown := set(FLAGS.losses) - set(OBJECTIVES):
    raise app.UsageError(f'--losses={",".join(sorted(unknown))}: known are {", ".join(OBJECTIVES)}')
  if unknown := set(FLAGS.models) - set(directory.MODELS):
    raise app.UsageError(f'--models={",".join(sorted(unknown))}: known are {", ".join(directory.MODELS)}')
  facts, rng = datasets.FACTS[FLAGS.dataset], np.random.default_rng(0)
  count = max(20 * FLAGS.batch_size, 10_000)
  images = rng.integers(0, 256, (count, *facts.shape), np.uint8)
  labels = rng.integers(0, facts.classes, count).astype(np.int32)
  feed = pipeline.Resident(datasets.Split(images, labels), FLAGS.batch_size, 0)
  print(f'{directory.versions()["devices"]}, jax {jax.__version__}, batch {FLAGS.batch_size}, {FLAGS.repeats} rounds')
  print(f'{"network":<13} {"loss":<10} {"ms":>9} {"ratio":>6} {"XLA cost":>9} {"input":>7}')
  for name in FLAGS.models:
    found = measure(name, feed)
    print(f'{name:<13} {"natural":<10} {1e3 * found["seconds"][0]:>9.2f} {"":>6} {found["cost"] / 1e6:>5.1f} MF')
    for i, loss in enumerate(FLAGS.losses, 1):
      share = f'{100 * found["input"]:>6.1f}%' if i == 1 else ''
      print(f'{name:<13} {loss:<10} {1e3 * found["seconds"][i]:>9.2f} {found["ratios"][i]:>6.2f} '
            f'{found["costs"][i]:>9.2f} {share:>7}')


if __name__ == '__main__':
  commands.run(main, keep=False)  # compile times are measured
