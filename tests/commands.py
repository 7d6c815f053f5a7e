"""Commands as users start them, without the seconds in which each imports JAX and its company again.

A server process has imported these libraries and started no backend; for each command it forks.
"""
import contextlib
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import reduction

ROOT = pathlib.Path(__file__).parent.parent
_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload([
    'ibpjax.nn', 'ibpjax.training', 'ibpjax.runs.load_run', 'ibpjax.plotting.figures', 'ibpjax.verification.evaluation',
    'ibpjax.cli.commands', 'flax.nnx', 'optax', 'orbax.checkpoint', 'scipy.optimize', 'matplotlib.pyplot',
    'tensorboardX', 'grain', 'absl.app'])


def run(module, *flags, given='', environment=(), timeout=300):
  """`python -m module flags` in the root of the project.

  Args:
    given: what it reads from its standard input.
    environment: variables that JAX reads when it starts a backend; others it has read when it was imported.
  Returns its exit status and what it printed.
  """
  return _forked(runpy.run_module, module, flags, given, environment, timeout)


def run_file(path, *arguments, environment=(), timeout=300):
  """`python path arguments` in the root of the project."""
  return _forked(runpy.run_path, os.fspath(path), arguments, '', environment, timeout)


def run_code(code, timeout=300):
  """`python -c code` in the root of the project."""
  with tempfile.NamedTemporaryFile('w', suffix='.py') as file:
    file.write(code)
    file.flush()
    return run_file(file.name, timeout=timeout)


def start(runner, name, flags, files, environment=()):
  """A process that runs a module or a file (`runner` of `runpy`), with files for what it reads and prints."""
  passed = [reduction.DupFd(f.fileno()) for f in files]
  process = _SERVER.Process(target=_command, args=(passed, runner, name, [*map(str, flags)], dict(environment)))
  process.start()
  return process


def _forked(runner, name, flags, given, environment, timeout):
  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(tempfile.TemporaryFile('w+')) for _ in range(3)]
    files[0].write(given)
    files[0].seek(0)
    process = start(runner, name, flags, files, environment)
    process.join(timeout)
    if process.is_alive():
      process.kill()
      raise subprocess.TimeoutExpired(name, timeout)
    for file in files:
      file.seek(0)
    return subprocess.CompletedProcess([name, *map(str, flags)], process.exitcode, files[1].read(), files[2].read())


def _command(files, runner, name, flags, environment):
  for number, file in enumerate(files):
    os.dup2(file.detach(), number)
  sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing gives its processes none
  os.environ.update(environment)
  os.chdir(ROOT)
  sys.path.insert(0, os.fspath(ROOT))
  sys.argv = [name, *flags]
  try:
    runner(name, run_name='__main__')
  finally:  # as JAX does at the end of a process, which forked ones do not reach: others may still read from this one
    import jax
    jax.distributed.shutdown()
