"""The shape of the project: imports point down, the README is true, bad flags and missing runs are one clear error."""
import ast
import json
import pathlib
import re
import sys

import commands
import numpy as np
import pytest

from experiments import primitives
from ibpjax.cli import main
from ibpjax.core import versions

ROOT = pathlib.Path(__file__).parent.parent
# Rooms from the ground up: each imports only rooms listed before it.
ROOMS = ['_version', 'core', 'xla', 'primitives', 'composites', 'rules', 'engine', 'operators', 'methods', 'testing',
         'nn', 'training', 'data', 'runs', 'verification', 'plotting', 'cli', '__init__', '__main__']


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
    if name == 'ibpjax':  # its face
      assert own in ('cli', '__main__')
    elif parts[0] == 'ibpjax' and parts[1] != own:
      assert ROOMS.index(parts[1]) < ROOMS.index(own), f'{own} imports {name}'


def test_modules_of_a_room_form_no_circle():
  """Python would import most circles; a reader could not."""
  arrows = {}
  for path in (ROOT / 'ibpjax').rglob('*.py'):
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    arrows[module.removesuffix('.__init__')] = {name for name in imported(path) if name.startswith('ibpjax')}
  modules = set(arrows)
  arrows = {module: {name if name in modules else name.rpartition('.')[0] for name in names} & modules
            for module, names in arrows.items()}
  while leaves := {module for module, names in arrows.items() if not names & set(arrows) - {module}}:
    arrows = {module: names for module, names in arrows.items() if module not in leaves}
  assert not arrows, sorted(arrows)


def test_files_and_classes_are_short():
  """A file over 400 lines asks to be two; so does a class over 150."""
  for path in (ROOT / 'ibpjax').rglob('*.py'):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, path
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.ClassDef):
        assert node.end_lineno - node.lineno < 150, f'{path}: {node.name}'


# What the face of the framework stands on, and what data, pictures, logs and commands take besides.
BASE = {'jax', 'numpy', 'scipy', 'flax', 'optax', 'orbax', 'ibpjax', *sys.stdlib_module_names}
EXTRAS = {'PIL', 'absl', 'grain', 'matplotlib', 'sklearn', 'tensorboardX', 'tensorflow_datasets', 'tqdm'}
WITH_EXTRAS = {'data', 'runs', 'verification', 'plotting', 'cli'}


@pytest.mark.parametrize('room', [path.parent.name for path in sorted((ROOT / 'ibpjax').glob('*/__init__.py'))])
def test_rooms_depend_on_few_packages(room):
  used = {name.split('.')[0] for path in (ROOT / 'ibpjax' / room).rglob('*.py') for name in imported(path)}
  assert used <= (BASE | EXTRAS if room in WITH_EXTRAS else BASE)


def test_certificates_need_no_extras():
  """Of the room of certificates only what evaluates runs shows progress."""
  used = {path.stem for path in (ROOT / 'ibpjax' / 'verification').glob('*.py')
          if {name.split('.')[0] for name in imported(path)} & EXTRAS}
  assert used <= {'evaluation', 'lipschitz_cascade'}


@pytest.mark.skipif(versions.log2_p is None, reason='the page lists primitives that this version of jax lacks')
def test_the_table_of_primitives_is_what_the_code_says():
  assert primitives.PATH.read_text() == primitives.page(), 'run `python -m experiments.primitives`'


def test_the_program_and_its_commands():
  """Finds a command that --help does not show, a typing error that says nothing, flags that help leaves out."""
  shown = commands.run('ibpjax').stdout
  assert all(f'  {name} ' in shown for name in main.COMMANDS)
  done = commands.run('ibpjax', 'trian')
  assert (done.returncode, done.stderr) == (2, 'trian is no command of ibpjax; did you mean train?\n')
  done = commands.run('ibpjax', 'compare', '--help')
  assert 'Compares trained runs' in done.stdout
  assert '--runs' in done.stdout
  assert '--out' in commands.run('experiments.front', '--help').stdout


def test_the_commands_in_the_readme_exist():
  makefile = (ROOT / 'Makefile').read_text()
  commands = set(re.findall(r'make (\w+)', (ROOT / 'README.md').read_text()))
  assert {'demo', 'test'} <= commands
  for command in commands:
    assert re.search(rf'^{command}:', makefile, re.M)


@pytest.mark.slow
def test_train_and_certify_end_to_end(tmp_path):
  out = tmp_path / 'runs'
  flags = ['--model=mlp', '--hidden=32', '--epochs=3', '--warmup_epochs=1', '--ramp_epochs=1', '--eps=5/255',
           '--seeds=0,1']
  trained = commands.run('experiments.train', *flags, f'--out={out}')
  assert trained.returncode == 0, trained.stderr
  assert 'over 2 seeds' in trained.stdout
  lines = [json.loads(line) for line in (out / 'seed1' / 'metrics.jsonl').read_text().splitlines()]
  assert [r['epoch'] for r in lines] == [1, 2, 3]
  assert [r['eps'] for r in lines] == [0, pytest.approx(5 / 255, rel=.1), pytest.approx(5 / 255)]
  config = json.loads((out / 'seed1' / 'config.json').read_text())
  assert config['flags']['batch_size'] == 32
  assert config['flags']['seed'] == 1
  assert {'commit', 'jax', 'devices'} <= set(config['versions'][0])
  assert list((out / 'seed1' / 'events').iterdir())
  again = commands.run('experiments.train', *flags, f'--out={out}')
  assert again.returncode == 0, again.stderr
  assert 'is finished' in again.stdout

  certified = commands.run('experiments.certify', f'--run={out}/seed1', '--pgd=5x2,10x2', '--eps=1/255,5/255')
  assert certified.returncode == 0, certified.stderr
  for name in ('curves.png', 'boxes.png', 'eps.png'):
    assert (out / 'seed1' / name).read_bytes().startswith(b'\x89PNG')
  records = [json.loads(line) for line in (out / 'seed1' / 'certificates.jsonl').read_text().splitlines()
             if 'index' in line]
  assert len(records) == 2 * 500
  wrong = sum(r['verdict'] == 'misclassified' for r in records) / 2
  assert 100 * wrong / 500 == pytest.approx(lines[-1]['test_error'], abs=1)

  measured = commands.run('experiments.tightness', f'--run={out}/seed1', '--methods=CROWN-IBP', '--examples=30',
                          '--eps=.001,.01', '--margin_eps=5/255')
  assert measured.returncode == 0, measured.stderr
  for name in ('tightness.png', 'neurons.png'):
    assert (out / 'seed1' / name).read_bytes().startswith(b'\x89PNG')
  tightness = json.loads((out / 'seed1' / 'tightness.json').read_text())
  assert set(tightness['widths']) == {'IBP', 'CROWN-IBP, tight', 'CROWN-IBP, adaptive'}
  assert all(low < high for method in tightness['widths'].values() for low, high in zip(*method))
  assert tightness['margins']['CROWN-IBP, tight']['5/255']['mean_margin'] > (
      tightness['margins']['IBP']['5/255']['mean_margin'])
  assert sum(tightness['states']['5/255'][0].values()) == pytest.approx(1)

  seeds = json.loads((out / 'seeds.json').read_text())
  last = [json.loads((out / f'seed{k}' / 'metrics.jsonl').read_text().splitlines()[-1])['test_error'] for k in (0, 1)]
  assert seeds['test_error'] == dict(mean=pytest.approx(np.mean(last)), std=pytest.approx(np.std(last, ddof=1)))
  (out / 'seed0' / 'curves.png').unlink()  # as if it had been killed before it was drawn
  again = commands.run('experiments.train', *flags, f'--out={out}')
  assert (out / 'seed0' / 'curves.png').exists()

  compared = commands.run('experiments.compare', f'--runs={out}', f'--out={tmp_path}/compare')
  assert compared.returncode == 0, compared.stderr
  assert '(1 of 2 seeds)' in compared.stdout
  assert '| mlp' in compared.stdout


def test_expected_tight_bounds_end_to_end(tmp_path):
  out = tmp_path / 'run'
  trained = commands.run(
    'experiments.train', '--model=mlp', '--hidden=16', '--epochs=2', '--loss=etb', '--etb_weight=10',
    '--warmup_epochs=0', '--ramp_epochs=0', '--optimizer=sgd', '--weight_decay=1e-4', '--learning_rate=.02',
    '--eps=.1', f'--out={out}')
  assert trained.returncode == 0, trained.stderr
  last = json.loads((out / 'metrics.jsonl').read_text().splitlines()[-1])
  assert {'train_expected_error', 'natural_part', 'expected_ratio', 'expected_refuted'} <= set(last)
  assert len(last['layers']['slack']) == 1
  assert (last['expected_ratio_centred'] < 1) == ('warning: ' in trained.stdout.split('epoch 2/2')[1])
  judged = commands.run('experiments.etb', f'--runs={out}', '--eps=.05,.1', '--examples=30', '--restarts=1',
                        '--steps=5', f'--out={tmp_path}/etb')
  assert judged.returncode == 0, judged.stderr
  rows = json.loads((tmp_path / 'etb' / 'runs.json').read_text())
  assert [r['eps'] for r in rows] == [.05, .1]
  assert all(r['says_chord'] <= r['robust'] <= r['natural'] for r in rows)
  assert (tmp_path / 'etb' / 'runs.png').read_bytes().startswith(b'\x89PNG')
  assert len((tmp_path / 'etb' / 'runs.md').read_text().splitlines()) == 4


@pytest.mark.slow
def test_lipschitz_networks_end_to_end(tmp_path):
  out = tmp_path / 'run'
  flags = ['--model=liresnet', '--depth=2', '--width=8', '--neck=2', '--loss=emma', '--eps=.3', '--eps_start=.1',
           '--kappa_start=0', '--epochs=3', '--warmup_epochs=0', '--ramp_epochs=2', '--optimizer=adamw', '--cosine',
           '--rate_warmup_epochs=1', '--batch_size=64', f'--out={out}']
  trained = commands.run('experiments.train', *flags, '--max_minutes=0')
  assert 'the same command goes on' in trained.stdout, trained.stderr
  trained = commands.run('experiments.train', *flags)
  assert trained.returncode == 0, trained.stderr
  lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
  last = lines[-1]
  assert {'train_estimated_error', 'test_verified_error', 'lipschitz'} <= set(last)
  assert .03 < lines[0]['eps'] < last['eps'] == pytest.approx(.3)
  assert 0 <= last['rotation'] < 1
  certified = commands.run('experiments.certify', f'--run={out}', '--methods=lipschitz', '--eps=.05,.3',
                           '--pgd=5x1,5x2', '--audit=20')
  assert certified.returncode == 0, certified.stderr
  assert 'l2 balls' in certified.stdout
  records = [json.loads(line) for line in (out / 'certificates.jsonl').read_text().splitlines()]
  near, far = ([r for r in records if r['eps'] == eps] for eps in (.05, .3))
  assert [r['radius'] for r in near] == [r['radius'] for r in far]
  assert all((r['verdict'] == 'verified') == (r['radius'] > r['eps']) for r in records)
  assert 0 < np.mean([r['radius'] > .05 for r in near]) < 1
  assert np.mean([r['verdict'] == 'verified' for r in far]) == pytest.approx(1 - last['test_verified_error'] / 100,
                                                                             abs=.005)
  audit = json.loads((out / 'audit.json').read_text())
  assert audit['reached'] <= audit['bound'] * (1 + 1e-6)
  assert all(p['reached'] <= p['norm'] * (1 + 1e-5) for p in audit['parts'])
  assert audit['bound'] == pytest.approx(last['lipschitz'], rel=1e-6)
  compared = commands.run('experiments.lipschitz', f'--runs={out}', f'--out={tmp_path}/report')
  assert compared.returncode == 0, compared.stderr
  for name in ('report/radii.png', 'report/rotation.png', 'report/tightness.png', 'run/radii.png', 'run/curves.png'):
    assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')
  norms = commands.run('experiments.norms', f'--run={out}')
  assert norms.returncode == 0, norms.stderr
  *bounds, few, many = ([cell.strip() for cell in line.split('|')[1:-1]]
                        for line in (out / 'norms.md').read_text().splitlines()[2:])
  assert [row[1] for row in (*bounds[-2:], few, many)] == ['probabilistic', 'upper', 'lower', 'lower']
  assert all(float(few[2]) <= float(many[2]) * (1 + 1e-6) <= float(row[2]) * (1 + 2e-6) for row in bounds)
  assert all(float(row[4]) >= float(row[5]) for row in bounds)  # VRA at the two radii
  assert float(bounds[-1][5]) == pytest.approx(100 - last['test_verified_error'], abs=.5)
  refused = commands.run('experiments.certify', f'--run={out}', '--methods=ibp,lipschitz')
  assert 'lipschitz alone' in refused.stdout + refused.stderr


@pytest.mark.parametrize('command', [
    ('experiments.benchmark', '--nets=mlp', '--repeats=3', '--batch_size=4'),
    ('experiments.step_cost', '--models=mlp', '--dataset=digits', '--repeats=3', '--batch_size=32')])
def test_measurements_run(command):
  done = commands.run(*command)
  assert done.returncode == 0, done.stderr
  assert re.search(r'mlp.* \d+\.\d', done.stdout)


@pytest.mark.parametrize(('command', 'message'), [
    (('experiments.train', '--model=resnet'), 'should be one of <mlp|dm_small'),
    (('experiments.train', '--colour=red'), "Unknown command line flag 'colour'"),
    (('experiments.train', '--eps=-1'), '-1 is not a radius'),
    (('experiments.train', '--eps=8'), 'write 8/255 and not 8'),
    (('experiments.train', '--eps=wide'), 'write 0.1 or 8/255'),
    (('experiments.train', '--eps=2'), 'write 2/255 and not 2'),
    (('experiments.train', '--rate_warmup_epochs=50'), 'must end before the learning rate falls'),
    (('experiments.train', '--generated=none.npz'), 'none.npz does not exist'),
    (('experiments.train', '--model=mlp', '--depth=3'), '--depth is an option of liresnet, not of mlp'),
    (('experiments.certify', '--audit=3'), '--audit is of Lipschitz bounds'),
    (('experiments.lipschitz',), '--runs is empty'),
    (('experiments.norms',), '--run is empty'),
    (('experiments.norms', '--run=nowhere'), 'is not the folder of a run'),
    (('experiments.lipschitz', '--runs=nowhere'), 'is not the folder of a run'),
    (('experiments.train', '--dataset=mnist', '--data_dir=/nowhere'), 'does not hold mnist'),
    (('experiments.train', '--model=dm_small', '--hidden=3'), '--hidden is an option of mlp, not of dm_small'),
    (('experiments.train', '--epochs=40', '--swa_from=41'), 'comes after the last epoch'),
    (('experiments.train', '--seeds=1,1'), 'a number occurs twice'),
    (('experiments.train', '--seeds=-1'), '-1 is less than 0'),
    (('experiments.train', '--hidden=0'), '0 is less than 1'),
    (('experiments.train', '--epochs=9', '--milestones=9'), 'each must come before the last epoch'),
    (('experiments.train', '--accumulate=3'), '--accumulate=3 does not divide --batch_size=32'),
    (('experiments.train', '--loss=taps'), 'the model has 3 activations and cannot be cut after 4'),
    (('experiments.train', '--statistics=attacked'), 'is an option of --loss=pgd, sabr'),
    (('experiments.train', '--epochs=5', '--ramp_epochs=9'), 'ends before the ramp of eps does'),
    (('experiments.train', '--loss=trades', '--pgd_step=.1'), 'is an option of --loss=pgd, sabr'),
    (('experiments.train', '--loss=pgd', '--regularizer_weight=.5'), 'is an option of --loss=ibp, sabr'),
    (('experiments.train', '--eta=.1'), 'are options of --activation=leaky_relu and param_ramp, not of relu'),
    (('experiments.train', '--activation=param_ramp', '--eta_end=0'), '--eta_epochs=70,140: the slope changes between'),
    (('experiments.train', '--batch_size=5000'), 'a batch of 5000 examples cannot be taken from the 1297 examples'),
    (('experiments.train', 'digits'), 'all options are flags'),
    (('experiments.certify', '--run=nowhere'), 'not the folder of a run. Train one with'),
    (('experiments.certify', '--methods=magic'), 'known are ibp'),
    (('experiments.benchmark', '--nets=alexnet'), 'known are'),
])
def test_bad_flags_are_one_clear_error(command, message, tmp_path):
  where = [f'--out={tmp_path}/run'] if command[0] == 'experiments.train' else []
  done = commands.run(*command, *where)
  assert done.returncode != 0
  assert message in done.stderr + done.stdout
  assert not (tmp_path / 'run').exists()


def test_an_unfinished_run_cannot_be_certified(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(dict(flags=dict(
      dataset='digits', data_dir='', validation=0, model='mlp', seed=0, eps=.1))))
  done = commands.run('experiments.certify', f'--run={tmp_path}')
  assert done.returncode != 0
  assert 'was not finished: it has no checkpoint. Go on with it by its command' in done.stderr
