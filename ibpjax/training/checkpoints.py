"""Checkpoints: everything a run needs to go on as if it had never stopped, saved by orbax."""
from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class CheckpointError(RuntimeError):
  """A checkpoint that could not be written or read, with the remedy; those saved before are untouched."""


class Checkpoints:
  """The checkpoints of one run in a folder, the newest few of them.

  A checkpoint appears whole or not at all: it is written under another name and renamed, so that
  a run killed while it saves still has the one before. Each carries a checksum. Of several processes
  (`jax.distributed`) one saves, with arrays that are whole there, and any restores: none waits for another.

  Args:
    folder: made at the first `save`.
    keep: how many to keep, the newest; at least 2, so that one corrupt file costs no run.
  """

  def __init__(self, folder: pathlib.Path | str, keep: int = 2):
    if keep < 2:
      raise ValueError(f'keep is {keep}; at least 2 checkpoints are kept, lest a corrupt one cost the run')
    self.folder = pathlib.Path(folder).absolute()
    self.keep = keep

  def steps(self) -> list[int]:
    """The steps that were saved, in order."""
    if not self.folder.is_dir():
      return []
    return sorted(ocp.utils.checkpoint_steps(self.folder))

  def save(self, step: int, state: Any, notes: dict[str, Any] | None = None) -> None:
    """Saves a pytree of arrays under the number of a step, and waits until it is on the disk.

    Args:
      step: a number greater than all saved before.
      state: any pytree of arrays.
      notes: what else a run wants to remember; goes through JSON.

    Raises:
      CheckpointError: it could not be written; what was saved before stays.
    """
    arrays = named(state)
    notes = dict(notes=notes or {}, checksum=_checksum(arrays))
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      with self._manager() as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(notes)))
    except Exception as e:  # of the operating system or of the storage library: no common class
      raise CheckpointError(f'step {step} could not be saved in {self.folder}: {_first_line(e)}. {self._left()} Make '
                            'room on the disk, or give another folder, and start again') from e

  def restore(self, step: int | None = None) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
    """(step, arrays by name, notes) of a checkpoint, the newest by default; `fill` makes a pytree of the arrays.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is corrupt, or was not written by `save`.
    """
    steps = self.steps()
    if not steps or (step is not None and step not in steps):
      raise FileNotFoundError(f'{self.folder} has no checkpoint' + ('' if step is None else f' of step {step}'))
    step = steps[-1] if step is None else step
    try:
      with self._manager(read_only=True) as manager:
        found = manager.item_metadata(step)['state'].tree
        like = {name: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=_here()) for name, m in found.items()}
        stored = manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(like), notes=ocp.args.JsonRestore()))
      arrays = {name: np.asarray(x) for name, x in stored['state'].items()}
      if stored['notes']['checksum'] != _checksum(arrays):
        raise ValueError('its arrays are not those that were saved (checksum)')
    except Exception as e:
      others = [s for s in steps if s != step]
      remedy = (f'Delete {self.folder / str(step)} to go on from step {others[-1]}' if others else
                f'Delete {self.folder} to start anew')
      raise CheckpointError(f'the checkpoint {self.folder / str(step)} cannot be read: {_first_line(e)}. It is '
                            f'corrupt, or not a checkpoint of ibpjax. {remedy}') from e
    return step, arrays, stored['notes']['notes']

  def _manager(self, read_only: bool = False) -> ocp.CheckpointManager:
    # Who reads must not clean up: what looks left over may be what a run is writing.
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
      alone = ocp.options.MultiprocessingOptions(
          primary_host=jax.process_index(), active_processes={jax.process_index()},
          barrier_sync_key_prefix=f'process{jax.process_index()}')
    handlers = dict(state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                    notes=ocp.JsonCheckpointHandler(multiprocessing_options=alone))
    return ocp.CheckpointManager(self.folder, item_handlers=handlers, options=ocp.CheckpointManagerOptions(
        max_to_keep=self.keep, enable_async_checkpointing=False, cleanup_tmp_directories=not read_only,
        read_only=read_only, multiprocessing_options=alone, create=jax.process_count() == 1))

  def _left(self) -> str:
    steps = self.steps()
    return f'The checkpoint of step {steps[-1]} is untouched.' if steps else 'No checkpoint was saved before.'


def named(state: Any) -> dict[str, Any]:
  """The arrays of a pytree by the names of their paths."""
  return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}


def fill(like: Any, arrays: dict[str, np.ndarray], source: Any) -> Any:
  """A pytree of the structure of `like`, its arrays taken by name; more may be there than it wants.

  Raises:
    CheckpointError: an array is missing or has another shape or dtype: the checkpoint is of another
      model, optimizer or version.
  """
  wanted = named(like)
  for name, x in wanted.items():
    if name not in arrays:
      raise CheckpointError(f'{source} has no array {name}: it is of another model or optimizer. Use the flags it was '
                            'trained with')
    if arrays[name].shape != x.shape or arrays[name].dtype != x.dtype:
      raise CheckpointError(f'{source} has {name} as {arrays[name].dtype}{list(arrays[name].shape)}, and '
                            f'{x.dtype}{list(x.shape)} is needed: it is of another model. Use the flags it was trained '
                            'with')
  return jax.tree.unflatten(jax.tree.structure(like), [jax.numpy.asarray(arrays[name]) for name in wanted])


def _here() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _checksum(arrays: dict[str, Any]) -> str:
  digest = hashlib.sha256()
  for name in sorted(arrays):
    x = np.ascontiguousarray(arrays[name])
    digest.update(f'{name} {x.dtype} {x.shape}'.encode())
    digest.update(x.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def _first_line(e: BaseException) -> str:
  return f'{type(e).__name__}: {(str(e).strip().splitlines() or ["no message"])[0][:200]}'
