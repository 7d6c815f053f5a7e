r"""TinyImageNet at 1/255, CNN-7 with batch normalisation, images cut to 56x56 (Lyu et al. 2021, table 2).

    ibpjax train --config=lyu2021_tiny_imagenet --data_dir=~/tensorflow_datasets \
        --out=runs/lyu2021_tiny_imagenet

Rows: --loss=fused for CROWN-IBP; for Ramp(0) --activation=param_ramp.

Published natural / IBP-verified error [%]: IBP Ramp(0) 78.77/84.99.
"""
from ibpjax.cli.configs import _lyu2021

FLAGS = _lyu2021.FLAGS | dict(dataset='tiny_imagenet', side=56, model='cnn7_tiny', loss='ibp', eps='1/255',
                              epochs=1000, warmup_epochs=100, ramp_epochs=400, batch_size=110, milestones=[600, 700],
                              evaluate_every=10)
