"""Flax NNX modules and models of the certified-training papers."""
from ibpjax.nn.batch_norm import BatchNorm
from ibpjax.nn.initializers import difference_gain, ibp_normal, reinitialize
from ibpjax.nn.models import cnn7, dm_large, dm_medium, dm_small, mlp, wk_small
from ibpjax.nn.normalise import Normalise
from ibpjax.nn.param_ramp import LeakyReLU, ParamRamp, calibrate, jittered, param_ramp, project, ramps, set_slope
from ibpjax.nn.sequential import Sequential, flatten

__all__ = [
    'BatchNorm', 'LeakyReLU', 'Normalise', 'ParamRamp', 'Sequential', 'calibrate', 'cnn7', 'difference_gain',
    'dm_large', 'dm_medium', 'dm_small', 'flatten', 'ibp_normal', 'jittered', 'mlp', 'param_ramp', 'project', 'ramps',
    'reinitialize', 'set_slope', 'wk_small',
]
