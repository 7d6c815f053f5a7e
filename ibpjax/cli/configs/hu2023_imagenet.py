r"""ImageNet, LiResNet (Hu et al. 2023, as listed by the authors' repository and reviews).

    ibpjax train --config=hu2023_imagenet --data_dir=~/tensorflow_datasets --out=runs/hu2023_imagenet
    ibpjax certify --run=runs/hu2023_imagenet --methods=lipschitz --eps=36/255 --audit=200

Rows: --eps=1.5 --test_eps=1 for certificates at radius 1.

Published, verified by power iteration and so from below: VRA 35.0 at 36/255, clean 45.6; at
radius 1, 14.2 with --depth=18 [%].
"""
from ibpjax.cli.configs import _hu2023

FLAGS = _hu2023.FLAGS | dict(
    dataset='imagenet', depth=12, width=588, epochs=400, ramp_epochs=200, weight_decay=0.0, batch_size=1024,
    pad=0)
