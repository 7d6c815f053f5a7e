"""What the networks of Lyu et al. 2021 have in common."""

FLAGS = dict(model='dm_large', schedule='linear', learning_rate=0.0005, kappa_start=0.0, kappa_end=0.0, seeds=[2019])
