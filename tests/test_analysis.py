"""What training does to bounds: growth and states by hand, tightness where it is known, and both in a run's files."""
import functools
import json
import pathlib

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import interpreted

from ibpjax import ibp, linf_ball
from ibpjax.verification.analysis import layer_growth, propagation_tightness

RNG = np.random.default_rng(0)


def network(params, x):
  *hidden, last = params
  for w in hidden:
    x = jax.nn.relu(w @ x)
  return last @ x


def test_growth_and_states_by_hand():
  params = [jnp.array([[2., 0.], [0., -1.], [1., 1.]]), jnp.eye(3), jnp.ones((1, 3))]
  found = layer_growth(network, params, jnp.array([[.5, .5]]), .25)
  # [.25, .75]**2 -> [.5, 1.5], [-.75, -.25], [.5, 1.5] -> relu -> [.5, 1.5], [0, 0], [.5, 1.5]
  np.testing.assert_allclose(found['radius'], [1.25 / 3, 1 / 3], rtol=1e-6)
  np.testing.assert_allclose(found['gain'], [1.25 / .75, .8], rtol=1e-6)
  np.testing.assert_allclose(found['active'], [2 / 3, 1.], rtol=1e-6)  # [0, 0] counts as active
  np.testing.assert_allclose(found['inactive'], [1 / 3, 0], rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(found['unstable'], [0, 0], atol=1e-6)
  wide = layer_growth(network, params, jnp.array([[.5, .5]]), .75, (-1., 2.))
  np.testing.assert_allclose(wide['unstable'], [1., 0.], rtol=1e-6)  # [-.5, 2.5], [-1.25, .25], [-.5, 2.5], then from 0


def test_propagation_tightness():
  xs = jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32)
  positive = [jnp.asarray(RNG.uniform(size=s), jnp.float32) for s in ((6, 8), (4, 6))]
  tightness = interpreted(functools.partial(propagation_tightness, network))
  np.testing.assert_allclose(tightness(positive, jnp.abs(xs)), 1, rtol=1e-5)
  params = [jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((12, 8), (12, 12), (3, 12))]
  found = tightness(params, xs)
  for x, ratio in zip(xs, found):
    slopes, z = [], x
    for w in params[:-1]:
      z = w @ z
      slopes.append((z > 0).astype(jnp.float32))
      z = jnp.maximum(z, 0)
    exact, bound = params[0], jnp.abs(params[0])
    for w, d in zip(params[1:], slopes):
      exact, bound = w @ (d[:, None] * exact), jnp.abs(w) @ (d[:, None] * bound)
    assert float(ratio) == pytest.approx(float((jnp.abs(exact).sum(1) / bound.sum(1)).mean()), rel=1e-4)
    assert 0 < ratio < .9
    # the ratio of radii of a box so small that no activation changes
    box = linf_ball(x, 1e-4)
    reached = jnp.abs(exact).sum(1) * 1e-4
    assert float(ratio) == pytest.approx(float((reached / ibp(network)(params, box).radius).mean()), rel=.02)


# A command whose own commands are forked from a process that has imported JAX.
FRONT = f'''
import os, runpy, subprocess, sys
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'   # the commands compile the same, most of it small
sys.path.append({str(pathlib.Path(__file__).parent)!r})
import commands

def run(command):
  main = sys.modules['__main__']
  main.__spec__ = main.__file__ = None  # or what is forked would run it first
  python, option, *flags = command
  assert (python, option, flags.pop(0)) == (sys.executable, '-m', 'ibpjax')
  done = commands.run('ibpjax', *flags)
  print(done.stdout, done.stderr, flush=True)
  return done
subprocess.run = run
sys.argv = ['ibpjax', 'sweep', *{{flags}}]
runpy.run_module('ibpjax', run_name='__main__')
'''


def test_a_trade_off_in_one_command(tmp_path):
  flags = ['--sweep=kappa_end', '--values=0,.9', f'--out={tmp_path}', '--methods=ibp', '--pgd=5x1', '--examples=100',
           '--', '--model=mlp', '--hidden=16', '--epochs=2', '--warmup_epochs=0', '--ramp_epochs=1',
           '--eps=.05', '--batch_size=100', '--validation=500']
  done = commands.run_code(FRONT.format(flags=flags))
  assert done.returncode == 0, done.stderr
  for name in ('front.png', 'tradeoff.png', 'table.md', 'kappa_end=0/layers.png'):
    assert (tmp_path / name).stat().st_size > 100
  rows = [line for line in (tmp_path / 'table.md').read_text().splitlines() if 'kappa_end=' in line]
  assert len(rows) == 2
  for line in (tmp_path / 'kappa_end=.9' / 'metrics.jsonl').read_text().splitlines():
    layers = json.loads(line)['layers']
    assert set(layers) == {'radius', 'gain', 'active', 'inactive', 'unstable'}
    assert all(len(numbers) == 1 for numbers in layers.values())
    assert layers['active'][0] + layers['inactive'][0] + layers['unstable'][0] == pytest.approx(1, abs=1e-5)
  flags[-1:] = ['--kappa_end=1']
  done = commands.run_code(FRONT.format(flags=flags))
  assert done.returncode != 0
  assert '--kappa_end=1 is given behind --' in done.stdout + done.stderr
