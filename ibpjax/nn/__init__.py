"""Flax NNX modules and models of the certified-training papers."""
from ibpjax.nn.batch_norm import BatchNorm
from ibpjax.nn.initializers import difference_gain, ibp_normal, reinitialize
from ibpjax.nn.lipschitz_layers import (
    AOL,
    SLL,
    ConvResidual,
    LinearResidual,
    NormalisedHead,
    OrthogonalDense,
    OrthogonalPatches,
    group_sort,
    l2_pool,
    min_max,
    orthogonalised,
    space_to_depth,
)
from ibpjax.nn.liresnet import liresnet
from ibpjax.nn.models import cnn5, cnn7, cnn9, dm_large, dm_medium, dm_small, mlp, wk_small
from ibpjax.nn.normalise import Normalise
from ibpjax.nn.param_ramp import LeakyReLU, ParamRamp, calibrate, jittered, param_ramp, project, ramps, set_slope
from ibpjax.nn.residual import resnext, wide_resnet8
from ibpjax.nn.sequential import Residual, Sequential, flatten

__all__ = [
    'AOL', 'BatchNorm', 'ConvResidual', 'LeakyReLU', 'LinearResidual', 'Normalise', 'NormalisedHead',
    'OrthogonalDense', 'OrthogonalPatches', 'ParamRamp', 'Residual', 'SLL', 'Sequential', 'calibrate', 'cnn5', 'cnn7',
    'cnn9', 'difference_gain', 'dm_large', 'dm_medium', 'dm_small', 'flatten', 'group_sort', 'ibp_normal', 'jittered',
    'l2_pool', 'liresnet', 'min_max', 'mlp', 'orthogonalised', 'param_ramp', 'project', 'ramps', 'reinitialize',
    'resnext', 'set_slope', 'space_to_depth', 'wide_resnet8', 'wk_small',
]
