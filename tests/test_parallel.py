"""Many devices compute what one does: eight of the host, in a process of their own, and layouts on a mesh of one."""
import json
import os
import pathlib
import runpy
import socket
import time

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibpjax
from ibpjax.training import parallel
from ibpjax.xla.batching import dealt_over, over_rows

HERE = pathlib.Path(__file__).parent


def pretended(devices):
  """XLA's flags for devices that this machine pretends to have.

  Unless the scheduler keeps to one order, each device chooses its own among collectives that do not depend on each
  other, and with fewer cores than devices they come to wait in different ones until XLA aborts.
  """
  return (f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices} '
          '--xla_cpu_enable_concurrency_optimized_scheduler=false')


def run(devices, runner, *arguments):
  done = runner(*arguments, environment=dict(XLA_FLAGS=pretended(devices)), timeout=600)
  assert done.returncode == 0, done.stderr
  return done.stdout


def on_eight_devices(script, *arguments):
  return json.loads(run(8, commands.run_file, HERE / script, *arguments).splitlines()[-1])


LAYOUTS = 'mesh', 'fsdp', 'pmap'


@pytest.mark.parametrize(('objective', 'layouts'), [
    ('crown-ibp', LAYOUTS), ('shi', LAYOUTS[1:]), ('emma', LAYOUTS[1:]),   # with states cut, batches are cut as well
    *(pytest.param(name, LAYOUTS, marks=pytest.mark.slow) for name in ('ibp', 'shi', 'emma'))])
def test_twenty_steps_are_those_of_one_device(objective, layouts):
  """Under jit on a mesh, with states cut over it, and under pmap: losses and parameters in float64."""
  found = on_eight_devices('parallel_steps.py', objective, 'float64', *layouts)
  assert found.pop('moved') > .01
  assert set(found) == set(layouts)
  assert max(map(max, found.values())) < 1e-9


@pytest.mark.slow
def test_in_float32_losses_are_near():
  found = on_eight_devices('parallel_steps.py', 'shi', 'float32', *LAYOUTS)
  assert found.pop('moved') > .01
  assert max(losses for losses, _ in found.values()) < 1e-3


def test_certificates_are_those_of_one_device():
  """Thirteen examples on eight devices, and the rows of an example on four; in float64."""
  found = on_eight_devices('parallel_certificates.py')
  assert found['spread'] > .1
  assert found['apart'] < 1e-12
  assert found['share'] < .6  # of what a device computes for as many examples with all of their rows


def test_rows_are_dealt_and_gathered_in_order():
  """Also where a device has a card less than the others, and where few rows are needed."""
  mesh = parallel.data_mesh(rows=2)
  rows, needed = jnp.arange(7), jnp.asarray([True, False, False, True, True, False, True])

  def f(row):
    return dict(square=row * row, axis=jax.lax.axis_index('rows'))

  def dealt(chunk, needed):
    def own(rows, needed):
      with dealt_over('rows'):
        return over_rows(f, rows, 1, chunk, needed)
    whole = jax.sharding.PartitionSpec()
    return jax.shard_map(own, mesh=mesh, in_specs=(whole, whole), out_specs=whole, check_vma=False)(rows, needed)
  found = dealt(2, None)
  np.testing.assert_array_equal(found['square'], rows * rows)
  np.testing.assert_array_equal(found['axis'], rows % 2)
  found = dealt(1, needed)
  np.testing.assert_array_equal(found['square'][needed], (rows * rows)[needed])
  np.testing.assert_array_equal(found['axis'][needed], (rows % 2)[needed])


def test_batches_of_any_length_are_spread():
  mesh = parallel.data_mesh()
  x, y, counted = parallel.spread(mesh, np.arange(10.).reshape(5, 2), np.arange(5))
  assert x.sharding.spec == y.sharding.spec == jax.sharding.PartitionSpec('batch')
  np.testing.assert_array_equal(y, [0, 1, 2, 3, 4, 4])
  np.testing.assert_array_equal(counted, [True] * 5 + [False])
  assert parallel.gathered(x).shape == (6, 2)


def test_meshes_that_cannot_be():
  with pytest.raises(ValueError, match='2 devices cannot be grouped by 3'):
    parallel.data_mesh(rows=3)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(1, 1, 2), ('a', 'b', 'c'))
  with pytest.raises(ValueError, match='mesh has axes'):
    ibpjax.certify(lambda w, x: w @ x, jnp.eye(2), jnp.ones((1, 2)), jnp.zeros(1, int), .1, clip=None, mesh=mesh)


def test_states_are_cut_along_their_longest_axis():
  mesh = jax.sharding.AbstractMesh((8,), (parallel.BATCH,))
  state = dict(kernel=jnp.zeros((3, 16, 40)), square=jnp.zeros((16, 16)), bias=jnp.zeros(9), step=jnp.zeros(()))
  cut = {k: v.spec for k, v in parallel.state_shardings(mesh, state, fsdp=True).items()}
  spec = jax.sharding.PartitionSpec
  assert cut == dict(kernel=spec(None, None, 'batch'), square=spec('batch'), bias=spec(), step=spec())
  assert all(v.spec == spec() for v in jax.tree.leaves(parallel.state_shardings(mesh, state)))


def test_one_device_is_a_mesh_too():
  mesh = parallel.data_mesh()
  x = jax.device_put(np.arange(8.), parallel.batch_sharding(mesh))
  np.testing.assert_array_equal(parallel.gathered(dict(x=x, y=3))['x'], np.arange(8.))


TRAIN = ['experiments.train', '--model=mlp', '--hidden=32', '--epochs=2', '--warmup_epochs=0', '--ramp_epochs=1',
         '--batch_size=64', '--eps=.05']


def metrics(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """What a run on one device measures."""
  folder = tmp_path_factory.mktemp('one') / 'run'
  run(1, commands.run, *TRAIN, f'--out={folder}')
  return metrics(folder)


def same(found, expected):
  for other, record in zip(found, expected, strict=True):
    for key in ('loss', 'natural', 'robust', 'eps'):
      assert other[key] == pytest.approx(record[key], rel=1e-3)
    assert other['test_error'] == pytest.approx(record['test_error'], abs=1)


def test_a_run_of_eight_devices_goes_on_with_one(one, tmp_path):
  said = run(8, commands.run, *TRAIN, '--fsdp', '--max_minutes=0', f'--out={tmp_path}/run')
  assert 'the same command goes on' in said
  run(1, commands.run, *TRAIN, f'--out={tmp_path}/run')
  same(metrics(tmp_path / 'run'), one)


def processes(runner, name, flags, outs=(None, None)):
  """Two processes of two devices each that find each other: forked, as commands are, and left to run.

  Args:
    flags: (address of a free port of this machine, number) -> arguments.
    outs: files for what they print.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  environment = dict(XLA_FLAGS=pretended(2))
  with open(os.devnull, 'r+') as nothing:
    return [commands.start(runner, name, flags(address, i), (nothing, out or nothing, nothing), environment)
            for i, out in enumerate(outs)]


def ended(pair, timeout):
  """Their exit statuses, None of one that still runs."""
  for process in pair:
    process.join(timeout)
  return [process.exitcode for process in pair]


def killed(pair):
  for process in pair:
    process.kill()
    process.join()


def training(folder, *flags):
  """Two processes that train together."""
  return processes(runpy.run_module, TRAIN[0], lambda address, i: [
      *TRAIN[1:], f'--coordinator={address}', '--processes=2', f'--process={i}', *flags, f'--out={folder}'])


def test_processes_decode_the_rows_of_their_own_devices(tmp_path):
  """All see the same batches, those of one process; each has decoded its half of them."""
  with open(tmp_path / '0', 'w+') as first, open(tmp_path / '1', 'w+') as second:
    pair = processes(runpy.run_path, str(HERE / 'parallel_batches.py'), lambda *given: given, (first, second))
    try:
      assert ended(pair, 100) == [0, 0]
    finally:
      killed(pair)
  one, other = (json.loads((tmp_path / name).read_text().splitlines()[-1]) for name in '01')
  order = np.random.default_rng([3, 1]).permutation(21)[:16].reshape(2, 8)
  assert one['labels'] == other['labels'] == order.tolist()
  assert one['decoded'] == sorted(order[:, :4].ravel().tolist())
  assert other['decoded'] == sorted(order[:, 4:].ravel().tolist())


def test_two_processes_one_of_them_killed(one, tmp_path):
  """Together they are one run; killed in the middle and started again they end as that."""
  folder = tmp_path / 'run'
  pair = training(folder, '--checkpoint_minutes=0')
  try:
    until = time.monotonic() + 200
    while not any(p.name.isdigit() and int(p.name) >= 2 for p in (folder / 'checkpoints').glob('*')):
      assert time.monotonic() < until, 'no checkpoint appears'
      assert pair[0].is_alive(), 'the first process ended by itself'
      time.sleep(.05)
    killed(reversed(pair))   # alone the first would wait for the other one until the coordinator gives up
    assert len(metrics(folder)) < 2, 'it was not killed in the middle'
    pair = training(folder)
    assert ended(pair, 200) == [0, 0]
  finally:
    killed(pair)
  same(metrics(folder), one)


def test_batches_that_devices_do_not_divide_are_refused():
  with pytest.raises(AssertionError, match='8 devices do not divide the 30 examples'):
    run(8, commands.run, 'experiments.train', '--model=mlp', '--batch_size=30')
