"""Settings of published rows, a file each: flags of `experiments.train`, which takes `--config=<name>`."""
