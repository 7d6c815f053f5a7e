"""Where a controlled system can get to: reachable sets of a double integrator steered by a neural network.

    python examples/control_loop.py
"""
import jax
import jax.numpy as jnp
import optax

import ibpjax

A, B, DT = jnp.array([[1., .2], [0., 1.]]), jnp.array([.02, .2]), .2   # position and velocity; 5 steps a second
START = ibpjax.Interval(jnp.array([.9, -.1]), jnp.array([1.1, .1]))


def controller(params, state):
  """Force in [-1, 1]."""
  (w1, b1), (w2, b2) = params
  return jnp.clip(w2 @ jax.nn.relu(w1 @ state + b1) + b2, -1, 1)


def run(params, state, steps):
  """(steps, 2): the states that follow one another under the controller."""
  def step(state, _):
    state = A @ state + B * controller(params, state)
    return state, state
  return jax.lax.scan(step, state, length=steps)[1]


def fitted(key):
  """A controller that imitates the linear law -(x + 1.5 v)."""
  keys = jax.random.split(key, 3)
  first, last = jax.random.normal(keys[0], (16, 2)), .3 * jax.random.normal(keys[1], (16,))
  params = (first, jnp.zeros(16)), (last, jnp.zeros(()))
  states = jax.random.uniform(keys[2], (512, 2), minval=-1.5, maxval=1.5)
  wanted = jnp.clip(-states @ jnp.array([1., 1.5]), -1, 1)
  optimizer = optax.adam(1e-2)
  loss = lambda params: jnp.mean((jax.vmap(controller, (None, 0))(params, states) - wanted) ** 2)

  def step(carry, _):
    params, moments = carry
    updates, moments = optimizer.update(jax.grad(loss)(params), moments)
    return (optax.apply_updates(params, updates), moments), None
  return jax.lax.scan(step, (params, optimizer.init(params)), length=1000)[0][0]


def main(steps: int = 15) -> dict[str, jax.Array]:
  params = jax.jit(fitted)(jax.random.key(0))
  loop = lambda params, state: run(params, state, steps)
  # Box after box forgets how position and velocity depend on each other; CROWN walks the whole loop back to the start.
  found = dict(ibp=jax.jit(ibpjax.ibp(loop))(params, START), crown=jax.jit(ibpjax.crown(loop))(params, START))
  points = jax.random.uniform(jax.random.key(1), (5000, 2), minval=START.lower, maxval=START.upper)
  reached = jax.jit(jax.vmap(loop, (None, 0)))(params, points)
  print('   t [s]  position, simulated   by CROWN            by IBP')
  for t in range(steps):
    ends = [(reached[:, t, 0].min(), reached[:, t, 0].max()),
            *((found[name].lower[t, 0], found[name].upper[t, 0]) for name in ('crown', 'ibp'))]
    print(f'{(t + 1) * DT:7.1f}', *(f'  [{low:7.3f}, {high:7.3f}]' for low, high in ends))
  for bounds in found.values():
    assert bool(jnp.all((bounds.lower <= reached.min(0)) & (reached.max(0) <= bounds.upper)))
  return dict(simulated=jnp.ptp(reached, 0), **{name: bounds.width for name, bounds in found.items()})


if __name__ == '__main__':
  main()
