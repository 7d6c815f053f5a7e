"""Guaranteed bounds on the outputs of any JAX function, as function transformations."""
from ibpjax import nn
from ibpjax._version import __version__
from ibpjax.alpha import alpha_crown
from ibpjax.compiling import warn_of_wrong_values
from ibpjax.crown import METHODS, crown
from ibpjax.elementwise import Elementwise, elementwise
from ibpjax.etb import Companion, etb, etb_companion
from ibpjax.ibp import ibp
from ibpjax.interval import ExpectedInterval, Intermediates, Interval, LpBall, linf_ball, lp_ball
from ibpjax.lbp import lbp
from ibpjax.linear import Affine, LinearBounds, linear_bounds
from ibpjax.lines import adaptive, constant, tight
from ibpjax.lipschitz import LipschitzBound, lipschitz
from ibpjax.lipschitz_estimates import LipschitzEstimate, lipschitz_estimate
from ibpjax.local_lipschitz import jacobian_bounds, local_lipschitz
from ibpjax.margins import batched, margins
from ibpjax.verification.certify import Certificate, certify
from ibpjax.verification.radius import certified_radius

warn_of_wrong_values()
METHODS['lbp'] = lbp, ('lines', 'intersect', 'round_outward')

__all__ = [
    'Affine', 'Certificate', 'Companion', 'Elementwise', 'ExpectedInterval', 'Intermediates', 'Interval',
    'LinearBounds', 'LipschitzBound', 'LipschitzEstimate', 'LpBall', '__version__', 'adaptive', 'alpha_crown',
    'batched', 'certified_radius', 'certify', 'constant', 'crown', 'elementwise', 'etb', 'etb_companion', 'ibp',
    'jacobian_bounds', 'lbp', 'linear_bounds', 'linf_ball', 'lipschitz', 'lipschitz_estimate', 'local_lipschitz',
    'lp_ball', 'margins', 'nn', 'tight',
]
