"""Measures what a step of training costs: IBP beside natural, and the input pipeline beside both.

    python -m experiments.step_cost --models=mlp,dm_small --batch_size=256

Natural steps, IBP steps (kappa 0: the natural loss is but measured) and steps on a mixture of both losses run in turn
(A B C A B C ...), optimizer and metrics included, on images of MNIST's shape made at random and held on the device
as stored bytes. Drawing a batch is timed by itself, beside the step that it is drawn for.
"""
import functools
import statistics

import jax
import numpy as np
import optax
from absl import app, flags

from experiments import datasets, pipeline, runs
from experiments.timing import in_turn, timed
from ibpjax import training

FLAGS = flags.FLAGS
flags.DEFINE_list('models', ['mlp', 'dm_small'], 'Networks to measure.')
flags.DEFINE_enum('dataset', 'mnist', list(datasets.FACTS), 'Whose shapes to use; the images are random.')
flags.DEFINE_integer('batch_size', 256, 'Examples a step.', 1)
flags.DEFINE_integer('repeats', 15, 'Rounds to time; the median counts.', 3)


def measure(name: str, feed: pipeline.Resident) -> dict[str, float]:
  """Seconds of a natural, an IBP and a mixed step, their ratios round by round, the part that drawing batches takes."""
  facts = datasets.FACTS[FLAGS.dataset]
  optimizer = optax.adam(1e-4)
  graphdef, state = training.TrainState.create(runs.build_model(dict(model=name), facts, 0), optimizer)
  key = jax.random.key(0)

  def step(objective, kappa):
    @functools.partial(jax.jit, compiler_options=training.compiler_options())
    def run(state, images, labels):
      batch = facts.pixels(images), labels
      return training.train_step(state, batch, key, graphdef=graphdef, optimizer=optimizer, eps=lambda _: .1,
                                 kappa=kappa, objective=objective)
    return run
  mixed = training.linear(.5, 0, 100, initial=1.)
  contestants = step(None, mixed), step(training.ibp_objective, lambda _: 0.), step(training.ibp_objective, mixed)
  batch = next(iter(feed.batches(0)))
  rounds = in_turn(contestants, state, *batch, repeats=FLAGS.repeats)
  drawn = feed.batches(1)
  draws = [timed(next, drawn) for _ in range(min(FLAGS.repeats, len(feed)))]
  natural, ibp, both = (statistics.median(times) for times in zip(*rounds))
  draw = statistics.median(draws[1:])
  return dict(natural=natural, ibp=ibp, mixed=both, ibp_ratio=statistics.median(b / a for a, b, _ in rounds),
              mixed_ratio=statistics.median(c / a for a, _, c in rounds), input=draw / (ibp + draw))


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}: all options are flags, --name=value')
  if unknown := set(FLAGS.models) - set(runs.MODELS):
    raise app.UsageError(f'--models={",".join(sorted(unknown))}: known are {", ".join(runs.MODELS)}')
  facts, rng = datasets.FACTS[FLAGS.dataset], np.random.default_rng(0)
  count = max(20 * FLAGS.batch_size, 10_000)
  images = rng.integers(0, 256, (count, *facts.shape), np.uint8)
  labels = rng.integers(0, facts.classes, count).astype(np.int32)
  feed = pipeline.Resident(datasets.Split(images, labels), FLAGS.batch_size, 0)
  print(f'{runs.versions()["devices"]}, jax {jax.__version__}, batch {FLAGS.batch_size}, {FLAGS.repeats} rounds')
  print(f'{"network":<10} {"natural ms":>10} {"IBP ms":>9} {"mixed ms":>9} {"IBP ratio":>10} {"mixed ratio":>12} '
        f'{"input / IBP":>12}')
  for name in FLAGS.models:
    found = measure(name, feed)
    print(f'{name:<10} {1e3 * found["natural"]:>10.2f} {1e3 * found["ibp"]:>9.2f} {1e3 * found["mixed"]:>9.2f} '
          f'{found["ibp_ratio"]:>10.2f} {found["mixed_ratio"]:>12.2f} {100 * found["input"]:>10.1f} %')


if __name__ == '__main__':
  app.run(main)
