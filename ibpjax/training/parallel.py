"""Many devices: how batches and states of training are laid out over a mesh, under `jax.jit`.

A jitted step computes the same whatever the layout: means over a batch, batch statistics among them, are those of the
whole batch, and random numbers do not depend on the number of devices.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

BATCH, ROWS = 'batch', 'rows'


def data_mesh(devices: Sequence[Any] | None = None, rows: int = 1) -> Mesh:
  """Devices along which batches are cut; all that there are, of all processes, by default.

  Args:
    devices: which.
    rows: so many, a divisor of their number, work on the same examples, along a second axis (see `certify`).
  """
  chosen = np.asarray(jax.devices() if devices is None else devices)
  if rows < 1 or chosen.size % rows:
    raise ValueError(f'{chosen.size} devices cannot be grouped by {rows}: choose a divisor')
  grouped, names = (chosen, [BATCH]) if rows == 1 else (chosen.reshape(-1, rows), [BATCH, ROWS])
  return Mesh(grouped, names, axis_types=(AxisType.Auto,) * len(names))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Equal parts along the first axis, which the number of devices must divide."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def spread(mesh: Mesh, *arrays: Any) -> tuple[Any, ...]:
  """Arrays of one batch cut over the devices, its last example again and again where parts would not be equal.

  Args:
    mesh: of `data_mesh`.
    *arrays: each (batch, ...), of one length of at least 1, the same on all processes.

  Returns:
    (parts, ...) each (longer batch, ...), and last (longer batch,) booleans: this is an example of the batch.
  """
  n, count = len(arrays[0]), mesh.shape[BATCH]
  more = -n % count
  longer = [np.concatenate([x, np.repeat(x[-1:], more, 0)]) if more else x for x in map(np.asarray, arrays)]
  return tuple(jax.device_put(x, batch_sharding(mesh)) for x in (*longer, np.arange(n + more) < n))


def rows_here(sharding: NamedSharding, length: int) -> np.ndarray:
  """The rows of a batch of some length that lie on devices of this process, in increasing order."""
  parts = sharding.addressable_devices_indices_map((length,)).values()
  return np.unique([np.arange(length)[part] for part in parts])


def assembled(sharding: NamedSharding, length: int, rows: np.ndarray, arrays: Any) -> Any:
  """Global arrays of a batch, from the rows that each process has; all processes call it.

  Args:
    sharding: of `batch_sharding`.
    length: of the batch.
    rows: `rows_here` of both.
    arrays: a pytree of arrays (len(rows), ...).
  """
  def whole(x: Any) -> jax.Array:
    def part(index: Any) -> Any:
      return x[np.searchsorted(rows, np.arange(length)[index[0]])]
    return jax.make_array_from_callback((length, *x.shape[1:]), sharding, part)
  return jax.tree.map(whole, arrays)


def state_shardings(mesh: Mesh | AbstractMesh, state: Any, *, fsdp: bool = False) -> Any:
  """How each array of a state lies on the devices: whole on each, or with `fsdp` cut along one of its axes.

  Args:
    mesh: of `data_mesh`.
    state: a pytree of arrays or of their shapes.
    fsdp: cut each array along the longest axis that the number of devices divides, the first of these, if there is one:
      parameters and optimizer states then take a part of the memory, and steps gather what they need.

  Returns:
    A pytree like `state` of shardings, for `jax.device_put` and as `out_shardings` of a step.
  """
  count = mesh.size

  def of(x: Any) -> NamedSharding:
    lengths = [n if n and n % count == 0 else 0 for n in x.shape]
    if not fsdp or count == 1 or not any(lengths):
      return replicated(mesh)
    at = int(np.argmax(lengths))
    return NamedSharding(mesh, PartitionSpec(*[BATCH if i == at else None for i in range(at + 1)]))
  return jax.tree.map(of, state)


def agreed(*facts: bool) -> tuple[bool, ...]:
  """What the first of all processes says, in the place of facts that may differ, as of clocks; all of these call it."""
  if jax.process_count() == 1:
    return facts
  return tuple(map(bool, multihost_utils.broadcast_one_to_all(np.asarray(facts))))


def gathered(tree: Any) -> Any:
  """NumPy arrays of a pytree of arrays that may be cut over the devices of several processes; all of these call it."""
  def whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return x
    if not isinstance(x.sharding, NamedSharding):
      raise TypeError(f'an array lies on the devices of several processes by {x.sharding}, and not by a mesh')
    everywhere = jax.jit(lambda y: y, out_shardings=replicated(x.sharding.mesh))(x)
    return np.asarray(everywhere.addressable_data(0))
  return jax.tree.map(whole, tree)
