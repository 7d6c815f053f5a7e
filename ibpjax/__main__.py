"""`python -m ibpjax`: the program `ibpjax`."""
from ibpjax.cli.main import main

if __name__ == '__main__':
  main()
