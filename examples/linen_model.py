"""A Linen classifier of handwritten digits, trained with interval bounds in a loop of its own, and certified.

    python examples/linen_model.py
"""
import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import ibpjax

EPS = .05   # pixels lie in [0, 1]


class Classifier(linen.Module):
  """8x8 images to ten logits; one example at a time, which is how bounds are written."""

  @linen.compact
  def __call__(self, image):
    x = linen.relu(linen.Conv(8, (3, 3))(image))
    x = linen.relu(linen.Dense(64)(x.ravel()))
    return linen.Dense(10)(x)


def loss(params, image, label, eps):
  """Cross-entropy of the worst margins that are possible in the ball."""
  specification = lambda params, x: ibpjax.margins(Classifier().apply(params, x), label)
  lower = ibpjax.ibp(specification, elide=True)(params, ibpjax.linf_ball(image, eps, 0., 1.)).lower
  return jax.nn.logsumexp(jnp.append(-lower, 0.))


def main(epochs: int = 12) -> dict[str, float]:
  data = load_digits()
  images = jnp.asarray(data.images / 16, jnp.float32)[..., None]
  labels = jnp.asarray(data.target)
  (train, test), (train_labels, test_labels) = (jnp.split(x, [1500]) for x in (images, labels))

  params = jax.jit(Classifier().init)(jax.random.key(0), images[0])
  optimizer = optax.adam(5e-3)

  def step(state, batch):
    params, moments = state
    image, label, eps = batch
    mean = lambda params: jax.vmap(loss, (None, 0, 0, None))(params, image, label, eps).mean()
    value, gradient = jax.value_and_grad(mean)(params)
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), value

  @jax.jit
  def epoch(state, number):
    order = jax.random.permutation(jax.random.key(number), len(train)).reshape(-1, 50)
    radii = jnp.full(len(order), EPS * jnp.minimum(number / (epochs / 2), 1))   # grows over half of the training
    return jax.lax.scan(step, state, (train[order], train_labels[order], radii))

  state = params, optimizer.init(params)
  for number in range(epochs):
    state, values = epoch(state, number)
    print(f'epoch {number + 1}: loss {values.mean():.3f}')

  model = lambda params, image: Classifier().apply(params, image)
  found = ibpjax.certify(model, state[0], test, test_labels, EPS)
  result = dict(natural=float(found.correct.mean()), certified=float(found.verified.mean()))
  print(f'accuracy {result["natural"]:.1%}, of which certain within {EPS}: {result["certified"]:.1%}')
  return result


if __name__ == '__main__':
  main()
