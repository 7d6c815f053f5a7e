"""Compares trained runs: a table of their errors, their learning curves, and verified against natural error.

    ibpjax compare --runs=runs/a,runs/b --out=compare

Runs in folders seed<k> of one folder are one row: mean and sample standard deviation over the seeds. Name the folder,
or some of them.
"""
import dataclasses
import json
import os
import pathlib
import re
import statistics
from typing import Any

from absl import app, flags

from ibpjax.cli import commands
from ibpjax.plotting import figures
from ibpjax.runs import directory, logs
from ibpjax.verification.report import radius_text

FLAGS = flags.FLAGS
flags.DEFINE_list('runs', [], 'Folders of runs.')
flags.DEFINE_string('out', 'compare', 'Folder for table.md, curves.png and tradeoff.png.')
HEAD = ['run', 'dataset', 'model', 'training eps', 'parameters', 'epochs', 'training [s]', 'examples', 'eps',
        'natural error [%]', 'PGD error [%]', 'verified error [%]', 'certification [s]']
KINDS = ('natural', 'attacked', 'verified')
PROTOCOL = ('split', 'examples', 'of', 'methods', 'pgd')  # what certificates of one row have in common


@dataclasses.dataclass(frozen=True)
class Run:
  """What a folder holds: flags, metrics epoch by epoch, and the certificate, empty if there is none yet."""
  folder: pathlib.Path
  config: dict[str, Any]
  metrics: list[dict[str, Any]]
  certificate: dict[str, Any]

  def results(self, eps: float) -> list[dict[str, Any]]:
    return [r for r in self.certificate.get('results', []) if r['eps'] == eps]


def read(folder: pathlib.Path) -> Run:
  path = folder / 'certificate.json'
  try:
    certificate = json.loads(path.read_text()) if path.exists() else {}
  except ValueError as e:
    raise ValueError(f'{path} is not a certificate: {e}. It was cut or changed: certify again') from None
  return Run(folder, directory.read_config(folder), logs.read(folder / 'metrics.jsonl'), certificate)


def grouped(folders: list[str]) -> dict[str, list[Run]]:
  """Runs by name; those that differ in the seed alone together. A folder of runs seed<k> stands for these.

  Raises:
    FileNotFoundError: a folder that is not a run.
    ValueError: runs of one group that differ in more than the seed.
  """
  groups: dict[pathlib.Path, list[Run]] = {}
  paths = [pathlib.Path(os.path.abspath(os.path.expanduser(folder))) for folder in folders]
  for path in dict.fromkeys(run for folder in paths for run in sorted(filter(_is_seed, folder.glob('*'))) or [folder]):
    groups.setdefault(path.parent if _is_seed(path) else path, []).append(read(path))
  for group, members in groups.items():
    flags_ = [{k: v for k, v in r.config.items() if k != 'seed' and k not in directory.CIRCUMSTANCES} for r in members]
    protocols = [{k: r.certificate['settings'].get(k) for k in PROTOCOL} for r in members if r.certificate]
    for kind, dicts in (('--', flags_), ('how they were certified: ', protocols)):
      if differ := [k for k in dicts[0] if any(d.get(k) != dicts[0][k] for d in dicts)] if dicts else []:
        raise ValueError(f'the runs in {group} differ in {kind}{differ[0]} and not only in the seed: compare them one '
                         'by one, from folders that are not called seed<k>')
  above = os.path.commonpath([path.parent for path in groups])
  return {os.path.relpath(path, above): members for path, members in groups.items()}


def _is_seed(path: pathlib.Path) -> bool:
  return re.fullmatch(r'seed\d+', path.name) is not None


def spread(values: list[float], form: str = '.2f') -> str:
  """One value, or mean ± sample standard deviation; '-' for none."""
  if len(values) < 2:
    return f'{values[0]:{form}}' if values else '-'
  return f'{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}'


def radii(members: list[Run]) -> list[float]:
  return sorted({r['eps'] for run in members for r in run.certificate.get('results', [])})


def row(name: str, members: list[Run], eps: float | None) -> list[str]:
  """The cells of HEAD for a group of runs at a radius, or at none if nothing is certified."""
  found = [(run, r) for run in members if eps is not None for r in run.results(eps)]
  if len(members) > 1:
    name += f' ({len(found)} of {len(members)} seeds)' if 0 < len(found) < len(members) else f' ({len(members)} seeds)'
  config, epochs = members[0].config, [run.metrics[-1] for run in members if run.metrics]
  of = {'{examples} of {of} {split}'.format(**run.certificate['settings']) for run, _ in found}
  seconds = [m['seconds'] for m in epochs if 'seconds' in m]
  cells = [name, config.get('dataset', '-'), config.get('model', '-'),
           radius_text(config['eps']) if 'eps' in config else '-', config.get('parameters', '-'),
           ', '.join(map(str, sorted({m['epoch'] for m in epochs}))) or '-', spread(seconds, '.0f'),
           ', '.join(sorted(of)) or '-', '-' if eps is None else radius_text(eps)]
  for kind in KINDS:
    text = spread([r[f'{kind}_error'] for _, r in found])
    if len(found) == 1:
      text += ' [{:.2f}, {:.2f}]'.format(*found[0][1][f'{kind}_interval'])
    cells.append(text)
  return [str(cell) for cell in (*cells, spread([r['total_seconds'] for _, r in found], '.1f'))]


def table(groups: dict[str, list[Run]]) -> str:
  """Markdown, one row a group and radius."""
  rows = []
  for name, members in groups.items():
    rows += [row(name, members, eps) for eps in radii(members)] or [row(name, members, None)]
  lines = [HEAD, ['---'] * 4 + ['---:'] * (len(HEAD) - 4), *rows]
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def learning_curves(groups: dict[str, list[Run]]) -> dict[str, list[dict[str, tuple[list[float], list[float]]]]]:
  """Name and radius -> for each of its runs, natural and verified: (epochs, errors in per cent)."""
  def curve(run: Run, key: str) -> tuple[list[float], list[float]]:
    seen = [r for r in run.metrics if key in r]
    return [r['epoch'] for r in seen], [r[key] for r in seen]

  found = {}
  for name, members in groups.items():
    config = members[0].config
    split = 'validation' if config.get('validation') else 'test'
    eps = config.get('eps', 0.) if config.get('test_eps') is None else config['test_eps']
    label = f'{name}, eps {radius_text(eps)}' + (', validation' if split == 'validation' else '')
    curves = [dict(natural=curve(run, f'{split}_error'), verified=curve(run, f'{split}_verified_error'))
              for run in members]
    found[label] = [c for c in curves if c['natural'][0]]
  return found


def tradeoffs(groups: dict[str, list[Run]]) -> dict[str, list[dict[str, Any]]]:
  """Name -> for each radius, its text and (value, low, high) of the natural and of the verified error."""
  found: dict[str, list[dict[str, Any]]] = {}
  for name, members in groups.items():
    found[name] = []
    for eps in radii(members):
      results, point = [r for run in members for r in run.results(eps)], dict[str, Any](eps=radius_text(eps))
      for kind in ('natural', 'verified'):
        errors = [r[f'{kind}_error'] for r in results]
        mean, std = statistics.mean(errors), statistics.stdev(errors) if len(errors) > 1 else 0.
        point[kind] = (mean, mean - std, mean + std) if len(errors) > 1 else (mean, *results[0][f'{kind}_interval'])
      found[name].append(point)
  return found


def main() -> None:
  if not FLAGS.runs:
    raise app.UsageError('--runs is empty: name folders of runs, --runs=runs/a,runs/b')
  groups, out = grouped(FLAGS.runs), pathlib.Path(FLAGS.out).expanduser()
  out.mkdir(parents=True, exist_ok=True)
  text, written = table(groups), [out / 'table.md']
  logs.write(out / 'table.md', text)
  for name, draw, data in (('curves.png', figures.learning_curves, learning_curves(groups)),
                           ('tradeoff.png', figures.tradeoff, tradeoffs(groups))):
    (out / name).unlink(missing_ok=True)
    if any(data.values()):
      draw(out / name, data)
      written.append(out / name)
  print(text)
  print(', '.join(map(str, written)))


def start() -> None:
  commands.run(main)
