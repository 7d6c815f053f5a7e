"""Measuring beside another library: both in processes of their own, the absent one with its reason."""
import json
import sys

import commands
import numpy as np
import pytest

from experiments import contest, versus


def test_a_library_that_is_absent_is_reported_and_ours_is_measured():
  found = contest.measure(contest.Cell('mlp', 'CROWN-IBP', 2, .01), dict.fromkeys(contest.PEERS, sys.executable))
  assert "No module named 'auto_LiRPA'" in found['auto_lirpa']['failed'] or "'torch'" in found['auto_lirpa']['failed']
  assert "No module named 'jax_verify'" in found['jax_verify']['failed']
  ours = found['ibpjax']
  assert all(ours[k] > 0 for k in ('build', 'wall', 'cpu', 'width'))
  assert 'apart' not in ours


def test_a_library_that_is_killed_is_reported(tmp_path):
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\nkill -9 $$\n')
  python.chmod(0o755)
  with contest.contender(str(python), 'auto_lirpa') as ask, pytest.raises(RuntimeError, match='ended by SIGKILL'):
    ask(do='build')


def test_a_library_that_is_killed_in_a_later_round_is_reported(tmp_path):
  python = tmp_path / 'python'  # a peer whose bounds are those of ours, and that answers once
  python.write_text(f'#!/bin/sh\nhead -n 1 | {sys.executable} -m experiments.versus ibpjax\nkill -9 $$\n')
  python.chmod(0o755)
  found = contest.measure(contest.Cell('mlp', 'IBP', 2, .01), dict(auto_lirpa=str(python)))
  assert 'ended by SIGKILL' in found['auto_lirpa']['failed']
  assert found['ibpjax']['cpu'] > 0


ASKED = 'IBP', 'train CROWN-IBP'   # for unstable neurons, which are the same whatever the method is


@pytest.mark.parametrize('method', versus.METHODS)
def test_every_method_of_ours_runs(method, tmp_path):
  requests = [dict(do='build', net='mlp', method=method, batch=2, eps=.01, out=str(tmp_path / 'out.npy')),
              dict(do='run'), *[dict(do='unstable')] * (method in ASKED)]
  done = commands.run('experiments.versus', 'ibpjax', given='\n'.join(map(json.dumps, requests)) + '\n')
  assert done.returncode == 0, done.stderr
  built, ran, *asked = map(json.loads, done.stdout.splitlines())
  assert built['build'] > 0 < ran['cpu']
  out = np.load(tmp_path / 'out.npy')
  if method == 'train CROWN-IBP':
    assert out > 0
    assert asked == [dict(unstable=None)]
    return
  assert all(0 < reply['unstable'] < 1 for reply in asked)
  assert out.shape == (2, 2, 10)
  assert np.all(out[0] == out[1]) if method == 'network' else np.all(out[0] < out[1])


def test_cells_are_known_methods():
  cells = contest.cells(list(contest.CELLS))
  assert {c.method for c in cells} == set(versus.METHODS)
  assert {c.net for c in cells} == set(versus.NETS)
