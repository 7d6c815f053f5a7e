"""Architectures of stock Flax NNX layers: what bounds must take without a change to the model."""
import jax.numpy as jnp
from flax import nnx


class TransformerBlock(nnx.Module):
  """The encoder block of a vision transformer: attention and a gelu MLP, normalised before each, residual."""

  def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
    self.first, self.second = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
    self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.first(x))
    return x + self.down(nnx.gelu(self.up(self.second(x))))


class MixerBlock(nnx.Module):
  """MLP-Mixer: one gelu MLP across tokens, one across channels, normalised before each, residual."""

  def __init__(self, tokens: int, width: int, rngs: nnx.Rngs):
    self.first, self.second = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
    self.across = nnx.List([nnx.Linear(tokens, 2 * tokens, rngs=rngs), nnx.Linear(2 * tokens, tokens, rngs=rngs)])
    self.within = nnx.List([nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)])

  def __call__(self, x):
    up, down = self.across
    x = x + jnp.swapaxes(down(nnx.gelu(up(jnp.swapaxes(self.first(x), -1, -2)))), -1, -2)
    up, down = self.within
    return x + down(nnx.gelu(up(self.second(x))))


class Recurrent(nnx.Module):
  """A recurrent cell over a sequence, and logits of its last state."""

  def __init__(self, cell: type, features: int, hidden: int, classes: int, rngs: nnx.Rngs):
    self.scan = nnx.RNN(cell(features, hidden, rngs=rngs), rngs=rngs)
    self.head = nnx.Linear(hidden, classes, rngs=rngs)

  def __call__(self, x):
    return self.head(self.scan(x)[..., -1, :])


class Residual(nnx.Module):
  """Two convolutions with batch norm, and a projection where the shape changes."""

  def __init__(self, channels: int, features: int, stride: int, rngs: nnx.Rngs):
    self.first = nnx.Conv(channels, features, (3, 3), strides=stride, use_bias=False, rngs=rngs)
    self.second = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
    self.norms = nnx.List([nnx.BatchNorm(features, rngs=rngs) for _ in range(2)])
    changes = stride > 1 or channels != features
    self.project = nnx.Conv(channels, features, (1, 1), strides=stride, rngs=rngs) if changes else None

  def __call__(self, x):
    y = self.norms[1](self.second(nnx.relu(self.norms[0](self.first(x)))))
    return nnx.relu(y + (x if self.project is None else self.project(x)))


class ResNet(nnx.Module):
  """Three stages of two residual blocks, global average pooling, logits: the residual network of small images."""

  def __init__(self, channels: int, width: int, classes: int, rngs: nnx.Rngs):
    self.stem = nnx.Conv(channels, width, (3, 3), rngs=rngs)
    widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
    self.blocks = nnx.List([Residual(a, b, 1 + (a != b), rngs) for a, b in zip([width, *widths], widths)])
    self.head = nnx.Linear(4 * width, classes, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.stem(x))
    for block in self.blocks:
      x = block(x)
    return self.head(x.mean((-3, -2)))


class UNet(nnx.Module):
  """Two levels down by max pooling, two up by transposed convolution, skips by concatenation, group norm."""

  def __init__(self, channels: int, width: int, outputs: int, rngs: nnx.Rngs):
    def stage(a, b):
      return nnx.Sequential(nnx.Conv(a, b, (3, 3), rngs=rngs), nnx.GroupNorm(b, num_groups=4, rngs=rngs), nnx.silu)
    self.down = nnx.List([stage(channels, width), stage(width, 2 * width), stage(2 * width, 4 * width)])
    self.lift = nnx.List([nnx.ConvTranspose(4 * width, 2 * width, (2, 2), strides=(2, 2), rngs=rngs),
                          nnx.ConvTranspose(2 * width, width, (2, 2), strides=(2, 2), rngs=rngs)])
    self.up = nnx.List([stage(4 * width, 2 * width), stage(2 * width, width)])
    self.head = nnx.Conv(width, outputs, (1, 1), rngs=rngs)

  def __call__(self, x):
    skips = []
    for stage in self.down[:-1]:
      skips.append(stage(x))
      x = nnx.max_pool(skips[-1], (2, 2), (2, 2))
    x = self.down[-1](x)
    for lift, stage, skip in zip(self.lift, self.up, reversed(skips)):
      x = stage(jnp.concatenate([lift(x), skip], -1))
    return self.head(x)


def build(name: str) -> tuple[nnx.Module, tuple[int, ...]]:
  """A network in evaluation mode and the shape of one example."""
  rngs = nnx.Rngs(0)
  model: nnx.Module
  shape: tuple[int, ...]
  match name:
    case 'vit_block':
      model, shape = TransformerBlock(192, 3, rngs), (64, 192)
    case 'mixer_block':
      model, shape = MixerBlock(64, 128, rngs), (64, 128)
    case 'gru_20' | 'gru_200':
      model, shape = Recurrent(nnx.GRUCell, 28, 128, 10, rngs), (int(name[4:]), 28)
    case 'lstm_20' | 'lstm_200':
      model, shape = Recurrent(nnx.OptimizedLSTMCell, 28, 128, 10, rngs), (int(name[5:]), 28)
    case 'resnet':
      model, shape = ResNet(3, 16, 10, rngs), (32, 32, 3)
    case 'unet':
      model, shape = UNet(3, 16, 4, rngs), (32, 32, 3)
    case _:
      raise ValueError(f'unknown architecture {name!r}')
  model.eval()
  return model, shape


NAMES = 'vit_block', 'mixer_block', 'gru_20', 'gru_200', 'lstm_20', 'lstm_200', 'resnet', 'unet'
