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

BATCH = 'batch'


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """Devices in a row, along which batches are cut; all that there are, of all processes, by default."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (BATCH,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Equal parts along the first axis, which the number of devices must divide."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


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
