"""Certified training: losses, schedules, attacks and the step that joins them."""
from ibpjax.training.attacks import pgd
from ibpjax.training.losses import natural_loss, robust_loss
from ibpjax.training.schedules import linear, smoothed
from ibpjax.training.step import TrainState, refuse_stock_batch_norm, split, train_step

__all__ = ['TrainState', 'linear', 'natural_loss', 'pgd', 'refuse_stock_batch_norm', 'robust_loss', 'smoothed', 'split',
           'train_step']
