"""IBP initialisation: its variance, what it leaves alone, and that bounds keep their width through ReLU networks."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interpreted import interpreted

from ibpjax import ibp, linf_ball, nn


@pytest.mark.parametrize(('shape', 'deviation'), [
    ((3, 3, 1, 4096), .278514), ((5, 5, 1, 2048), .100265), ((3, 3, 3, 2048), .0928381), ((3, 3, 64, 512), .00435179),
    ((25088, 16), 9.99134e-5)])
def test_published_deviations(shape, deviation):
  """sqrt(2 pi) / fan_in (Shi et al. 2021, section 3.1); drawn without truncation."""
  kernel = np.asarray(nn.ibp_normal(jax.random.key(0), shape))
  assert kernel.std() == pytest.approx(deviation, rel=.02)
  assert abs(kernel.mean()) < .05 * deviation
  assert np.mean(np.abs(kernel) > 2.5 * deviation) == pytest.approx(.0124, abs=.003)
  assert float(nn.difference_gain(kernel)) == pytest.approx(1, rel=.02)


def test_gain_of_the_default_initialisation():
  """sqrt(fan_in) / 4: 45.25 for the dense layer of cnn7 (Shi et al. 2021, table 1)."""
  kernel = nn.initializers.fan_in_uniform(jax.random.key(0), (32768, 8))
  assert float(nn.difference_gain(kernel)) == pytest.approx(45.25, rel=.01)


def test_what_is_drawn_anew():
  def build():
    return nn.cnn7(width=2, input_shape=(6, 6, 1), classes=4, rngs=nnx.Rngs(0))
  old, new = build(), build()
  nn.reinitialize(new, jax.random.key(1))
  kernels, former = ([layer.kernel[...] for layer in m.layers if hasattr(layer, 'kernel')] for m in (new, old))
  for kernel in kernels[:-1]:
    assert float(nn.difference_gain(kernel)) == pytest.approx(1, rel=.4)
  before, after = (jax.tree.leaves_with_path(nnx.state(m)) for m in (old, new))
  changed = [jax.tree_util.keystr(path) for (path, a), (_, b) in zip(before, after, strict=True)
             if not jnp.array_equal(a, b)]
  assert len(changed) == 6
  assert all('kernel' in name for name in changed)
  np.testing.assert_array_equal(kernels[-1], former[-1])
  other = build()
  nn.reinitialize(other, jax.random.key(2))
  assert not np.array_equal(other.layers[0].kernel[...], new.layers[0].kernel[...])


def ratios(model, shape):
  """The mean radius of what goes into each activation, over that of the input."""
  box = linf_ball(jax.random.uniform(jax.random.key(3), shape), .03)
  _, inside = interpreted(ibp(lambda x: model(x, model.with_statistics(box.centre)[1]), intermediates=True))(box)
  return [float(b.radius.mean() / box.radius.mean()) for b in inside.bounds.values()]


def test_bounds_keep_their_width_without_batch_norm():
  """Gain 2 in the first layer, which has no ReLU before it, and 1 in the others; the default one explodes."""
  def build():
    return nn.mlp((256,) * 4, input_shape=(8, 8, 3), rngs=nnx.Rngs(0))
  default, drawn = build(), build()
  nn.reinitialize(drawn, jax.random.key(0))
  kept, exploded = ratios(drawn, (8, 8, 8, 3)), ratios(default, (8, 8, 8, 3))
  assert all(1 < r < 2.5 for r in kept)
  assert exploded[-1] > 100 * kept[-1]


def test_with_batch_norm_bounds_explode_whatever_the_scale_of_weights_is():
  """Batch norm divides centre and radius by the deviation of the clean batch: no initialisation is tight there."""
  model = nn.cnn7(width=8, input_shape=(8, 8, 3), rngs=nnx.Rngs(0))
  nn.reinitialize(model, jax.random.key(0))
  found = ratios(model, (32, 8, 8, 3))
  assert all(b > 3 * a for a, b in zip([1, *found], found))
  assert found[-1] > 1e4


class Hidden(nnx.Module):
  """A layer in a module."""

  def __init__(self):
    self.inner = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.inner(x)


def test_kernels_inside_of_modules_are_not_forgotten():
  with pytest.raises(ValueError, match='inside of modules'):
    nn.reinitialize(nn.Sequential([Hidden(), nnx.Linear(4, 2, rngs=nnx.Rngs(0))]), jax.random.key(0))
