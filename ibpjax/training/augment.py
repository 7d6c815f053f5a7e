"""Augmentation: random flips and crops of a batch of images, on the device, as pure functions of a key."""
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def flip_and_crop(key: Any, images: Any, *, flip: bool, pad: int, edge: bool) -> Any:
  """Each image mirrored left to right with probability 1/2, padded, and cropped at random to its size.

  Args:
    key: PRNG key; the result is a function of it.
    images: (batch, height, width, channels) of any dtype, which is kept.
    flip: whether to mirror.
    pad: pixels added on each of the four sides; each of the (2 pad + 1)^2 crops is as probable.
    edge: pad with the nearest pixel of the edge; else with zeros.

  Returns:
    Images like those given.
  """
  if pad < 0:
    raise ValueError(f'pad={pad}: images cannot be padded with fewer than 0 pixels')
  if not flip and not pad:
    return images
  batch, height, width = images.shape[:3]
  flip_key, crop_key = jax.random.split(key)
  corners = jax.random.randint(crop_key, (batch, 2), -pad, pad + 1)
  mirrored = jax.random.bernoulli(flip_key, shape=(batch,)) & flip
  window = functools.partial(_window, size=(height, width), edge=edge)
  return jax.vmap(window)(images, corners, mirrored)


def crop(key: Any, images: Any, size: int) -> Any:
  """A square window of each image at random: (batch, height, width, channels) to (batch, size, size, channels).

  Args:
    key: PRNG key; the result is a function of it.
    images: of any dtype, which is kept.
    size: pixels on a side of the window; no more than on a side of the images.
  """
  down, right = _room(images, size)
  if not down and not right:
    return images
  keys, shape = jax.random.split(key), (len(images),)
  corners = [jax.random.randint(k, shape, 0, room + 1) for k, room in zip(keys, (down, right))]
  window = functools.partial(_window, size=(size, size), edge=True)
  return jax.vmap(window)(images, jnp.stack(corners, axis=1), jnp.zeros(shape, bool))


def centre_crop(images: Any, size: int) -> Any:
  """The square window in the middle of images (batch, height, width, channels): (batch, size, size, channels)."""
  top, left = (room // 2 for room in _room(images, size))
  return images[:, top:top + size, left:left + size]


def _room(images: Any, size: int) -> tuple[int, int]:
  """Pixels that a window leaves over, in height and width."""
  height, width = images.shape[1:3]
  if not 0 < size <= min(height, width):
    raise ValueError(f'a window of {size} x {size} pixels does not fit in images of {height} x {width}')
  return height - size, width - size


def _window(image: Any, corner: Any, mirrored: Any, size: tuple[int, int], edge: bool) -> Any:
  """The window of one image whose top left pixel is `corner`; past the edges of the image, its edge or zeros.

  One gather, so that no padded copy is made.
  """
  rows, columns = (corner[i] + jnp.arange(n, dtype=corner.dtype) for i, n in enumerate(size))
  columns = jnp.where(mirrored, columns[::-1], columns)
  places = rows[:, None], columns[None, :]
  inside = [jnp.clip(place, 0, n - 1) for place, n in zip(places, image.shape)]
  pixels = image.at[inside[0], inside[1]].get(mode='promise_in_bounds')
  if edge:
    return pixels
  kept = (places[0] == inside[0]) & (places[1] == inside[1])
  return jnp.where(kept[:, :, None], pixels, jnp.zeros((), image.dtype))
