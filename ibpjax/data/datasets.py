"""Datasets: facts about each, and their splits as stored pixels and labels, from files that are already there."""
import dataclasses
import io
import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ibpjax.data.sources import Source, image_folders, looked_for, tensorflow_datasets


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known of a dataset without reading it; a pixel is its stored value / levels, in [0, 1]."""
  name: str
  shape: tuple[int, int, int]   # height, width, channels, as a model takes them
  classes: int
  mean: tuple[float, ...] = (0.,)   # of each channel, as is usual for the dataset; in units of pixels
  std: tuple[float, ...] = (1.,)
  levels: int = 255
  flip: bool = False   # whether a mirrored example is one too
  pad: int = 0   # pixels of padding before a random crop
  edge: bool = False   # pad with the pixels of the edge, or with zeros

  def pixels(self, stored: Any) -> Any:
    """Stored images, of NumPy or on the device, as float32 in [0, 1]."""
    return stored.astype(np.float32) / self.levels


# Flips and crops of CIFAR and Tiny ImageNet are those of Shi et al. 2021.
FACTS = {facts.name: facts for facts in (
    Facts('digits', (8, 8, 1), 10, levels=16),
    Facts('mnist', (28, 28, 1), 10),
    Facts('fashion_mnist', (28, 28, 1), 10),
    Facts('cifar10', (32, 32, 3), 10, (.4914, .4822, .4465), (.2023, .1994, .2010), flip=True, pad=2, edge=True),
    Facts('cifar100', (32, 32, 3), 100, (.5071, .4865, .4409), (.2673, .2564, .2762), flip=True, pad=2, edge=True),
    Facts('tiny_imagenet', (64, 64, 3), 200, (.4802, .4481, .3975), (.2302, .2265, .2262), flip=True, pad=4, edge=True),
    Facts('imagenet', (224, 224, 3), 1000, (.485, .456, .406), (.229, .224, .225), flip=True))}
STREAMED = ('imagenet',)   # what does not fit in memory
STREAMED_SIDE = 256   # height and width of the images of a stream; crops to `Facts.shape` are made on the device
ARRAYS = ('train_images', 'train_labels', 'test_images', 'test_labels')   # of a packed .npz


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Examples in memory: images uint8 (n, height, width, channels), labels int32 (n,)."""
  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, index: np.ndarray) -> 'Split':
    return Split(self.images[index], self.labels[index])


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Examples decoded when asked for: stream[i] is an image uint8 (256, 256, 3) and its label. Can be pickled.

  The shorter side of the image is scaled to 256 pixels, and the square in the middle kept.
  """
  facts: Facts
  source: Source
  index: np.ndarray   # which examples of the source

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.int32]:
    (encoded, label, name), = self.source.read([int(self.index[i])])
    return _decode(self.facts, encoded, name), _checked_label(self.facts, label, name)

  def take(self, index: np.ndarray) -> 'Stream':
    return dataclasses.replace(self, index=self.index[index])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """The splits of a dataset; `validation` is held out of the training split, or None."""
  facts: Facts
  train: Split | Stream
  validation: Split | Stream | None
  test: Split | Stream


def load(name: str, data_dir: str | os.PathLike | None = None, validation: int = 0,
         side: int | None = None) -> Dataset:
  """A dataset from a folder of packed .npz files, TensorFlow Datasets (as array_record) or image folders.

  Nothing is downloaded. The test split of tiny_imagenet and imagenet is the one published for
  validation, whose labels are known.

  Args:
    name: one of FACTS.
    data_dir: the folder; `digits` needs none.
    validation: examples to hold out of the training split; which ones depends on nothing else.
    side: height and width that a model takes, if less than those stored: images are cut to it, at random in training
      and in the middle else, in the place of other crops.

  Raises:
    FileNotFoundError: the folder does not hold the dataset.
    ValueError: the name is unknown, or what is stored is not the dataset.
  """
  if name not in FACTS:
    raise ValueError(f'unknown dataset {name!r}: known are {", ".join(FACTS)}')
  facts = FACTS[name]
  if side is not None:
    if not 0 < side <= min(facts.shape[:2]):
      raise ValueError(f'images of {name} have {facts.shape[0]}x{facts.shape[1]} pixels and cannot be cut to a side of '
                       f'{side}')
    facts = dataclasses.replace(facts, shape=(side, side, facts.shape[2]), pad=0)
  train, test = _splits(FACTS[name], None if data_dir is None else pathlib.Path(data_dir).expanduser())
  if not 0 <= validation < len(train):
    raise ValueError(f'{validation} validation examples cannot be held out of the {len(train)} training examples of '
                     f'{name}')
  if not validation:
    return Dataset(facts, train, None, test)
  order = np.random.default_rng(0).permutation(len(train))
  held, rest = np.sort(order[:validation]), np.sort(order[validation:])
  return Dataset(facts, train.take(rest), train.take(held), test)


def _splits(facts: Facts, folder: pathlib.Path | None) -> Any:
  """The training and the test split, from the first place that has them."""
  name = facts.name
  if folder and name not in STREAMED and (folder / f'{name}.npz').exists():
    return _packed(facts, folder / f'{name}.npz')
  if name == 'digits':
    return _digits()
  if folder is None:
    raise ValueError(f'{name} needs data_dir, the folder that holds it')
  sources = image_folders(name, facts.classes, folder) or tensorflow_datasets(name, folder)
  if not sources:
    packed = [] if name in STREAMED else [f'{folder / name}.npz (written by ibpjax pack)']
    missing = ', no '.join(packed + looked_for(name, folder))
    raise FileNotFoundError(f'{folder} does not hold {name}: there is no {missing}. Set data_dir to a folder '
                            'that holds one of these; nothing is downloaded')
  if name in STREAMED:
    return tuple(Stream(facts, source, np.arange(len(source))) for source in sources)
  return tuple(_read_all(facts, source, part) for source, part in zip(sources, ('train', 'test')))


def _read_all(facts: Facts, source: Source, part: str) -> Split:
  images, labels = np.empty((len(source), *facts.shape), np.uint8), np.empty(len(source), np.int32)
  chunk = 500   # array_record reads many examples at once ten times as fast as one by one
  with tqdm(total=len(source), desc=f'decoding {facts.name} {part}', unit='image', disable=None) as progress:
    for start in range(0, len(source), chunk):
      index = range(start, min(start + chunk, len(source)))
      for i, (encoded, label, name) in zip(index, source.read(index)):
        image = _decode(facts, encoded, name)
        if image.shape != facts.shape:
          raise ValueError(f'{name} has the shape {image.shape}; images of {facts.name} have {facts.shape}')
        images[i], labels[i] = image, _checked_label(facts, label, name)
      progress.update(len(index))
  return Split(images, labels)


def _decode(facts: Facts, encoded: bytes, name: str) -> np.ndarray:
  """The pixels of an encoded image, uint8 (height, width, channels), in grey or RGB as the dataset is."""
  channels = facts.shape[2]
  try:
    with Image.open(io.BytesIO(encoded)) as file:
      image = file.convert('L' if channels == 1 else 'RGB')
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise ValueError(f'{name} of {facts.name} cannot be decoded ({error}): it is corrupt or cut short. Fetch it '
                     'again') from error
  if facts.name in STREAMED:
    side = min(image.size)
    left, top = ((n - side) / 2 for n in image.size)
    image = image.resize((STREAMED_SIDE, STREAMED_SIDE), Image.Resampling.BILINEAR,
                         box=(left, top, left + side, top + side))
  return np.asarray(image).reshape(image.height, image.width, channels)


def _checked_label(facts: Facts, label: int, name: str) -> np.int32:
  if not 0 <= label < facts.classes:
    raise ValueError(f'the label of {name} is {label}; {facts.name} has {facts.classes} classes, from 0')
  return np.int32(label)


def _digits() -> tuple[Split, Split]:
  """The 1797 handwritten 8x8 digits that scikit-learn bundles: 1297 to train on, 500 to test.

  Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its
  test part). The split is ours: stratified, random_state 0.
  """
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split
  images, labels = load_digits(return_X_y=True)
  images, labels = images.astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int32)
  train_images, test_images, train_labels, test_labels = train_test_split(
      images, labels, test_size=500, random_state=0, stratify=labels)
  return Split(train_images, train_labels), Split(test_images, test_labels)


def pack(name: str, train: Split, test: Split, out: pathlib.Path) -> pathlib.Path:
  """Writes <out>/<name>.npz: all of it or nothing."""
  out.mkdir(parents=True, exist_ok=True)
  path, partial = out / f'{name}.npz', out / f'.{name}-{os.getpid()}.npz'
  try:
    np.savez_compressed(partial, train_images=train.images, train_labels=train.labels,
                        test_images=test.images, test_labels=test.labels)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  return path


def generated(facts: Facts, path: str | os.PathLike) -> Split:
  """Generated examples of a dataset, from a .npz: `image`, uint8 (n, height, width, channels), and `label`.

  Raises:
    FileNotFoundError, ValueError: there is no such file, or it holds something else.
  """
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist: --generated names a .npz with the arrays image and label')
  remedy = 'Give it the arrays image, uint8, and label'
  images, labels = _arrays(path, ('image', 'label'), remedy)
  return _checked(facts, path, 'image', 'label', images, labels, remedy)


def _arrays(path: pathlib.Path, names: tuple[str, ...], remedy: str) -> list[np.ndarray]:
  """Arrays of a .npz, which is no pickle."""
  try:
    with path.open('rb') as stream, np.load(stream, allow_pickle=False) as file:
      missing = [name for name in names if name not in file]
      arrays = [] if missing else [file[name] for name in names]
  except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise ValueError(f'{path} cannot be read ({error}). {remedy}') from error
  if missing:
    raise ValueError(f'{path} lacks {", ".join(missing)}. {remedy}')
  return arrays


def _checked(facts: Facts, path: pathlib.Path, of_images: str, of_labels: str, images: np.ndarray, labels: np.ndarray,
             remedy: str) -> Split:
  """Arrays of a file as a split of a dataset, if they can be that."""
  if images.dtype != np.uint8 or images.shape[1:] != facts.shape or not len(images):
    raise ValueError(f'{of_images} of {path} are {images.dtype} {images.shape}; they must be uint8 '
                     f'(n, {", ".join(map(str, facts.shape))}), n > 0. {remedy}')
  if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
    raise ValueError(f'{of_labels} of {path} are {labels.dtype} {labels.shape}; they must be integers '
                     f'({len(images)},). {remedy}')
  wrong = np.flatnonzero((labels < 0) | (labels >= facts.classes))
  if len(wrong):
    _checked_label(facts, labels[wrong[0]], f'{of_labels} number {wrong[0]} of {path}')
  return Split(images, labels.astype(np.int32))


def _packed(facts: Facts, path: pathlib.Path) -> tuple[Split, Split]:
  """The splits in a file that `pack` wrote."""
  remedy = 'Pack it again with `ibpjax pack`'
  arrays = _arrays(path, ARRAYS, remedy)
  train, test = (_checked(facts, path, ARRAYS[i], ARRAYS[i + 1], arrays[i], arrays[i + 1], remedy) for i in (0, 2))
  return train, test
