"""Lipschitz bounds of any traced network: affine pieces as one operator each, 1-Lipschitz operations between them."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as P

from ibpjax import affine, spectral_convolutions
from ibpjax.ibp import ungrouped
from ibpjax.interval import Interval, concrete, is_set, pytree
from ibpjax.piece_forms import as_convolution
from ibpjax.pieces import Piece, Unit, overlaps, pieces, units
from ibpjax.program import Equation, Program, rebind, unsupported
from ibpjax.spectral import NormBound, dense, power_iteration, random_start
from ibpjax.spectral_convolutions import Convolution

_WHOLE = 4e6  # entries of the matrix of a piece that is looked at as a whole
_SLACK = 1e-6  # relative, for known values (scales of batch norm, say) that the program itself computes in float32


@dataclasses.dataclass(frozen=True)
class LipschitzBound:
  """By how much at most a network lengthens, in l2 norms over all elements.

  Attributes:
    value: of all outputs stacked: ||f(x) - f(y)|| <= value ||x - y||; a float.
    pairs: for one output (classes,), an array (classes, classes): |(f_i - f_j)(x) - (f_i - f_j)(y)| <= pairs[i, j]
      ||x - y||; None for other outputs.
    kind, failure: as of a NormBound, of all norms together.
    parts: what it is made of, in order: (operation behind the affine map, line, NormBound).
  """
  value: float
  pairs: np.ndarray | None
  kind: str
  failure: float
  parts: tuple[tuple[str, str, NormBound], ...]

  @property
  def certifies(self) -> bool:
    """Whether certificates may rest on it."""
    return self.kind in ('upper', 'exact')


@pytree
class LipschitzEstimate:
  """What power iteration says of a network, inside of a training step: too small, and no bound.

  Attributes:
    value: of all outputs stacked.
    pairs: for one output (classes,), an array (classes, classes) as of a LipschitzBound; None for other outputs.
  """
  value: Any
  pairs: Any


def lipschitz_estimate(f: Callable, *, argnum: int = -1, steps: int = 10) -> Callable:
  """The norms of `lipschitz` by power iteration with a state, for training: differentiable, and from below.

  The returned function takes a state and then the arguments of `f`, and returns (LipschitzEstimate, state). The state
  is a PRNG key at first, and what was returned before after that, so that the iteration follows the weights. It
  composes with jit and grad; derivatives are those of the norms at the directions found.

  Args:
    f, argnum: as in `lipschitz`.
    steps: of each power iteration.

  Raises:
    NotImplementedError: as `lipschitz`.

  Source: Leino et al. 2021; Hu et al. 2023.
  """
  def estimated(state, *args):
    program, _, ordered, into = _cut(f, args, argnum)
    maps = [(i, piece) for i in into for piece in into[i]]
    if isinstance(state, jax.Array) and not jnp.issubdtype(state.dtype, jax.dtypes.prng_key):
      raise TypeError(f'the state is an array {state.dtype}{list(state.shape)}; it is a key of jax.random.key(seed), '
                      'or what the last call returned')
    if isinstance(state, jax.Array):
      keys = jax.random.split(state, len(maps))
      state = [random_start(key, tuple(jnp.zeros(v.shape, v.dtype) for v in piece.source.outputs))
               for key, (_, piece) in zip(keys, maps)]
    reach: dict[int, Any] = {0: 1.}
    new, total = list[Any](), jnp.zeros(())
    norms = dict[int, Any]()
    for (i, piece), v in zip(maps, state, strict=True):
      norm, v = power_iteration(piece.stacked, v, steps)
      new.append(v)
      norms[i] = norms.get(i, 0.) + norm * reach[ordered.index(piece.source)]
      total = norms[i]
      reach[i] = ordered[i].constant * total
    pairs = None
    if _is_vector(program, ordered):
      pairs = sum(_table(_rows(piece)) * reach[ordered.index(piece.source)] for piece in into[len(ordered) - 1])
    return LipschitzEstimate(total, pairs), new
  return functools.update_wrapper(estimated, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())


def _is_vector(program: Program, ordered: list[Unit]) -> bool:
  """Whether there is one output, of classes."""
  return len(program.outputs) == len(ordered[-1].operands) == 1 and len(program.outputs[0].shape) == 1


def _rows(piece: Piece) -> Any:
  """The rows of a map to a vector, flattened: (classes, size), in the dtype of the network."""
  into = tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in piece.source.outputs)
  pull = jax.linear_transpose(lambda xs: piece(*xs)[0], into)
  target, = piece.target.operands
  rows, = jax.vmap(pull)(jnp.eye(target.size, dtype=target.dtype))
  return jnp.concatenate([row.reshape(len(row), -1) for row in rows], axis=1)


def _table(rows: Any) -> Any:
  """The distances of rows, (classes, classes), of derivative 0 where two are equal."""
  products = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
  squares = jnp.diagonal(products)
  square = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0) * (1 - jnp.eye(len(rows), dtype=rows.dtype))
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def lipschitz(f: Callable, *, argnum: int = -1, norm: Callable[[Convolution], NormBound] | None = None) -> Callable:
  """Global l2 Lipschitz bounds of `f` in one of its arguments.

  The returned function takes the arguments of `f` (of the argument `argnum` only shapes and dtypes matter) and returns
  a LipschitzBound. `f` is cut at its nonlinear operations, which lengthen nothing by more than a known constant;
  between two of them lies a maximal affine map, of which one norm is taken: a linear residual block costs ||I + C||,
  and scales and batch norm with given statistics fold into their neighbours. Where maps from several operations meet,
  as behind a residual branch with an activation inside, their constants add. Everything is computed in float64 on the
  host and rounded up; not for use inside of `jax.jit`. The bound is of the network in exact arithmetic with the weights
  that this machine computes: those that the program itself makes of its parameters (by a factorisation, say) another
  machine may compute otherwise. The value includes a relative 1e-6 for scales that it makes in float32.

  Args:
    f: any JAX function of affine operations, maxima and minima, sorts, pooling by maxima, absolute values, tanh,
      sigmoid, sin, cos and erf, on one example.
    argnum: the number of the argument.
    norm: bounds of convolutions and dense layers (images of one pixel); default `spectral_convolutions.certified`. Of
      maps that are no convolution the whole matrix is used, or if that is too large the product of the parts.

  Raises:
    NotImplementedError: an operation without a Lipschitz constant; names it and the line.
    TypeError: traced arguments.

  Source: Leino et al. 2021; Hu et al. 2023 for the linear residual block as one map.
  """
  by = spectral_convolutions.certified if norm is None else norm

  @np.errstate(invalid='ignore', over='ignore', divide='ignore')  # what is no number becomes infinite
  def bounded(*given):
    if not concrete(*jax.tree.leaves(given)):
      raise TypeError('Lipschitz bounds are computed in float64 on the host: call this outside of jax.jit, grad, vmap')
    program, _, ordered, into = _cut(f, given, argnum)
    reach, parts, total = {0: 1.}, list[tuple[str, str, NormBound]](), 0.
    for i, unit in enumerate(ordered):
      if not i:
        continue
      total = 0.
      for piece in into.get(i, ()):
        found = _norm(piece, by)
        parts.append((unit.name, unit.line, found))
        total += found.value * reach[ordered.index(piece.source)]
      total = np.inf if np.isnan(total) else total
      reach[i] = unit.constant * total
    kinds = [found.kind for *_, found in parts]
    failure = float(sum(found.failure for *_, found in parts))
    kind = next((k for k in ('lower', 'probabilistic', 'upper') if k in kinds), 'exact')
    kind = 'upper' if kind == 'exact' and len(parts) > 1 else kind  # norms are exact, their product is not
    pairs = None
    if _is_vector(program, ordered):
      terms = [_distances(p.matrix()) * reach[ordered.index(p.source)] for p in into[len(ordered) - 1]]
      pairs = np.nan_to_num(np.sum(terms, axis=0), nan=np.inf, posinf=np.inf) * (1 + _SLACK)
    return LipschitzBound(float(total) * (1 + _SLACK), pairs, kind, failure, tuple(parts))
  return functools.update_wrapper(bounded, f, assigned=('__name__', '__qualname__', '__doc__'), updated=())


def _cut(f: Callable, given: tuple, argnum: int) -> tuple[Program, dict[int, Any], list[Unit], dict[int, list[Piece]]]:
  """`f` as a program, its known values, its nonlinear operations, and the affine maps between these."""
  args = list(given)
  args[argnum] = jax.tree.map(lambda x: Interval(jnp.asarray(x), jnp.asarray(x)), args[argnum])
  program, inputs, _ = ungrouped(f, tuple(args), {})
  known, ordered = _known(program, inputs), units(program)
  return program, known, ordered, pieces(program, known, ordered)


def _known(program: Program, inputs: list[Any]) -> dict[int, Any]:
  """The known values of a program."""
  env = {i: x for i, x in program.environment(inputs).items() if not is_set(x)}
  for eqn in program.equations:
    if not any(v.id in program.perturbed for v in eqn.inputs):
      env |= zip((v.id for v in eqn.outputs), rebind(eqn, *[env[v.id] for v in eqn.inputs]), strict=True)
  return env


def _distances(rows: np.ndarray) -> np.ndarray:
  """The distances of the rows of a matrix by explicit differences: expanded squares would cancel."""
  allowance = 1 + (rows.shape[1] + 4) * float(np.finfo(np.float64).eps)
  largest = np.max(np.abs(rows), initial=0)
  scale = largest if np.isfinite(largest) and largest > 0 else 1.  # or squares vanish, or overflow
  return np.stack([np.sqrt(((rows / scale - row / scale) ** 2).sum(1)) for row in rows]) * (scale * allowance)


def _norm(piece: Piece, by: Callable[[Convolution], NormBound]) -> NormBound:
  """A bound of the norm of a piece."""
  if (convolution := as_convolution(piece)) is not None:
    return by(convolution)
  entries = sum(v.size for v in piece.source.outputs) * sum(v.size for v in piece.target.operands)
  if entries <= _WHOLE:
    return dataclasses.replace(dense(piece.matrix()), method='singular values of the whole matrix')
  return _by_parts(piece, by)


def _by_parts(piece: Piece, by: Callable[[Convolution], NormBound]) -> NormBound:
  """The norms of a piece's equations, multiplied along ways and added where these meet."""
  reach = {v.id: 1. for v in piece.source.outputs}
  kinds, failure = set[str](), 0.
  for eqn in piece.equations:
    moving = [v for v in eqn.inputs if v.id in reach]
    if not moving:
      continue
    found = _of_equation(piece, eqn, by)
    kinds.add(found.kind)
    failure += found.failure
    joined = float(np.hypot.reduce([reach[v.id] for v in moving])) if eqn.key is P.concatenate_p else sum(
        reach[v.id] for v in moving)
    reach |= {v.id: joined * found.value for v in eqn.outputs}
  value = float(np.hypot.reduce([reach.get(v.id, 0.) for v in piece.target.operands]))
  kind = next((k for k in ('lower', 'probabilistic') if k in kinds), 'upper')
  return NormBound(value * (1 + 1e-12), kind, 1e-12, failure, 'product of the parts')


# Operations whose results have each element of each operand at most once.
_MOVES = frozenset({
    P.add_p, P.sub_p, P.add_jaxvals_p, P.neg_p, P.copy_p, P.reshape_p, P.squeeze_p, P.transpose_p, P.rev_p, P.slice_p,
    P.pad_p, P.concatenate_p, P.select_n_p, P.convert_element_type_p, P.dynamic_slice_p, P.dynamic_update_slice_p,
    jax.lax.split_p, jax.lax.stack_p, jax.lax.unstack_p})


def _of_equation(piece: Piece, eqn: Equation, by: Callable[[Convolution], NormBound]) -> NormBound:
  """A bound of the norm of one equation: in each perturbed operand of a move, in the only one of all else."""
  exact = functools.partial(NormBound, kind='upper', slack=0.)
  if eqn.key in _MOVES:
    return exact(1.)
  before, *others = (v for v in eqn.inputs if v.id in piece.program.perturbed)
  if others:
    raise unsupported(eqn, 'stands in an affine map that is too large to be looked at as a whole, and has several '
                           'perturbed operands')
  if eqn.key is P.broadcast_in_dim_p:
    return exact(float(eqn.outputs[0].size / before.size) ** .5)
  if eqn.key is P.reduce_sum_p:
    return exact(float(before.size / eqn.outputs[0].size) ** .5)
  if eqn.key is P.reduce_window_sum_p and max(eqn.params['base_dilation']) == 1:
    window = int(np.prod(eqn.params['window_dimensions']))
    return exact(float(window * overlaps(eqn)) ** .5)
  if eqn.key in (P.mul_p, P.div_p):
    other = next(v for v in eqn.inputs if v.id not in piece.program.perturbed)
    x = np.abs(np.asarray(piece.known[other.id], np.float64))
    return exact(float(np.max(1 / x if eqn.key is P.div_p else x, initial=0)))
  if eqn.key is P.dot_general_p and not eqn.params['dimension_numbers'][1][0]:  # the same for each row of the other
    slot = 0 if eqn.inputs[0].id == before.id else 1
    weights = np.asarray(piece.known[eqn.inputs[1 - slot].id], np.float64)
    over = eqn.params['dimension_numbers'][0][1 - slot]
    free = [i for i in range(weights.ndim) if i not in over]
    count = int(np.prod([weights.shape[i] for i in over]))
    return dense(weights.transpose(*over, *free).reshape(count, -1))
  alone = Piece(piece.program, piece.known, Unit((), (before,), 1., ''), Unit(eqn.outputs, (), 1., ''), (eqn,))
  if (convolution := as_convolution(alone)) is not None:
    return by(convolution)
  if before.size * eqn.outputs[0].size <= _WHOLE and affine.is_affine(
      eqn, [v.id in piece.program.perturbed for v in eqn.inputs]):
    return dense(alone.matrix())
  raise unsupported(eqn, 'stands in an affine map that is too large to be looked at as a whole, and has no norm of '
                         'its own')
