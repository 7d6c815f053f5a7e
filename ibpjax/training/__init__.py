"""Certified training: losses, objectives, schedules, attacks and the step that joins them.

Checkpoints are in `ibpjax.training.checkpoints`, which imports orbax.
"""
from ibpjax.core.unsound import UnsoundObjective
from ibpjax.training.attacks import attacked, pgd
from ibpjax.training.averaging import measured_batch_stats, running_mean
from ibpjax.training.compiling import compiler_options
from ibpjax.training.expected import companion_objective, etb_objective
from ibpjax.training.expressive import (
    cc_objective,
    exp_objective,
    ibp_r_objective,
    mtl_objective,
    sabr_objective,
    small_box,
)
from ibpjax.training.latent import halves, taps_objective
from ibpjax.training.lipschitz_losses import (
    annealed_loss,
    emma_logits,
    emma_loss,
    gloro_loss,
    gloro_trades_loss,
    lipschitz_objective,
    margin_loss,
)
from ibpjax.training.losses import kl_divergence, l1_norm, natural_loss, robust_loss
from ibpjax.training.objectives import (
    adversarial_objective,
    crown_objective,
    fused_objective,
    ibp_objective,
    margin_bounds,
    trades_objective,
)
from ibpjax.training.regularizers import warm_up_regularizer
from ibpjax.training.schedules import linear, smoothed, tied
from ibpjax.training.step import TrainState, carried_at_start, refuse_stock_batch_norm, split, train_step

__all__ = [
    'TrainState', 'UnsoundObjective', 'adversarial_objective', 'annealed_loss', 'attacked', 'carried_at_start',
    'cc_objective', 'companion_objective', 'compiler_options', 'crown_objective', 'emma_logits', 'emma_loss',
    'etb_objective', 'exp_objective', 'fused_objective', 'gloro_loss', 'gloro_trades_loss', 'halves', 'ibp_objective',
    'ibp_r_objective', 'kl_divergence', 'l1_norm', 'linear', 'lipschitz_objective', 'margin_bounds', 'margin_loss',
    'measured_batch_stats', 'mtl_objective', 'natural_loss', 'pgd', 'refuse_stock_batch_norm', 'robust_loss',
    'running_mean', 'sabr_objective', 'small_box', 'smoothed', 'split', 'taps_objective', 'tied', 'trades_objective',
    'train_step', 'warm_up_regularizer',
]
