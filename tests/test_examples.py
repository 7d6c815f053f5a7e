"""Examples run, those that only compare bounds by NumPy, and stay short; they show what is sound and not vacuous."""
import importlib.util
import pathlib

import jax
import pytest
from interpreted import interpreted

FOLDER = pathlib.Path(__file__).parent.parent / 'examples'
pytestmark = pytest.mark.usefixtures('promotion')


class ByNumPy:
  """JAX, with functions computed by NumPy that it would compile."""
  jit = staticmethod(interpreted)

  def __getattr__(self, name):
    return getattr(jax, name)


def main(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if name in INTERPRETED:
    module.jax = ByNumPy()
  return module.main()   # asserts that no sampled value lies outside of a bound


def classifiers(found):
  assert found['natural'] > .9
  assert .7 < found['certified'] <= found['natural']


def radii(found):
  classifiers(found)
  assert .05 < found['radius'] < .2


def methods(found):
  assert found['sampled'] < found['crown'] < 2 * found['sampled']
  assert found['alpha_crown'] <= found['crown'] < found['lbp'] < found['ibp']
  assert 0 < found['weights'] < .1


def attention(found):
  assert found[.001]['crown'] < 4
  assert all(1 <= row['crown'] < row['ibp'] for row in found.values())


def recurrent(found):
  assert found[5]['crown'] < 1.5 * found[5]['reached']
  assert found[5]['lbp'] < 1.5 * found[5]['reached']
  assert all(row[name] < row['ibp'] for row in found.values() for name in ('lbp', 'crown'))


def loop(found):
  assert found['crown'][4, 0] < 2 * found['simulated'][4, 0] < found['ibp'][4, 0]


def regression(found):
  assert found[.05] == 1
  assert found[.2] < 1


SHOWN = dict(linen_model=classifiers, nnx_model=radii, equinox_model=methods, attention=attention, gru=recurrent,
             control_loop=loop, regression=regression)
INTERPRETED = 'equinox_model', 'attention', 'gru'   # which do nothing but compare bounds; compiling them takes longest


@pytest.mark.parametrize('name', SHOWN)
def test_examples_show_what_they_say(name):
  SHOWN[name](main(name))


def test_every_example_is_tested_and_short():
  files = {path.stem: path.read_text().splitlines() for path in FOLDER.glob('*.py')}
  assert set(files) == set(SHOWN)
  assert all(len(lines) < 80 and f'    python examples/{name}.py' in '\n'.join(lines) for name, lines in files.items())
