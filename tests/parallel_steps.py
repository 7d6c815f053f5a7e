"""Twenty steps on one device, on a mesh, with cut states and by pmap, on eight devices that the host pretends to have.

Run by `test_parallel` in a process of its own, with an objective, a dtype and some of mesh, fsdp and, last, pmap;
prints how far losses and parameters are apart.
"""
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ibpjax
from ibpjax import nn, training
from ibpjax.nn.models import convolutional
from ibpjax.training import parallel

STEPS, BATCH, SHAPE = 20, 16, (8, 8, 1)


def models(name):
  rngs = nnx.Rngs(0)
  if name == 'emma':
    return nn.liresnet(2, 8, input_shape=SHAPE, classes=8, hidden=16, neck=2, rngs=rngs)
  hidden = [] if name == 'crown-ibp' else [16]   # of rows that walk back, each layer more takes long to compile
  return convolutional([(8, 3, 2, 1)], hidden, input_shape=SHAPE, classes=8, batch_norm=True, rngs=rngs)


def options(name, axis_name=None):
  regularizer = functools.partial(training.warm_up_regularizer, weight=lambda eps: .5, axis_name=axis_name)
  objective = {'ibp': training.ibp_objective, 'emma': training.lipschitz_objective,
               'crown-ibp': functools.partial(training.crown_objective, beta=lambda eps: .5),
               'shi': functools.partial(training.ibp_objective, regularizer=regularizer)}[name]
  estimate = functools.partial(ibpjax.lipschitz_estimate, steps=2) if name == 'emma' else None
  # Biases before batch norm have a gradient of rounding alone, which Adam divides by its eps.
  return dict(objective=objective, estimate=estimate, axis_name=axis_name, eps=training.linear(.1, 0, 10),
              kappa=lambda step: .5, optimizer=optax.adam(1e-3, eps=1e-5))


def compared(name, dtype, asked):
  """For each layout asked for, the greatest difference of a loss and of a parameter from those on one device."""
  model = models(name)
  nnx.update(model, jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, nnx.state(model)))
  settings = options(name)
  key = jax.random.key(0)
  carried = None
  if settings['estimate'] is not None:
    carried = training.carried_at_start(model, settings['estimate'], jnp.zeros(SHAPE, dtype), key)
  graphdef, state = training.TrainState.create(model, settings['optimizer'], carried)
  rng = np.random.default_rng(0)
  batches = [(rng.uniform(size=(BATCH, *SHAPE)).astype(dtype), rng.integers(0, 8, BATCH)) for _ in range(STEPS)]

  def run(step, state, prepare, whole=lambda x: x):
    losses = []
    for number, batch in enumerate(batches):
      state, metrics = step(state, prepare(batch), jax.random.fold_in(key, number))
      losses.append(float(whole(metrics['loss'])))
    return np.asarray(losses), jax.tree.map(lambda x: np.asarray(whole(x)), state.params)
  step = functools.partial(training.train_step, graphdef=graphdef, **settings)
  reference = run(jax.jit(step), state, lambda batch: batch)
  mesh, found = parallel.data_mesh(), {}
  for layout in asked[:asked.index('pmap')]:
    layouts = parallel.state_shardings(mesh, state, fsdp=layout == 'fsdp')
    cut = functools.partial(jax.device_put, device=parallel.batch_sharding(mesh))
    found[layout] = run(jax.jit(step, out_shardings=(layouts, None)), jax.device_put(state, layouts), cut)
  one_part = jax.pmap(functools.partial(training.train_step, graphdef=graphdef, **options(name, 'devices')),
                      axis_name='devices', in_axes=(0, 0, None))
  parts = lambda batch: jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
  copies = jax.pmap(lambda _: state, axis_name='devices')(np.arange(8))   # as steps leave them: compiled once
  found['pmap'] = run(one_part, copies, parts, lambda x: x[0])

  def apart(run):
    weights = jax.tree.map(lambda a, b: np.max(np.abs(a - b), initial=0), run[1], reference[1])
    return float(np.max(np.abs(run[0] - reference[0]))), float(max(jax.tree.leaves(weights)))
  moved = float(abs(reference[0][-1] - reference[0][0]))
  return {layout: apart(run) for layout, run in found.items()} | dict(moved=moved)


if __name__ == '__main__':
  assert len(jax.devices()) == 8, jax.devices()
  jax.config.update('jax_enable_x64', sys.argv[2] == 'float64')
  print(json.dumps(compared(sys.argv[1], np.dtype(sys.argv[2]), sys.argv[3:])))
