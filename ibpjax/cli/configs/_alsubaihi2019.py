"""What the networks of Alsubaihi et al. 2019 have in common: the released training, of 90 epochs at the full radius."""

FLAGS = dict(model='dm_small', valid=True, loss='etb', etb_weight=10.0, temperature=1.0, augment=False, epochs=90,
             warmup_epochs=0, ramp_epochs=0, kappa_start=0.0, kappa_end=0.0, optimizer='sgd', learning_rate=0.01,
             weight_decay=0.0001, decay=0.1, milestones=[30, 60], batch_size=256)
