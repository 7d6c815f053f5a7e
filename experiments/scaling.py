"""What steps of training cost on many devices, read from their compiled programs; nothing of them is run.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.benchmark --scaling --out=scaling.jsonl

For each network, its loss and each layout of parameters: operations and bytes of one device, memory, and what devices
send each other, with the same batch in all and the number of devices from 1 to all. The last columns are a roofline on
paper for `ACCELERATORS`: the longest of the times that operations, memory and links take at the vendors' peaks.
"""
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ibpjax
from ibpjax import training
from ibpjax.runs import directory
from ibpjax.training import parallel

# Peaks of one device: operations a second in bfloat16, bytes a second of memory, and of links, in one direction.
ACCELERATORS = {'TPU v5e': (197e12, 819e9, 100e9), 'H200': (989e12, 4.8e12, 450e9)}
SIZES = dict(pred=1, s8=1, u8=1, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8)
COLLECTIVE = re.compile(r'^[^=\n]* = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
                        r'(-start)?\(', re.M)
ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Workload:
  """A network, its loss, and a batch."""
  model: str
  options: tuple[tuple[str, int], ...]
  shape: tuple[int, int, int]
  classes: int
  loss: str
  batch: int


WORKLOADS = {
    'Tiny ImageNet, cnn7, IBP': Workload('cnn7_tiny', (), (56, 56, 3), 200, 'ibp', 128),
    'ImageNet, LiResNet L12W588, EMMA': Workload('liresnet', (('depth', 12), ('width', 588)), (224, 224, 3), 1000,
                                                 'emma', 1024)}
LAYOUTS = 'whole', 'cut', 'mapped'   # states on each device; cut over them (FSDP); whole, and the step mapped by hand


def exchanged(text: str) -> dict[str, tuple[int, int]]:
  """Collective operations of a compiled program: how many of each kind, and the bytes of their results.

  What stands in the body of a loop counts once.
  """
  found: dict[str, tuple[int, int]] = {}
  for result, kind, start in COLLECTIVE.findall(text):
    sizes = [SIZES[dtype] * math.prod(map(int, filter(None, shape.split(','))))
             for dtype, shape in ARRAY.findall(result) if dtype in SIZES]
    size = sum(sizes[len(sizes) // 2:] if start and kind == 'all-gather' else sizes)  # that says its operands too
    count, total = found.get(kind, (0, 0))
    found[kind] = count + 1, total + size
  return found


def step(work: Workload, mesh: Any, layout: str) -> Any:
  """The compiled step of a workload on a mesh, with one of `LAYOUTS`."""
  model = directory.MODELS[work.model](input_shape=work.shape, classes=work.classes, rngs=nnx.Rngs(0),
                                       **dict(work.options))
  optimizer, estimate, carried = optax.adam(1e-3), None, None
  objective: Any = training.ibp_objective
  if work.loss == 'emma':
    estimate, objective = functools.partial(ibpjax.lipschitz_estimate, steps=10), training.lipschitz_objective
    carried = training.carried_at_start(model, estimate, jnp.zeros(work.shape), jax.random.key(0))
  graphdef, state = training.TrainState.create(model, optimizer, carried)
  places = parallel.state_shardings(mesh, state, fsdp=layout == 'cut')

  def run(state, images, labels):
    return training.train_step(state, (images, labels), jax.random.key(0), graphdef=graphdef, optimizer=optimizer,
                               eps=lambda _: .1, kappa=lambda _: 0., objective=objective, estimate=estimate,
                               axis_name=parallel.BATCH if layout == 'mapped' else None)
  if layout == 'mapped':
    whole, part = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(parallel.BATCH)
    run = jax.shard_map(run, mesh=mesh, in_specs=(whole, part, part), out_specs=whole, check_vma=False)
  shaped = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  batch = parallel.batch_sharding(mesh)
  return jax.jit(run, donate_argnums=0, out_shardings=(places, None)).lower(
      jax.tree.map(shaped, state, places), jax.ShapeDtypeStruct((work.batch, *work.shape), jnp.float32, sharding=batch),
      jax.ShapeDtypeStruct((work.batch,), jnp.int32, sharding=batch)).compile()


def measured(work: Workload, devices: int, layout: str) -> dict[str, Any]:
  """Of one device: operations, bytes of memory read and written, megabytes that it holds, what it sends."""
  program = step(work, parallel.data_mesh(jax.devices()[:devices]), layout)
  cost, memory = program.cost_analysis(), program.memory_analysis()
  sent = exchanged(program.as_text())
  others = (devices - 1) / devices   # the share of a result that a device passes on in a ring; to reduce, as much again
  ring = {'all-reduce': 2 * others, 'all-gather': others, 'reduce-scatter': devices * others, 'all-to-all': others,
          'collective-permute': 1}
  over = sum(ring[kind] * size for kind, (_, size) in sent.items())
  slowest = {name: max(zip((cost['flops'] / peak, cost['bytes accessed'] / stream, over / link),
                           ('operations', 'memory', 'links')))
             for name, (peak, stream, link) in ACCELERATORS.items()}
  return dict(devices=devices, layout=layout, flops=cost['flops'], bytes=cost['bytes accessed'], sent=over,
              collectives={kind: list(v) for kind, v in sent.items()},
              state=memory.argument_size_in_bytes, temporary=memory.temp_size_in_bytes,
              roofline={name: seconds for name, (seconds, _) in slowest.items()},
              bound={name: what for name, (_, what) in slowest.items()})


def report() -> Iterator[tuple[str, dict[str, Any]]]:
  """(workload, what is measured) for 1, 2, 4, ... devices and, of all of them, for the other layouts."""
  counts = [2 ** i for i in range(int(math.log2(jax.device_count())) + 1)]
  for name, work in WORKLOADS.items():
    for devices in counts:
      yield name, measured(work, devices, LAYOUTS[0])
    for layout in LAYOUTS[1:] if counts[1:] else ():
      yield name, measured(work, counts[-1], layout)
