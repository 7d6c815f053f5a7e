"""Compares certified Lipschitz networks: tables and pictures of runs that `experiments.certify` has been through.

    python -m experiments.certify --run=runs/a --methods=lipschitz --eps=0.5,1,1.58 --audit=200
    python -m experiments.lipschitz --runs=runs/a,runs/b --out=lipschitz

Writes runs.md and runs.json, radii.png (verified accuracy against radius), rotation.png (examples whose nearest other
class changed, by epoch), and where there are several, depth.png; of audited runs tightness.png.
"""
import json
import pathlib
from typing import Any

from absl import app, flags

from ibpjax.cli import commands
from ibpjax.plotting import lipschitz_figures
from ibpjax.runs import directory, logs
from ibpjax.verification.lipschitz_cascade import of_examples, over
from ibpjax.verification.report import radius_text

FLAGS = flags.FLAGS
flags.DEFINE_list('runs', [], 'Folders of certified runs.')
flags.DEFINE_string('out', 'lipschitz', 'Folder for tables and pictures.')


def opened(folder: pathlib.Path) -> dict[str, Any]:
  """What a folder holds of a certified run, or one clear error."""
  config, path = directory.read_config(folder), folder / 'certificate.json'
  found = json.loads(path.read_text()) if path.exists() else {}
  if not found.get('results') or found['settings'].get('norm') != 'l2':
    raise FileNotFoundError(f'{folder} has no l2 certificates: run `python -m experiments.certify --run={folder} '
                            '--methods=lipschitz` first')
  records, audit = logs.read(folder / 'certificates.jsonl'), folder / 'audit.json'
  return dict(config=config, results=found['results'], radii=of_examples(records),
              metrics=logs.read(folder / 'metrics.jsonl'),
              audit=json.loads(audit.read_text()) if audit.exists() else None)


def table(found: dict[str, dict[str, Any]]) -> str:
  """Accuracies of each run in per cent, the bound and the mean of those of pairs, and what Jacobians reach of both."""
  balls = sorted({r['eps'] for run in found.values() for r in run['results']})
  rates = [f'{kind} {radius_text(eps)}' for eps in balls for kind in ('VRA', 'PGD')]
  head = ['run', 'loss', 'block', 'depth', 'clean', *rates, 'bound', 'reached', 'pairs', 'reached', 'pairs / reached']
  rows = []
  for name, run in found.items():
    config, audit, at = run['config'], run['audit'], {r['eps']: r for r in run['results']}
    rates = [f'{100 - at[eps][key]:.2f}' if eps in at else '-' for eps in balls
             for key in ('verified_error', 'attacked_error')]
    sizes = ['-'] * 5
    if audit:
      pairs = audit['pairs']
      sizes = [f'{x:.4g}' for x in (audit['bound'], audit['reached'], pairs['bound'], pairs['reached'])]
      sizes.append(f'{over(pairs["bound"], pairs["reached"]):.3f}')
    rows.append([name, config['loss'], config.get('block') or 'linear', str(config.get('depth') or '-'),
                 f'{100 - run["results"][0]["natural_error"]:.2f}', *rates, *sizes])
  return logs.markdown_table(head, rows)


def main() -> None:
  if not FLAGS.runs:
    raise app.UsageError('--runs is empty: name the folders of certified runs')
  folders = [pathlib.Path(run).expanduser() for run in FLAGS.runs]
  names = [f.name for f in folders]
  found = {f.name if names.count(f.name) == 1 else '/'.join(f.parts[-2:]): opened(f) for f in folders}
  out = pathlib.Path(FLAGS.out).expanduser()
  out.mkdir(parents=True, exist_ok=True)
  text = table(found)
  logs.write(out / 'runs.md', text)
  logs.write(out / 'runs.json', json.dumps({k: dict(results=v['results'], audit=v['audit']) for k, v in found.items()},
                                           indent=1) + '\n')
  lipschitz_figures.radii(out / 'radii.png', {name: run['radii'] for name, run in found.items()})
  lipschitz_figures.rotation(out / 'rotation.png', {name: run['metrics'] for name, run in found.items()})
  pictures = ['radii.png', 'rotation.png']
  if audits := {name: run['audit'] for name, run in found.items() if run['audit']}:
    lipschitz_figures.tightness(out / 'tightness.png', audits)
    pictures.append('tightness.png')
  rows = [dict(block=run['config'].get('block') or 'linear', depth=run['config'].get('depth'), eps=r['eps'],
               verified=100 - r['verified_error']) for run in found.values() for r in run['results']]
  if len({row['depth'] for row in rows}) > 1 and None not in {row['depth'] for row in rows}:
    lipschitz_figures.depth(out / 'depth.png', rows)
    pictures.append('depth.png')
  print(text, end='')
  print(', '.join(f'{out}/{name}' for name in ('runs.md', 'runs.json', *pictures)))


if __name__ == '__main__':
  commands.run(main)
