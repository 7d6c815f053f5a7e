r"""CIFAR-10, DM-large, trained at 8.8/255, certified at 8/255 (Lyu et al. 2021, table 2).

    ibpjax train --config=lyu2021_cifar10_8 --data_dir=~/tensorflow_datasets \
        --out=runs/lyu2021_cifar10_8

Rows: --loss=crown-ibp; for Ramp(0) --activation=param_ramp, for Ramp(0.01) also --eta=.01, for Ramp(0.01->0) also
--eta_end=0; for ReLU(0.01) and ReLU(0.01->0) the same with --activation=leaky_relu.

Published natural / IBP-verified error [%], best epoch on the test set:
  IBP Ramp(0) 56.32/68.89, Ramp(0.01) 54.16/68.26, Ramp(0.01->0) 55.28/67.26
  CROWN-IBP Ramp(0) 52.52/65.24, Ramp(0.01) 52.15/66.04, Ramp(0.01->0) 51.94/65.19
"""
from ibpjax.cli.configs import _lyu2021

FLAGS = _lyu2021.FLAGS | dict(dataset='cifar10', pad=4, epochs=3200, warmup_epochs=320, ramp_epochs=1600,
                              batch_size=1024, milestones=[2600, 3040], eta_epochs=[1000, 2200], evaluate_every=10,
                              eps='8.8/255', test_eps='8/255', beta_end=0.0)
