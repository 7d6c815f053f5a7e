"""What a run leaves on disk: config.json, metrics.jsonl and a checkpoint of its model."""
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from experiments.data import Dataset
from ibpjax import nn

MODELS: dict[str, Callable[..., nn.Sequential]] = {
    'mlp': nn.mlp, 'dm_small': nn.dm_small, 'dm_medium': nn.dm_medium, 'wk_small': nn.wk_small, 'cnn7': nn.cnn7}


def build_model(name: str, data: Dataset, seed: int) -> nn.Sequential:
  """A freshly initialised model for the images of a dataset."""
  return MODELS[name](input_shape=data.train_images.shape[1:], classes=data.classes, rngs=nnx.Rngs(seed))


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


def write_config(out: pathlib.Path, flags: dict[str, Any]) -> None:
  """Every flag with its value, defaults included, and what it ran on."""
  (out / 'config.json').write_text(json.dumps(dict(flags=flags, versions=versions()), indent=2) + '\n')


def read_config(out: pathlib.Path) -> dict[str, Any]:
  """The flags of a finished run, or an error that says what is missing."""
  path = out / 'config.json'
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist: {out} is not the folder of a run. Train one with '
                            f'`python -m experiments.train --out={out}`')
  return json.loads(path.read_text())['flags']


def append(path: pathlib.Path, record: dict[str, Any]) -> None:
  """One JSON line."""
  with path.open('a') as file:
    file.write(json.dumps(record) + '\n')


def _named(state: Any) -> dict[str, Any]:
  return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}


def save(out: pathlib.Path, state: Any) -> None:
  """The arrays of a pytree, by the names of their paths."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((out / 'checkpoint').absolute(), _named(state), force=True)


def restore(out: pathlib.Path, like: Any) -> Any:
  """The pytree that `save` wrote, in the structure, shapes and dtypes of `like`."""
  path = (out / 'checkpoint').absolute()
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist: the run in {out} was not finished. Train it again')
  with ocp.StandardCheckpointer() as checkpointer:
    stored = checkpointer.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like)))
  return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in _named(like)])
