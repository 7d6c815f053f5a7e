"""How to compile for CPUs so that values are right: one version of XLA computes some wrongly.

jaxlib 0.10.2 gives a product of matrices and the sum behind it to a library together, which leaves part of the sum
out: `jax.vmap(lambda r: jnp.sum((a @ r) ** 2))`, for `a` of shape (3, 3), is wrong from row 32 768 on over 32 769 to
49 151 rows of float32, and from row 16 384 on over 16 385 and more of float64. Without that library it is right, and so
are 0.10.0 and 0.10.1.
"""
from __future__ import annotations

import functools
import importlib.metadata
import os
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibpjax.core.validation import concrete

WRONG = ('0.10.2',)   # versions of jaxlib
_OPTION = 'xla_cpu_experimental_ynn_fusion_type'
_WITHOUT = {_OPTION: ''}
_ACCELERATORS = ('nvidia[0-9]*', 'kfd', 'accel*', 'vfio/[0-9]*')   # files in /dev


@functools.cache
def right_options() -> dict[str, str]:
  """Options of `jax.jit` with which the default backend computes right values; empty where it needs none."""
  if jax.default_backend() != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0., compiler_options=_WITHOUT)()
  except jax.errors.JaxRuntimeError:  # a version of XLA that has no such library
    return {}
  return _WITHOUT


class RightJit:
  """`jax.jit` with `right_options`, which are asked for at the first call: no backend starts at import.

  Inside of other transformations, which take no options, it is `jax.jit`: what they are compiled with counts.
  """

  def __init__(self, f: Callable, **options: Any):
    functools.update_wrapper(self, f)
    self._inner = jax.jit(f, **options)
    self._outer = functools.cache(lambda: jax.jit(f, compiler_options=right_options(), **options))

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    traced = not concrete(jnp.zeros(()), *jax.tree.leaves((args, kwargs)))
    return (self._inner if traced else self._outer())(*args, **kwargs)

  def lower(self, *args: Any, **kwargs: Any) -> Any:
    """The program, not yet compiled, of a call that is not traced."""
    return self._outer().lower(*args, **kwargs)


def warn_of_wrong_values() -> None:
  """Warns whoever imports the package if what they compile themselves may be wrong. Starts no backend."""
  given = re.findall(rf'--{_OPTION}=(\S*)', os.environ.get('XLA_FLAGS', ''))
  remedied = bool(given) and given[-1] in ('', '-reduce')
  if jax.lib.__version__ in WRONG and not remedied and _may_run_on_cpus():
    warnings.warn(
        f'jaxlib {jax.lib.__version__} computes wrong values on CPUs, of some sums of products over more than 16 384 '
        'rows, where jax.jit joins them. What ibpjax compiles itself is right. For what you compile, set '
        f'XLA_FLAGS=--{_OPTION}= in the environment before JAX starts, or install jax and jaxlib 0.10.1',
        RuntimeWarning, stacklevel=3)


def _may_run_on_cpus() -> bool:
  """Whether the default backend may be the CPU, as far as that can be told before there is one."""
  if platforms := jax.config.values['jax_platforms']:
    return platforms.split(',')[0] == 'cpu'
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return not plugins or not any(any(pathlib.Path('/dev').glob(name)) for name in _ACCELERATORS)
