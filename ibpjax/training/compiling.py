"""How training is compiled."""
import functools

import jax

_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_DOT', 'xla_backend_optimization_level': '2'}


@functools.cache
def compiler_options() -> dict[str, str]:
  """Options of `jax.jit` that the default backend is quicker with: `jax.jit(step, compiler_options=...)`.

  On CPUs, XLA's library for products of matrices also computes sums of products, at which it is slow: a training
  step with CROWN-IBP takes twice as long (jaxlib 0.10.2). Empty where XLA does not know the option.
  """
  if jax.default_backend() != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0., compiler_options=_CPU)()
  except jax.errors.JaxRuntimeError:
    return {}
  return _CPU
