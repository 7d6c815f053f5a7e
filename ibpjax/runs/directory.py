"""What a run is on disk: a folder with config.json, metrics.jsonl, checkpoints/; and the model that it holds."""
import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from flax import nnx

from ibpjax import nn
from ibpjax.data.datasets import Facts
from ibpjax.runs import logs
from ibpjax.training import split
from ibpjax.training.checkpoints import Checkpoints, fill

MODELS: dict[str, Callable[..., nn.Sequential]] = {
    'mlp': nn.mlp, 'dm_small': nn.dm_small, 'dm_medium': nn.dm_medium, 'dm_large': nn.dm_large,
    'dm_large_200': functools.partial(nn.dm_large, hidden=200), 'wk_small': nn.wk_small,
    'cnn5': nn.cnn5, 'cnn7': nn.cnn7, 'cnn9': nn.cnn9, 'cnn7_tiny': functools.partial(nn.cnn7, last_stride=2),
    'wide_resnet8': nn.wide_resnet8, 'wide_resnet8_tiny': functools.partial(nn.wide_resnet8, width=10),
    'resnext': nn.resnext, 'resnext_tiny': functools.partial(nn.resnext, stem=16, bottleneck=8, blocks=2),
    'liresnet': nn.liresnet}
ACTIVATIONS: dict[str, Callable[..., Any]] = {'relu': jax.nn.relu, 'leaky_relu': nn.LeakyReLU,
                                              'param_ramp': nn.ParamRamp}
# Flags that are options of some models only.
OPTIONS = {'hidden': ['mlp'], 'width': ['cnn5', 'cnn7', 'cnn7_tiny', 'cnn9', 'dm_large', 'dm_large_200', 'liresnet'],
           'valid': ['dm_small', 'dm_medium'], 'depth': ['liresnet'], 'block': ['liresnet'], 'neck': ['liresnet']}
UNNORMALISED = ('liresnet',)   # take pixels as they are: a division by the deviations would lengthen
# Flags that say how and where a run is done, not what is computed: these may change when it goes on.
CIRCUMSTANCES = {'out', 'config', 'data_dir', 'workers', 'max_minutes', 'checkpoint_minutes', 'seeds', 'fsdp',
                 'coordinator', 'processes', 'process'}


def build_model(config: dict[str, Any], facts: Facts, seed: int) -> nn.Sequential:
  """A freshly initialised model for the images of a dataset, its normalisation the first layer."""
  name, options = config['model'], dict[str, Any]()
  for option, models in OPTIONS.items():
    if config.get(option):
      if name not in models:
        raise ValueError(f'--{option} is an option of {" and ".join(models)}, not of {name}: leave it out')
      options[option] = config[option]
  if config.get('activation', 'relu') != 'relu':
    options['activation'] = functools.partial(ACTIVATIONS[config['activation']], eta=config['eta'])
  model = MODELS[name](input_shape=facts.shape, classes=facts.classes, rngs=nnx.Rngs(seed), **options)
  if name not in UNNORMALISED and (any(facts.mean) or set(facts.std) != {1.}):
    model = nn.Sequential([nn.Normalise(facts.mean, facts.std), *model.layers])
  return model


def parameters(model: nn.Sequential) -> int:
  """The number of trained numbers of a model."""
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def versions() -> dict[str, Any]:
  """The software and the machine that produce a run."""
  def commit() -> str:
    try:
      where = pathlib.Path(__file__).parent
      run = lambda *a: subprocess.run(['git', *a], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
      return run('rev-parse', 'HEAD') + (' with local changes' if run('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.CalledProcessError):
      return 'unknown'
  packages = {p: importlib.metadata.version(p) for p in ('ibpjax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')}
  return dict(commit=commit(), python=platform.python_version(), **packages,
              devices=[str(d) for d in jax.devices()], machine=platform.platform())


@contextlib.contextmanager
def alone(out: pathlib.Path) -> Iterator[None]:
  """Holds the folder of a run; another process that wants it gets an error. A folder left empty is removed.

  Raises:
    RuntimeError: a process is training in it.
  """
  made = [folder for folder in (out, *out.parents) if not folder.exists()]
  out.mkdir(parents=True, exist_ok=True)
  folder = os.open(out, os.O_RDONLY)
  try:
    try:
      fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise RuntimeError(f'{out} is being trained by another process: wait for it, or use another --out') from None
    yield
  finally:
    os.close(folder)
    with contextlib.suppress(OSError):  # not empty
      for path in made:
        path.rmdir()


def begin(out: pathlib.Path, config: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
  """Writes config.json: every flag with its value, defaults included, and the software. Refuses another run's folder.

  A run that goes on with other software says so there: `versions` lists all, in order. `defaults` are the values that
  flags had which are younger than the run.

  Raises:
    ValueError: the folder holds a run with other flags.
  """
  path = out / 'config.json'
  if path.exists():
    old = (defaults or {}) | read_config(out)
    differ = [f'--{k}={old.get(k)} there and {config.get(k)} here' for k in sorted(old.keys() | config.keys())
              if k not in CIRCUMSTANCES and old.get(k) != config.get(k)]
    if differ:
      raise ValueError(f'{out} holds a run with other flags ({"; ".join(differ)}): use these to go on with it, or '
                       'another --out, or delete the folder')
    used, now = read_versions(out), versions()
    if used[-1] != now:
      logs.write(path, json.dumps(dict(flags=old, versions=[*used, now]), indent=2) + '\n')
  elif out.exists() and any(p.name != 'config.json.new' for p in out.iterdir()):  # left by a kill
    raise ValueError(f'{out} holds files and is not the folder of a run: use another --out')
  else:
    out.mkdir(parents=True, exist_ok=True)
    logs.write(path, json.dumps(dict(flags=config, versions=[versions()]), indent=2) + '\n')


def read_config(out: pathlib.Path) -> dict[str, Any]:
  """The flags of a run, or an error that says what is missing."""
  path = out / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist: {out} is not the folder of a run. Train one with '
                            f'`ibpjax train --out={out}`')
  try:
    return json.loads(path.read_text())['flags']
  except (json.JSONDecodeError, KeyError, TypeError):
    raise ValueError(f'{path} is not the config of a run: it was changed. Restore it, or train again') from None


def read_versions(out: pathlib.Path) -> list[dict[str, Any]]:
  """The software that a run was made with, in order of use."""
  return json.loads((out / 'config.json').read_text())['versions']


def checkpoints(out: pathlib.Path) -> Checkpoints:
  return Checkpoints(out / 'checkpoints')


def trained(out: pathlib.Path, facts: Facts) -> tuple[Any, Any]:
  """(graphdef, (params, batch_stats)) of the model that a finished run left; with --swa_from the averaged one.

  Raises:
    FileNotFoundError, CheckpointError: there is no such run, it was not finished, or it is corrupt.
  """
  config = read_config(out)
  saved = checkpoints(out)
  graphdef, state = split(build_model(config, facts, config['seed']))
  if not saved.steps():
    raise FileNotFoundError(f'{out} was not finished: it has no checkpoint. Go on with it by its command')
  step, arrays, notes = saved.restore()
  if not notes['finished']:
    raise FileNotFoundError(f'{out} was not finished: its last checkpoint is of step {step}. Go on with it by its '
                            'command')
  return graphdef, fill(dict(final=state), arrays, saved.folder / str(step))['final']


def is_trained(run: pathlib.Path) -> bool:
  """Whether training is finished: the last checkpoint is that of the last step. Files that are there prove nothing."""
  saved = checkpoints(run)
  return bool(saved.steps()) and saved.restore()[2]['finished']


def is_certified(run: pathlib.Path, radii: Sequence[float] | None = None, examples: int | None = None) -> bool:
  """Whether there is a summary of each radius, of as many examples as asked for.

  certificate.json is there before the first example.
  """
  path = run / 'certificate.json'
  if not path.exists():
    return False
  found, config = json.loads(path.read_text()), read_config(run)
  of = found['settings']['of']
  asked = of if examples is None else min(examples, of)
  done = {r['eps'] for r in found.get('results', []) if r['examples'] == asked}
  return done >= set(radii or [config['eps'] if config.get('test_eps') is None else config['test_eps']])
