"""Datasets: what is stored is what is loaded, bad input is one clear error."""
import pathlib
import pickle

import commands
import numpy as np
import pytest
from pictures import Given, jpeg, smooth

from ibpjax.data import datasets, pipeline, sources
from ibpjax.data.datasets import FACTS, Split, Stream, load

ROOT = pathlib.Path(__file__).parent.parent
TFDS = ROOT / '../shared/tfds'


# Facts and what is loaded.

def test_facts():
  assert list(FACTS) == ['digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', 'tiny_imagenet', 'imagenet']
  for name, facts in FACTS.items():
    assert facts.name == name
    assert len(facts.mean) == len(facts.std) == facts.shape[2]
    assert all(0 <= m < 1 for m in facts.mean)
    assert all(0 < s <= 1 for s in facts.std)
    assert facts.levels == (16 if name == 'digits' else 255)
    assert (facts.flip, facts.pad) == {'cifar10': (True, 2), 'cifar100': (True, 2), 'tiny_imagenet': (True, 4),
                                       'imagenet': (True, 0)}.get(name, (False, 0))
    assert facts.edge == (facts.pad > 0)
  assert [f.classes for f in FACTS.values()] == [10, 10, 10, 10, 100, 200, 1000]


def test_digits():
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split
  images, labels = load_digits(return_X_y=True)
  expected = train_test_split(images / 16, labels, test_size=500, random_state=0, stratify=labels)
  data = load('digits')
  found = [data.train.images.reshape(-1, 64) / data.facts.levels, data.test.images.reshape(-1, 64) / 16,
           data.train.labels, data.test.labels]
  for one, other in zip(found, expected):
    np.testing.assert_array_equal(one, other)
  assert len(data.train) == 1297
  assert len(data.test) == 500
  assert data.train.images.shape[1:] == data.facts.shape
  assert (data.train.images.dtype, data.train.labels.dtype) == (np.uint8, np.int32)


def test_mnist_as_it_is():
  if not (TFDS / 'mnist').exists():
    pytest.skip(f'{TFDS} does not hold mnist: loading real data is not tested')
  data = load('mnist', TFDS)
  assert np.bincount(data.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
  assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  assert data.train.images.shape == (60000, 28, 28, 1)
  assert data.train.images.mean() / 255 == pytest.approx(.1307, abs=1e-4)
  assert data.test.images.std() / 255 == pytest.approx(.3105, abs=1e-3)


def test_cifar_has_the_statistics_in_its_facts():
  if not (TFDS / 'cifar10').exists():
    pytest.skip(f'{TFDS} does not hold cifar10: loading real data is not tested')
  facts, (train, test) = FACTS['cifar10'], sources.tensorflow_datasets('cifar10', TFDS)
  assert (len(train), len(test)) == (50000, 10000)
  some = Split(*map(np.stack, zip(*((datasets._decode(facts, encoded, name), label)
                                    for encoded, label, name in train.read(range(1500))))))
  np.testing.assert_allclose(some.images.mean((0, 1, 2)) / 255, facts.mean, atol=.02)
  assert set(some.labels) == set(range(10))


def test_packing_keeps_everything(tmp_path):
  data = load('digits')
  path = datasets.pack('digits', data.train, data.test, tmp_path)
  assert datasets.pack('digits', data.train, data.test, tmp_path) == path   # replaced
  assert list(tmp_path.iterdir()) == [path]
  again = datasets._packed(FACTS['digits'], path)
  for one, other in zip(again, (data.train, data.test)):
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
  assert load('digits', tmp_path).train.labels.dtype == np.int32


def test_an_interrupted_packing_leaves_the_old_file(tmp_path, monkeypatch):
  data = load('digits')
  path = datasets.pack('digits', data.train, data.test, tmp_path)
  before = path.read_bytes()

  def interrupted(file, **arrays):
    file.write_bytes(b'half')
    raise KeyboardInterrupt
  monkeypatch.setattr(np, 'savez_compressed', interrupted)
  with pytest.raises(KeyboardInterrupt):
    datasets.pack('digits', data.test, data.test, tmp_path)
  assert list(tmp_path.iterdir()) == [path]
  assert path.read_bytes() == before


def test_the_pack_command(tmp_path):
  done = commands.run('experiments.pack', '--dataset=digits', f'--out={tmp_path}/packed')
  assert done.returncode == 0, done.stderr
  assert f'{tmp_path}/packed/digits.npz: 1297 training and 500 test examples, 0.1 MB of pixels' in done.stdout
  assert done.stdout.count('\n') == 1
  assert (tmp_path / 'packed' / 'digits.npz').exists()


def test_the_validation_split_is_fixed_and_apart():
  whole, one, two, more = (load('digits', validation=n) for n in (0, 100, 100, 300))
  assert whole.validation is None
  assert (len(one.train), len(one.validation), len(one.test)) == (1197, 100, 500)
  np.testing.assert_array_equal(one.validation.images, two.validation.images)
  keys = lambda split: sorted(image.tobytes() for image in split.images)
  assert sorted(keys(one.train) + keys(one.validation)) == keys(whole.train)
  assert set(keys(one.validation)) <= set(keys(more.validation))
  images = np.arange(1297, dtype=np.int32)   # positions, since two digits could be alike
  order = np.random.default_rng(0).permutation(1297)
  np.testing.assert_array_equal(one.validation.labels, whole.train.labels[np.sort(images[order[:100]])])
  assert len(set(one.validation.labels)) == 10


# Image folders.

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """Tiny ImageNet with one image a class and three test images, one of them grey and one CMYK."""
  root = tmp_path_factory.mktemp('tiny') / 'tiny-imagenet-200'
  wnids = [f'n{10007 * (i + 1) % 99991:08d}' for i in range(200)]   # not in the order of the alphabet
  (root / 'val' / 'images').mkdir(parents=True)
  (root / 'wnids.txt').write_text('\n'.join(wnids) + '\n')
  for label, wnid in enumerate(wnids):
    (root / 'train' / wnid / 'images').mkdir(parents=True)
    (root / 'train' / wnid / f'{wnid}_boxes.txt').write_text('')
    pixels = np.full((64, 64, 3), label, np.uint8)
    (root / 'train' / wnid / 'images' / f'{wnid}_0.JPEG').write_bytes(jpeg(pixels))
  for i, mode in enumerate(('RGB', 'L', 'CMYK')):
    (root / 'val' / 'images' / f'val_{i}.JPEG').write_bytes(jpeg(smooth(64, 64), mode))
  (root / 'val' / 'val_annotations.txt').write_text(''.join(
      f'val_{i}.JPEG\t{wnids[label]}\t0\t0\t63\t63\n' for i, label in enumerate((7, 199, 0))))
  return root


def test_tiny_imagenet_from_its_folders(tiny):
  for where in (tiny, tiny.parent):
    data = load('tiny_imagenet', where)
    assert data.train.images.shape == (200, 64, 64, 3)
    np.testing.assert_array_equal(data.train.labels, np.arange(200))
    shown = data.train.images.mean((1, 2, 3))
    assert abs(shown - np.arange(200)).max() <= 2
    assert data.test.labels.tolist() == [7, 199, 0]
    colour, grey, cmyk = data.test.images.astype(int)
    assert abs(colour - smooth(64, 64)).mean() < 3
    assert (grey == grey[..., :1]).all()
    assert abs(grey[..., 0] - smooth(64, 64) @ [.299, .587, .114]).mean() < 3
    assert abs(cmyk - smooth(64, 64)).mean() < 12


def test_imagenet_is_a_stream(imagenet):
  data = load('imagenet', imagenet, validation=100)
  assert isinstance(data.train, Stream)
  assert (len(data.train), len(data.validation), len(data.test)) == (900, 100, 1000)
  assert sorted([*data.train.index, *data.validation.index]) == list(range(1000))
  for stream in (data.test, pickle.loads(pickle.dumps(data.test))):
    images, labels = zip(*(stream[i] for i in range(4)))
    assert [int(y) for y in labels] == [0, 1, 2, 3]
    assert all(x.shape == (256, 256, 3) and x.dtype == np.uint8 for x in images)
    assert labels[0].dtype == np.int32
  landscape, portrait, grey, small = (x.astype(int) for x in images)
  assert abs(landscape - smooth(300, 500)[22:278, 122:378]).mean() < 15   # the middle square, not the whole
  assert 40 < landscape[:, 0, 0].mean() < 60    # 100 of 500 columns are cut off on the left
  assert abs(portrait - smooth(512, 256)[128:384]).mean() < 3
  assert (grey == grey[..., :1]).all()
  assert abs(small[::4, ::4] - smooth(64, 64)).mean() < 5


# Errors.

def test_what_is_not_there_is_one_clear_error(tmp_path):
  with pytest.raises(ValueError, match="unknown dataset 'mnits': known are digits, mnist"):
    load('mnits', tmp_path)
  with pytest.raises(ValueError, match='cifar10 needs data_dir'):
    load('cifar10')
  for name, places in (('mnist', ('mnist.npz', 'mnist/<version>/dataset_info.json')),
                       ('tiny_imagenet', ('tiny_imagenet.npz', 'wnids.txt')),
                       ('imagenet', ('val', 'imagenet2012/<version>/dataset_info.json'))):
    with pytest.raises(FileNotFoundError, match='nothing is downloaded') as error:
      load(name, tmp_path / 'nowhere')
    assert all(str(tmp_path / 'nowhere' / place) in str(error.value) for place in places)
    assert ('imagenet.npz' in str(error.value)) == (name == 'tiny_imagenet')
  for count in (-1, 1297):
    with pytest.raises(ValueError, match=f'{count} validation examples cannot be held out of the 1297'):
      load('digits', validation=count)


def npz(path, **changes):
  data = load('digits')
  arrays = dict(train_images=data.train.images, train_labels=data.train.labels,
                test_images=data.test.images, test_labels=data.test.labels) | changes
  np.savez(path / 'digits.npz', **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(test_labels=None), 'lacks test_labels'),
    (dict(train_images=np.zeros((3, 8, 8, 1), np.float32)), r'train_images of .* are float32 \(3, 8, 8, 1\)'),
    (dict(train_images=np.zeros((1297, 8, 8), np.uint8)), r'must be uint8 \(n, 8, 8, 1\)'),
    (dict(test_images=np.zeros((0, 8, 8, 1), np.uint8)), 'n > 0'),
    (dict(test_labels=np.zeros(500)), 'test_labels of .* are float64'),
    (dict(test_labels=np.zeros(499, int)), r'must be integers \(500,\)'),
    (dict(test_labels=np.arange(500)), 'the label of test_labels number 10 of .* is 10; digits has 10 classes'),
    (dict(test_labels=np.array([object()])), 'cannot be read'),
])
def test_a_bad_packed_file_is_one_clear_error(tmp_path, changes, message):
  npz(tmp_path, **changes)
  with pytest.raises(ValueError, match=message):
    load('digits', tmp_path)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 and then nothing', b'not a zip'])
def test_a_file_that_is_not_packed_is_one_clear_error(tmp_path, content):
  (tmp_path / 'mnist.npz').write_bytes(content)
  with pytest.raises(ValueError, match=r'mnist\.npz cannot be read .* Pack it again'):
    load('mnist', tmp_path)


def test_a_broken_folder_of_tensorflow_datasets_is_one_clear_error(tmp_path):
  for version in ('3.0.1', '3.0.1.incomplete', '2.9.9'):
    (tmp_path / 'mnist' / version).mkdir(parents=True)
    (tmp_path / 'mnist' / version / 'dataset_info.json').write_text('{}')
  with pytest.raises(ValueError, match=r'mnist/3\.0\.1 does not hold the splits train and test as array_record'):
    load('mnist', tmp_path)


def test_a_missing_shard_is_one_clear_error(tmp_path):
  if not (TFDS / 'mnist').exists():
    pytest.skip(f'{TFDS} does not hold mnist: a copy without a shard is not tested')
  whole = next((TFDS / 'mnist').iterdir())
  folder = tmp_path / 'mnist' / whole.name
  folder.mkdir(parents=True)
  for path in whole.iterdir():
    if path.suffix == '.json':
      (folder / path.name).write_bytes(path.read_bytes())
  with pytest.raises(ValueError, match=r'train in .* cannot be read .*No such file.* Prepare it again'):
    load('mnist', tmp_path)


@pytest.mark.parametrize(('example', 'message'), [
    ((jpeg(smooth(64, 64))[:300], 0), 'example 1 of test in somewhere of tiny_imagenet cannot be decoded .*cut short'),
    ((b'', 0), 'example 1 of test in somewhere of tiny_imagenet cannot be decoded'),
    ((jpeg(smooth(64, 60)), 0), r'example 1 .* has the shape \(64, 60, 3\); images of .* have \(64, 64, 3\)'),
    ((jpeg(smooth(64, 64)), 200), 'the label of example 1 .* is 200; tiny_imagenet has 200 classes'),
    ((jpeg(smooth(64, 64)), -1), 'the label of example 1 .* is -1'),
])
def test_a_bad_example_is_named(example, message):
  with pytest.raises(ValueError, match=message):
    datasets._read_all(FACTS['tiny_imagenet'], Given((jpeg(smooth(64, 64)), 3), example), 'test')


def test_a_corrupt_file_is_named(tiny, imagenet):
  path = next((tiny / 'train').glob('*/images/*'))
  good = path.read_bytes()
  try:
    path.write_bytes(good[:100])
    with pytest.raises(ValueError, match=f'{path} of tiny_imagenet cannot be decoded'):
      load('tiny_imagenet', tiny)
  finally:
    path.write_bytes(good)
  stream = load('imagenet', imagenet).train.take(np.array([5]))
  path = imagenet / 'train' / 'n00000005' / '5.JPEG'
  good = path.read_bytes()
  try:
    path.write_bytes(b'not an image')
    with pytest.raises(ValueError, match=f'{path} of imagenet cannot be decoded'):
      list(pipeline.evaluation_batches(stream, 1))
  finally:
    path.write_bytes(good)


def test_folders_that_lack_something_are_one_clear_error(tmp_path):
  root = tmp_path / 'tiny-imagenet-200'
  (root / 'train' / 'n1' / 'images').mkdir(parents=True)
  (root / 'wnids.txt').write_text('n1\nn2\n')
  with pytest.raises(ValueError, match=r'has 1 folders of classes, 1 of them among the 2 that .* must be 200'):
    load('tiny_imagenet', tmp_path)
  wnids = [f'n{i}' for i in range(200)]
  (root / 'wnids.txt').write_text('\n'.join(wnids))
  for wnid in wnids:
    (root / 'train' / wnid / 'images').mkdir(parents=True, exist_ok=True)
    (root / 'train' / wnid / 'images' / 'a.JPEG').write_bytes(b'')
  with pytest.raises(FileNotFoundError, match=r'val_annotations\.txt is missing'):
    load('tiny_imagenet', tmp_path)
  (root / 'val').mkdir()
  (root / 'val' / 'val_annotations.txt').write_text('val_0.JPEG\tn0\nval_1.JPEG\tn200\n')
  with pytest.raises(ValueError, match=r'line 2 of .*val_annotations\.txt'):
    load('tiny_imagenet', tmp_path)
  (root / 'train' / 'n7' / 'images' / 'a.JPEG').unlink()
  with pytest.raises(ValueError, match=r'n7/images holds no \.JPEG files'):
    load('tiny_imagenet', tmp_path)
  for part in ('train', 'val'):
    (tmp_path / part / 'n01440764').mkdir(parents=True)
  with pytest.raises(ValueError, match=r'has 1 folders of classes.* must be 1000'):
    load('imagenet', tmp_path)


def test_images_can_be_cut():
  data = load('digits', side=6)
  assert data.facts.shape == (6, 6, 1)
  assert data.facts.pad == 0
  assert data.train.images.shape[1:] == (8, 8, 1)   # as they are stored; cut on the device
  with pytest.raises(ValueError, match='cannot be cut to a side of 9'):
    load('digits', side=9)


def test_generated_examples_are_checked(tmp_path):
  facts, rng = FACTS['cifar10'], np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (5, 32, 32, 3), np.uint8), np.arange(5)
  np.savez(tmp_path / 'good.npz', image=images, label=labels)
  split = datasets.generated(facts, tmp_path / 'good.npz')
  np.testing.assert_array_equal(split.images, images)
  assert split.labels.dtype == np.int32
  for arrays, text in ((dict(image=images), 'lacks label'), (dict(image=images / 255, label=labels), 'must be uint8'),
                       (dict(image=images, label=labels + 8), 'cifar10 has 10 classes'),
                       (dict(image=images, label=labels / 2), 'must be integers')):
    np.savez(tmp_path / 'bad.npz', **arrays)
    with pytest.raises(ValueError, match=text):
      datasets.generated(facts, tmp_path / 'bad.npz')
  with pytest.raises(FileNotFoundError, match='--generated names'):
    datasets.generated(facts, tmp_path / 'none.npz')
