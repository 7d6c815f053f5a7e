r"""CIFAR-10, DM-large, trained at 2.2/255, certified at 2/255 (Lyu et al. 2021, table 2).

    ibpjax train --config=lyu2021_cifar10_2 --data_dir=~/tensorflow_datasets \
        --out=runs/lyu2021_cifar10_2

Rows: --loss=crown-ibp; for Ramp(0) --activation=param_ramp, for Ramp(0.01) also --eta=.01, for Ramp(0.01->0) also
--eta_end=0; for ReLU(0.01) and ReLU(0.01->0) the same with --activation=leaky_relu. Ramps under --loss=ibp have
--height_noise=.01.

Published natural / IBP-verified error [%], best epoch on the test set:
  IBP Ramp(0) 36.47/53.09, Ramp(0.01) 33.45/48.39, Ramp(0.01->0) 34.17/47.84
  CROWN-IBP Ramp(0) 28.48/45.67, Ramp(0.01) 28.63/46.17, Ramp(0.01->0) 28.18/45.74
"""
from ibpjax.cli.configs import _lyu2021

FLAGS = _lyu2021.FLAGS | dict(dataset='cifar10', pad=4, epochs=3200, warmup_epochs=320, ramp_epochs=1600,
                              batch_size=1024, milestones=[2600, 3040], eta_epochs=[1000, 2200], evaluate_every=10,
                              eps='2.2/255', test_eps='2/255', beta_end=1.0)
