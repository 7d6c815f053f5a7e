"""Draws what a network makes of a square, and what each method knows of it: the picture of the README.

    python -m experiments.picture
"""
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ibpjax
from ibpjax.cli import commands
from ibpjax.plotting.figures import finish, plt

FLAGS = flags.FLAGS
flags.DEFINE_string('out', 'docs/picture.png', 'File of the picture.')
EPS, DIRECTIONS = .12, 24   # of the square; in which outputs are bounded


def network(params: Any, x: Any) -> Any:
  """Two numbers to two numbers, through two hidden layers."""
  *layers, last = params
  for w, b in layers:
    x = jax.nn.relu(w @ x + b)
  return last @ x


def main() -> None:
  rng = np.random.default_rng(7)
  layers = [(jnp.asarray(rng.normal(size=(m, n)) * (2 / n) ** .5, jnp.float32),
             jnp.asarray(.1 * rng.normal(size=m), jnp.float32)) for n, m in ((2, 24), (24, 24))]
  params = [*layers, jnp.asarray(rng.normal(size=(2, 24)) / 24 ** .5, jnp.float32)]
  x = jnp.array([.3, -.2])
  box = ibpjax.linf_ball(x, EPS)
  side = jnp.linspace(-EPS, EPS, 161)
  points = x + jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)
  values = np.asarray(jax.vmap(network, (None, 0))(params, points))

  figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout='constrained')
  methods = {'IBP': ibpjax.ibp(network), 'CROWN-IBP': ibpjax.crown(network, intermediate='ibp'),
             'CROWN': ibpjax.crown(network)}
  boxes = {name: jax.tree.map(np.asarray, jax.jit(method)(params, box)) for name, method in methods.items()}
  angles = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False)
  rows = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)
  reach = np.asarray(jax.jit(ibpjax.crown(network, rows=rows))(params, box).upper)
  corners = [np.linalg.solve(np.asarray(rows)[[i, i - 1]], reach[[i, i - 1]]) for i in range(DIRECTIONS)]
  for axis in axes:
    for i, (name, found) in enumerate(boxes.items()):
      (left, low), (right, high) = found.lower, found.upper
      axis.plot([left, right, right, left, left], [low, low, high, high, low], color=f'C{i}', label=name)
    axis.plot(*np.transpose([*corners, corners[0]]), color='C3', label=f'CROWN, {DIRECTIONS} directions')
    axis.scatter(*values.T, s=1, color='0.35', linewidths=0)
    axis.plot([], [], 's', color='0.35', label='values')
    axis.set(xlabel='first output', ylabel='second output')
    axis.spines[['top', 'right']].set_visible(False)
  near = boxes['CROWN']
  (left, low), (right, high) = near.lower - .08 * near.width, near.upper + .08 * near.width
  axes[1].set(xlim=(left, right), ylim=(low, high), title='the same, nearer')
  axes[1].locator_params(axis='x', nbins=4)
  path = pathlib.Path(FLAGS.out).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  finish(figure, axes[1], path)
  print(f'wrote {path}')


if __name__ == '__main__':
  commands.run(main)
