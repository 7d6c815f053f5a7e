"""Faults put into the library one at a time: does a test find each?

    python tests/mutants.py --check               # each fault still has its place in the code
    python tests/mutants.py --only=chord,planes   # a table in Markdown, of some
    python tests/mutants.py                       # of all: an hour or more

Each fault goes into a copy of the tree. The tests that are most likely to find it run first, then all others that
`make test` runs; the first that fails ends it.
"""
import argparse
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Fault:
  """What is wrong: in a file, one text in the place of another that occurs in it once.

  Attributes:
    name: of the fault.
    path: the file, below the package.
    right, wrong: the texts.
    first: modules of tests that run before all others.
  """
  name: str
  path: str
  right: str
  wrong: str
  first: str


FAULTS = [
    Fault('affine: no absolute value of weights', 'rules/affine.py', '(x, jnp.abs(x)) for x in operands]',
          '(x, x) for x in operands]', 'rows'),
    Fault('affine: ends of a difference swapped', 'rules/affine.py', 'lower[0] - upper[1], upper[0] - lower[1]',
          'lower[0] - lower[1], upper[0] - upper[1]', 'rows'),
    Fault('affine: ends of a negation swapped', 'rules/affine.py', 'Interval(-upper[0], -lower[0])',
          'Interval(-lower[0], -upper[0])', 'rows'),
    Fault('affine: sign of a factor forgotten', 'rules/affine.py', 'run(_where(positive, x.lower, x.upper))',
          'run(x.lower)', 'rows'),
    Fault('affine: what overflows stays bounded', 'core/sets.py',
          'radius = jnp.where(jnp.isfinite(centre), radius, jnp.inf)', 'pass', 'overflow'),
    Fault('planes: the line above for what goes up', 'rules/planes.py', 'up = row > 0', 'up = row < 0', 'linear'),
    Fault('planes: intercepts exchanged', 'rules/planes.py', 'select(up, self.low, self.high)',
          'select(up, self.high, self.low)', 'linear'),
    Fault('planes: pushed through the wrong end', 'rules/planes.py', "least(self.above, 'upper', 'lower')",
          "least(self.above, 'lower', 'upper')", 'linear'),
    Fault('lines: slope in the middle taken at an end', 'rules/slopes.py', 'slope_at(fn, l / 2 + u / 2)',
          'slope_at(fn, l)', 'linear rows golden'),
    Fault('product: corner of the plane below', 'rules/relaxations.py',
          'corners = [[(x.lower, y.lower), (x.upper, y.upper)], [(x.lower, y.upper), (x.upper, y.lower)]]',
          'corners = [[(x.lower, y.upper), (x.upper, y.lower)], [(x.lower, y.lower), (x.upper, y.upper)]]', 'slopes'),
    Fault('windows: offset without its stride', 'engine/patches.py', 'offset=span.offset * s.stride - s.padding[0]',
          'offset=span.offset - s.padding[0]', 'windows'),
    Fault('windows: padding on the other side', 'engine/patches.py', 'offset=span.offset * s.stride - s.padding[0]',
          'offset=span.offset * s.stride - s.padding[1]', 'windows'),
    Fault('windows: dilation forgotten', 'engine/patches.py', '(s.size - 1) * s.dilation + 1', '(s.size - 1) + 1',
          'windows'),
    Fault('windows: off by one in a pad', 'engine/patches.py', 'offset=s.offset - low)', 'offset=s.offset - low + 1)',
          'windows'),
    Fault('rounding: no allowance for sums', 'rules/rounding.py', 'spread = [_spread(x, 4 * gamma(terms + 1, u))',
          'spread = [_spread(x, 0.)', 'rounding'),
    Fault('rounding: no allowance for functions', 'rules/rounding.py',
          'out = [_wider(x, relative * u, vanished(tinies, reach))', 'out = [_wider(x, 0., vanished(tinies, reach))',
          'rounding accuracy'),
    Fault('rounding: numbers taken for 0 forgotten', 'rules/rounding.py',
          'off = least_kept(factor.dtype) * size', 'off = 0. * size', 'subnormal'),
    Fault('rounding: rows have no errors', 'rules/rounding_backward.py',
          'relative = 2 * gamma(sum(count) + 4, unit(eqn)) * _magnitudes(eqn, sizes)[0]',
          'relative = 0 * _magnitudes(eqn, sizes)[0]', 'rounding'),
    Fault('undefined: NaN passes for bounded', 'core/sets.py',
          'return (x.lower == -jnp.inf) & (x.upper == jnp.inf)', 'return (x.lower == jnp.inf) & (x.upper == jnp.inf)',
          'undefined'),
    Fault('balls: rounded inward', 'core/directed.py', 'off = towards * near.astype(np.longdouble) < towards * given',
          'off = towards * near.astype(np.longdouble) > towards * given', 'balls'),
    Fault('polytopes: constraints of the wrong sign', 'core/polytope.py',
          'dot(jnp.abs(tilted), reach) - jnp.vdot(y, self.b)', 'dot(jnp.abs(tilted), reach) + jnp.vdot(y, self.b)',
          'input_sets'),
    Fault('l0 balls: one element less', 'core/l0_ball.py', 'lax.top_k(gains.ravel(), count)',
          'lax.top_k(gains.ravel(), max(count - 1, 0))', 'input_sets'),
    Fault('zonotopes: no symbols for a band', 'methods/zonotope.py',
          'kept = jnp.where(jnp.isfinite(radius), radius, 0).ravel()', 'kept = 0 * radius.ravel()', 'zonotope'),
    Fault('intermediates: one split layer turns the method off', 'engine/intervals.py',
          'elif self.tighten is not None and v.id not in self.exact:',
          'elif self.tighten is not None and not self.given and v.id not in self.exact:', 'values_in_values_out'),
    Fault('comparison: certain where it is not', 'primitives/nonlinear.py',
          'return Interval(a.lower > b.upper, ~(a.upper <= b.lower))',
          'return Interval(a.lower > b.lower, a.upper > b.upper)', 'rows'),
    Fault('selection: one case in the place of both', 'primitives/nonlinear.py', 'both = hull(no, yes)', 'both = no',
          'rows'),
    Fault('square: 0 inside of the box forgotten', 'primitives/nonlinear.py',
          'Interval(jnp.where(crosses, 0, jnp.minimum(low, high))', 'Interval(jnp.minimum(low, high)', 'rows'),
    Fault('softmax: the mask keeps the others', 'composites/softmax.py',
          'kept = e if mask is None else jnp.where(self.groups.into(mask), e, 0)', 'kept = e', 'rows'),
    Fault('softmax: any maximum is the greatest', 'composites/softmax_patterns.py',
          'return taken.id == source.id and _reduced(of, moves, groups, own)', 'return True', 'overflow'),
    Fault('normalise: D - 1 for D', 'composites/normalization.py', 'share = count / others', 'share = 1.', 'rows'),
    Fault('loops: hull of the branches that are impossible', 'primitives/control.py',
          'possible = (low <= i) & (i <= high)', 'possible = i == low', 'rows'),
    Fault('scans: a carry that becomes perturbed is known', 'core/program.py',
          'carry = [a or b for a, b in zip(flags[first:last], out[:last - first])]', 'carry = flags[first:last]',
          'rows linear'),
    Fault('chunks: the last rows left out', 'xla/batching.py', 'last = f(jax.tree.map(lambda x: x[n - rest:], rows))',
          'last = 0 * f(jax.tree.map(lambda x: x[n - rest:], rows))', 'chunks regularizers'),
    Fault('margins: the label among the others', 'core/specification.py', '(others >= label)',
          '(others > label)', 'certify'),
    Fault('certificates: of one class all is true', 'core/specification.py', 'if classes < 2:', 'if classes < 1:',
          'certify bad_input'),
    Fault('certificates: a stale program', 'verification/certify.py', 'code=digest(code), norm=norm',
          "code='', norm=norm", 'certify'),
    Fault('Lipschitz: distances of rows without their errors', 'methods/lipschitz.py',
          'found += (off[:, None] + off) * allowance', 'pass', 'lipschitz'),
    Fault('schedules: a ramp one step late', 'training/schedules.py', 'linear_schedule(initial, value, length, start)',
          'linear_schedule(initial, value, length, start + 1)', 'training'),
    Fault('schedules: the bend elsewhere', 'training/schedules.py',
          'scale = 4 * (length - bend) * bend ** 3 + bend ** 4', 'scale = 3 * (length - bend) * bend ** 3 + bend ** 4',
          'training'),
    Fault('training: a gradient stopped', 'training/step.py',
          'total = robust if absent else weight * natural + (1 - weight) * robust',
          'total = robust if absent else weight * natural + (1 - weight) * jax.lax.stop_gradient(robust)',
          'training train'),
    Fault('training: devices keep their own gradients', 'training/step.py',
          'value, metrics, gradients = lax.pmean((value, metrics, gradients), axis_name)',
          'value, metrics = lax.pmean((value, metrics), axis_name)', 'parallel'),
    Fault('batch norm: averages moved the other way', 'nn/batch_norm.py',
          'self.momentum * stored[...] + (1 - self.momentum)', '(1 - self.momentum) * stored[...] + self.momentum',
          'training train'),
    Fault('regularizers: inactive neurons are active', 'training/regularizers.py',
          'for which in (x.lower > 0, x.upper < 0))', 'for which in (x.upper > 0, x.lower < 0))', 'regularizers'),
    Fault('checkpoints: no checksum', 'training/checkpoints.py',
          "if stored['notes']['checksum'] != _checksum(arrays):", 'if False:', 'checkpoints'),
]


def copied(folder: pathlib.Path) -> None:
  """Puts the files that git tracks into a folder, a repository as well: a test asks which these are."""
  files = subprocess.run(['git', 'ls-files'], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\n')
  for name in filter(None, files):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / name, folder / name)
  subprocess.run(['git', 'init', '--quiet'], cwd=folder, check=True)
  subprocess.run(['git', 'add', '--all'], cwd=folder, check=True)


def failing(folder: pathlib.Path, modules: list[str]) -> str | None:
  """The first test that fails among some modules, or all; None if none does."""
  names = [f'tests/test_{module}.py' for module in modules]
  run = subprocess.run([sys.executable, '-m', 'pytest', '-x', '-q', '-m', 'not slow', '-n', '2', *names], cwd=folder,
                       capture_output=True, text=True)
  if run.returncode not in (0, 1, 2):
    raise RuntimeError(f'pytest ended with {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}')
  found = re.search(r'^(?:FAILED|ERROR) (.+?)(?: - .*)?$', run.stdout, re.MULTILINE)
  return None if run.returncode == 0 else found[1] if found else 'collection'


def found_by(fault: Fault) -> str | None:
  """The test that finds a fault."""
  with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder)
    copied(tree)
    text = (tree / 'ibpjax' / fault.path).read_text()
    (tree / 'ibpjax' / fault.path).write_text(text.replace(fault.right, fault.wrong))
    return failing(tree, fault.first.split()) or failing(tree, [])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--check', action='store_true', help='only look whether each fault has its place')
  parser.add_argument('--only', default='', help='parts of names, with commas between them')
  options = parser.parse_args()
  chosen = [f for f in FAULTS if not options.only or any(part in f.name for part in options.only.split(','))]
  for fault in chosen:
    if (count := (ROOT / 'ibpjax' / fault.path).read_text().count(fault.right)) != 1:
      raise SystemExit(f'{fault.name}: {fault.path} has the text {count} times, and should once')
  if options.check:
    return
  print('| fault | found by | seconds |\n| --- | --- | ---: |')
  for fault in chosen:
    start = time.time()
    test = found_by(fault)
    found = '**no test**' if test is None else f'`{test}`'
    print(f'| {fault.name} | {found} | {time.time() - start:.0f} |', flush=True)


if __name__ == '__main__':
  main()
