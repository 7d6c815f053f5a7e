"""What a compiled program sends between devices is read from it as it stands."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments import scaling
from ibpjax.training import parallel


def test_collectives_are_counted_with_their_bytes():
  mesh = parallel.data_mesh()

  def f(x, w):
    total = jax.lax.psum(x.sum(0), parallel.BATCH)
    return total, jax.lax.all_gather(w, parallel.BATCH, tiled=True)
  mapped = jax.shard_map(f, mesh=mesh, in_specs=(P('batch'), P('batch')), out_specs=P(), check_vma=False)
  program = jax.jit(mapped).lower(jnp.ones((4, 30)), jnp.ones((6, 5), jnp.int32)).compile()
  assert scaling.exchanged(program.as_text()) == {'all-reduce': (1, 120), 'all-gather': (1, 120)}


def test_results_of_several_arrays_are_added():
  text = '''  %a = f32[7]{0} add(%b, %c)
  %all-reduce.1 = (f32[3,3,4]{2,1,0}, /*index=1*/bf16[5]{0}, f32[]) all-reduce(%x, %y, %z), channel_id=1
  %all-gather-start = (f32[2]{0}, f32[4]{0}) all-gather-start(%v), dimensions={0}
'''
  assert scaling.exchanged(text) == {'all-reduce': (1, 158), 'all-gather': (1, 16)}


@pytest.mark.usefixtures('promotion')   # optax
@pytest.mark.parametrize('layout', scaling.LAYOUTS)
def test_a_step_is_measured(layout):
  work = scaling.Workload('mlp', (), (4, 4, 1), 3, 'ibp', 8)
  found = scaling.measured(work, 2, layout)
  size = 4 * sum(np.prod(s) + s[1] for s in ((16, 256), (256, 256), (256, 3)))
  kinds = {kind: total for kind, (_, total) in found['collectives'].items()}
  if layout == 'mapped':   # the gradient, once, and metrics
    assert size <= kinds['all-reduce'] < size + 100
  assert found['flops'] > 0
  assert set(found['roofline']) == set(scaling.ACCELERATORS)
  assert found['sent'] > 0
