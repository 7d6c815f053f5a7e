"""Settings of published rows, a file each: flags of `ibpjax train`, which takes `--config=<name>`."""
