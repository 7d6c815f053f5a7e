"""The command `ibpjax sweep`, by the name that results were computed with."""
from ibpjax.cli.main import start

if __name__ == '__main__':
  start('sweep')
