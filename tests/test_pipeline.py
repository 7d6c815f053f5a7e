"""Batches: each example is where it should be, whoever reads it; flips and crops are those of NumPy."""
import pathlib

import jax
import numpy as np
import pytest
from pictures import Given, few

from ibpjax.data import pipeline, sources
from ibpjax.data.datasets import FACTS, Split, Stream, load
from ibpjax.training import augment

TFDS = pathlib.Path(__file__).parent.parent / '../shared/tfds'


def collect(batches):
  return [(np.asarray(images), np.asarray(labels)) for images, labels in batches]


def test_every_epoch_is_another_permutation():
  split = few(50)
  feed = pipeline.Resident(split, 8, seed=3)
  assert len(feed) == 6
  orders = []
  for epoch in range(4):
    batches = collect(feed.batches(epoch))
    assert [x.shape for x, _ in batches] == [(8, 4, 5, 3)] * 6
    labels = np.concatenate([y for _, y in batches])
    assert len(set(labels)) == 48
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), split.images[labels])
    assert (batches[0][0].dtype, labels.dtype) == (np.uint8, np.int32)
    orders.append(labels.tolist())
  assert len(set(map(tuple, orders))) == 4
  assert set().union(*orders) == set(range(50))   # what one epoch leaves out another takes
  other = pipeline.Resident(split, 8, seed=4)
  assert np.concatenate([y for _, y in collect(other.batches(0))]).tolist() != orders[0]
  assert all(isinstance(x, jax.Array) for x in next(feed.batches(0)))


def test_a_resumed_epoch_sees_the_same_batches():
  whole = collect(pipeline.Resident(few(50), 8, seed=3).batches(2))
  for start in (0, 1, 5, 6):
    rest = collect(pipeline.Resident(few(50), 8, seed=3).batches(2, start))
    assert len(rest) == 6 - start
    for (x, y), (x2, y2) in zip(rest, whole[start:]):
      np.testing.assert_array_equal(x, x2)
      np.testing.assert_array_equal(y, y2)


@pytest.mark.parametrize(('workers', 'starts'), [(0, ((0, 0), (3, 4), (3, 6))), (2, ((3, 1),))])
def test_streamed_batches_are_those_of_a_resident_split(imagenet, workers, starts):
  stream = load('imagenet', imagenet).test.take(np.arange(40))
  images, labels = map(np.stack, zip(*(stream[i] for i in range(40))))
  resident, streamed = pipeline.Resident(Split(images, labels), 6, 1), pipeline.Streamed(stream, 6, 1, workers)
  assert len(streamed) == len(resident) == 6
  for epoch, start in starts:
    one, other = collect(streamed.batches(epoch, start)), collect(resident.batches(epoch, start))
    assert len(one) == len(other) == 6 - start
    for (x, y), (x2, y2) in zip(one, other):
      np.testing.assert_array_equal(x, x2)
      np.testing.assert_array_equal(y, y2)
      assert (x.dtype, y.dtype) == (np.uint8, np.int32)
  if not workers:
    last = collect(pipeline.evaluation_batches(stream, 15))
    assert [len(y) for _, y in last] == [15, 15, 10]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in last]), images)
    np.testing.assert_array_equal(np.concatenate([y for _, y in last]), labels)


def test_a_worker_reads_tensorflow_datasets():
  if not (TFDS / 'mnist').exists():
    pytest.skip(f'{TFDS} does not hold mnist: worker processes over TensorFlow Datasets are not tested')
  source = sources.tensorflow_datasets('mnist', TFDS)[1]
  stream = Stream(FACTS['mnist'], source, np.arange(20))
  batches = pipeline.Streamed(stream, 5, 0, workers=1).batches(0)
  x, y = next(batches)
  batches.close()   # an epoch can be left in the middle
  order = np.random.default_rng([0, 0]).permutation(20)
  images, labels = zip(*(stream[i] for i in order[:5]))
  np.testing.assert_array_equal(x, np.stack(images))
  assert y.tolist() == list(map(int, labels))


def test_evaluation_keeps_every_example():
  split = few(23)
  batches = collect(pipeline.evaluation_batches(split, 10))
  assert [len(y) for _, y in batches] == [10, 10, 3]
  np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), split.images)
  np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), split.labels)


# Augmentation.

def candidates(image, flip, pad, edge):
  """All results that one image may have, by NumPy, with how each came about."""
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), **(dict(mode='edge') if edge else {}))
  h, w = image.shape[:2]
  for dy in range(2 * pad + 1):
    for dx in range(2 * pad + 1):
      window = padded[dy:dy + h, dx:dx + w]
      yield window.tobytes(), (dy, dx, False)
      if flip:
        yield window[:, ::-1].tobytes(), (dy, dx, True)


@pytest.mark.parametrize(('flip', 'pad', 'edge', 'dtype'), [
    (True, 1, True, np.uint8), (True, 1, False, np.float32), (False, 2, False, np.uint8), (True, 0, True, np.float32)])
def test_augmentation_is_that_of_numpy(flip, pad, edge, dtype):
  image = np.random.default_rng(1).integers(1, 256, (5, 6, 3)).astype(dtype)
  ways = dict(candidates(image, flip, pad, edge))
  assert len(ways) == (2 * pad + 1) ** 2 * (1 + flip)
  n = 200 * len(ways)
  run = jax.jit(lambda key, x: augment.flip_and_crop(key, x, flip=flip, pad=pad, edge=edge))
  out = np.asarray(run(jax.random.key(0), np.broadcast_to(image, (n, 5, 6, 3))))
  assert (out.shape, out.dtype) == ((n, 5, 6, 3), dtype)
  seen = [ways[x.tobytes()] for x in out]   # a KeyError is a result that no flip and crop has
  counts = [seen.count(way) for way in ways.values()]
  assert min(counts) > 120   # each way is as probable: 200 +- 14
  assert max(counts) < 280


def test_augmentation_is_a_function_of_its_key_and_of_each_image():
  jitted = jax.jit(lambda key, x: augment.flip_and_crop(key, x, flip=True, pad=2, edge=False))
  images = few(150).images
  run = lambda key: np.asarray(jitted(jax.random.key(key), images))
  np.testing.assert_array_equal(run(1), run(1))
  assert (run(1) != run(2)).any()
  seen = [dict(candidates(image, True, 2, False))[out.tobytes()] for image, out in zip(images, run(1))]
  assert len(set(seen)) > 40   # of 50: images do not share their offsets
  assert augment.flip_and_crop(jax.random.key(0), images, flip=False, pad=0, edge=False) is images


def test_random_and_central_crops():
  images = np.random.default_rng(2).integers(0, 256, (600, 6, 7, 3)).astype(np.uint8)
  out = np.asarray(jax.jit(augment.crop, static_argnums=2)(jax.random.key(0), images, 4))
  assert (out.shape, out.dtype) == ((600, 4, 4, 3), np.uint8)
  seen = []
  for image, window in zip(images, out):
    places = [(y, x) for y in range(3) for x in range(4) if (image[y:y + 4, x:x + 4] == window).all()]
    assert len(places) == 1
    seen += places
  assert min(seen.count(place) for place in set(seen)) > 20   # 50 +- 7
  assert len(set(seen)) == 12
  np.testing.assert_array_equal(augment.centre_crop(images, 4), images[:, 1:5, 1:5])
  np.testing.assert_array_equal(augment.centre_crop(images[:, :, :6], 6), images[:, :, :6])
  assert augment.crop(jax.random.key(0), images[:, :, :6], 6).shape == (600, 6, 6, 3)


def test_bad_sizes_are_one_clear_error():
  for size in (0, 51):
    with pytest.raises(ValueError, match=f'a batch of {size} examples cannot be taken from the 50 examples'):
      pipeline.Resident(few(50), size, 0)
  stream = Stream(FACTS['imagenet'], Given((b'', 0)), np.arange(1))
  with pytest.raises(ValueError, match='a batch of 2 examples cannot be taken from the 1 examples'):
    pipeline.Streamed(stream, 2, 0, 0)
  images, key = few(2).images, jax.random.key(0)
  with pytest.raises(ValueError, match='pad=-1'):
    augment.flip_and_crop(key, images, flip=True, pad=-1, edge=True)
  for size in (0, 5):
    with pytest.raises(ValueError, match=f'a window of {size} x {size} pixels does not fit in images of 4 x 5'):
      augment.crop(key, images, size)
    with pytest.raises(ValueError, match='does not fit'):
      augment.centre_crop(images, size)


def test_generated_examples_stand_behind_those_of_the_split():
  """In the order of epochs of their own, which go on where those of the split end; and so when it is resumed."""
  split, made = few(20), few(14)
  real, others = pipeline.Resident(split, 8, seed=3), pipeline.Resident(made, 4, seed=3)
  mixed = pipeline.Mixed(real, others)
  assert len(mixed) == 2
  batches = [batch for epoch in range(4) for batch in collect(mixed.batches(epoch))]
  expected = [batch for epoch in range(4) for batch in collect(real.batches(epoch))]
  behind = [batch for epoch in range(3) for batch in collect(others.batches(epoch))][:8]
  for (images, labels), (x, y), (u, v) in zip(batches, expected, behind, strict=True):
    np.testing.assert_array_equal(images, np.concatenate([x, u]))
    np.testing.assert_array_equal(labels, np.concatenate([y, v]))
  resumed = collect(mixed.batches(2, 1))
  np.testing.assert_array_equal(resumed[0][0], batches[5][0])
