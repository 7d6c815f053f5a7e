"""An NNX classifier with batch norm, trained by the step of the library, and how far each image may be perturbed.

    python examples/nnx_model.py
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import ibpjax
from ibpjax import training

EPS = .05   # pixels lie in [0, 1]


def classifier(rngs: nnx.Rngs) -> ibpjax.nn.Sequential:
  """Batches of 8x8 images to ten logits; this batch norm shares its statistics with the bounds."""
  flatten = lambda images: images.reshape(len(images), -1)
  return ibpjax.nn.Sequential([
      nnx.Conv(1, 8, (3, 3), rngs=rngs), ibpjax.nn.BatchNorm(8), nnx.relu, flatten,
      nnx.Linear(8 * 8 * 8, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs)])


def main(epochs: int = 12) -> dict[str, float]:
  data = load_digits()
  images, labels = np.float32(data.images / 16)[..., None], data.target
  train, test = slice(0, 1500), slice(1500, None)

  optimizer = optax.adam(5e-3)
  eps = training.linear(EPS, start=0, length=15 * epochs)      # steps: the radius grows over half of the training
  kappa = training.tied(eps, EPS, initial=1., final=.5)        # weight of the natural loss, tied to the radius
  graphdef, state = training.TrainState.create(classifier(nnx.Rngs(0)), optimizer)
  step = jax.jit(functools.partial(training.train_step, graphdef=graphdef, optimizer=optimizer, eps=eps, kappa=kappa),
                 compiler_options=training.compiler_options())

  for epoch in range(epochs):
    for batch in np.random.default_rng(epoch).permutation(1500).reshape(-1, 50):
      state, metrics = step(state, (images[train][batch], labels[train][batch]), jax.random.key(0))
    print(f'epoch {epoch + 1}: ' + ', '.join(f'{name} {metrics[name]:.3f}' for name in ('natural', 'robust', 'eps')))

  model = nnx.merge(graphdef, state.params, state.batch_stats)
  one = ibpjax.batched(lambda model, images: model(images))
  found = ibpjax.certify(one, model, images[test], labels[test], EPS)
  radii = ibpjax.certified_radius(one, model, images[test], labels[test], 4 * EPS, steps=7)
  result = dict(natural=float(found.correct.mean()), certified=float(found.verified.mean()),
                radius=float(jnp.median(radii)))
  print(f'accuracy {result["natural"]:.1%}, of which certain within {EPS}: {result["certified"]:.1%}; '
        f'half of the images are certain within {result["radius"]:.3f}')
  return result


if __name__ == '__main__':
  main()
