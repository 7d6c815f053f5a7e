"""Bounds of a random network by one library, in a process of its own that times itself; for `experiments.benchmark`.

    python -m experiments.versus ibpjax     (or auto_lirpa, jax_verify, in an environment that has it)

It reads one request a line and answers with one line, both JSON. {do: build, net, method, batch, eps, out}
builds and compiles, and leaves the bounds in a file; {do: run} bounds again, for a tenth of a second at least, and
answers with wall and CPU seconds of one time and with the peak of memory beyond what was used before the first
bound; {do: unstable} asks ours for the fraction of unstable neurons. One thread, one CPU; freed memory is kept
(see `ibpjax.cli.allocation`).
"""
import itertools
import json
import os
import pathlib
import re
import runpy
import sys
import time
from typing import Any

import numpy as np

# By its file: in the environment of a peer there may be no JAX, which the package imports.
ALLOCATION = runpy.run_path(str(pathlib.Path(__file__).parent.parent / 'ibpjax' / 'cli' / 'allocation.py'))
# Convolutions (channels, kernel size, stride), then dense layers: Gowal et al. 2018, without padding.
NETS = {
    'mlp': ((28, 28, 1), [], [256, 256]),
    'dm_small': ((28, 28, 1), [(16, 4, 2), (32, 4, 1)], [100]),
    'dm_medium': ((32, 32, 3), [(32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)], [512, 512]),
}
CLASSES = 10
METHODS = ('network', 'IBP', 'CROWN-IBP', 'LBP', 'CROWN', 'alpha-CROWN', 'train CROWN-IBP')
STEPS = 20   # of alpha-CROWN


def weights(net):
  """Kernels (height, width, in, out) and matrices (in, out) with variance 2 / fan_in; biases are 0."""
  rng = np.random.default_rng(0)
  (height, width, channels), convs, dense = NETS[net]
  kernels, matrices = [], []
  for features, size, stride in convs:
    kernels.append(rng.normal(size=(size, size, channels, features)) * (2 / (size * size * channels)) ** .5)
    height, width, channels = (height - size) // stride + 1, (width - size) // stride + 1, features
  sizes = [height * width * channels, *dense, CLASSES]
  for before, after in itertools.pairwise(sizes):
    matrices.append(rng.normal(size=(before, after)) * (2 / before) ** .5)
  return [k.astype(np.float32) for k in kernels], [m.astype(np.float32) for m in matrices]


def images(net, batch):
  return np.random.default_rng(1).uniform(size=(batch, *NETS[net][0])).astype(np.float32)


def network(net):
  """(f, params, images of a batch) -> ..., a function of one example, in JAX."""
  import jax
  import jax.numpy as jnp
  kernels, matrices = weights(net)
  strides = [stride for _, _, stride in NETS[net][1]]

  def f(params, x):
    kernels, matrices = params
    x = x[None]
    for kernel, stride in zip(kernels, strides):
      x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (stride, stride), 'VALID',
                                                   dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
    x = x.reshape(1, -1)
    for matrix in matrices[:-1]:
      x = jax.nn.relu(x @ matrix)
    return (x @ matrices[-1])[0]
  return f, jax.tree_util.tree_map(jnp.asarray, (kernels, matrices))


def stepped(loss, params, batch, **options):
  """A training step by Adam on `loss` of parameters, which answers with the loss."""
  import jax
  import jax.numpy as jnp
  import optax
  optimizer = optax.adam(1e-4)

  def step(state, y):
    params, moments = state
    value, gradient = jax.value_and_grad(loss)(params, y)
    updates, moments = optimizer.update(gradient, moments)
    return (optax.apply_updates(params, updates), moments), value
  state, y = (params, optimizer.init(params)), jnp.arange(batch) % CLASSES
  program = jax.jit(step, **options).lower(state, y).compile()
  return lambda: jax.block_until_ready(program(state, y))[1]


def ours(net, method, batch, eps):
  """A function that bounds the logits of a batch (or makes a training step), and the fraction of unstable neurons.

  The method 'network' is the logits themselves, as both ends.
  """
  import jax
  import jax.numpy as jnp

  import ibpjax
  from ibpjax import training
  f, params = network(net)
  x = jnp.asarray(images(net, batch))
  if method == 'train CROWN-IBP':
    def loss(params, y):
      return training.crown_objective(f, params, None, x, y, jnp.asarray(eps), None, beta=lambda _: 1.,
                                      clip=(-jnp.inf, jnp.inf))[0]
    return stepped(loss, params, batch, compiler_options=training.compiler_options()), None
  transformation = {
      'network': lambda f: lambda params, box: (f(params, box.lower),) * 2,
      'IBP': ibpjax.ibp, 'LBP': lambda f: ibpjax.lbp(f, lines=ibpjax.adaptive),
      'CROWN-IBP': lambda f: ibpjax.crown(f, intermediate='ibp'), 'CROWN': ibpjax.crown,
      'alpha-CROWN': lambda f: ibpjax.alpha_crown(f, steps=STEPS)}[method]
  box = ibpjax.linf_ball(x, eps)
  program = jax.jit(jax.vmap(transformation(f), (None, 0))).lower(params, box).compile()
  return lambda: jax.block_until_ready(program(params, box)), lambda: unstable(ibpjax, jax, f, params, box)


def jax_verify(net, method, batch, eps):
  """The same by jax_verify, one example at a time under `jax.vmap`; slopes are optimised for all layers together."""
  import jax
  import jax.numpy as jnp
  import jax_verify as library
  f, params = network(net)
  x = jnp.asarray(images(net, batch))

  def bounded(f, propagate):
    def one(x):
      found = propagate(f, library.IntervalBound(x - eps, x + eps))
      return found.lower, found.upper
    return one
  if method == 'train CROWN-IBP':
    others = jnp.asarray([[j for j in range(CLASSES) if j != k] for k in range(CLASSES)])

    def loss(params, y):
      def one(x, y):
        def margins(x):
          z = f(params, x)
          return z[y] - z[others[y]]
        lower, _ = bounded(margins, library.crownibp_bound_propagation)(x)
        return jax.nn.logsumexp(jnp.concatenate([jnp.zeros(1), -lower]))
      return jax.vmap(one)(x, y).mean()
    return stepped(loss, params, batch), None
  propagate: Any
  if method == 'network':
    propagate = lambda f, box: library.IntervalBound(*(f(box.lower),) * 2)
  elif method == 'alpha-CROWN':
    import optax
    from jax_verify.src import bound_propagation
    from jax_verify.src.linear import backward_crown, linear_relaxations
    optimised = backward_crown.JointOptimizationConcretizationAlgorithm(
        linear_relaxations.parameterized_relaxer, optax.adam(.1), STEPS)
    propagate = lambda f, box: bound_propagation.bound_propagation(optimised, f, box)[0]
  else:
    name = {'IBP': 'interval', 'LBP': 'forward_crown', 'CROWN-IBP': 'crownibp', 'CROWN': 'backward_crown'}[method]
    propagate = getattr(library, f'{name}_bound_propagation')

  def bounds(params, x):
    return jax.vmap(bounded(lambda x: f(params, x), propagate))(x)
  program = jax.jit(bounds).lower(params, x).compile()
  return lambda: jax.block_until_ready(program(params, x)), None


def unstable(ibpjax, jax, f, params, box):
  """The fraction of neurons whose sign the bounds of CROWN leave open, for the first example."""
  first = jax.tree.map(lambda a: a[0], box)
  inside = jax.jit(ibpjax.crown(f, intermediates=True))(params, first)[1].bounds.values()
  return float(sum(((b.lower < 0) & (b.upper > 0)).sum() for b in inside) / sum(b.lower.size for b in inside))


def auto_lirpa(net, method, batch, eps):
  """The same by auto_LiRPA."""
  import torch
  from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
  torch.set_num_threads(1)
  kernels, matrices = weights(net)
  layers = []
  for (features, size, stride), kernel in zip(NETS[net][1], kernels):
    layer = torch.nn.Conv2d(kernel.shape[2], features, size, stride)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    layer.bias.data.zero_()
    layers += [layer, torch.nn.ReLU()]
  layers.append(torch.nn.Flatten())
  for i, matrix in enumerate(matrices):
    if not i and kernels:  # rows are in the order (height, width, channels) there, (channels, height, width) here
      channels = kernels[-1].shape[3]
      side = round((len(matrix) / channels) ** .5)
      matrix = matrix.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(len(matrix), -1)
    layer = torch.nn.Linear(*matrix.shape)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(matrix.T))
    layer.bias.data.zero_()
    layers += [layer, torch.nn.ReLU()] if i < len(matrices) - 1 else [layer]
  x = torch.from_numpy(np.ascontiguousarray(images(net, batch).transpose(0, 3, 1, 2)))
  model = BoundedModule(torch.nn.Sequential(*layers), torch.empty_like(x), device='cpu')
  box = BoundedTensor(x, PerturbationLpNorm(norm=np.inf, eps=eps))
  if method == 'train CROWN-IBP':
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    y = torch.arange(batch) % CLASSES
    others = torch.tensor([[j for j in range(CLASSES) if j != k] for k in y.tolist()])
    eye = torch.eye(CLASSES)
    spec = eye[y].unsqueeze(1) - eye[others]

    def step():
      optimizer.zero_grad()
      lower, _ = model.compute_bounds(x=(box,), C=spec, method='CROWN-IBP', bound_upper=False)
      loss = torch.nn.functional.cross_entropy(torch.cat([torch.zeros(batch, 1), -lower], 1), torch.zeros(batch).long())
      loss.backward()
      optimizer.step()
      return float(loss)
    return step, None
  name = {'LBP': 'forward'}.get(method, method)
  if method == 'alpha-CROWN':
    model.set_bound_opts({'optimize_bound_args': {'iteration': STEPS}})

    def optimised():
      lower, upper = model.compute_bounds(x=(box,), method=name)
      return lower.detach(), upper.detach()
    return optimised, None

  def bounds():
    with torch.no_grad():
      if method == 'network':
        return (model(x),) * 2
      return model.compute_bounds(x=(box,), method=name)
  return bounds, None


def peak(since_now=False):
  """The most memory that this process has had, in MB; what it has now, from where the most is counted anew."""
  if since_now:
    pathlib.Path('/proc/self/clear_refs').write_text('5')
  most, = re.findall(r'VmHWM:\s*(\d+) kB', pathlib.Path('/proc/self/status').read_text())
  return int(most) / 1024


def main():
  # Nothing of the libraries is imported before this: they count the CPUs that they may use.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  ALLOCATION['keep']()
  replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
  backend = dict(ibpjax=ours, auto_lirpa=auto_lirpa, jax_verify=jax_verify)[sys.argv[1]]
  run: Any = None
  extra: Any = None
  before = 0.
  for line in sys.stdin:
    request = json.loads(line)
    what, wall, cpu, reply = request.pop('do'), time.perf_counter(), time.process_time(), dict[str, Any]()
    if what == 'build':
      out = request.pop('out')
      run, extra = backend(**request)
      reply['build'] = time.perf_counter() - wall
      ALLOCATION['give_back']()
      before = peak(since_now=True)
      np.save(out, ends(run()))
    elif what == 'run':
      times = 0
      while time.perf_counter() - wall < .1:
        run()
        times += 1
      reply |= dict(wall=(time.perf_counter() - wall) / times, cpu=(time.process_time() - cpu) / times,
                    megabytes=peak() - before)
    else:
      reply['unstable'] = extra and extra()
    print(json.dumps(reply), file=replies, flush=True)


def ends(found):
  """Bounds as one array (2, ...), a loss as it is."""
  found = (found.lower, found.upper) if hasattr(found, 'lower') else found
  return np.stack([np.asarray(end, np.float32) for end in found]) if isinstance(found, tuple) else np.float32(found)


if __name__ == '__main__':
  main()
