r"""MNIST, a small LiResNet for a CPU, with the recipe of Hu et al. 2023; no published row.

    ibpjax train --config=hu2023_mnist --data_dir=~/tensorflow_datasets --out=runs/hu2023_mnist
    ibpjax certify --run=runs/hu2023_mnist --methods=lipschitz --eps=0.5,1,1.58 --audit=200

Rows: --loss=emma, gloro, gloro-trades (with --trades_weight=1), margin; --block=linear, conventional, sll, aol.
"""
from ibpjax.cli.configs import _hu2023

FLAGS = _hu2023.FLAGS | dict(dataset='mnist', depth=4, width=32, eps='2', test_eps='1.58', eps_start=0.05, epochs=30,
                             ramp_epochs=15, rate_warmup_epochs=1, augment=False)
