"""When a run is finished: scripts that go on where they stopped leave out what is, and only that."""
import json
import os
import pathlib
import shlex
import subprocess
import sys

import jax.numpy as jnp
import pytest

from ibpjax.runs import directory

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = dict(examples=100, of=100)


def certificate(run, settings, *results):
  run.mkdir(parents=True, exist_ok=True)
  (run / 'config.json').write_text(json.dumps(dict(flags=dict(eps=.1, test_eps=.2), versions=[{}])))
  content = dict(settings=settings) | (dict(results=results) if results else {})
  (run / 'certificate.json').write_text(json.dumps(content))
  return run


@pytest.mark.parametrize(('settings', 'results', 'asked', 'finished'), [
    (SETTINGS, [], {}, False),                                                                # before the first example
    (SETTINGS, [dict(eps=.2, examples=100)], {}, True),
    (SETTINGS, [dict(eps=.1, examples=100)], {}, False),                                      # of another radius
    (SETTINGS, [dict(eps=.1, examples=100)], dict(radii=[.1]), True),
    (SETTINGS, [dict(eps=.1, examples=100)], dict(radii=[.1, .2]), False),
    (dict(SETTINGS, examples=10), [dict(eps=.2, examples=10)], {}, False),                    # of a subset
    (dict(SETTINGS, examples=10), [dict(eps=.2, examples=10)], dict(examples=10), True),
    (SETTINGS, [dict(eps=.2, examples=100)], dict(examples=1000), True)])                     # more than there are
def test_certified_is_a_summary_of_all_that_was_asked_for(tmp_path, settings, results, asked, finished):
  """Finds a certificate that is taken for finished because it is there, or because some of it is done."""
  assert directory.is_certified(certificate(tmp_path, settings, *results), **asked) == finished


def test_trained_is_the_checkpoint_of_the_last_step(tmp_path):
  """Finds a run that is taken for trained because of a picture or an earlier checkpoint."""
  (tmp_path / 'curves.png').write_bytes(b'')
  assert not directory.is_trained(tmp_path)
  assert not directory.is_certified(tmp_path)
  for finished in (False, True):
    directory.checkpoints(tmp_path).save(1 + finished, dict(x=jnp.zeros(2)), dict(finished=finished))
    assert directory.is_trained(tmp_path) == finished


# Training and comparisons are but written down, and so are certifications: they do not come to an end.
STUB = """#!/bin/bash
case "$2 $*" in
  *--stage=trained*) exit 0 ;;
  experiments.done*) exec {python} "$@" ;;
  *) echo "$2" "$@" >> {calls} ;;
esac
"""


def test_the_script_leaves_out_finished_runs_alone(tmp_path):
  """Finds a script that skips a run which was stopped in its certification, and says that all is done."""
  certificate(tmp_path / 'out' / 'short', SETTINGS, dict(eps=.2, examples=100))
  certificate(tmp_path / 'out' / 'short_vanilla', SETTINGS)
  stub, calls = tmp_path / 'bin' / 'python', tmp_path / 'calls'
  stub.parent.mkdir()
  stub.write_text(STUB.format(python=shlex.quote(sys.executable), calls=shlex.quote(str(calls))))
  stub.chmod(0o755)
  found = subprocess.run(['bash', 'experiments/gpu_check.sh', 'packed', str(tmp_path / 'out'), '8'], cwd=ROOT,
                         text=True, capture_output=True, timeout=300,
                         env=os.environ | dict(PATH=f'{stub.parent}:{os.environ["PATH"]}'))
  assert found.returncode != 0
  assert 'all is done' not in found.stdout
  lines = calls.read_text().splitlines()
  assert [line.split()[0] for line in lines] == ['experiments.train', 'experiments.certify']
  assert all(f'={tmp_path}/out/short_vanilla' in line for line in lines)
