r"""MNIST at .3 by MTL-IBP, trained at .4, CNN-7, 70 epochs (De Palma et al. 2024).

    ibpjax train --config=depalma2024_mnist_3 --data_dir=~/tensorflow_datasets \
        --out=runs/depalma2024_mnist_3

Rows: --loss=cc-ibp --alpha=.3 --l1=3e-6 for CC-IBP.

Published natural / certified accuracy, by branch and bound [%]: MTL-IBP 98.80/93.62.
"""
from ibpjax.cli.configs import _depalma2024

FLAGS = _depalma2024.FLAGS | dict(dataset='mnist', eps='0.4', epochs=70, warmup_epochs=0, ramp_epochs=20,
                                  batch_size=256, milestones=[50, 60], alpha=0.08, l1=1e-06, test_eps='0.3')
