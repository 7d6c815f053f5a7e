"""The shape of the project: imports point down, the README is true, bad flags and missing runs are one clear error."""
import ast
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments import primitives

ROOT = pathlib.Path(__file__).parent.parent
# A module imports only from floors below its own.
FLOORS = [{'_version', 'interval'}, {'program', 'lines', 'margins', 'rule'}, {'affine', 'functions', 'graph'},
          {'composites', 'elementwise', 'loops', 'reductions', 'rows'},
          {'integers', 'normalise', 'softmax', 'univariate'}, {'nonlinear'},
          {'patterns', 'rounding'}, {'ibp'}, {'nn'}, {'training', 'verification'}, {'__init__'}, {'experiments'}]


def floor(module):
  return next(i for i, names in enumerate(FLOORS) if module in names)


def imported(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', sorted((ROOT / 'ibpjax').rglob('*.py')), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
  own = path.relative_to(ROOT / 'ibpjax').parts[0].removesuffix('.py')
  for name in imported(path):
    parts = name.split('.')
    assert parts[0] not in ('experiments', 'tensorflow', 'torch')
    if parts[0] == 'ibpjax' and parts[1] != own:
      assert floor(parts[1]) < floor(own), f'{own} imports {name}'


def test_core_depends_on_five_packages():
  allowed = {'jax', 'numpy', 'flax', 'optax', 'ibpjax'} | set(sys.stdlib_module_names)
  used = {name.split('.')[0] for path in (ROOT / 'ibpjax').rglob('*.py') for name in imported(path)}
  assert used <= allowed


def test_the_code_in_the_readme_runs():
  blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
  assert blocks
  script = '\n'.join(blocks)
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=ROOT, timeout=300)
  assert done.returncode == 0, done.stderr


def test_the_table_of_primitives_is_what_the_code_says():
  assert primitives.PATH.read_text() == primitives.page(), 'run `python -m experiments.primitives`'


def test_the_commands_in_the_readme_exist():
  makefile = (ROOT / 'Makefile').read_text()
  commands = set(re.findall(r'make (\w+)', (ROOT / 'README.md').read_text()))
  assert {'demo', 'test'} <= commands
  for command in commands:
    assert re.search(rf'^{command}:', makefile, re.M)


def run(*command):
  full = [sys.executable, '-m', *map(str, command)]
  return subprocess.run(full, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_train_and_certify_end_to_end(tmp_path):
  out = tmp_path / 'run'
  trained = run('experiments.train', '--model=mlp', '--epochs=3', '--warmup_epochs=1', '--ramp_epochs=1', '--eps=.02',
                f'--out={out}')
  assert trained.returncode == 0, trained.stderr
  lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
  assert [r['epoch'] for r in lines] == [1, 2, 3]
  assert [round(r['eps'], 6) for r in lines] == [0, pytest.approx(.02, rel=.1), .02]
  config = json.loads((out / 'config.json').read_text())
  assert config['flags']['batch_size'] == 32
  assert config['flags']['model'] == 'mlp'
  assert {'commit', 'jax', 'devices'} <= set(config['versions'])

  certified = run('experiments.certify', f'--run={out}', '--pgd_steps=5')
  assert certified.returncode == 0, certified.stderr
  result = json.loads((out / 'certificate.json').read_text())
  assert result['examples'] == 500
  assert result['natural_error'] <= result['pgd_error'] <= result['verified_error'] < 100
  for name in ('natural error', 'PGD-5x5 error', 'IBP-verified error', '500 test examples'):
    assert name in certified.stdout
  for picture in ('curves.png', 'boxes.png'):
    assert (out / picture).read_bytes().startswith(b'\x89PNG')
  assert abs(lines[-1]['test_error'] - result['natural_error']) < 1


@pytest.mark.parametrize(('command', 'message'), [
    (('experiments.train', '--model=resnet'), 'should be one of <mlp|dm_small'),
    (('experiments.train', '--colour=red'), "Unknown command line flag 'colour'"),
    (('experiments.train', '--eps=-1'), 'eps'),
    (('experiments.train', '--eps=8'), 'eps'),
    (('experiments.train', '--epochs=5', '--ramp_epochs=9'), 'ends before the ramp of eps does'),
    (('experiments.train', '--batch_size=5000'), 'more than the 1297 examples'),
    (('experiments.train', 'digits'), 'all options are flags'),
    (('experiments.certify', '--run=nowhere'), 'not the folder of a run. Train one with'),
    (('experiments.certify', '--method=magic'), 'should be one of <ibp>'),
    (('experiments.benchmark', '--nets=alexnet'), 'known are'),
])
def test_bad_flags_are_one_clear_error(command, message, tmp_path):
  where = [f'--out={tmp_path}/run'] if command[0] == 'experiments.train' else []
  done = run(*command, *where)
  assert done.returncode != 0
  assert message in done.stderr + done.stdout
  assert not (tmp_path / 'run').exists()


def test_an_unfinished_run_cannot_be_certified(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(dict(flags=dict(dataset='digits', model='mlp', seed=0, eps=.1))))
  done = run('experiments.certify', f'--run={tmp_path}')
  assert done.returncode != 0
  assert 'was not finished. Train it again' in done.stderr


def test_an_unsound_verdict_stops_the_evaluation(monkeypatch):
  """An example that is verified and attacked at once means that a bound is wrong: no table is printed then."""
  from experiments import evaluation
  from experiments.data import digits

  class Everything:
    def __init__(self, n):
      self.correct = self.verified = np.ones(n, bool)

  monkeypatch.setattr(evaluation.ibpjax, 'certify', lambda f, p, x, *a, **k: Everything(len(x)))
  with pytest.raises(RuntimeError, match='a bound is wrong'):
    evaluation.evaluate(lambda p, x: p @ x.ravel(), np.zeros((10, 64), np.float32), digits(), .1, method='ibp', seed=0,
                        pgd_steps=1, pgd_restarts=1)
