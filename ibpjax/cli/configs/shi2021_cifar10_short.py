r"""CIFAR-10 at 8/255, CNN-7, 70 epochs (Shi et al. 2021, tables 2 and 4).

    ibpjax train --config=shi2021_cifar10_short --data_dir=~/tensorflow_datasets --seeds=0,1,2,3,4 \
        --out=runs/shi2021_cifar10_short

Rows: --model=wide_resnet8 or resnext. Ablations (table 4): --initialization=fan_in, --regularizer_weight=0, or both,
which is vanilla IBP.

Published natural / IBP-verified error [%], mean and deviation of five runs, at a radius cut to 0.03137:
  CNN-7   vanilla 58.72 +- 0.27 / 69.88 +- 0.10, this 56.64 +- 0.48 / 68.81 +- 0.24
          initialisation alone 58.93 +- 0.29 / 69.60 +- 0.35, regularizers alone 58.79 +- 0.40 / 69.29 +- 0.28
  WRN     vanilla 58.85 +- 0.22 / 69.77 +- 0.32, this 56.74 +- 0.40 / 68.71 +- 0.29
  ResNeXt vanilla 60.10 +- 0.27 / 71.19 +- 0.21, this 59.33 +- 0.86 / 70.62 +- 0.59
"""
from ibpjax.cli.configs import _shi2021

FLAGS = _shi2021.FLAGS | dict(dataset='cifar10', eps='8/255', epochs=70, warmup_epochs=1, ramp_epochs=20,
                              batch_size=128, milestones=[50, 60])
