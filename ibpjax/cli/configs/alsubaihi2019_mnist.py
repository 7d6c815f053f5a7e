r"""MNIST at .1, the small network, 90 epochs with expected tight bounds (Alsubaihi et al. 2019, the released code).

    ibpjax train --config=alsubaihi2019_mnist --data_dir=~/tensorflow_datasets --out=runs/etb_mnist

Rows: --eps=0.1, 0.2, 0.3, 0.4; --model=dm_small, dm_medium, or dm_large_200 with --novalid; for each the grid
--learning_rate=0.01, 0.001, --etb_weight=0.01, 0.1, 1, 10, 100, --temperature=1, 5.

Figures of the paper are not at hand: none is quoted here. What these rows expect certifies nothing: see
`experiments.etb --runs=...`, and `ibpjax certify`.
"""
from ibpjax.cli.configs import _alsubaihi2019

FLAGS = _alsubaihi2019.FLAGS | dict(dataset='mnist', eps='0.1')
