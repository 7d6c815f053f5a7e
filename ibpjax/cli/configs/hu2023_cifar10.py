r"""CIFAR-10, LiResNet (Hu et al. 2023, as listed by the authors' repository and reviews).

    ibpjax train --config=hu2023_cifar10 --data_dir=~/tensorflow_datasets --out=runs/hu2023_cifar10
    ibpjax certify --run=runs/hu2023_cifar10 --methods=lipschitz --eps=36/255 --audit=200

Published, verified by power iteration and so from below: VRA 70.1 at 36/255 [%].

The published row is trained on generated images too: --generated=ddpm.npz, with arrays image (uint8) and label.
Without them, and without the ramp of radii, the authors report VRA 66.1.
"""
from ibpjax.cli.configs import _hu2023

FLAGS = _hu2023.FLAGS | dict(dataset='cifar10')
