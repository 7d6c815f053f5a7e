"""The command `ibpjax pack`, by the name that results were computed with."""
from ibpjax.cli.main import start

if __name__ == '__main__':
  start('pack')
