r"""MNIST, trained at .4, certified at .2, .3 and .4 (Lyu et al. 2021, tables 4 to 6 of the supplement).

    ibpjax train --config=lyu2021_mnist --data_dir=~/tensorflow_datasets \
        --out=runs/lyu2021_mnist

Rows: --loss=crown-ibp; --model=dm_small or dm_medium; for Ramp(0) --activation=param_ramp, for Ramp(0.01) also
--eta=.01, for Ramp(0.01->0) also --eta_end=0; for ReLU(0.01) and ReLU(0.01->0) the same with --activation=leaky_relu.
Here kappa is 0; --kappa_start=1 with --kappa_end=.5 or 0 are the other schedules, the tables have the best of the three
for DM-large. They have the best epoch on the test set, for each radius.

Published natural / IBP-verified error at .2, .3, .4 [%]:
  DM-small  IBP ReLU 4.66/8.38, 5.06/11.77, 5.05/18.25; CROWN-IBP ReLU 4.45/7.33, 4.46/10.30, 4.47/16.16
            IBP Ramp(0) 3.17/5.73, 3.19/8.52, 3.18/13.55; CROWN-IBP Ramp(0) 3.28/5.84, 3.28/8.59, 3.27/13.75
  DM-medium IBP ReLU 4.05/6.89, 4.06/9.93, 4.06/15.85; CROWN-IBP ReLU 3.08/5.40, 3.09/7.88, 3.09/13.03
            IBP Ramp(0) 2.70/5.27, 2.71/7.95, 2.69/13.50; CROWN-IBP Ramp(0) 2.56/4.66, 2.54/7.18, 2.62/12.24
  DM-large  IBP Ramp(0) 1.58/3.91, 1.79/6.62, 1.78/11.86; CROWN-IBP Ramp(0) 1.59/3.59, 1.63/6.16, 1.94/10.76
            CROWN-IBP Ramp(0.01->0) 1.77/3.69, 1.76/5.99, 2.36/10.68
"""
from ibpjax.cli.configs import _lyu2021

FLAGS = _lyu2021.FLAGS | dict(dataset='mnist', eps='0.4', epochs=200, warmup_epochs=10, ramp_epochs=50,
                              batch_size=256, milestones=[130, 190], eta_epochs=[70, 140])
