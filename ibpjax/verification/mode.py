"""Models that were left in training mode: found by what they compute and by the flags of their layers, and refused.

Dropout that is on draws a mask, of which a certificate would say nothing but that mask; batch norm of a batch of one
example subtracts that example from itself.
"""
from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from ibpjax.core.program import code_of, is_trace_context_error, performed, user_line

_REMEDIES = ('put the model in evaluation mode first: model.eval() (NNX), deterministic=True and '
             'use_running_average=True (Linen), eqx.nn.inference_mode(model) (Equinox)')
_RANDOM = 'threefry2x32', 'rng_bit_generator', 'rng_uniform'   # and all whose name begins with random_
_LIBRARIES = frozenset({'jax', 'jaxlib', 'flax', 'equinox', 'optax', 'numpy', 'scipy', 'ibpjax'})


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer with a flag that says training.

  Attributes:
    where: its path, from the function or its parameters on.
    kind: its class.
    flag: as in code.
    draws: whether all that this changes are random draws, which show in what the function computes.
  """
  where: str
  kind: str
  flag: str
  draws: bool

  def __str__(self) -> str:
    return f'{self.where} ({self.kind}) has {self.flag}'


def evaluated(f: Callable, params: Any, x: Any, allow_random: bool) -> tuple[Any, Any]:
  """What `f` computes and the shapes of its result, or an error if it does so in training mode.

  Args:
    f: (params, x) -> any arrays.
    params: its first argument.
    x: one example, or its shape and dtype.
    allow_random: whether random draws are meant.

  Raises:
    ValueError: random draws, or batch statistics of one example, with the layer and the remedy.
  """
  flagged = list(layers_in_training(f, params))
  if statistics := [layer for layer in flagged if not layer.draws]:
    raise ValueError(f'{_listed(statistics)}: that is training mode, where it is a function of whole batches. '
                     f'Certificates are of one example at a time: {_REMEDIES}')
  try:
    code, shapes = code_of(f, params, x)
  except Exception as e:
    if flagged and is_trace_context_error(e):
      raise ValueError(f'{_listed(flagged)}: that is training mode, where it draws random numbers; {_REMEDIES}') from e
    raise
  norms = [_lines(norm) for norm in _batch_norms()]
  for name, source in performed(code):
    if name.startswith(('reduce_sum', 'psum')) and any(_within(source, lines) for lines in norms):
      raise ValueError(f'batch norm {_place(source)} takes its statistics from the one example that is certified, as '
                       f'in training mode; {_REMEDIES}')
    if not allow_random and (name.startswith('random_') or name in _RANDOM):
      layers = f' Perhaps it is that {_listed(flagged)}.' if flagged else ''
      raise ValueError(f'f draws random numbers (`{name}` {_place(source)}): a certificate would be of one draw '
                       f'only.{layers} If this is dropout, {_REMEDIES}. If one draw is meant, as of random features, '
                       'certify with allow_random=True')
  return code, shapes


def layers_in_training(f: Callable, params: Any) -> Iterator[Layer]:
  """The layers of NNX and Equinox in training mode among the parameters, and among what `f` is bound to or closes over.

  Seen are modules and graph definitions in containers, partial functions, methods, objects that can be called, closures
  and the globals that a function reads; not what is made inside of it.
  """
  seen = dict[int, Any]()
  yield from _found(params, 'params', seen)
  yield from _found(f, 'f', seen)


def _found(x: Any, where: str, seen: dict[int, Any]) -> Iterator[Layer]:
  """Those in one object; `seen` holds all that has been looked at, so that no other gets its id."""
  if id(x) in seen or isinstance(x, (type, types.ModuleType, str, bytes, int, float, type(None))):
    return
  seen[id(x)] = x
  nnx = sys.modules.get('flax.nnx')  # of libraries that nobody has loaded there are no layers
  if nnx is not None and isinstance(x, nnx.GraphDef):
    x = nnx.merge(x, [None] * x.num_leaves)
  if nnx is not None and isinstance(x, nnx.Module):
    for path, module in nnx.iter_modules(x):
      yield from _flags(module, '.'.join(map(str, (where, *path))))
    return
  if _is_equinox(x):
    yield from _flags(x, where)
  for name, part in _parts(x, where):
    yield from _found(part, name, seen)


def _parts(x: Any, where: str) -> Iterator[tuple[str, Any]]:
  """What an object consists of, as far as it may hold a module that the object runs."""
  match x:
    case dict():
      yield from ((f'{where}[{k!r}]', v) for k, v in x.items())
    case tuple() | list():
      yield from ((f'{where}[{i}]', v) for i, v in enumerate(x))
    case functools.partial():
      yield from ((where, x.func), (f'{where}.args', x.args), (f'{where}.keywords', x.keywords))
    case types.MethodType():
      yield from ((f'{where}.__self__', x.__self__), (where, x.__func__))
    case types.FunctionType():
      yield from _read_by(x)
    case _ if _is_equinox(x):
      yield from ((f'{where}.{k}', v) for k, v in vars(x).items())
    case _ if callable(x) and not isinstance(x, types.BuiltinFunctionType):
      yield where, getattr(x, '__wrapped__', None)
      if type(x).__module__.partition('.')[0] not in _LIBRARIES:
        yield from ((f'{where}.{k}', v) for k, v in getattr(x, '__dict__', {}).items())
        yield where, type(x).__call__


def _read_by(f: types.FunctionType) -> Iterator[tuple[str, Any]]:
  """What a function reads and is not given at a call: defaults, cells of its closure, and globals of user code."""
  for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
    with contextlib.suppress(ValueError):  # nothing in it yet
      yield name, cell.cell_contents
  yield f'defaults of {f.__name__}', (f.__defaults__, f.__kwdefaults__)
  yield f.__name__, getattr(f, '__wrapped__', None)
  if (f.__module__ or '').partition('.')[0] in _LIBRARIES:
    return
  codes = [f.__code__]
  while codes:
    code = codes.pop()
    codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    for instruction in dis.get_instructions(code):
      if instruction.opname == 'LOAD_GLOBAL' and instruction.argval in f.__globals__:
        yield instruction.argval, f.__globals__[instruction.argval]


def _flags(module: Any, where: str) -> Iterator[Layer]:
  """What the attributes of one module say."""
  of = lambda name, default=None: getattr(module, name, default)
  kind = type(module).__name__
  if of('use_running_average') is False:
    yield Layer(where, kind, 'use_running_average=False', draws=False)
  for flag in ('deterministic', 'inference'):
    rate = of('rate', of('dropout_rate', of('p')))   # of dropout; of other layers None
    on = flag == 'inference' if rate is None else isinstance(rate, int | float) and rate > 0
    if of(flag) is False and on:
      yield Layer(where, kind, f'{flag}=False', draws=rate is not None and rate < 1)   # at 1 all is 0, without a draw


def _is_equinox(x: Any) -> bool:
  return 'equinox' in sys.modules and isinstance(x, sys.modules['equinox'].Module)


def _batch_norms() -> list[Any]:
  """The batch norms of those libraries that are loaded."""
  loaded = map(sys.modules.get, ('flax.nnx', 'flax.linen', 'equinox.nn'))
  return [library.BatchNorm for library in loaded if library is not None]


def _lines(layer: Any) -> tuple[str, range]:
  """File and lines of the call of a layer."""
  code = inspect.unwrap(layer.__call__).__code__
  return code.co_filename, range(code.co_firstlineno, 1 + max(line for *_, line in code.co_lines() if line))


def _within(source: Any, lines: tuple[str, range]) -> bool:
  """Whether an equation was made in these lines, or by what they call."""
  frames = source.traceback.frames if source.traceback is not None else ()
  return any(f.file_name == lines[0] and f.line_num in lines[1] for f in frames)


def _place(source: Any) -> str:
  """Where an equation comes from: the path of the layer, where the framework notes it, and the user's line."""
  path = str(source.name_stack)
  return f'in {path}, {user_line(source)}' if path else f'at {user_line(source)}'


def _listed(layers: list[Layer]) -> str:
  more = f', and {len(layers) - 3} more layers' if len(layers) > 3 else ''
  return ', '.join(map(str, layers[:3])) + more
