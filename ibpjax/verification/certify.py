"""Certificates: which examples no perturbation within a radius can change."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ibpjax.core.balls import linf_ball, lp_ball
from ibpjax.core.directed import UP, converted, rounded
from ibpjax.core.program import digest
from ibpjax.core.sets import pytree
from ibpjax.core.specification import check_classes, check_labels, margins
from ibpjax.core.unsound import why_unsound
from ibpjax.core.validation import check_eps, concrete
from ibpjax.methods.alpha_crown import alpha_crown
from ibpjax.methods.crown import crown
from ibpjax.methods.etb import etb
from ibpjax.methods.ibp import ibp
from ibpjax.methods.lbp import lbp
from ibpjax.methods.zonotope import zonotope
from ibpjax.verification.mode import evaluated
from ibpjax.xla.batching import dealt_over
from ibpjax.xla.compiling import RightJit

# method -> the transformation of a specification that bounds it, allowing for rounding; given `intersect`.
METHODS: dict[str, Callable[..., Callable]] = {
    'ibp': lambda f, intersect: ibp(f, elide=True, round_outward=True),
    'crown-ibp': functools.partial(crown, intermediate='ibp', round_outward=True),
    'lbp': functools.partial(lbp, round_outward=True),
    'zonotope': functools.partial(zonotope, round_outward=True),
    'crown-lbp': functools.partial(crown, intermediate='lbp', round_outward=True),
    'crown': functools.partial(crown, round_outward=True),
    'alpha-crown': lambda f, intersect: alpha_crown(
        f, intersect=intersect, round_outward=True, objective=lambda bounds: -jnp.minimum(bounds.lower, 0).sum()),
}
DEALT = 'crown-ibp', 'crown-lbp', 'crown'   # those of which rows are dealt to devices: alpha-CROWN differentiates
EXPECTED = 'expected tight bounds hold a range in expectation over random weights, not that of a network'
NORMS = {'linf': np.inf, 'l2': 2., 'l1': 1.}


@pytree
class Certificate:
  """Lower bounds of the specification of each example, already reduced by the rounding allowance.

  Attributes:
    lower: (batch, rows), guaranteed lower bounds over the input set.
    clean: (batch, rows), the values at the examples themselves.
  """
  lower: Any
  clean: Any

  @property
  def verified(self) -> Any:
    """(batch,) booleans: every row is certainly > 0. Ties and NaN are not."""
    return jnp.all((self.lower > 0) & (self.clean > 0), axis=-1)

  @property
  def correct(self) -> Any:
    """(batch,) booleans: every row is > 0 at the example itself."""
    return jnp.all(self.clean > 0, axis=-1)


def certify(f: Callable, params: Any, xs: Any, spec: Any, eps: Any, *, norm: str = 'linf',
            clip: tuple[float, float] | None = (0., 1.), method: str = 'crown-ibp',
            intersect: bool = True, allow_random: bool = False, mesh: Mesh | None = None) -> Certificate:
  """Certifies a specification of `f` on the ball of radius `eps` around each example.

  Of each example it is about all real points of the ball around it, as JAX holds it: |x' - x| <= eps in every
  coordinate and x' in `clip`, or the l2 or l1 norm of x' - x at most eps (no clip); x in the dtype that JAX makes of
  `xs` (float32 of float64 without `jax_enable_x64`), eps and the ends of `clip` with the precision that they are given
  in. Bounds are computed at the highest matmul precision and widened by a computed allowance for rounding: they hold
  for the exact network and, at points that are numbers of that dtype, for the one in floating point.

  Args:
    f: (params, x) -> (classes,) logits of one example. `ibpjax.batched` makes one of a model of
      batches. Hand in the same function object for each batch: it is compiled once (and again when
      anything that it closes over has changed). In evaluation mode: dropout that draws and batch norm that takes its
      statistics from the example are refused, as far as they can be seen (`ibpjax.verification.mode`).
    params: its first argument.
    xs: (batch, ...) examples, floats, unperturbed.
    spec: (batch,) integer labels, to certify all margins z_y - z_j, of two classes or more; or rows (C, d), C of shape
      (rows, classes) and d of shape (rows,), to certify C z + d > 0 for every example, at least one row.
    eps: radius in the units of `xs`, a scalar, or (batch,) radii, one for each example.
    norm: 'linf', 'l2' or 'l1'.
    clip: valid range of the inputs; the l-infinity ball is cut to it, the others are not. None for no range.
    method: how bounds are computed, from fast and loose to slow and tight: 'ibp' (elided), 'crown-ibp', 'lbp',
      'zonotope', 'crown-lbp', 'crown' or 'alpha-crown', which optimises the bounds that are not positive.
    intersect: intersect the bounds of linear methods with those of interval arithmetic wherever these are needed, so
      that no method verifies less than 'ibp'.
    allow_random: certify a function that draws random numbers from keys of its own or from its parameters, as random
      features do, for the one draw that these keys give.
    mesh: devices to compute on, examples cut along its first axis. Along its second one, if it has two, the rows are
      dealt that 'crown-ibp', 'crown-lbp' and 'crown' walk back for an example, where one is enough for many devices.

  Returns:
    Certificate.

  Raises:
    TypeError, ValueError: bad argument, named with its remedy; a model in training mode, with the layer; one logit or
      no rows, of which all would be certain.
    RuntimeError: a bound excludes the value at the example itself, which no sound bound does.

  Source: Gowal et al. 2018; Zhang et al. 2020; Lyu et al. 2021; Xu et al. 2021.
  """
  xs = _checked(xs, eps, norm, clip, method, mesh)
  code, result = evaluated(f, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype), allow_random)
  classes = result.shape
  if len(classes) != 1:
    raise ValueError(f'f returns shape {classes} for one example; certify needs (classes,). For a model of batches '
                     'use ibpjax.batched(f)')
  labelled = not isinstance(spec, tuple)
  if labelled:
    check_classes(classes[0])
    spec = check_labels(spec, classes[0])
    if spec.shape != xs.shape[:1]:
      raise ValueError(f'{spec.shape} labels for {len(xs)} examples: give one label an example')
  else:
    spec = tuple(jnp.asarray(part, xs.dtype) for part in spec)
    if spec[0].ndim != 2 or spec[0].shape[1] != classes[0] or spec[1].shape != spec[0].shape[:1]:
      raise ValueError(f'spec has shapes {spec[0].shape} and {spec[1].shape}; the rows of C z + d > 0 have shapes '
                       f'(rows, {classes[0]}) and (rows,)')
    if not len(spec[0]):
      raise ValueError('spec has no rows, and of nothing everything is certain: give rows (C, d) of what shall be > 0')
  certificate = _bounds(f, params, xs, spec, converted(eps, xs.dtype, UP), code=digest(code), norm=norm, clip=clip,
                        labelled=labelled, method=method, intersect=intersect, mesh=mesh)
  lower, clean = certificate.lower, certificate.clean
  if concrete(lower) and bool(jnp.any((lower > clean) | ((lower > -jnp.inf) & jnp.isnan(clean)))):
    raise RuntimeError('a lower bound is greater than the value at the example itself: this bound is wrong. Please '
                       'report it with the function and the inputs')
  return certificate


def _checked(xs: Any, eps: Any, norm: str, clip: tuple[float, float] | None, method: str, mesh: Mesh | None) -> Any:
  """The examples as an array, or an error for an argument that is no good."""
  if (reason := EXPECTED if method in ('etb', etb) else why_unsound(method)) is not None:
    raise TypeError(f'{method} certifies nothing: {reason}. Certificates can be computed by {", ".join(METHODS)}')
  if method not in METHODS:
    raise ValueError(f'method is {method!r}; certificates can be computed by {", ".join(METHODS)}')
  if norm not in NORMS:
    raise ValueError(f'norm is {norm!r}; it is one of {", ".join(NORMS)}')
  xs = jnp.asarray(xs)
  if not jnp.issubdtype(xs.dtype, jnp.floating):
    raise TypeError(f'xs has dtype {xs.dtype}: convert images to floats first, e.g. xs.astype(jnp.float32) / 255')
  if mesh is not None and len(mesh.axis_names) not in (1, 2):
    raise ValueError(f'mesh has axes {mesh.axis_names}; examples are cut along the first, rows along a second one')
  check_eps(eps)
  if jnp.shape(eps) not in ((), xs.shape[:1]):
    raise ValueError(f'eps has shape {jnp.shape(eps)} for {len(xs)} examples: give one radius, or one for each')
  if clip is not None:
    if concrete(eps) and norm == 'linf' and np.any(
        rounded(eps, xs.dtype, UP) > rounded(clip[1] - clip[0], xs.dtype, UP)):
      raise ValueError(f'eps is {eps}, more than the whole range {clip} of the inputs: give it in their units '
                       '(8/255 and not 8)')
    if concrete(xs) and not np.all((np.asarray(xs) >= clip[0]) & (np.asarray(xs) <= clip[1])):
      raise ValueError(f'xs has values in [{np.min(xs)}, {np.max(xs)}], outside of clip = {clip}: scale the inputs or '
                       'widen clip')
  return xs


@functools.partial(RightJit, static_argnames=('f', 'code', 'norm', 'clip', 'labelled', 'method', 'intersect', 'mesh'))
def _bounds(f, params, xs, spec, eps, *, code, norm, clip, labelled, method, intersect, mesh):
  del code  # part of the key: compiled anew if what f closes over has changed

  def specification(params, x, spec):
    z = f(params, x)
    return margins(z, spec) if labelled else spec[0] @ z + spec[1]

  def one(params, x, spec, eps):
    ball = linf_ball(x, eps, *(clip or ())) if norm == 'linf' else lp_ball(x, eps, NORMS[norm])
    lower = METHODS[method](specification, intersect=intersect)(params, ball, spec).lower
    return Certificate(lower, specification(params, x, spec))

  def batch(params, xs, spec, eps):
    rows = mesh.axis_names[1] if mesh is not None and mesh.axis_names[1:] and method in DEALT else None
    with dealt_over(rows):
      return jax.vmap(one, in_axes=(None, 0, 0 if labelled else None, 0 if eps.ndim else None))(params, xs, spec, eps)

  with jax.default_matmul_precision('highest'):
    if mesh is None:
      return batch(params, xs, spec, eps)
    n, examples, all_of = len(xs), PartitionSpec(mesh.axis_names[0]), PartitionSpec()
    which = jnp.minimum(jnp.arange(n + -n % mesh.devices.shape[0]), n - 1)   # equal parts: the last one again
    layouts = all_of, examples, examples if labelled else all_of, examples if eps.ndim else all_of
    given = xs[which], spec[which] if labelled else spec, eps[which] if eps.ndim else eps
    found = jax.shard_map(batch, mesh=mesh, in_specs=layouts, out_specs=examples, check_vma=False)(params, *given)
    return jax.tree.map(lambda x: x[:n], found)
