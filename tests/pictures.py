"""Pictures for tests of data: encoded ones, splits of them, a source that hands out what it is given."""
import io

import numpy as np
from PIL import Image

from ibpjax.data.datasets import Split


def jpeg(pixels, mode='RGB'):
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, 'JPEG', quality=95)
  return file.getvalue()


def smooth(height, width):
  """A picture that JPEG keeps and no flip or crop does."""
  y, x = np.mgrid[:height, :width]
  return np.stack([255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)], -1).astype(np.uint8)


def few(n=50, seed=0):
  """A split of distinct images, whose labels are their numbers."""
  images = np.random.default_rng(seed).integers(0, 256, (n, 4, 5, 3)).astype(np.uint8)
  return Split(images, np.arange(n, dtype=np.int32))


class Given:
  """A source of given examples."""

  def __init__(self, *examples):
    self.examples = examples

  def __len__(self):
    return len(self.examples)

  def read(self, index):
    for i in index:
      yield *self.examples[i], f'example {i} of test in somewhere'
