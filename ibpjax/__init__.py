"""Guaranteed bounds on the outputs of any JAX function, as function transformations."""
import importlib
from typing import TYPE_CHECKING, Any

from ibpjax._version import __version__
from ibpjax.core.balls import LpBall, linf_ball, lp_ball
from ibpjax.core.l0_ball import L0Ball, l0_ball
from ibpjax.core.polytope import Polytope, polytope
from ibpjax.core.row import Elementwise
from ibpjax.core.sets import ExpectedInterval, InputSet, Intermediates, Interval, rounding_of
from ibpjax.core.specification import batched, margins
from ibpjax.methods.alpha_crown import alpha_crown
from ibpjax.methods.crown import crown
from ibpjax.methods.etb import Companion, etb, etb_companion
from ibpjax.methods.ibp import ibp
from ibpjax.methods.jacobian import jacobian_bounds, local_lipschitz
from ibpjax.methods.lbp import lbp
from ibpjax.methods.linear_bounds import Affine, LinearBounds, linear_bounds
from ibpjax.methods.lipschitz import LipschitzBound, lipschitz
from ibpjax.methods.lipschitz_estimates import LipschitzEstimate, lipschitz_estimate
from ibpjax.methods.zonotope import zonotope
from ibpjax.primitives.registration import elementwise
from ibpjax.rules.slopes import adaptive, constant, tight
from ibpjax.verification.certify import Certificate, certify
from ibpjax.verification.radius import certified_radius
from ibpjax.xla.compiling import warn_of_wrong_values

warn_of_wrong_values()

__all__ = [
    'Affine', 'Certificate', 'Companion', 'Elementwise', 'ExpectedInterval', 'InputSet', 'Intermediates',
    'Interval', 'L0Ball', 'LinearBounds', 'LipschitzBound', 'LipschitzEstimate', 'LpBall', 'Polytope',
    '__version__', 'adaptive', 'alpha_crown', 'batched', 'certified_radius', 'certify', 'constant', 'crown',
    'elementwise', 'etb', 'etb_companion', 'ibp', 'jacobian_bounds', 'l0_ball', 'lbp', 'linear_bounds',
    'linf_ball', 'lipschitz', 'lipschitz_estimate', 'local_lipschitz', 'lp_ball', 'margins', 'nn', 'polytope',
    'rounding_of', 'tight', 'zonotope',
]

if TYPE_CHECKING:
  from ibpjax import nn


def __getattr__(name: str) -> Any:
  """Imports where they are first used `ibpjax.nn`, which needs Flax, `ibpjax.training`, optax too, `ibpjax.testing`."""
  if name in ('nn', 'testing', 'training'):
    return importlib.import_module(f'ibpjax.{name}')
  raise AttributeError(f'module ibpjax has no attribute {name!r}')
