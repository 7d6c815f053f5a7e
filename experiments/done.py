"""Whether a run is finished, as an exit status: 0 if it is and 1 if not, for scripts that go on where they stopped.

    python -m experiments.done --run=runs/digits --stage=certified || python -m experiments.certify --run=runs/digits

Files that are there prove nothing: certificate.json is written before the first example.
"""
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from experiments import commands, runs
from experiments.flags import define_radii

FLAGS = flags.FLAGS
flags.DEFINE_string('run', 'runs/digits', 'Folder of the run.')
flags.DEFINE_enum('stage', 'certified', ['trained', 'certified'], 'What it is to have been through.')
define_radii('eps', None, 'Radii that it is to be certified at; by default the one that training evaluates.')
flags.DEFINE_integer('examples', None, 'Examples that it is to be certified on; by default the whole split.', 1)


def trained(run: pathlib.Path) -> bool:
  """Whether the last checkpoint is that of the last step."""
  saved = runs.checkpoints(run)
  return bool(saved.steps()) and saved.restore()[2]['finished']


def certified(run: pathlib.Path, radii: Sequence[float] | None = None, examples: int | None = None) -> bool:
  """Whether there is a summary of each radius, of as many examples as asked for."""
  path = run / 'certificate.json'
  if not path.exists():
    return False
  found, config = json.loads(path.read_text()), runs.read_config(run)
  of = found['settings']['of']
  asked = of if examples is None else min(examples, of)
  done = {r['eps'] for r in found.get('results', []) if r['examples'] == asked}
  return done >= set(radii or [config['eps'] if config.get('test_eps') is None else config['test_eps']])


def main() -> None:
  run = pathlib.Path(FLAGS.run).expanduser()
  done = trained(run) if FLAGS.stage == 'trained' else certified(run, FLAGS.eps, FLAGS.examples)
  sys.exit(0 if done else 1)


if __name__ == '__main__':
  commands.run(main, keep=False)
