"""The program `ibpjax`: its commands, by the name that stands first."""
import difflib
import importlib
import sys

COMMANDS = {
    'train': 'trains a classifier with guaranteed bounds and writes its run to a folder',
    'certify': 'certifies a trained run on a whole split',
    'compare': 'compares trained runs: a table and curves',
    'sweep': 'trains and certifies a network for each value of a flag, and draws the trade-off',
    'pack': 'packs a dataset into one .npz',
}
USAGE = """Guaranteed bounds on the outputs of neural networks.

usage: ibpjax COMMAND [--flag=value ...]

{commands}

ibpjax COMMAND --help shows its flags.
"""


def main() -> None:
  """Runs the command that the first argument names, with the flags behind it."""
  name, *_ = *sys.argv[1:], '--help'
  if name in ('-h', '--help', 'help'):
    print(USAGE.format(commands='\n'.join(f'  {name:<8} {what}' for name, what in COMMANDS.items())), end='')
    return
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, 1)
    remedy = f'did you mean {near[0]}?' if near else f'it has {", ".join(COMMANDS)}'
    print(f'{name} is no command of ibpjax; {remedy}', file=sys.stderr)
    sys.exit(2)
  del sys.argv[1]
  start(name)


def start(name: str) -> None:
  """Runs a command, with the flags on the command line."""
  try:
    command = importlib.import_module(f'ibpjax.cli.{name}')
  except ModuleNotFoundError as e:
    if (e.name or 'ibpjax').partition('.')[0] == 'ibpjax':
      raise
    print(f"ibpjax {name} needs {e.name}, which is not installed: pip install 'ibpjax[experiments]'", file=sys.stderr)
    sys.exit(1)
  from absl import flags
  main = sys.modules['__main__']
  main.__doc__ = command.__doc__  # what --help says is of the main module: its text, and the flags that belong to it
  for flag in flags.FLAGS.get_key_flags_for_module(command):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  command.start()
