"""Packs a dataset into one .npz, which loads in a second and is one file to copy to another machine.

    ibpjax pack --dataset=mnist --data_dir=~/tensorflow_datasets --out=packed
"""
import pathlib

from absl import flags, logging

from ibpjax.cli import commands
from ibpjax.data import datasets

FLAGS = flags.FLAGS
flags.DEFINE_enum('dataset', None, [name for name in datasets.FACTS if name not in datasets.STREAMED],
                  'What to pack; imagenet is read from where it is.', required=True)
flags.DEFINE_string('data_dir', '~/tensorflow_datasets', 'Folder of TFDS, of packed .npz files, or of image folders.')
flags.DEFINE_string('out', 'packed', 'Folder of the .npz, which is replaced if it is there.')


def main() -> None:
  logging.set_verbosity(logging.WARNING)  # of TensorFlow Datasets
  data = datasets.load(FLAGS.dataset, FLAGS.data_dir)
  train, test = data.train, data.test
  assert isinstance(train, datasets.Split)
  assert isinstance(test, datasets.Split)
  path = datasets.pack(FLAGS.dataset, train, test, pathlib.Path(FLAGS.out).expanduser())
  pixels = train.images.nbytes + test.images.nbytes
  print(f'{path}: {len(train)} training and {len(test)} test examples, {pixels / 1e6:.1f} MB of pixels in '
        f'{path.stat().st_size / 1e6:.1f} MB')


def start() -> None:
  commands.run(main)
