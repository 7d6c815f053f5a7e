"""Flax NNX modules and models of the certified-training papers."""
from ibpjax.nn.batch_norm import BatchNorm
from ibpjax.nn.models import cnn7, dm_medium, dm_small, mlp, wk_small
from ibpjax.nn.sequential import Sequential, flatten

__all__ = ['BatchNorm', 'Sequential', 'cnn7', 'dm_medium', 'dm_small', 'flatten', 'mlp', 'wk_small']
