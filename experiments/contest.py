"""Libraries bound the same networks in turn, each in its own process: times, memory, how equal bounds are."""
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

ROOT = os.fspath(pathlib.Path(__file__).parent.parent)
# network: method: batch sizes.
CELLS = {
    'mlp': {'network': (16, 64), 'IBP': (16, 64), 'CROWN-IBP': (16, 64), 'LBP': (1,), 'CROWN': (1, 16, 64),
            'alpha-CROWN': (1, 16)},
    'dm_small': {'network': (64,), 'IBP': (64,), 'CROWN-IBP': (64,), 'LBP': (1, 16), 'CROWN': (1, 16, 64),
                 'alpha-CROWN': (1,), 'train CROWN-IBP': (128,)},
    'dm_medium': {'network': (64,), 'IBP': (64,), 'CROWN-IBP': (16, 64), 'LBP': (1,), 'CROWN': (1, 4),
                  'train CROWN-IBP': (128,)}}
PEERS = ('auto_lirpa', 'jax_verify')
RADII = (.01, .1)
ROUNDS, SECONDS = (3, 15), 10.  # the fewest and the most; no more begin after so many seconds


@dataclasses.dataclass(frozen=True)
class Cell:
  """One measurement: a network, a method, a batch size, a radius."""
  net: str
  method: str
  batch: int
  eps: float


def cells(nets: list[str]) -> list[Cell]:
  """All measurements of some networks."""
  return [Cell(net, method, batch, eps) for net in nets for method, sizes in CELLS[net].items() for batch in sizes
          for eps in (RADII if method != 'network' else (0.,))]


@contextlib.contextmanager
def contender(python: str, library: str) -> Iterator[Any]:
  """A process of a library: a function that sends it a request and returns the answer."""
  path = os.pathsep.join([ROOT, os.environ.get('PYTHONPATH', '')])
  with tempfile.TemporaryFile('w+') as said, subprocess.Popen(
      [python, '-m', 'experiments.versus', library], env=os.environ | dict(PYTHONPATH=path), text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process:
    def ask(**request: Any) -> dict[str, Any]:
      assert process.stdin is not None
      assert process.stdout is not None
      try:
        process.stdin.write(json.dumps(request) + '\n')
        process.stdin.flush()
        return json.loads(process.stdout.readline())
      except (BrokenPipeError, json.JSONDecodeError):
        with contextlib.suppress(BrokenPipeError):
          process.stdin.close()
        if (ended := process.wait()) < 0:
          why = f'ended by {signal.Signals(-ended).name} (no memory left?)'
        else:
          said.seek(0)
          why = ''.join(said.read().strip().splitlines()[-1:])
        raise RuntimeError(f'{library} in {python} failed: {why}') from None
    try:
      yield ask
    finally:
      process.kill()


def measure(cell: Cell, peers: dict[str, str]) -> dict[str, Any]:
  """Medians of ours and its peers, in rounds; `apart`: the greatest distance of their bounds beside the greatest width.

  A library that fails has no figures, but the reason in its place.

  Args:
    cell: what to measure.
    peers: library -> the Python of an environment that has it.
  """
  found: dict[str, Any] = dataclasses.asdict(cell)
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    asks, bounds, times = {}, {}, collections.defaultdict(list)
    for library, python in dict(ibpjax=sys.executable, **peers).items():
      ask, out = stack.enter_context(contender(python, library)), f'{folder}/{library}.npy'
      try:
        found[library] = ask(do='build', out=out, **dataclasses.asdict(cell))
        asks[library], bounds[library] = ask, np.load(out)
      except RuntimeError as error:
        found[library] = dict(failed=str(error))
    start = time.monotonic()
    for done in range(ROUNDS[1]):
      if done >= ROUNDS[0] and time.monotonic() - start > SECONDS:
        break
      for library, ask in list(asks.items()):
        try:
          times[library].append(ask(do='run'))
        except RuntimeError as error:
          found[library] = dict(failed=str(error))
          del asks[library]
    for library in asks:
      found[library] |= {k: statistics.median(t[k] for t in times[library]) for k in ('wall', 'cpu')}
      found[library]['megabytes'] = max(t['megabytes'] for t in times[library])
      if bounds[library].ndim:
        found[library]['width'] = float(np.mean(bounds[library][1] - bounds[library][0]))
      if library in peers and 'ibpjax' in bounds:
        a, b = bounds['ibpjax'], bounds[library]
        scale = np.max(b[1] - b[0]) if b.ndim and cell.eps else np.max(np.abs(b))
        found[library]['apart'] = float(np.max(np.abs(a - b)) / scale)
    if 'ibpjax' in asks and cell.method == 'CROWN':
      found |= asks['ibpjax'](do='unstable')
  return found
