"""Batches of a stream in one of two processes of two devices each: what it decodes, and what the batches are.

Run by `test_parallel`, with the address of the first process and the number of this one; prints JSON.
"""
import json
import sys

import jax
import numpy as np

from ibpjax.data import pipeline
from ibpjax.training import parallel


class Numbers:
  """Image i is full of i, and its label is i."""

  def __init__(self):
    self.decoded = set()

  def __len__(self):
    return 21

  def __getitem__(self, i):
    self.decoded.add(int(i))
    return np.full((2, 2, 1), i, np.uint8), np.int32(i)


if __name__ == '__main__':
  jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
  stream = Numbers()
  batches = pipeline.Streamed(stream, 8, seed=3, workers=0, mesh=parallel.data_mesh()).batches(epoch=1)
  found = [parallel.gathered(batch) for batch in batches]
  for images, labels in found:
    assert np.all(images == labels[:, None, None, None]), 'images and labels of different rows'
  print(json.dumps(dict(labels=[labels.tolist() for _, labels in found], decoded=sorted(stream.decoded))))
