"""Checkpoints: exact, atomic, checked; runs that are killed go on as if they had not been."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibpjax.runs import directory
from ibpjax.training.checkpoints import CheckpointError, Checkpoints, fill

ROOT = pathlib.Path(__file__).parent.parent
STATE = dict(w=[jax.random.normal(jax.random.key(0), (50, 3)), jnp.arange(4, dtype=jnp.int32)], step=jnp.asarray(7),
             half=jnp.ones(3, jnp.bfloat16), key=jax.random.key_data(jax.random.key(5)), nothing=None)


def same(a, b):
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
      x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_what_is_restored_is_what_was_saved(tmp_path):
  saved = Checkpoints(tmp_path / 'deep' / 'folder', keep=2)
  assert saved.steps() == []
  with pytest.raises(FileNotFoundError, match='has no checkpoint'):
    saved.restore()
  for step in (3, 10, 200):
    saved.save(step, STATE | dict(step=jnp.asarray(step)), dict(epoch=step, seconds=1.5))
  assert saved.steps() == [10, 200]
  step, arrays, notes = saved.restore()
  assert (step, notes) == (200, dict(epoch=200, seconds=1.5))
  assert same(fill(STATE, arrays, 'it'), STATE | dict(step=jnp.asarray(200)))
  assert same(fill(dict(w=STATE['w']), arrays, 'it'), dict(w=STATE['w']))
  assert saved.restore(10)[0] == 10
  with pytest.raises(FileNotFoundError, match='of step 11'):
    saved.restore(11)
  with pytest.raises(ValueError, match='at least 2'):
    Checkpoints(tmp_path, keep=1)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
  saved = Checkpoints(tmp_path)
  saved.save(1, STATE)
  _, arrays, _ = saved.restore()
  for like, message in ((dict(v=jnp.ones(3)), r"no array \['v'\]"),
                        (dict(half=jnp.ones(3)), r'bfloat16\[3\], and float32'),
                        (dict(half=jnp.ones(4, jnp.bfloat16)), r'bfloat16\[4\] is needed: it is of another model')):
    with pytest.raises(CheckpointError, match=message):
      fill(like, arrays, saved.folder)


def python(code, **kwargs):
  environment = os.environ | dict(JAX_PLATFORMS='cpu')
  return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, text=True, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **kwargs)


def test_whatever_file_is_damaged_the_state_is_exact_or_refused_and_the_one_before_stays(tmp_path):
  saved = Checkpoints(tmp_path)
  for step in (1, 2):
    saved.save(step, STATE | dict(step=jnp.asarray(step)))
  # In a process of its own: what the storage library leaves behind when it fails would warn in other tests.
  done = commands.run_code(f'''
import json, pathlib
import numpy as np
from ibpjax.training.checkpoints import CheckpointError, Checkpoints
folder = pathlib.Path({str(tmp_path)!r})
saved, refused = Checkpoints(folder), []
_, right, _ = saved.restore()
for path in [p for p in (folder / '2').rglob('*') if p.is_file() and p.stat().st_size]:
  whole = path.read_bytes()
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 0x55
  for damaged in (bytes(flipped), whole[:len(whole) // 2], b''):
    path.write_bytes(damaged)
    try:
      step, arrays, _ = saved.restore()
      assert step == 2 and arrays.keys() == right.keys()
      assert all(np.array_equal(arrays[k], right[k]) and arrays[k].dtype == right[k].dtype for k in right)
    except CheckpointError as e:
      refused.append(str(e))
    path.write_bytes(whole)
print(json.dumps(refused))
''')
  assert done.returncode == 0, done.stderr
  refused = json.loads(done.stdout.splitlines()[-1])
  assert len(refused) > 5
  assert all(f'Delete {tmp_path / "2"} to go on from step 1' in message for message in refused)
  for step in (1, 2):
    assert same(fill(STATE, saved.restore(step)[1], 'it'), STATE | dict(step=jnp.asarray(step)))


def test_a_disk_that_is_full_costs_only_the_checkpoint_that_found_it_so(tmp_path):
  done = commands.run_code(f'''
import resource, signal
import jax.numpy as jnp
from ibpjax.training.checkpoints import CheckpointError, Checkpoints
saved = Checkpoints({str(tmp_path)!r})
saved.save(1, dict(a=jnp.arange(1000.)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
  saved.save(2, dict(a=jnp.sin(jnp.arange(1e6))))
except CheckpointError as e:
  print('refused:', e)
print(saved.steps(), saved.restore()[1]["['a']"].sum())
''')
  assert done.returncode == 0, done.stderr
  assert 'refused: step 2 could not be saved' in done.stdout
  assert 'The checkpoint of step 1 is untouched. Make room on the disk' in done.stdout
  assert done.stdout.splitlines()[-1] == '[1] 499500.0'


def test_who_reads_does_not_disturb_who_writes(tmp_path):
  process = python(f'''
import jax.numpy as jnp
from ibpjax.training.checkpoints import Checkpoints
saved = Checkpoints({str(tmp_path)!r})
for step in range(1, 26):
  saved.save(step, dict(a=jnp.full(300_000, step, jnp.float32)))
''')
  seen = set()
  while process.poll() is None:
    if Checkpoints(tmp_path).steps():
      try:
        step, arrays, _ = Checkpoints(tmp_path).restore()
      except (CheckpointError, FileNotFoundError):  # it was deleted while it was read, for a newer one
        continue
      assert np.all(arrays["['a']"] == step)
      seen.add(step)
  _, err = process.communicate()
  assert process.returncode == 0, err
  assert len(seen) > 3


def test_killed_while_saving_the_newest_whole_one_is_there(tmp_path):
  code = f'''
import jax.numpy as jnp
from ibpjax.training.checkpoints import Checkpoints
saved = Checkpoints({str(tmp_path)!r})
step = (saved.steps() or [0])[-1]
while True:
  step += 1
  saved.save(step, dict(a=jnp.full(300_000, step, jnp.float32)))
'''
  rng, newest = random.Random(0), 0
  for _ in range(3):
    process = python(code)
    deadline = time.monotonic() + 60
    while (Checkpoints(tmp_path).steps() or [0])[-1] < newest + 3:
      assert process.poll() is None, process.stderr.read()
      assert time.monotonic() < deadline
      time.sleep(.01)
    time.sleep(rng.uniform(0, .3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    step, arrays, _ = Checkpoints(tmp_path).restore()
    assert np.all(arrays["['a']"] == step)
    assert step > newest
    newest = step


FLAGS = ['--model=mlp', '--hidden=32', '--activation=param_ramp', '--eta=.02', '--eta_end=0', '--eta_epochs=2,5',
         '--epochs=6', '--warmup_epochs=1', '--ramp_epochs=3', '--eps=.02', '--milestones=', '--batch_size=256',
         '--checkpoint_minutes=0', '--swa_from=4', '--accumulate=2', '--gradient_clip=1', '--validation=200']


def trained(out, *more):
  """A run that comes to its end."""
  return commands.run('experiments.train', *FLAGS, f'--out={out}', *more)


def training(out):
  """A run that is to be killed."""
  command = [sys.executable, '-m', 'experiments.train', *FLAGS, f'--out={out}']
  return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def outcome(out):
  step, arrays, notes = Checkpoints(out / 'checkpoints').restore()
  records = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
  return step, arrays, notes['finished'], [{k: v for k, v in r.items() if k != 'seconds'} for r in records]


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
  whole, killed = training(tmp_path / 'whole'), tmp_path / 'killed'
  rng, kills = random.Random(1), 0
  while True:
    process, before = training(killed), Checkpoints(killed / 'checkpoints').steps()
    while process.poll() is None and Checkpoints(killed / 'checkpoints').steps() == before:
      time.sleep(.01)
    time.sleep(rng.uniform(0, 1.))
    if kills == 3 or process.poll() is not None:
      break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kills += 1
  for p in (whole, process):
    _, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
  assert kills == 3
  a, b = outcome(tmp_path / 'whole'), outcome(killed)
  assert a[0] == b[0] == 6 * 4
  assert a[2]
  assert b[2]
  assert a[3] == b[3]
  assert {'validation_error', 'train_error', 'eps'} <= set(a[3][-1])
  assert a[1].keys() == b[1].keys()
  for name in a[1]:
    np.testing.assert_array_equal(a[1][name], b[1][name])


def test_a_run_stops_in_time_and_goes_on(tmp_path):
  done = trained(tmp_path / 'run', '--max_minutes=0')
  assert done.returncode == 0, done.stderr
  assert 'the same command goes on' in done.stdout
  assert Checkpoints(tmp_path / 'run' / 'checkpoints').steps() == [1]
  other = trained(tmp_path / 'run', '--eps=.03')
  assert other.returncode != 0
  assert 'holds a run with other flags (--eps=0.02 there and 0.03 here)' in other.stderr
  assert Checkpoints(tmp_path / 'run' / 'checkpoints').steps() == [1]


def test_a_run_that_diverges_leaves_no_checkpoint_of_it(tmp_path):
  done = trained(tmp_path / 'run', '--learning_rate=1e30', '--gradient_clip=0', '--loss=natural', '--accumulate=1')
  assert done.returncode != 0
  assert 'training diverged in epoch' in done.stderr
  assert 'Lower --learning_rate' in done.stderr
  saved = Checkpoints(tmp_path / 'run' / 'checkpoints')
  assert not saved.steps() or all(np.isfinite(x).all() for x in saved.restore()[1].values() if x.dtype == np.float32)


def test_a_full_disk_ends_a_run_with_one_clear_error(tmp_path):
  done = commands.run_code(f'''
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (600 * 1024, 600 * 1024))
sys.argv = ['experiments.train', *{FLAGS}, '--hidden=600,600', '--loss=natural', '--accumulate=1',
            '--out={tmp_path}/run']
runpy.run_module('experiments.train', run_name='__main__')
''')
  assert done.returncode == 1
  # Threads of the storage library whose writes fail later may speak after the error.
  errors = [line for line in done.stderr.splitlines() if line.startswith('CheckpointError: ')]
  assert len(errors) == 1
  assert errors[0].startswith('CheckpointError: step 1 could not be saved')
  assert 'Make room on the disk' in errors[0]
  assert (tmp_path / 'run' / 'config.json').exists()


def test_two_processes_do_not_train_in_one_folder(tmp_path):
  with directory.alone(tmp_path / 'run'):
    done = trained(tmp_path / 'run')
  assert done.returncode != 0
  assert 'is being trained by another process' in done.stderr


def test_a_run_killed_while_its_config_is_written_starts_again(tmp_path):
  (tmp_path / 'config.json.new').write_text('{"flags": ')
  directory.begin(tmp_path, dict(eps=.1))
  directory.begin(tmp_path, dict(eps=.1, out='elsewhere'))
  assert len(directory.read_versions(tmp_path)) == 1
  other = directory.versions() | dict(commit='another')
  (tmp_path / 'config.json').write_text(json.dumps(dict(flags=dict(eps=.1), versions=[other])))
  directory.begin(tmp_path, dict(eps=.1))
  assert [v['commit'] for v in directory.read_versions(tmp_path)] == ['another', directory.versions()['commit']]
  (tmp_path / 'notes.txt').write_text('mine')
  (tmp_path / 'config.json').unlink()
  with pytest.raises(ValueError, match='holds files and is not the folder of a run'):
    directory.begin(tmp_path, dict(eps=.1))


def test_flags_younger_than_a_run_had_their_defaults(tmp_path):
  directory.begin(tmp_path, dict(eps=.1))
  directory.begin(tmp_path, dict(eps=.1, alpha=.5), dict(eps=.2, alpha=.5))
  with pytest.raises(ValueError, match=r'--alpha=.* there and'):
    directory.begin(tmp_path, dict(eps=.1, alpha=.3), dict(eps=.2, alpha=.5))
  with pytest.raises(ValueError, match=r'--eps=.* there and'):
    directory.begin(tmp_path, dict(eps=.2, alpha=.5), dict(eps=.2, alpha=.5))
