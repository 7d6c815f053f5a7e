r"""Draws a trade-off: trains a network for each value of a flag, certifies all, plots verified against natural error.

    ibpjax sweep --sweep=kappa_end --values=0,0.25,0.5,0.75 --out=runs/front -- \
        --dataset=mnist --data_dir=~/tensorflow_datasets --model=mlp --hidden=100,100 --eps=0.1

What stands behind `--` are flags of `ibpjax train`. Killed at any moment, the same command goes on. What is
written, beside the runs: front.png, and the table and the curves of `ibpjax compare`.
"""
import pathlib
import subprocess
import sys

from absl import app, flags

from ibpjax.cli import compare
from ibpjax.cli.flags import define_radii
from ibpjax.plotting import figures  # --out is a flag of compare

FLAGS = flags.FLAGS
flags.DEFINE_string('sweep', 'kappa_end', 'The flag of training that takes the values; alpha is another usual one.')
flags.DEFINE_list('values', [], 'Its values.')
define_radii('certify_eps', None, 'Radii to certify; by default the one that training evaluates.')
flags.DEFINE_list('methods', ['ibp', 'crown-ibp'], 'As of ibpjax certify.')
flags.DEFINE_list('pgd', ['40x1', '200x10'], 'As of ibpjax certify.')
flags.DEFINE_integer('examples', None, 'As of ibpjax certify.', 1)


def call(command: str, *arguments: str) -> None:
  """Runs a command; its failure is that of this one."""
  done = subprocess.run([sys.executable, '-m', 'ibpjax', command, *arguments])
  if done.returncode:
    raise SystemExit(f'ibpjax {command} {" ".join(arguments)} failed: what is done stays, the same command goes on')


def main(argv: list[str]) -> None:
  if len(FLAGS.values) != len(set(FLAGS.values)) or len(FLAGS.values) < 2:
    raise app.UsageError(f'--values={",".join(FLAGS.values)}: a trade-off has two different values or more')
  if given := [a for a in argv[1:] if a.lstrip('-').split('=')[0] in (FLAGS.sweep, 'out')]:
    raise app.UsageError(f'{given[0]} is given behind --: --{FLAGS.sweep} takes the values, --out is a flag before it')
  out = pathlib.Path(FLAGS.out).expanduser()
  folders = [out / f'{FLAGS.sweep}={value}' for value in FLAGS.values]
  options = [f'--methods={",".join(FLAGS.methods)}', f'--pgd={",".join(FLAGS.pgd)}']
  options += [f'--eps={",".join(map(repr, FLAGS.certify_eps))}'] if FLAGS.certify_eps else []
  options += [f'--examples={FLAGS.examples}'] if FLAGS.examples else []
  for folder, value in zip(folders, FLAGS.values):
    call('train', *argv[1:], f'--{FLAGS.sweep}={value}', f'--out={folder}')
    for run in sorted(folder.glob('seed*')) or [folder]:
      call('certify', f'--run={run}', *options)
  call('compare', f'--runs={",".join(map(str, folders))}', f'--out={out}')
  points = compare.tradeoffs(compare.grouped(list(map(str, folders))))
  figures.front(out / 'front.png', FLAGS.sweep, dict(zip(FLAGS.values, points.values())))
  print(out / 'front.png')


def start() -> None:
  app.run(main)
