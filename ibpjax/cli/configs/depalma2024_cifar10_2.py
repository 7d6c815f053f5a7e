r"""CIFAR-10 at 2/255 by MTL-IBP, CNN-7, 160 epochs (De Palma et al. 2024).

    ibpjax train --config=depalma2024_cifar10_2 --data_dir=~/tensorflow_datasets \
        --out=runs/depalma2024_cifar10_2

Rows: --loss=cc-ibp --alpha=1e-2 for CC-IBP; --loss=exp-ibp --alpha=9.5e-2 --l1=4e-6 for Exp-IBP.

Published accuracy, certified by branch and bound [%]: MTL-IBP 80.11 natural, 63.24 certified; CC-IBP 63.78 certified;
Exp-IBP 61.65 certified. Interval bounds alone certify nothing of these networks.
"""
from ibpjax.cli.configs import _depalma2024

FLAGS = _depalma2024.FLAGS | dict(dataset='cifar10', eps='2/255', epochs=160, warmup_epochs=1, ramp_epochs=80,
                                  batch_size=128, milestones=[120, 140], alpha=0.004, pgd_steps=8, pgd_step=0.25,
                                  attack_scale=2.1, l1=3e-06)
