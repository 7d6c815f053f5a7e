"""The notebooks run as they are, install nothing where the library is, and what they show is sound and not vacuous."""
import json
import pathlib
import sys

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / 'notebooks'
# What the last cell of a test prints, by notebook: an expression in the notebook's variables.
RESULTS = dict(
    quickstart='dict(natural=natural, certified=certified, curves=curves, radius=float(np.median(radii)))',
    how_it_works='dict(differences=differences, forgotten=(forgotten.upper - forgotten.lower).tolist(), '
                 'ibp=(by_ibp.upper - by_ibp.lower).tolist(), crown=(by_crown.upper - by_crown.lower).tolist(), '
                 'sampled=np.ptp(reached, 0).tolist())',
    compare_bounds='dict(widths=widths, by_depth=by_depth, constants=constants, times=times)')
# `%pip` writes down what it was asked for, in the place of doing it.
WATCH = "asked = []\nget_ipython().register_magic_function(asked.append, magic_name='pip')\n"
# The cell that installs, once more, where the library seems to be absent.
ABSENT = """
import importlib.util, json, unittest.mock
before = list(asked)
with unittest.mock.patch('importlib.util.find_spec', return_value=None):
  get_ipython().run_cell({install!r}).raise_error()
print(json.dumps(dict(before=before, absent=asked, found={result})))
"""


def read(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=nbformat.NO_CONVERT)


def executed(name, folder):
  """What the last cell prints: what `%pip` was asked for, by the notebook and without the library, and the result."""
  notebook = read(name)
  install = next(cell.source for cell in notebook.cells if cell.cell_type == 'code')
  last = ABSENT.format(install=install, result=RESULTS[name])
  notebook.cells = [nbformat.v4.new_code_cell(WATCH), *notebook.cells, nbformat.v4.new_code_cell(last)]
  nbclient.NotebookClient(notebook, kernel_name='tests', timeout=300).execute(cwd=folder)
  return json.loads(''.join(output.text for output in notebook.cells[-1].outputs if output.get('name') == 'stdout'))


def quickstart(found):
  assert .6 < found['certified']['ibp'] <= found['certified']['crown-ibp'] <= found['certified']['crown']
  assert found['certified']['crown'] < found['natural'] < 1
  curves = found['curves']
  for method in ('ibp', 'crown-ibp', 'crown'):
    assert all(c <= attacked for c, attacked in zip(curves[method], curves['pgd'], strict=True))
  assert curves['crown'][0] == curves['pgd'][0] == found['natural']
  assert curves['crown'][-1] < .1 < found['natural'] - .1   # the radii reach to where nothing is certain
  assert .05 < found['radius'] < .2


def how_it_works(found):
  assert set(found['differences']) == {'ibp', 'crown'}
  assert max(found['differences'].values()) < 1e-5
  assert all(s <= c < .6 * i for s, c, i in zip(found['sampled'], found['crown'], found['ibp'], strict=True))
  assert found['forgotten'] == pytest.approx([1.2, 1.2])


def compare_bounds(found):
  assert len(found['widths']) == 2
  for rows in found['widths'].values():
    assert all(s <= c < i for s, c, i in zip(rows['sampled'], rows['crown'], rows['ibp'], strict=True))
    assert rows['crown'][0] < 1.2 * rows['sampled'][0] < rows['ibp'][0] / 2
    assert rows['alpha-crown'][-1] < rows['crown'][-1]
  depth = found['by_depth']
  assert len(depth['crown']) == 3
  assert depth['crown'][-1] < 3 * depth['sampled'][-1] < depth['crown-ibp'][-1] < depth['ibp'][-1]
  for rows in found['constants'].values():
    assert 1 < max(rows['sampled']) < rows['everywhere'] < 20 * max(rows['sampled'])
    assert all(s <= b * (1 + 1e-5) for s, b in zip(rows['sampled'], rows['local, crown'], strict=True))
    assert rows['local, crown'][0] < 1.5 * rows['sampled'][0]
  assert all(0 < t < 10 for row in found['times'].values() for t in row.values())


SHOWN = dict(quickstart=quickstart, how_it_works=how_it_works, compare_bounds=compare_bounds)


@pytest.mark.parametrize('name', SHOWN)
def test_notebooks_show_what_they_say(name, tmp_path, monkeypatch):
  monkeypatch.setenv('MPLBACKEND', 'Agg')
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')   # what they measure is no test
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')   # of what they compile, most is small
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
  monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
  # A kernel of the interpreter of the tests, whatever kernels are installed.
  spec = tmp_path / 'kernels' / 'tests' / 'kernel.json'
  spec.parent.mkdir(parents=True)
  command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
  spec.write_text(json.dumps(dict(argv=command, display_name='tests', language='python')))
  found = executed(name, tmp_path)
  assert not found['before'], 'the library is here, and yet it was installed'
  asked, = found['absent']
  assert 'ibpjax' in asked.split()
  SHOWN[name](found['found'])


@pytest.mark.parametrize('name', SHOWN)
def test_notebooks_are_kept_without_outputs(name):
  notebook = read(name)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
  for cell in notebook.cells:
    assert not cell.metadata, cell.id
    if cell.cell_type == 'code':
      assert cell.outputs == [], cell.id
      assert cell.execution_count is None, cell.id


def test_every_notebook_is_tested():
  assert {path.stem for path in FOLDER.glob('*.ipynb')} == set(SHOWN) == set(RESULTS)
