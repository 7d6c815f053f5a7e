"""What the networks of Hu et al. 2023 have in common: LiResNet with EMMA, as released."""

# The radius grows from 0.1 to 1.5 times the target in the first half of training.
FLAGS = dict(model='liresnet', depth=18, width=256, loss='emma', eps='54/255', test_eps='36/255', eps_start=0.1 / 1.5,
             schedule='linear', kappa_start=0.0, kappa_end=0.0, epochs=800, warmup_epochs=0, ramp_epochs=400,
             optimizer='adamw', learning_rate=1e-3, weight_decay=1e-4, rate_warmup_epochs=20, cosine=True,
             gradient_clip=3.0, batch_size=256, power_steps=10, pad=4)
