"""What the networks of Shi et al. 2021 have in common."""

FLAGS = dict(model='cnn7', loss='ibp', schedule='smoothed', kappa_start=0.0, kappa_end=0.0, learning_rate=0.0005,
             decay=0.2, gradient_clip=10.0, initialization='ibp', regularizer_weight=0.5)
