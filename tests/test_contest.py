"""Measuring beside another library: both in processes of their own, the absent one with its reason."""
import json
import sys

import commands
import numpy as np
import pytest

from experiments import contest, versus


def test_libraries_that_are_absent_or_killed_are_reported_and_ours_is_measured(tmp_path, monkeypatch):
  monkeypatch.setattr(contest, 'ROUNDS', (2, 2))
  python = tmp_path / 'python'  # a peer whose bounds are those of ours, and that answers once: killed in a later round
  python.write_text(f'#!/bin/sh\nhead -n 1 | {sys.executable} -m experiments.versus ibpjax\nkill -9 $$\n')
  python.chmod(0o755)
  peers = dict.fromkeys(contest.PEERS, sys.executable) | dict(killed=str(python))
  found = contest.measure(contest.Cell('mlp', 'CROWN-IBP', 2, .01), peers)
  assert "No module named 'auto_LiRPA'" in found['auto_lirpa']['failed'] or "'torch'" in found['auto_lirpa']['failed']
  assert "No module named 'jax_verify'" in found['jax_verify']['failed']
  assert 'ended by SIGKILL' in found['killed']['failed']
  ours = found['ibpjax']
  assert all(ours[k] > 0 for k in ('build', 'wall', 'cpu', 'width'))
  assert 'apart' not in ours


def test_a_library_that_is_killed_is_reported(tmp_path):
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\nkill -9 $$\n')
  python.chmod(0o755)
  with contest.contender(str(python), 'auto_lirpa') as ask, pytest.raises(RuntimeError, match='ended by SIGKILL'):
    ask(do='build')


ASKED = 'IBP', 'train CROWN-IBP'   # for unstable neurons, which are the same whatever the method is


def test_every_method_of_ours_runs(tmp_path):
  """One after the other in one process, which builds a network anew for each."""
  requests = []
  for number, method in enumerate(versus.METHODS):
    out = str(tmp_path / f'{number}.npy')
    requests += [dict(do='build', net='mlp', method=method, batch=2, eps=.01, out=out), dict(do='run')]
    requests += [dict(do='unstable')] * (method in ASKED)
  done = commands.run('experiments.versus', 'ibpjax', given='\n'.join(map(json.dumps, requests)) + '\n')
  assert done.returncode == 0, done.stderr
  replies = map(json.loads, done.stdout.splitlines())
  for number, method in enumerate(versus.METHODS):
    built, ran = next(replies), next(replies)
    assert built['build'] > 0 < ran['cpu'], method
    out = np.load(tmp_path / f'{number}.npy')
    if method in ASKED:
      share = next(replies)['unstable']
      assert share is None if method == 'train CROWN-IBP' else 0 < share < 1
    if method == 'train CROWN-IBP':
      assert out > 0
      continue
    assert out.shape == (2, 2, 10), method
    assert np.all(out[0] == out[1]) if method == 'network' else np.all(out[0] < out[1]), method
  assert not list(replies)


def test_cells_are_known_methods():
  cells = contest.cells(list(contest.CELLS))
  assert {c.method for c in cells} == set(versus.METHODS)
  assert {c.net for c in cells} == set(versus.NETS)
