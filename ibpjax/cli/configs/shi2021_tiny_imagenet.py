r"""TinyImageNet at 1/255, CNN-7, 80 epochs (Shi et al. 2021, table 3).

    ibpjax train --config=shi2021_tiny_imagenet --data_dir=~/tensorflow_datasets \
        --out=runs/shi2021_tiny_imagenet

Rows: --model=wide_resnet8_tiny or resnext_tiny; --ramp_epochs=10; vanilla IBP with --initialization=fan_in
--regularizer_weight=0.

Published natural / IBP-verified error [%], one run:
  CNN-7   vanilla 74.68/82.84, this 74.29/82.36; with a ramp of 10 epochs 75.50/82.92 and 75.20/82.45
  WRN     vanilla 75.65/83.17, this 74.59/82.75; with a ramp of 10 epochs 75.89/83.00 and 74.90/82.49
  ResNeXt vanilla 81.72/87.10, this 78.91/85.78; with a ramp of 10 epochs 82.39/87.15 and 80.20/85.77
"""
from ibpjax.cli.configs import _shi2021

FLAGS = _shi2021.FLAGS | dict(dataset='tiny_imagenet', model='cnn7_tiny', regularizer_weight=0.2, eps='1/255',
                              epochs=80, warmup_epochs=1, ramp_epochs=20, batch_size=128, milestones=[61, 71])
