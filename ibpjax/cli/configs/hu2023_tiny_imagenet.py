r"""Tiny-ImageNet, LiResNet (Hu et al. 2023, as listed by the authors' repository and reviews).

    ibpjax train --config=hu2023_tiny_imagenet --data_dir=~/tensorflow_datasets \
        --out=runs/hu2023_tiny_imagenet
    ibpjax certify --run=runs/hu2023_tiny_imagenet --methods=lipschitz --eps=36/255 --audit=200

Published, verified by power iteration and so from below: VRA 33.6 at 36/255 [%].

The published row is trained on generated images too: --generated=ddpm.npz, with arrays image (uint8) and label.
"""
from ibpjax.cli.configs import _hu2023

FLAGS = _hu2023.FLAGS | dict(dataset='tiny_imagenet', pad=8)
