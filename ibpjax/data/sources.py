"""Where examples are stored: random access to encoded images in TensorFlow Datasets and in image folders."""
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

TFDS_NAMES = {'mnist': 'mnist', 'fashion_mnist': 'fashion_mnist', 'cifar10': 'cifar10', 'cifar100': 'cifar100',
              'imagenet': 'imagenet2012'}
PREPARE = 'Prepare it again with `tfds build --file_format=array_record`'
# What image folders are known by. They are data_dir itself or lie in it.
LANDMARKS = {'tiny_imagenet': ('wnids.txt', 'tiny-imagenet-200/wnids.txt'), 'imagenet': ('val', 'imagenet/val')}


class Source(Protocol):
  """Random access to encoded examples; can be pickled."""

  def __len__(self) -> int: ...

  def read(self, index: Sequence[int]) -> Iterator[tuple[bytes, int, str]]:
    """An encoded image, its label, and a name for errors, for each index."""


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """Examples of a split of TensorFlow Datasets."""
  data: Any
  name: str

  def __len__(self) -> int:
    return len(self.data)

  def read(self, index: Sequence[int]) -> Iterator[tuple[bytes, int, str]]:
    try:
      examples = self.data.__getitems__(list(index))
    except Exception as error:   # of array_record or of protocol buffers: a file is missing, cut short or corrupt
      raise ValueError(f'{self.name} cannot be read ({error}). {PREPARE}') from error
    for i, example in zip(index, examples):
      yield example['image'], int(example['label']), f'example {i} of {self.name}'


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
  """Examples in files of their own."""
  root: pathlib.Path
  paths: np.ndarray   # below the root, as bytes: every worker process gets a copy, of a million for imagenet
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.paths)

  def read(self, index: Sequence[int]) -> Iterator[tuple[bytes, int, str]]:
    for i in index:
      path = self.root / os.fsdecode(self.paths[i])
      yield path.read_bytes(), int(self.labels[i]), str(path)

  @classmethod
  def of(cls, root: pathlib.Path, examples: Sequence[tuple[str, int]]) -> 'Files':
    return cls(root, np.array([os.fsencode(path) for path, _ in examples]), np.array([label for _, label in examples]))


def looked_for(name: str, folder: pathlib.Path) -> list[str]:
  """What `image_folders` and `tensorflow_datasets` look for, for an error that says so."""
  marks = [f'{folder / mark} (of the image folders)' for mark in LANDMARKS.get(name, ())]
  if name in TFDS_NAMES:
    marks.append(f'{folder / TFDS_NAMES[name]}/<version>/dataset_info.json (of TensorFlow Datasets)')
  return marks


def tensorflow_datasets(name: str, folder: pathlib.Path) -> list[Source]:
  """Training and test examples as TensorFlow Datasets stores them, in its newest version; [] if it does not.

  Only the folder is read: nothing is asked of the network, and TensorFlow is not needed.
  """
  if name not in TFDS_NAMES:
    return []
  found = [path.parent for path in (folder / TFDS_NAMES[name]).glob('*/dataset_info.json')
           if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)]
  if not found:
    return []
  import tensorflow_datasets as tfds
  newest = max(found, key=lambda path: [int(n) for n in path.name.split('.')])
  parts = ('train', 'validation' if name == 'imagenet' else 'test')
  decoders = dict(image=tfds.decode.SkipDecoding())
  try:
    builder = tfds.builder_from_directory(newest)
    return [Records(builder.as_data_source(part, decoders=decoders), f'{part} in {newest}') for part in parts]
  except Exception as error:   # of many kinds: bad JSON, an unknown split, a format without random access
    raise ValueError(f'{newest} does not hold the splits {" and ".join(parts)} as array_record ({error}). '
                     f'{PREPARE}') from error


def image_folders(name: str, classes: int, folder: pathlib.Path) -> list[Source]:
  """Training and test examples in the folders that a dataset is published as; [] if they are not there."""
  found = [folder / mark for mark in LANDMARKS.get(name, ()) if (folder / mark).exists()]
  if not found:
    return []
  root = found[0].parent
  if name == 'imagenet':
    wnids = sorted(entry.name for entry in os.scandir(root / 'val') if entry.is_dir())
    return [_class_folders(root / part, wnids, classes) for part in ('train', 'val')]
  wnids, listing = found[0].read_text().split(), root / 'val' / 'val_annotations.txt'
  train = _class_folders(root / 'train', wnids, classes, 'images')
  if not listing.exists():
    raise FileNotFoundError(f'{listing} is missing: it holds the labels of the images beside it. Unpack {name} again')
  rows = [line.split('\t') for line in listing.read_text().splitlines()]
  strange = [i for i, row in enumerate(rows, 1) if len(row) < 2 or row[1] not in wnids]
  if strange or not rows:
    raise ValueError(f'line {strange[0] if strange else 1} of {listing} does not name an image and one of the classes '
                     f'in {found[0]}. Unpack {name} again')
  return [train, Files.of(root / 'val' / 'images', [(row[0], wnids.index(row[1])) for row in rows])]


def _class_folders(root: pathlib.Path, wnids: list[str], classes: int, inner: str = '') -> Files:
  """The images in a folder for each class, in the order of the classes and of names.

  A missing folder is an error, and not one class less, which would shift the labels of the others.
  """
  present = {entry.name for entry in os.scandir(root) if entry.is_dir()} if root.is_dir() else set()
  if len(wnids) != classes or present != set(wnids):
    raise ValueError(f'{root} has {len(present)} folders of classes, {len(present & set(wnids))} of them among the '
                     f'{len(wnids)} that are listed; there must be {classes}. Unpack it again')
  examples = []
  for label, wnid in enumerate(wnids):
    where = root / wnid / inner
    names = sorted(n for n in os.listdir(where) if n.lower().endswith(('.jpeg', '.jpg'))) if where.is_dir() else []
    if not names:
      raise ValueError(f'{where} holds no .JPEG files. Unpack it again')
    examples += [(os.path.join(wnid, inner, name), label) for name in names]
  return Files.of(root, examples)
