r"""CIFAR-10 at 8/255 by MTL-IBP, CNN-7, 260 epochs (De Palma et al. 2024).

    ibpjax train --config=depalma2024_cifar10_8 --data_dir=~/tensorflow_datasets \
        --out=runs/depalma2024_cifar10_8

Rows: --loss=cc-ibp --l1=0 for CC-IBP; --loss=exp-ibp --l1=0 for Exp-IBP.

Published natural / certified accuracy, by branch and bound [%]: MTL-IBP 53.35/35.44, CC-IBP 53.71/35.27, Exp-IBP
53.97/35.04; by interval bounds 34.64, 34.02 and 33.88 certified.
"""
from ibpjax.cli.configs import _depalma2024

FLAGS = _depalma2024.FLAGS | dict(dataset='cifar10', eps='8/255', epochs=260, warmup_epochs=1, ramp_epochs=80,
                                  batch_size=128, milestones=[180, 220], alpha=0.5, l1=1e-07)
