"""Scripts that reproduce papers and measure; run from the repository root: `python -m experiments.benchmark`."""
import importlib.metadata
import os

# On CPUs some values are wrong without it: see ibpjax/xla/compiling.py. XLA reads it when JAX is first used.
if importlib.metadata.version('jaxlib') == '0.10.2' and 'ynn_fusion_type' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_experimental_ynn_fusion_type='
