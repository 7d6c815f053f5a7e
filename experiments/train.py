"""The command `ibpjax train`, by the name that results were computed with."""
from ibpjax.cli.main import start

if __name__ == '__main__':
  start('train')
