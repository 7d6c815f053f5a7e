"""What differs between versions of JAX: how the code that it traced looks. No other file reads this.

Written for jax 0.10.2 to 0.12.0.1. Newer names are looked up, so that older versions import.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jax import lax
from jax.extend.core import primitives as P

log2_p = getattr(lax, 'log2_p', None)  # since 0.11
_one_minus_square_p = getattr(lax, 'one_minus_square_p', None)  # since 0.11: in the derivatives of tanh and others
_polynomial_p = getattr(lax, 'polynomial_p', None)  # since 0.11


@dataclasses.dataclass(frozen=True)
class Scan:
  """What a scan repeats.

  Attributes:
    body: the code of a step, from constants, carry and slices to carry and slices.
    first, last: where among the operands the carry begins, and what is scanned over.
    length, reverse, unroll: as in `jax.lax.scan`.
  """
  body: Any
  first: int
  last: int
  length: int
  reverse: bool
  unroll: int


@dataclasses.dataclass(frozen=True)
class While:
  """What a while repeats.

  Attributes:
    test: the code of the test, from its constants and the carry.
    body: the code of a step, from its constants and the carry.
    skip, first: the numbers of the constants of the test, and of the step.
  """
  test: Any
  body: Any
  skip: int
  first: int


def loop(eqn: Any) -> Scan | While | None:
  """What the equation of a scan or while repeats; None of any other equation."""
  params = eqn.params
  if eqn.primitive is P.while_p:
    return While(params['cond_jaxpr'], params['body_jaxpr'], params['cond_nconsts'], params['body_nconsts'])
  if eqn.primitive is not P.scan_p:
    return None
  if 'ft_in' in params:  # since 0.11: trees of constants, carry, slices
    consts, carry, _ = (len(list(part)) for part in params['ft_in'].unpack())
  else:
    consts, carry = params['num_consts'], params['num_carry']
  return Scan(params['jaxpr'], consts, consts + carry, params['length'], params['reverse'], params['unroll'])


def branches(eqn: Any) -> Sequence[Any] | None:
  """The codes that a cond or switch chooses from; None of any other equation."""
  return eqn.params['branches'] if eqn.primitive is P.cond_p else None


def called(eqn: Any) -> Any:
  """The code that a call-like equation runs once on its operands, or None.

  What has no rule of its own but is made of what has some is such code too.
  """
  match eqn.primitive:
    case P.jit_p | P.remat_p:
      return eqn.params['jaxpr']
    case P.closed_call_p | P.custom_jvp_call_p | P.custom_vjp_call_p:
      return eqn.params['call_jaxpr']
  made = _made_of(eqn)
  return None if made is None else jax.make_jaxpr(made)(*(v.aval for v in eqn.invars))


def _made_of(eqn: Any) -> Callable[..., Any] | None:
  """A function of known operations that computes what an equation does."""
  if eqn.primitive is P.name_p:  # jax.ad_checkpoint.checkpoint_name
    return lambda x: x
  if eqn.primitive is _one_minus_square_p:
    return lambda x: 1 - lax.square(x)
  if eqn.primitive is _polynomial_p:
    return _horner
  if eqn.primitive.name == 'call_hi_primitive':  # since 0.11: jnp.searchsorted, in jnp.interp
    return eqn.params['_prim'].expand
  return None


def _horner(x: Any, *coefficients: Any) -> Any:
  value = coefficients[-1]
  for c in coefficients[-2::-1]:
    value = value * x + c
  return value


def parts(code: Any) -> tuple[Any, Sequence[Any]]:
  """The jaxpr of code, and the arrays it closes over. Since 0.12 a closed jaxpr is a jaxpr."""
  return getattr(code, 'jaxpr', code), getattr(code, 'consts', ())


def is_code(x: Any) -> bool:
  """Whether a parameter of an equation is code."""
  return isinstance(x, jex.ClosedJaxpr | jex.Jaxpr)
