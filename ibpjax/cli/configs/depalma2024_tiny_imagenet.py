r"""TinyImageNet at 1/255 by MTL-IBP, CNN-7, 160 epochs (De Palma et al. 2024).

    ibpjax train --config=depalma2024_tiny_imagenet --data_dir=~/tensorflow_datasets \
        --out=runs/depalma2024_tiny_imagenet

Rows: --loss=cc-ibp for CC-IBP; --loss=exp-ibp --alpha=4e-2 for Exp-IBP.

Published natural / certified accuracy, by branch and bound [%]: MTL-IBP 37.56/26.09; CC-IBP 26.39 and Exp-IBP 26.18
certified.
"""
from ibpjax.cli.configs import _depalma2024

FLAGS = _depalma2024.FLAGS | dict(dataset='tiny_imagenet', model='cnn7_tiny', regularizer_weight=0.2, eps='1/255',
                                  epochs=160, warmup_epochs=1, ramp_epochs=80, batch_size=128, milestones=[120, 140],
                                  alpha=0.01, l1=5e-05)
