"""Datasets as arrays: images in [0, 1], integer labels, fixed splits."""
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A training and a test split; images are (count, height, width, channels) float32 in [0, 1]."""
  name: str
  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  classes: int


def digits() -> Dataset:
  """The 1797 handwritten 8x8 digits that scikit-learn bundles: 1297 to train on, 500 to test.

  Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its
  test part). The split is ours: stratified, random_state 0.
  """
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split
  images, labels = load_digits(return_X_y=True)
  images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
  parts = train_test_split(images, labels.astype(np.int32), test_size=500, random_state=0, stratify=labels)
  train_images, test_images, train_labels, test_labels = parts
  return Dataset('digits', train_images, train_labels, test_images, test_labels, 10)


DATASETS = {'digits': digits}


def batches(images: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator):
  """One shuffled epoch in batches of one size; the remainder is left for another epoch's order."""
  order = rng.permutation(len(images))
  for start in range(0, len(order) - size + 1, size):
    index = order[start:start + size]
    yield images[index], labels[index]
