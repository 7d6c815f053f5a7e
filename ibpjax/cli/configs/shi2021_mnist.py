r"""MNIST at .4, CNN-7, 70 epochs (Shi et al. 2021, table 1).

    ibpjax train --config=shi2021_mnist --data_dir=~/tensorflow_datasets --seeds=0,1,2,3,4 \
        --out=runs/shi2021_mnist

Rows: --model=wide_resnet8 or resnext; vanilla IBP with --initialization=fan_in --regularizer_weight=0.

Published natural / IBP-verified error [%], mean and deviation of five runs:
  CNN-7   vanilla 2.59 +- 0.06 / 12.03 +- 0.09, this 2.33 +- 0.08 / 11.03 +- 0.13
  WRN     vanilla 3.18 +- 0.05 / 12.93 +- 0.17, this 2.77 +- 0.02 / 11.76 +- 0.07 (three runs)
  ResNeXt vanilla 4.09 +- 0.46 / 15.36 +- 0.94, this 3.22 +- 0.08 / 13.43 +- 0.17 (three runs)
"""
from ibpjax.cli.configs import _shi2021

FLAGS = _shi2021.FLAGS | dict(dataset='mnist', eps='0.4', epochs=70, warmup_epochs=0, ramp_epochs=20, batch_size=256,
                              milestones=[50, 60])
