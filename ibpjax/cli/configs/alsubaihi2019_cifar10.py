r"""CIFAR-10 at 2/255, the small network, 90 epochs with expected tight bounds (Alsubaihi et al. 2019, released code).

    ibpjax train --config=alsubaihi2019_cifar10 --data_dir=~/tensorflow_datasets --out=runs/etb_cifar10

Rows: --eps=2/255, 8/255, 16/255, 0.1; --model=dm_small, dm_medium, or dm_large_200 with --novalid; for each the grid
--learning_rate=0.01, 0.001, --etb_weight=0.01, 0.1, 1, 10, 100, --temperature=1, 5. Radii are those of pixels here; the
authors' differ by 1 to 4 per cent between channels, as they divide by one deviation.

Figures of the paper are not at hand: none is quoted here.
"""
from ibpjax.cli.configs import _alsubaihi2019

FLAGS = _alsubaihi2019.FLAGS | dict(dataset='cifar10', eps='2/255')
