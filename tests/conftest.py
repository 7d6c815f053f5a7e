"""Strict JAX for all tests: two virtual devices, no silent promotion of dtypes or ranks."""
import gc
import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['OPENBLAS_NUM_THREADS'] = '1'  # NumPy's threads wait for each other at small products: a quarter of all time
# Commands that tests start share what they compile, without optimisations; tests themselves compile everything.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.fspath(pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'compiled')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Without the second, jaxlib 0.10.2 computes wrong values (ibpjax/xla/compiling.py); two processes compile anyway.
os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=2 '
                           '--xla_cpu_experimental_ynn_fusion_type= --xla_cpu_parallel_codegen_split_count=1')

import hypothesis
import jax
import pytest

jax.config.update('jax_compilation_cache_dir', None)
jax.config.update('jax_disable_most_optimizations', False)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

hypothesis.settings.register_profile('ordinary', max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.register_profile('nightly', max_examples=20_000, deadline=None, print_blob=True)
PROFILE = os.environ.get('HYPOTHESIS_PROFILE', 'ordinary')
hypothesis.settings.load_profile(PROFILE)
compiled = dict(fast=False)


# A worker runs the tests of a module (--dist=loadfile), which share what they compile; the longest modules start first.
LONGEST = ['test_linear', 'test_parallel', 'test_rounding', 'test_rows', 'test_notebooks', 'test_random_programs',
           'test_subnormal', 'test_docs', 'test_alpha', 'test_accuracy', 'test_contest', 'test_train']


def pytest_collection_modifyitems(items):
  """Long modules first; in a module, what is compiled with optimisations last."""
  ranks = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: (ranks.get(item.path.stem, len(LONGEST)), item.path.stem,
                               item.get_closest_marker('optimized') is not None))


def pytest_collection_finish():
  """What is imported stays: looking for garbage in it takes a tenth of the time of tests that trace."""
  gc.freeze()
  gc.set_threshold(200_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Tests compile without LLVM's optimisations, in three quarters of the time, but those marked `optimized`.

  Not a fixture: those of a module would compile before it.
  """
  fast = PROFILE == 'ordinary' and item.get_closest_marker('optimized') is None
  if fast != compiled['fast']:
    jax.clear_caches()  # they do not tell the two apart
    jax.config.update('jax_disable_most_optimizations', fast)
    compiled['fast'] = fast


@pytest.fixture(autouse=True)
def same_draws(request):
  """The random numbers of a module are the same for each of its tests, in whatever order they run."""
  rng = getattr(request.module, 'RNG', None)
  if rng is not None:
    rng.bit_generator.state = type(rng.bit_generator)(0).state


@pytest.fixture
def x64():
  """Runs a test in float64, where laws hold to 1e-12 and not to 1e-5."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def promotion():
  """Lets a test call code of other libraries that promotes dtypes: Flax's pooling, optax's Adam."""
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    yield


@pytest.fixture(scope='session')
def imagenet(tmp_path_factory):
  """ImageNet with an image a class: landscape, portrait, grey and small ones."""
  from pictures import jpeg, smooth  # which read images: the laws alone need nothing of that

  root = tmp_path_factory.mktemp('imagenet')
  kinds = [jpeg(smooth(300, 500)), jpeg(smooth(512, 256)), jpeg(smooth(260, 260), 'L'), jpeg(smooth(64, 64))]
  for part in ('train', 'val'):
    for i in range(1000):
      folder = root / part / f'n{i:08d}'
      folder.mkdir(parents=True)
      (folder / f'{i}.JPEG').write_bytes(kinds[i % 4])
  return root
