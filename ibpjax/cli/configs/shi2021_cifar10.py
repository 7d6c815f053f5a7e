r"""CIFAR-10 at 8/255, CNN-7, 160 epochs (Shi et al. 2021, tables 2 and 4).

    ibpjax train --config=shi2021_cifar10 --data_dir=~/tensorflow_datasets --seeds=0,1,2,3,4 \
        --out=runs/shi2021_cifar10

Rows: --model=wide_resnet8 or resnext. Ablations (table 4): --initialization=fan_in, --regularizer_weight=0, or both,
which is vanilla IBP.

Published natural / IBP-verified error [%], mean and deviation of five runs, at a radius cut to 0.03137:
  CNN-7   vanilla 53.80 +- 0.71 / 67.01 +- 0.29, this 51.72 +- 0.40 / 65.58 +- 0.32
          initialisation alone 54.59 +- 0.64 / 67.63 +- 0.34, regularizers alone 52.45 +- 0.34 / 66.34 +- 0.38
  WRN     vanilla 54.31 +- 0.46 / 67.45 +- 0.21, this 51.95 +- 0.27 / 65.91 +- 0.14
  ResNeXt vanilla 55.23 +- 0.12 / 68.28 +- 0.15, this 53.68 +- 0.33 / 66.91 +- 0.40
"""
from ibpjax.cli.configs import _shi2021

FLAGS = _shi2021.FLAGS | dict(dataset='cifar10', eps='8/255', epochs=160, warmup_epochs=1, ramp_epochs=80,
                              batch_size=128, milestones=[120, 140])
