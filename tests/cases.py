"""One small function, or several, for every row of every table. The laws run over them.

A row without a case fails `test_every_row_has_a_case`.
"""
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as P

from ibpjax import Interval, nn
from ibpjax.composites.patterns import grouped
from ibpjax.composites.univariate import Univariate
from ibpjax.core.composite import Composite
from ibpjax.core.program import Program, evaluate, trace


def noise(*shape):
  """The same numbers whenever it is asked, and in float32 as in float64: a case is one function."""
  return np.random.default_rng(7).normal(size=shape).astype(np.float32).astype(np.float64)


W = noise(6, 6)
KERNEL = noise(2, 3, 2, 4)  # HWIO
WIDE = 128  # elements of a function of each for itself: so many boxes at once
COLUMN = np.array([[2.], [-3.]])


@dataclasses.dataclass(frozen=True)
class Case:
  """A function of one array, tested on boxes around `centre + normal noise`.

  Attributes:
    f: the function.
    shape: of its argument.
    centre, spread: where boxes are.
    radii: of the boxes that soundness is tested on.
    exact: the bound is the exact range, so 1 % less of it is wrong.
    loosest: greatest allowed ratio of width and sampled range at radius 1e-3.
    monotone: a wider box gives wider bounds; not so where a bound is made around the centre of a box.
    point: a box of one point gives the value.
    count: points to sample a box at; fewer where a batch is slow (one convolution kernel a point).
  """
  f: Callable
  shape: tuple[int, ...] = (6,)
  centre: float = 0.
  spread: float = 1.
  radii: tuple[float, ...] = (0., 1e-3, .3, 2.)
  exact: bool = True
  loosest: float = 1.01
  point: bool = True
  monotone: bool = True
  count: int = 34_000


def conv(strides=(1, 1), padding='VALID', lhs_dilation=None, rhs_dilation=None, groups=1, batch_groups=1,
         kernel=KERNEL):
  """A two-dimensional convolution of one NHWC image by a known kernel."""
  def f(x):
    k = jnp.asarray(kernel, x.dtype)
    return lax.conv_general_dilated(x, k, strides, padding, lhs_dilation, rhs_dilation, ('NHWC', 'HWIO', 'NHWC'),
                                    feature_group_count=groups, batch_group_count=batch_groups)
  return f


def pool(init, op, size=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding='VALID', **kwargs):
  return lambda x: lax.reduce_window(x, init, op, size, strides, padding, **kwargs)


def known(a, x):
  return jnp.asarray(a, x.dtype)


def ramp(x, r):
  return nn.param_ramp(x, r, .1)


def over_some(some, terms):
  """A part of the sum of the first four of some terms."""
  return some / jnp.sum(terms, where=jnp.arange(6) < 4)


IMAGE = (1, 6, 5, 2)
AFFINE = {
    'add': Case(lambda x: x + lax.rev(x, (0,))),
    'add known': Case(lambda x: x + known(W[0], x)),
    'add jaxvals': Case(lambda x: P.add_jaxvals_p.bind(x, 2 * x)),
    'broadcast': Case(lambda x: lax.broadcast_in_dim(x, (2, 6, 3), (1,)) * known(noise(2, 6, 3), x)),
    'broadcast size one': Case(lambda x: x.reshape(1, 6) + known(W, x)),
    'concatenate': Case(lambda x: jnp.concatenate([x, -x, jnp.ones(2, x.dtype)])),
    'copy': Case(lambda x: lax.copy_p.bind(x)),
    'cumsum': Case(lambda x: lax.cumsum(x, axis=0)),
    'cumsum reverse': Case(lambda x: lax.cumsum(x.reshape(2, 3), axis=1, reverse=True)),
    'dynamic slice': Case(lambda x: lax.dynamic_slice(x, (jnp.int32(2),), (3,))),
    'dynamic update slice': Case(lambda x: lax.dynamic_update_slice(x, -x[:2], (jnp.int32(3),))),
    'gather': Case(lambda x: x[jnp.array([5, 0, 0, 2])]),
    'pad': Case(lambda x: lax.pad(x, jnp.asarray(3., x.dtype), [(2, 1, 1)])),
    'pad negative': Case(lambda x: lax.pad(x, jnp.asarray(2., x.dtype), [(-1, 2, 0)])),
    'gather, filled': Case(lambda x: x.at[jnp.array([5, 9])].get(mode='fill', fill_value=7.)),
    'gather, clamped': Case(lambda x: x[jnp.array([5, 9])] - x[:2]),
    'scatter add, dropped': Case(lambda x: x.at[jnp.array([9, 0])].add(-x[:2], mode='promise_in_bounds')),
    'reduce sum': Case(lambda x: x.reshape(2, 3).sum(1)),
    'mean': Case(lambda x: x.reshape(2, 3).mean(0)),
    'reduce window sum': Case(pool(0., lax.add, padding='SAME'), IMAGE),
    'reduce window sum, dilated': Case(pool(0., lax.add, strides=(1, 1, 1, 1), window_dilation=(1, 2, 2, 1)), IMAGE),
    'reshape': Case(lambda x: x.reshape(3, 2)),
    'rev': Case(lambda x: lax.rev(x, (0,))),
    'scatter add': Case(lambda x: jnp.zeros(4, x.dtype).at[jnp.array([1, 1, 3])].add(x[:3])),
    'select': Case(lambda x: jnp.where(jnp.arange(6) > 2, x, jnp.asarray(5., x.dtype))),
    'select of two': Case(lambda x: jnp.where(jnp.arange(6) % 2 == 0, x, -2 * x)),
    'slice': Case(lambda x: x[1::2]),
    'split': Case(lambda x: jnp.split(x, [1, 4])[1]),
    'squeeze': Case(lambda x: lax.squeeze(x.reshape(1, 6, 1), (0, 2))),
    'stack': Case(lambda x: jnp.stack([x, -x])),
    'tile': Case(lambda x: jnp.tile(x, 2)),
    'transpose': Case(lambda x: x.reshape(2, 3).T),
    'unstack': Case(lambda x: jnp.unstack(x.reshape(2, 3))[1]),
    'convert': Case(lambda x: lax.convert_element_type_p.bind(x, new_dtype=x.dtype, weak_type=False, sharding=None)),
    'sharding constraint': Case(lambda x: lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(jax.make_mesh((2,), ('d',), axis_types=(jax.sharding.AxisType.Auto,)),
                                      jax.P('d')))),
    'neg': Case(lambda x: -x),
    'sub': Case(lambda x: x[:3] - x[3:]),
    'sub from known': Case(lambda x: 1 - x),
    'mul': Case(lambda x: known(W, x) * x.reshape(1, 6)),
    'mul by zero': Case(lambda x: x * known([0., 1, -1, 0, 2, -2], x)),
    'div': Case(lambda x: x / known([1., -2, 3, -4, 5, -6], x)),
    'div by what is computed': Case(lambda x: x / (known(W[0], x) * 2) + x / (x.shape[0] * jnp.mean(known(W[1], x)))),
    'div broadcast': Case(lambda x: x.reshape(2, 3) / known(COLUMN, x)),
    'dot': Case(lambda x: known(W, x) @ x),
    'dot on the right': Case(lambda x: x.reshape(2, 3) @ known(W[:3], x)),
    'dot batched': Case(lambda x: jnp.einsum('bi,bij->bj', x.reshape(2, 3), known(W.reshape(2, 3, 6), x))),
    'einsum': Case(lambda x: jnp.einsum('ij,kj,l->kil', x.reshape(2, 3), known(W[:, :3], x), known(W[0], x))),
    'conv': Case(conv(), IMAGE),
    'conv strided, padded': Case(conv((2, 1), ((1, 2), (0, 3))), IMAGE),
    'conv same': Case(conv((2, 2), 'SAME'), IMAGE),
    'conv dilated': Case(conv(rhs_dilation=(2, 1)), IMAGE),
    'conv transposed': Case(conv(padding=((1, 1), (2, 2)), lhs_dilation=(2, 3)), (1, 4, 3, 2)),
    'conv grouped': Case(conv(groups=2, kernel=KERNEL[:, :, :1]), IMAGE),
    'conv depthwise': Case(conv(groups=2, kernel=KERNEL[:, :, :1]), IMAGE),
    'conv batch groups': Case(conv(batch_groups=2), (2, 6, 5, 2)),
    'conv, image known': Case(
        lambda w: lax.conv_general_dilated(known(noise(*IMAGE), w), w, (1, 1), 'SAME',
                                           dimension_numbers=('NHWC', 'HWIO', 'NHWC')), (2, 3, 2, 1)),
    'conv 1d': Case(lambda x: lax.conv_general_dilated(x, known(W[:3, :6].reshape(3, 2, 3), x), (2,), 'SAME',
                                                       dimension_numbers=('NWC', 'WIO', 'NWC')), (1, 5, 2)),
    'conv 3d': Case(lambda x: lax.conv_general_dilated(x, known(noise(2, 2, 2, 1, 2), x), (1, 1, 1), 'SAME',
                                                       dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')), (1, 3, 3, 2, 1)),
    'average pool': Case(lambda x: pool(0., lax.add)(x) / 4, IMAGE),
}

SMOOTH = dict(shape=(WIDE,), spread=3., radii=(0., 1e-3, .05, .5, 3.))
SMALL = dict(shape=(WIDE,), spread=.1, radii=(0., 1e-3, .05, .3))  # inside of (-1, 1)
ELEMENTWISE = {
    'relu': Case(jax.nn.relu, **SMOOTH),
    'relu6': Case(jax.nn.relu6, centre=2., **SMOOTH),
    'max': Case(lambda x: lax.max(x, known(noise(WIDE), x)), **SMOOTH),
    'max, known first': Case(lambda x: lax.max(jnp.asarray(.5, x.dtype), x), **SMOOTH),
    'min': Case(lambda x: jnp.minimum(x, jnp.asarray(-.5, x.dtype)), **SMOOTH),
    'clip': Case(lambda x: jnp.clip(x, -1, 2), **SMOOTH),
    'abs': Case(jnp.abs, **SMOOTH),
    'square': Case(jnp.square, **SMOOTH),
    'x ** 0': Case(lambda x: lax.integer_pow(x, 0), exact=False, **SMOOTH),
    'x ** 1': Case(lambda x: lax.integer_pow_p.bind(x, y=1), **SMOOTH),
    'x ** 3': Case(lambda x: lax.integer_pow(x, 3), **SMOOTH),
    'x ** 4': Case(lambda x: lax.integer_pow(x, 4), **SMOOTH),
    'x ** -1': Case(lambda x: lax.integer_pow(x, -1), centre=20., **SMOOTH),
    'x ** -2': Case(lambda x: lax.integer_pow(x, -2), centre=-20., **SMOOTH),
    'exp': Case(jnp.exp, **SMOOTH),
    'exp2': Case(jnp.exp2, **SMOOTH),
    'expm1': Case(jnp.expm1, **SMOOTH),
    'rsqrt': Case(lax.rsqrt, centre=20., **SMOOTH),
    'cbrt': Case(jnp.cbrt, **SMOOTH),
    'sinh': Case(jnp.sinh, **SMOOTH),
    'cosh': Case(jnp.cosh, **SMOOTH),
    'asinh': Case(jnp.arcsinh, **SMOOTH),
    'acosh': Case(jnp.arccosh, centre=20., **SMOOTH),
    'atanh': Case(jnp.arctanh, **SMALL),
    'asin': Case(jnp.arcsin, **SMALL),
    'acos': Case(jnp.arccos, **SMALL),
    'atan': Case(jnp.arctan, **SMOOTH),
    'erf': Case(jax.scipy.special.erf, **SMOOTH),
    'erfc': Case(jax.scipy.special.erfc, **SMOOTH),
    'log': Case(jnp.log, centre=20., **SMOOTH),
    'log1p': Case(jnp.log1p, centre=20., **SMOOTH),
    'sqrt': Case(jnp.sqrt, centre=20., **SMOOTH),
    'tanh': Case(jnp.tanh, **SMOOTH),
    'sigmoid': Case(jax.nn.sigmoid, **SMOOTH),
    'softplus': Case(jax.nn.softplus, **SMOOTH),
    'leaky relu': Case(jax.nn.leaky_relu, **SMOOTH),
    'leaky relu, negative slope': Case(lambda x: jax.nn.leaky_relu(x, -.5), **SMOOTH),
    'leaky relu, known slope': Case(lambda x: jax.nn.leaky_relu(x, jnp.asarray(.3, x.dtype)), **SMOOTH),
    'sin': Case(jnp.sin, **SMOOTH),
    'sin, far from 0': Case(jnp.sin, centre=1000., **SMOOTH),
    'sin, many periods': Case(lambda x: jnp.sin(9 * x), **SMOOTH),
    'cos': Case(jnp.cos, **SMOOTH),
    'cos, left': Case(jnp.cos, centre=-6., **SMOOTH),
    'tan': Case(jnp.tan, **SMALL),
    'tan, another branch': Case(jnp.tan, **{**SMALL, 'centre': -4 * np.pi}),
    'tan, steep': Case(lambda x: jnp.tan(x + .8), **SMALL),
    'erf_inv': Case(lax.erf_inv, **SMALL),
    'x ** c': Case(lambda x: x ** known(np.float32(np.linspace(-3, 3, WIDE)), x), centre=20., **SMOOTH),
    'x ** c, whole c': Case(lambda x: lax.pow(x, known(np.arange(WIDE) % 5., x)), **SMOOTH),
    'x ** -c, whole c, negative x': Case(lambda x: lax.pow(x, -1 - known(np.arange(WIDE) % 5., x)), centre=-20.,
                                         **SMOOTH),
    'c ** x': Case(lambda x: known(np.float32(np.linspace(.1, 3, WIDE)), x) ** x, **SMOOTH),
    'elu': Case(jax.nn.elu, **SMOOTH),
    'elu, known alpha': Case(lambda x: jax.nn.elu(x, known(-1., x)), **SMOOTH),
    'celu': Case(lambda x: jax.nn.celu(x, known(2., x)), **SMOOTH),
    'selu': Case(jax.nn.selu, **SMOOTH),
    'silu': Case(jax.nn.silu, **SMOOTH),
    'gelu': Case(jax.nn.gelu, **SMOOTH),
    'gelu, exact': Case(lambda x: jax.nn.gelu(x, approximate=False), **SMOOTH),
    'mish': Case(jax.nn.mish, **SMOOTH),
    'soft_sign': Case(jax.nn.soft_sign, **SMOOTH),
    'log_sigmoid': Case(jax.nn.log_sigmoid, **SMOOTH),
    'hard_tanh': Case(jax.nn.hard_tanh, **SMOOTH),
    'hard_sigmoid': Case(jax.nn.hard_sigmoid, **SMOOTH),
    'hard_silu': Case(jax.nn.hard_silu, **SMOOTH),
    'squareplus': Case(jax.nn.squareplus, **SMOOTH),
    'sparse_plus': Case(jax.nn.sparse_plus, **SMOOTH),
    'registered': Case(lambda x: ramp(x, known(np.abs(noise(WIDE)), x)), **SMOOTH),
}

NONLINEAR = {
    'function of one value': Case(lambda x: x * jnp.exp(-x * x), (WIDE,), spread=1.5, radii=(0., 1e-3, .05, .5),
                                  exact=False, monotone=False),
    'function that branches': Case(lambda x: jnp.where(x > .5, x, jnp.sin(x) * x), (WIDE,), exact=False,
                                   monotone=False, loosest=1.3),
    'x ** y': Case(lambda x: x[:3] ** x[3:], centre=4., radii=(0., 1e-3, .3)),
    'atan2': Case(lambda x: jnp.arctan2(x[:3], x[3:] + 4), radii=(0., 1e-3, .3)),
    'atan2, left': Case(lambda x: jnp.arctan2(x[:3] - 4, x[3:]), radii=(0., 1e-3, .3)),
    'atan2, known': Case(lambda x: (jnp.arctan2(x, known(W[0], x)), jnp.arctan2(known(W[0], x), x))),
    'prod': Case(lambda x: x.reshape(2, 3).prod(1)),
    'prod of all': Case(lambda x: x[:5].prod(), radii=(0., 1e-3, .3)),
    'cumprod': Case(lambda x: lax.cumprod(x.reshape(2, 3), axis=1), radii=(0., 1e-3, .3)),
    'cumprod, reverse': Case(lambda x: lax.cumprod(x[:3], reverse=True), radii=(0., 1e-3, .3)),
    'cumlogsumexp': Case(lambda x: lax.cumlogsumexp(x)),
    'sort': Case(jnp.sort, exact=False),
    'sort, descending along': Case(lambda x: jnp.sort(x.reshape(2, 3), axis=0, descending=True), exact=False),
    'sort, carrying': Case(lambda x: lax.sort((x, -x), num_keys=1)[1], exact=False, loosest=1e9, point=False),
    'median': Case(jnp.median, exact=False),
    'top k': Case(lambda x: lax.top_k(x, 3)[0], exact=False),
    'scatter': Case(lambda x: x.at[1].set(x[0])),
    'scatter, a slice': Case(lambda x: x.reshape(2, 3).at[1].set(-x[:3])),
    'scatter, twice at one place': Case(lambda x: x.at[jnp.array([1, 1, 4])].set(-x[:3]), exact=False, loosest=1e9,
                                        point=False),
    'scatter, dropped': Case(lambda x: x.at[jnp.array([1, 9])].set(-x[:2], mode='drop')),
    'scatter max': Case(lambda x: x.at[jnp.array([1, 1, 4])].max(-x[:3])),
    'scatter min': Case(lambda x: x.at[jnp.array([1, 1, 4])].min(-x[:3])),
    'scatter mul': Case(lambda x: x.at[jnp.array([1, 1, 4])].multiply(known([-2., 3., -1.], x))),
    'scatter sub': Case(lambda x: jnp.zeros_like(x).at[jnp.array([1, 1, 4])].subtract(x[:3])),
    'optimization barrier': Case(lambda x: lax.optimization_barrier(x) * 2),
    'softmax': Case(jax.nn.softmax),
    'softmax, first axis': Case(lambda x: jax.nn.softmax(2 * x.reshape(3, 2), axis=0)),
    'softmax, transposed': Case(lambda x: jax.nn.softmax(jnp.swapaxes(x.reshape(2, 3), 0, 1), axis=0)),
    'softmax, masked': Case(lambda x: jax.nn.softmax(x, where=jnp.arange(6) < 4)),
    'softmax, mask in the logits': Case(lambda x: jax.nn.softmax(jnp.where(jnp.arange(6) < 4, x, -1e9))),
    'softmax over some': Case(lambda x: over_some(jnp.exp(x), jnp.exp(x))),
    'softmax of some by hand': Case(lambda x: over_some(jnp.where(jnp.arange(6) < 4, jnp.exp(x), 0), jnp.exp(x))),
    'softmax by hand': Case(lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x))),
    'log_softmax': Case(lambda x: jax.nn.log_softmax(x.reshape(2, 3), axis=1)),
    'logsumexp': Case(lambda x: jax.nn.logsumexp(x.reshape(2, 3), axis=0)),
    'logsumexp, kept': Case(lambda x: jax.nn.logsumexp(x.reshape(2, 3), axis=1, keepdims=True)),
    'logsumexp by hand': Case(lambda x: jnp.log(jnp.exp(x).sum())),
    'standardize': Case(jax.nn.standardize, exact=False, monotone=False, loosest=1.5),
    'standardized by a power': Case(lambda x: (x - x.mean()) * (x.var() + known(.1, x)) ** known(-.5, x), exact=False,
                                    monotone=False, loosest=1.5),
    'standardized by a reciprocal': Case(lambda x: (x - x.mean()) * (1 / jnp.sqrt(x.var() + .1)), exact=False,
                                         monotone=False, loosest=1.5),
    'softmax by a reciprocal': Case(lambda x: jnp.exp(x) * (1 / jnp.exp(x).sum())),
    'l2 normalisation': Case(lambda x: x * lax.rsqrt(jnp.sum(x * x) + .1), radii=(0., 1e-3)),
    'x / norm': Case(lambda x: x / jnp.linalg.norm(x), radii=(0., 1e-3)),
    'x / (std + eps)': Case(lambda x: (x - x.mean()) / (x.std() + .1), exact=False, monotone=False, loosest=1.5),
    'norm': Case(jnp.linalg.norm, loosest=1.02),
    'variance': Case(jnp.var, exact=False, loosest=2.01),
    'blend': Case(lambda x: (1 - jax.nn.sigmoid(x[:2])) * x[2:4] + jax.nn.sigmoid(x[:2]) * x[4:]),
    'blend by a step': Case(lambda x: x[2:4] + jax.nn.sigmoid(x[:2]) * (x[4:] - x[2:4])),
    'attention': Case(lambda x: jax.nn.softmax(x[:4].reshape(2, 2)) @ (x[2:].reshape(2, 2)), exact=False,
                      monotone=False, loosest=3.),
    'attention, weights on the right': Case(
        lambda x: jnp.einsum('kv,qk->vq', x[:4].reshape(2, 2), jax.nn.softmax(x.reshape(3, 2), axis=1)),
        exact=False, monotone=False, loosest=3.),
    'attention to known values': Case(lambda x: jax.nn.softmax(x.reshape(2, 3), axis=0).T @ known(W[:2], x),
                                      exact=False, monotone=False, loosest=2.),
    'cond, known': Case(lambda x: lax.cond(jnp.arange(2)[1] > 0, lambda x: 2 * x, lambda x: -x, x)),
    'cond, perturbed': Case(lambda x: lax.cond(x[0] > 0, lambda x: (2 * x, x[0] > 9), lambda x: (-x, x[1] > 0), x),
                            exact=False, loosest=1e9),
    'switch': Case(lambda x: lax.switch((x[:2] > 0).astype(jnp.int32).sum(), [jnp.sin, jnp.tanh, jnp.abs], x),
                   exact=False, loosest=1e9),
    'while': Case(lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(2 * c[1])), (0, x))[1]),
    'fori loop': Case(lambda x: lax.fori_loop(0, jnp.arange(4)[3], lambda i, c: c * (i - 1.5), x)),
    'pad by perturbed': Case(lambda x: lax.pad(jnp.ones(2, x.dtype), x[0], [(1, 1, 0)])),
    'mul of two': Case(lambda x: x[:3] * x[3:]),
    'slope of tanh': Case(jax.vmap(jax.grad(jnp.tanh)), (WIDE,), exact=False, monotone=False, loosest=2.5),
    'log2': Case(jnp.log2, (WIDE,), centre=20.),
    'polynomial': Case(lambda x: jnp.polyval(known([1., -2., .5], x), x), (WIDE,), exact=False, loosest=1e9),
    'x * x': Case(lambda x: x * x, (WIDE,), spread=2.),
    'div by perturbed': Case(lambda x: x[:3] / x[3:], centre=4., radii=(0., 1e-3, .3)),
    'known over perturbed': Case(lambda x: 1 / x, centre=4., radii=(0., 1e-3, .3)),
    'x / x': Case(lambda x: x / x, centre=4., radii=(0., 1e-3, .3), exact=False),
    'dot of two': Case(lambda x: jnp.dot(x[:2], x[2:4]), exact=False, loosest=1.02),
    'conv of two': Case(
        lambda x: lax.conv_general_dilated(x[:4].reshape(1, 4, 1), x[4:].reshape(2, 1, 1), (1,), 'VALID',
                                           dimension_numbers=('NWC', 'WIO', 'NWC')),
        exact=False, loosest=1.02, count=1000),
    'max of two': Case(lambda x: jnp.maximum(x[:3], x[3:])),
    'min of two': Case(lambda x: jnp.minimum(x[:3], x[3:])),
    'clamp': Case(lambda x: lax.clamp(x[:2] - 2, x[2:4], x[4:] + 2)),
    'clamp known': Case(lambda x: lax.clamp(-.5, x, .5)),
    'reduce max': Case(lambda x: x.reshape(2, 3).max(1)),
    'reduce min': Case(lambda x: x.reshape(2, 3).min(0)),
    'max pool': Case(pool(-np.inf, lax.max), IMAGE),
    'max pool, overlapping': Case(pool(-np.inf, lax.max, strides=(1, 1, 1, 1), padding='SAME'), IMAGE),
    'min pool': Case(pool(np.inf, lax.min), IMAGE),
    'reduce precision': Case(lambda x: lax.reduce_precision(x, 8, 10), exact=False),
    'cumulative max': Case(lambda x: lax.cummax(x.reshape(2, 3), axis=1)),
    'cumulative min': Case(lambda x: lax.cummin(x, axis=0, reverse=True)),
    'floor': Case(lambda x: jnp.floor(3 * x), exact=False),
    'ceil': Case(lambda x: jnp.ceil(3 * x), exact=False),
    'round': Case(lambda x: jnp.round(3 * x), exact=False),
    'sign': Case(jnp.sign, exact=False),
    'narrowing cast': Case(lambda x: x.astype(jnp.float32).astype(x.dtype), exact=False, point=False),
    'greater': Case(lambda x: x > lax.rev(x, (0,)), exact=False),
    'less': Case(lambda x: x < known(W[0], x), exact=False),
    'greater equal': Case(lambda x: known(W[0], x) >= x, exact=False),
    'less equal': Case(lambda x: x <= 0, exact=False),
    'equal': Case(lambda x: x == lax.rev(x, (0,)), exact=False),
    'not equal': Case(lambda x: x != known(W[0], x), exact=False),
    'logic': Case(lambda x: ((x > 0) & (lax.rev(x, (0,)) > 0)) | ~(x < -.5) ^ (x > .5), exact=False),
    'all, any': Case(lambda x: ((x > -1).all(), (x > 1).any()), exact=False),
    'booleans moved': Case(
        lambda x: jnp.where(jnp.arange(6).reshape(2, 3) > 2, (x > 0).reshape(2, 3), (x < 1).reshape(2, 3)),
        exact=False),
    'comparison as number': Case(lambda x: (x > 0).astype(x.dtype), exact=False),
    'where': Case(lambda x: jnp.where(x > 0, x, -x + 5), exact=False, loosest=2.),
    'where, predicate broadcast': Case(lambda x: lax.select_n(x[0] > 0, x, -x), exact=False, loosest=2.),
    'stop gradient': Case(lax.stop_gradient),
    'is finite': Case(jnp.isfinite, exact=False),
    'scan': Case(lambda x: lax.scan(lambda c, w: (jax.nn.relu(w * c), c.sum()), x, known([1., -2., 3.], x)),
                 exact=False),
    'scan over perturbed': Case(lambda x: lax.scan(lambda c, w: (c + w, jnp.tanh(w)), jnp.zeros((), x.dtype), x,
                                                   reverse=True)),
}

CASES = {f'{name}': case for table in (AFFINE, ELEMENTWISE, NONLINEAR) for name, case in table.items()}


def centre_of(case: Case, seed: int = 0) -> np.ndarray:
  """Where a case is tested. NumPy's, as all that is not bounds: whatever JAX computes alone is compiled alone."""
  return case.centre + case.spread * np.random.default_rng(seed).normal(size=case.shape)


def traced(f: Callable, x) -> Program:
  return trace(f, (Interval(x, x),), {})[0]


def steps_in(program: Program) -> set[tuple]:
  """The (table key, which operands are perturbed) of the equations that act on something perturbed."""
  steps = {(e.key, tuple(v.id in program.perturbed for v in e.inputs)) for e in program.equations}
  return {(type(key) if isinstance(key, (Composite, Univariate)) else key, which) for key, which in steps if any(which)}


def keys_of(f: Callable, x) -> set:
  """The table keys of the equations of `f` that act on something perturbed."""
  return {key for key, _ in steps_in(grouped(traced(f, x)))}


def regrouped(f: Callable, x) -> list:
  """The outputs of `f` as its program computes them once equations have been grouped into rows and composites."""
  return evaluate(grouped(traced(f, x)), [x])


APART = {name: traced(case.f, centre_of(case)) for name, case in CASES.items()}
TOGETHER = {name: grouped(program) for name, program in APART.items()}
REGROUPED = [name for name in CASES if TOGETHER[name].equations != APART[name].equations]


def first_of_each() -> set[str]:
  """The cases with a row, or with perturbed operands of one, that no case before them has."""
  seen: set[tuple] = set()
  names = set()
  for name, program in TOGETHER.items():
    steps = steps_in(program)
    if not steps <= seen:
      names.add(name)
    seen |= steps
  return names


FIRST = first_of_each()  # laws that compile a lot for each case take these
