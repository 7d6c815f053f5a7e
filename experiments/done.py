"""Whether a run is finished, as an exit status: 0 if it is and 1 if not, for scripts that go on where they stopped.

    python -m experiments.done --run=runs/digits --stage=certified || python -m experiments.certify --run=runs/digits

Files that are there prove nothing: certificate.json is written before the first example.
"""
import pathlib
import sys

from absl import flags

from ibpjax.cli import commands
from ibpjax.cli.flags import define_radii
from ibpjax.runs import directory

FLAGS = flags.FLAGS
flags.DEFINE_string('run', 'runs/digits', 'Folder of the run.')
flags.DEFINE_enum('stage', 'certified', ['trained', 'certified'], 'What it is to have been through.')
define_radii('eps', None, 'Radii that it is to be certified at; by default the one that training evaluates.')
flags.DEFINE_integer('examples', None, 'Examples that it is to be certified on; by default the whole split.', 1)


def main() -> None:
  run = pathlib.Path(FLAGS.run).expanduser()
  if FLAGS.stage == 'trained':
    done = directory.is_trained(run)
  else:
    done = directory.is_certified(run, FLAGS.eps, FLAGS.examples)
  sys.exit(0 if done else 1)


if __name__ == '__main__':
  commands.run(main, keep=False)
