"""What the networks of De Palma et al. 2024 have in common."""
from ibpjax.cli.configs import _shi2021

FLAGS = _shi2021.FLAGS | dict(loss='mtl-ibp', statistics='attacked', pgd_steps=1, pgd_step=10.0, attack_scale=1.0)
