r"""MNIST at .1 by MTL-IBP, trained at .2, CNN-7, 70 epochs (De Palma et al. 2024).

    ibpjax train --config=depalma2024_mnist_1 --data_dir=~/tensorflow_datasets \
        --out=runs/depalma2024_mnist_1

Rows: --loss=cc-ibp --alpha=.1 --l1=2e-6 for CC-IBP.

Published accuracy, certified by branch and bound [%]: CC-IBP 98.43.
"""
from ibpjax.cli.configs import _depalma2024

FLAGS = _depalma2024.FLAGS | dict(dataset='mnist', eps='0.2', epochs=70, warmup_epochs=0, ramp_epochs=20,
                                  batch_size=256, milestones=[50, 60], alpha=0.01, l1=1e-05, test_eps='0.1')
