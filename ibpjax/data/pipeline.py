"""Batches of a split, in an order that is a function of the seed and the epoch: a resumed run sees the same ones."""
import gc
import itertools
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ibpjax.data.datasets import Split, Stream
from ibpjax.training import parallel


class Resident:
  """Batches of a split that lies on the devices; its remainder is left for another epoch's order.

  Args:
    split, batch_size: of what, and how many examples at a time.
    seed: of the orders.
    mesh: the devices, each of which has the whole split and gets an equal part of each batch; the first one by default.
  """

  def __init__(self, split: Split, batch_size: int, seed: int, mesh: jax.sharding.Mesh | None = None):
    self._length = _full_batches(split, batch_size)
    self._batch_size, self._seed = batch_size, seed
    mesh = _one_device() if mesh is None else mesh
    self.sharding = parallel.batch_sharding(mesh)
    self._whole = parallel.replicated(mesh)
    self._examples = jax.device_put((split.images, split.labels), self._whole)
    self._gather = jax.jit(_gather, static_argnums=3, out_shardings=self.sharding)

  def __len__(self) -> int:
    """Batches in an epoch."""
    return self._length

  def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Batches number `start`, `start` + 1, ... of an epoch.

    Yields:
      Stored images uint8 (batch_size, height, width, channels), and labels int32 (batch_size,).
    """
    order = jax.device_put(_order(len(self._examples[1]), self._seed, epoch), self._whole)
    for number in range(start, len(self)):
      yield self._gather(self._examples, order, np.int32(number), self._batch_size)


class Streamed:
  """Batches of a stream, like those of `Resident`, decoded ahead by worker processes.

  Where there are several hosts, each decodes the rows of a batch that lie on its devices.

  Args:
    stream: its images all have one shape.
    batch_size, seed, mesh: as for `Resident`.
    workers: processes; 0 for threads of this one. The batches are the same. Each keeps some batches in shared
      memory (/dev/shm).
  """

  def __init__(self, stream: Stream, batch_size: int, seed: int, workers: int, mesh: jax.sharding.Mesh | None = None):
    self._length = _full_batches(stream, batch_size)
    self.sharding = parallel.batch_sharding(_one_device() if mesh is None else mesh)
    self._stream, self._batch_size, self._seed, self._workers = stream, batch_size, seed, workers

  def __len__(self) -> int:
    """Batches in an epoch."""
    return self._length

  def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Batches number `start`, `start` + 1, ... of an epoch, like those of `Resident`."""
    order = _order(len(self._stream), self._seed, epoch)[:len(self) * self._batch_size]
    rows = parallel.rows_here(self.sharding, self._batch_size)
    index = order.reshape(len(self), -1)[start:, rows].reshape(-1)
    for batch in _decoded(self._stream, index, len(rows), self._workers):
      yield parallel.assembled(self.sharding, self._batch_size, rows, batch)


class Mixed:
  """Batches of a split, each followed by some of generated examples, which have epochs of their own."""

  def __init__(self, real: Resident | Streamed, generated: Resident):
    self._real, self._generated = real, generated

  def __len__(self) -> int:
    """Batches in an epoch of the split."""
    return len(self._real)

  def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Batches number `start`, `start` + 1, ... of an epoch of the split, like those of `Resident`, and longer."""
    other, first = divmod(epoch * len(self) + start, len(self._generated))
    rest = itertools.chain.from_iterable(map(self._generated.batches, itertools.count(other + 1)))
    more = itertools.chain(self._generated.batches(other, first), rest)
    for real, made in zip(self._real.batches(epoch, start), more):
      yield jax.device_put(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), real, made), self._real.sharding)


def evaluation_batches(split: Split | Stream, batch_size: int, workers: int = 0) -> Iterator[tuple[Any, Any]]:
  """All examples in order as NumPy arrays (images, labels); the last batch may be shorter."""
  if isinstance(split, Stream):
    yield from _decoded(split, np.arange(len(split)), batch_size, workers)
    return
  for start in range(0, len(split), batch_size):
    yield split.images[start:start + batch_size], split.labels[start:start + batch_size]


def _full_batches(split: Split | Stream, batch_size: int) -> int:
  if not 0 < batch_size <= len(split):
    raise ValueError(f'a batch of {batch_size} examples cannot be taken from the {len(split)} examples of the split')
  return len(split) // batch_size


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)


def _one_device() -> jax.sharding.Mesh:
  return parallel.data_mesh(jax.devices()[:1])


def _gather(examples: Any, order: Any, number: Any, batch_size: int) -> Any:
  index = jax.lax.dynamic_slice(order, (number * batch_size,), (batch_size,))
  return jax.tree.map(lambda x: x.at[index].get(mode='promise_in_bounds', unique_indices=True), examples)


def _decoded(stream: Stream, index: np.ndarray, batch_size: int, workers: int) -> Iterator[tuple[Any, Any]]:
  """Batches of the examples with these indices, in their order; the last one may be shorter."""
  if not len(index):
    return
  import grain
  if not flags.FLAGS.is_parsed():   # grain reads flags of its own, which hold their defaults outside an absl binary
    flags.FLAGS.mark_as_parsed()
  # Whole batches are dealt out to workers, so that their number changes nothing. Buffers are counted in batches.
  threads = 1 if workers else min(8, os.cpu_count() or 1)
  batches = grain.MapDataset.source(index).map(stream.__getitem__).batch(batch_size)
  ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
  iterator = iter(ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)))
  try:
    for batch in iterator:
      yield np.array(batch[0]), np.array(batch[1])   # copies, since the memory is shared with a worker and ends with it
  finally:
    iterator.close()
    if workers:   # a closed iterator is held by a cycle, and holds a batch of each worker in shared memory
      iterator = batch = None
      gc.collect()
