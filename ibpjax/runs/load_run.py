"""A trained run, opened together with the examples that it is measured on."""
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from ibpjax.core.specification import batched
from ibpjax.data import datasets, pipeline
from ibpjax.runs import directory
from ibpjax.training import augment


@dataclasses.dataclass(frozen=True)
class Opened:
  """A trained run and examples.

  Attributes:
    f: (params, pixels of one example) -> logits.
    params: its first argument.
    images, labels: the first examples of a split, as they are stored.
    of: the number of all examples of the split.
    facts: of the dataset.
    config: the flags of the run.
    graphdef: params are the states that it takes: `nnx.merge(graphdef, *params)` is the model.
  """
  f: Callable
  params: Any
  images: np.ndarray
  labels: np.ndarray
  of: int
  facts: datasets.Facts
  config: dict[str, Any]
  graphdef: Any


def open_run(run: pathlib.Path, data_dir: str | None, split: str, examples: int | None) -> Opened:
  """A run and the first examples of a split, or one clear error."""
  config = directory.read_config(run)
  data = datasets.load(config['dataset'], data_dir or config['data_dir'], config['validation'], config.get('side'))
  part = data.test if split == 'test' else data.validation
  if part is None:
    raise ValueError(f'{run} held out no examples for validation: use --split=test')
  graphdef, params = directory.trained(run, data.facts)
  total = len(part)
  part = part.take(np.arange(min(total, examples or total)))
  batches = [(augment.centre_crop(x, data.facts.shape[0]), y) for x, y in pipeline.evaluation_batches(part, 1000)]
  images, labels = map(np.concatenate, zip(*batches))

  def model(params, x):
    return nnx.merge(graphdef, *params)(x)

  return Opened(batched(model), params, images, labels, total, data.facts, config, graphdef)
