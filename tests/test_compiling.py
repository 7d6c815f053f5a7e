"""Values that XLA computes wrongly on CPUs: what the library compiles is right, and users are told of the rest."""
import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibpjax import training
from ibpjax.xla import compiling

pytestmark = pytest.mark.optimized
ROOT = pathlib.Path(__file__).parent.parent
WEIGHTS = np.random.default_rng(0).normal(size=(3, 3))


@pytest.mark.parametrize('options', [training.compiler_options, compiling.right_options])
@pytest.mark.parametrize(('dtype', 'rows'), [('float32', 32_769), ('float32', 40_000), ('float64', 16_385)])
def test_options_of_the_compiler_compute_right_sums_of_products(options, dtype, rows):
  """Finds options with which values are wrong from row 32 768 on, or 16 384."""
  with jax.enable_x64(dtype == 'float64'):
    xs, weights = np.random.default_rng(1).normal(size=(rows, 3)).astype(dtype), WEIGHTS.astype(dtype)
    run = jax.jit(jax.vmap(lambda x: jnp.sum((weights @ x) ** 2)), compiler_options=options())
    np.testing.assert_allclose(run(xs), np.sum((xs @ weights.T) ** 2, 1), rtol=1e-4, atol=1e-4)


# What differs from NumPy's values, of what the library compiles itself and of what it does not; devices at the end.
SCRIPT = """
import json, os, warnings
import numpy as np
with warnings.catch_warnings(record=True) as seen:
  warnings.simplefilter('always')
  import ibpjax
  from ibpjax.training import attacks
  from ibpjax.verification import certify, radii
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=3'
import jax, jax.numpy as jnp
rng = np.random.default_rng(0)
weights, xs = rng.normal(size=(3, 3)).astype(np.float32), rng.uniform(size=(40_000, 3)).astype(np.float32)
labels, exact = np.zeros(len(xs), int), np.sum((xs @ weights.T) ** 2, 1)
def f(weights, x):
  return jnp.stack([jnp.sum((weights @ x) ** 2), 0.])
off = lambda values: float(np.max(np.abs(np.asarray(values) - exact)))
found = dict(mine=off(jax.jit(jax.vmap(f, (None, 0)))(weights, xs)[:, 0]))
certificate = ibpjax.certify(f, weights, xs, labels, 0., method='ibp')
found |= dict(clean=off(certificate.clean[:, 0]), lower=off(certificate.lower[:, 0]))
_, lower, upper = radii._at_points(f, weights, jnp.asarray(xs))
found |= dict(at=off(lower[:, 0]), points=off(upper[:, 0]))
keys = jax.random.split(jax.random.key(0), len(xs))
found |= dict(attacked=off(attacks.pgd_by_steps(f, weights, xs, labels, 0., keys, steps=1)[1]))
l2 = attacks.pgd_l2_by_steps(f, weights, xs, labels, jnp.asarray(0.), keys, steps=1)[1]
print(json.dumps(dict(off=found | dict(l2=off(l2)), devices=jax.device_count(),
                      warned=[str(w.message) for w in seen if w.category is RuntimeWarning])))
"""


@pytest.fixture(scope='module')
def unaided():
  """What a process finds whose XLA_FLAGS are empty."""
  environment = os.environ | dict(XLA_FLAGS='', PYTHONPATH=os.fspath(ROOT))
  done = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True, env=environment, timeout=300)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_what_the_library_compiles_is_right_without_the_remedy(unaided):
  """Finds a compiled part of certificates, errors of logits or attacks that is left to the defaults of XLA."""
  assert {name: off for name, off in unaided['off'].items() if name != 'mine' and off > 1e-4} == {}


def test_the_versions_that_are_wrong_are_those_that_are_named(unaided):
  """Finds an installed jaxlib that is wrong and not named, or named and right."""
  wrong = jax.lib.__version__ in compiling.WRONG
  assert (unaided['off']['mine'] > 1e-4) == wrong
  assert len(unaided['warned']) == wrong


def test_no_backend_starts_at_import(unaided):
  """Finds a start of XLA at import: it would not see the flags that are set behind it."""
  assert unaided['devices'] == 3


@pytest.mark.parametrize(('version', 'platforms', 'flags', 'warns'), [
    ('0.10.2', 'cpu', '', True), ('0.10.2', 'cpu,cuda', '--xla_dump_to=x', True),
    ('0.10.2', 'cpu', '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT', True),
    ('0.10.2', 'cpu', '--xla_cpu_experimental_ynn_fusion_type= --xla_dump_to=x', False),
    ('0.10.2', 'cpu', '--xla_cpu_experimental_ynn_fusion_type=-reduce', False),
    ('0.10.2', 'cuda,cpu', '', False), ('0.10.1', 'cpu', '', False)])
def test_users_are_warned_where_values_may_be_wrong(monkeypatch, version, platforms, flags, warns):
  """Finds a warning of a version, a platform or flags that are right, and silence about those that are not."""
  monkeypatch.setattr(jax.lib, '__version__', version)
  monkeypatch.setenv('XLA_FLAGS', flags)
  jax.config.update('jax_platforms', platforms)
  try:
    with warnings.catch_warnings(record=True) as seen:
      warnings.simplefilter('always')
      compiling.warn_of_wrong_values()
  finally:
    jax.config.update('jax_platforms', 'cpu')
  assert [('XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= ' in str(w.message)) for w in seen] == [True] * warns


@pytest.mark.parametrize(('plugins', 'files', 'may'), [([], ['null'], True), (['cuda'], ['null'], False),
                                                       (['cuda'], ['nothing*'], True)])
def test_where_no_platform_is_named_an_accelerator_needs_a_plugin_and_a_device(monkeypatch, plugins, files, may):
  """Finds silence where JAX falls back to the CPU: a plugin without a device."""
  monkeypatch.setattr(compiling.importlib.metadata, 'entry_points', lambda group: plugins)
  monkeypatch.setattr(compiling, '_ACCELERATORS', files)
  jax.config.update('jax_platforms', None)
  try:
    assert compiling._may_run_on_cpus() == may
  finally:
    jax.config.update('jax_platforms', 'cpu')


def test_the_remedy_of_the_commands_is_the_one_that_users_are_told():
  """Finds commands that leave XLA_FLAGS as they are, or set what the warning does not take for the remedy."""
  environment = os.environ | dict(XLA_FLAGS='')
  code = 'import warnings; warnings.simplefilter("error"); import experiments, ibpjax'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=environment)
  assert done.returncode == 0, done.stderr
