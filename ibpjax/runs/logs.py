"""What a run tells while it goes on: metrics.jsonl, TensorBoard event files, a bar or plain lines."""
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a file of JSON lines; a last line that was cut off is left out."""
  records = []
  lines = path.read_text().splitlines() if path.exists() else []
  for i, line in enumerate(lines):
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      if i + 1 < len(lines):
        raise ValueError(f'line {i + 1} of {path} is not JSON: the file was changed. Delete it or mend it') from None
  return records


def recovered(path: pathlib.Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True) -> list[dict[str, Any]]:
  """The records to keep of a file of JSON lines, which then holds these alone; later ones can be appended."""
  records = [r for r in read(path) if keep(r)]
  write(path, _lines(records))
  return records


def append(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
  """Adds records to a file of JSON lines; they are on the disk when it returns."""
  with path.open('a') as file:
    file.write(_lines(records))
    file.flush()
    os.fsync(file.fileno())


def _lines(records: Iterable[dict[str, Any]]) -> str:
  return ''.join(json.dumps(r) + '\n' for r in records)


def write(path: pathlib.Path, text: str) -> None:
  """Replaces a file as a whole: whoever reads it finds the old text or the new one."""
  new = path.with_name(path.name + '.new')
  try:
    with new.open('w') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    new.replace(path)
  except OSError:
    new.unlink(missing_ok=True)
    raise


def markdown(rows: Iterable[Iterable[Any]]) -> str:
  """Rows of a table; floats to three digits."""
  text = lambda x: f'{x:.3g}' if isinstance(x, float) else str(x)
  return ''.join(f'| {" | ".join(map(text, row))} |\n' for row in rows)


def markdown_table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
  """A table with a head."""
  return markdown([head, ['---'] * len(head), *rows])


class Log:
  """The metrics of a run, one record an epoch, in metrics.jsonl and as TensorBoard events.

  Args:
    folder: of the run; None writes nothing and says nothing, as a process must that is not the first of several.
    step: where the run goes on; later records are those of a run that was stopped, and dropped.
  """

  def __init__(self, folder: pathlib.Path | None, step: int):
    self.path, self.events = None, None
    self.records: list[dict[str, Any]] = []
    if folder is not None:
      self.path = folder / 'metrics.jsonl'
      self.records = recovered(self.path, lambda record: record['step'] <= step)
      self.events = SummaryWriter(str(folder / 'events'), purge_step=step + 1 if step else None)

  def add(self, record: dict[str, Any]) -> None:
    """Writes a record, to the disk."""
    self.records.append(record)
    if self.path is None or self.events is None:
      return
    append(self.path, [record])
    for key, value in record.items():
      if isinstance(value, dict):  # of lists, one number a layer
        for name, numbers in value.items():
          for i, number in enumerate(numbers, 1):
            self.events.add_scalar(f'{name}/{i}', number, record['step'])
      elif key != 'step':
        self.events.add_scalar(key, value, record['step'])
    self.events.flush()

  def say(self, total: int, bar: tqdm) -> None:
    """The last record: on the bar of a terminal, and as a plain line where standard output is none."""
    if self.path is None:
      return
    record = self.records[-1]
    bar.set_postfix({k: f'{v:.4g}' for k, v in record.items() if k == 'loss' or k.startswith(('test', 'validation'))})
    if not sys.stdout.isatty():
      shown = {k: v for k, v in record.items() if k not in ('epoch', 'step', 'seconds', 'layers')}
      text = ' '.join(f'{k} {v:.4g}' for k, v in shown.items())
      print(f'epoch {record["epoch"]}/{total}, {record["seconds"]:.0f} s: {text}', flush=True)

  def close(self) -> None:
    if self.events is not None:
      self.events.close()
