"""Guaranteed bounds on the outputs of any JAX function, as function transformations."""
from ibpjax import nn
from ibpjax._version import __version__
from ibpjax.elementwise import Elementwise, elementwise
from ibpjax.ibp import ibp
from ibpjax.interval import Intermediates, Interval, LpBall, linf_ball, lp_ball
from ibpjax.lines import adaptive, constant, tight
from ibpjax.margins import batched, margins
from ibpjax.verification.certify import Certificate, certify

__all__ = [
    'Certificate', 'Elementwise', 'Intermediates', 'Interval', 'LpBall', '__version__', 'adaptive', 'batched',
    'certify', 'constant', 'elementwise', 'ibp', 'linf_ball', 'lp_ball', 'margins', 'nn', 'tight',
]
