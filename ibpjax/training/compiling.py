"""How training is compiled."""
import functools

import jax

from ibpjax.xla.compiling import right_options


@functools.cache
def compiler_options() -> dict[str, str]:
  """Options of `jax.jit` for steps of training: `jax.jit(step, compiler_options=...)`.

  On CPUs those with which values are right (`ibpjax.xla.compiling`), and with which steps are quicker.
  """
  return right_options() | ({'xla_backend_optimization_level': '2'} if jax.default_backend() == 'cpu' else {})
