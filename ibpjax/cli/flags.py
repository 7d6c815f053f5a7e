"""Kinds of absl flags that commands and experiments share."""
from collections.abc import Sequence

from absl import flags

flags.disclaim_key_flags()  # a flag defined through this module belongs to the binary that asks for it


def radius(text: str) -> float:
  """A radius in the units of pixels in [0, 1], written as 0.1 or as 8/255; those of l2 balls may be greater than 1."""
  try:
    over, _, under = str(text).partition('/')
    value = float(over) / float(under or 1)
  except (ValueError, ZeroDivisionError):
    raise ValueError(f'{text} is not a radius: write 0.1 or 8/255') from None
  if not 0 <= value < 8:
    raise ValueError(f'{text} is not a radius: pixels lie in [0, 1], so write 8/255 and not 8')
  return value


class _Radius(flags.ArgumentParser):
  """One radius."""
  syntactic_help = 'a radius, 0.1 or 8/255'

  def parse(self, argument):
    return radius(argument)


class _Numbers(flags.ArgumentParser):
  """Numbers with commas between."""

  def __init__(self, kind, least=None, distinct=False):
    super().__init__()
    self.kind, self.least, self.distinct = kind, least, distinct

  def parse(self, argument):
    parts = [x for x in argument.split(',') if x.strip()] if isinstance(argument, str) else argument
    numbers = [self.kind(x) for x in parts]
    if self.least is not None and any(x < self.least for x in numbers):
      raise ValueError(f'{min(numbers)} is less than {self.least}')
    if self.distinct and len(set(numbers)) < len(numbers):
      raise ValueError('a number occurs twice')
    return numbers


def define_radius(name: str, default: float | None, help: str) -> None:
  flags.DEFINE(_Radius(), name, default, help, serializer=flags.ArgumentSerializer())


def define_radii(name: str, default: Sequence[float] | None, help: str) -> None:
  flags.DEFINE(_Numbers(radius), name, default, help, serializer=flags.CsvListSerializer(','))


def define_integers(name: str, default: Sequence[int] | None, help: str, least: int | None = None,
                    distinct: bool = False) -> None:
  flags.DEFINE(_Numbers(int, least, distinct), name, default, help, serializer=flags.CsvListSerializer(','))
