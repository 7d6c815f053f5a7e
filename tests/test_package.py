"""The wheel: what is in it, that it imports from an empty folder without a network, and the cache of its commands."""
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import commands
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Names of modules, of their files, and of those that two names have; no socket may be opened.
IMPORT = """
import json, socket, sys
def refuse(*args, **kwargs):
  raise OSError('a connection at import')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.path.insert(0, sys.argv[1])
import jax
before = set(sys.modules)
import ibpjax
heavy = [name for name in ('flax', 'optax', 'scipy.sparse', 'scipy.linalg', 'orbax', 'matplotlib')
         if name in set(sys.modules) - before]
import ibpjax.training, ibpjax.training.checkpoints
files = {}
for name, module in list(sys.modules.items()):
  if name.split('.')[0] in ('flax', 'ibpjax', 'jax') and getattr(module, '__file__', None):
    files.setdefault(module.__file__, set()).add((name, id(module)))
twice = {file: sorted(found) for file, found in files.items() if len({i for _, i in found}) > 1}
bounds = ibpjax.ibp(lambda x: x * x)(ibpjax.linf_ball(jax.numpy.ones(2), .5))
print(json.dumps(dict(file=ibpjax.__file__, twice=twice, heavy=heavy, flax='flax.nnx' in sys.modules,
                      tests=[n for n in sys.modules if n.split('.')[0] in ('tensorflow', 'torch', 'experiments')],
                      bounds=[bounds.lower.tolist(), bounds.upper.tolist()])))
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  files = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT, check=True,
                         capture_output=True, text=True).stdout.split('\n')[:-1]
  for name in files:
    if (ROOT / name).exists():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).write_bytes((ROOT / name).read_bytes())
  done = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation',
                         f'--wheel-dir={folder}', str(source)], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  (found,) = folder.glob('*.whl')
  return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  wanted = {str(p.relative_to(ROOT)) for p in (ROOT / 'ibpjax').rglob('*.py')} | {'ibpjax/py.typed'}
  assert {n for n in names if '.dist-info/' not in n} == wanted
  assert any(n.endswith('LICENSE') for n in names)


def test_the_wheel_imports_alone(wheel, tmp_path):
  zipfile.ZipFile(wheel).extractall(tmp_path)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run([sys.executable, '-c', IMPORT, str(tmp_path)], cwd=tmp_path, env=environment,
                        capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['file'].startswith(str(tmp_path))
  assert not found['twice']
  assert not found['heavy'], 'loaded by `import ibpjax` alone'
  assert found['flax']
  assert not found['tests']
  assert found['bounds'] == [[.25, .25], [2.25, 2.25]]


def test_the_program_starts_from_the_wheel(wheel, tmp_path):
  """Finds a command that lies beside the package, or needs a file that the wheel lacks."""
  zipfile.ZipFile(wheel).extractall(tmp_path)
  script, = tmp_path.glob('*.dist-info/entry_points.txt')
  assert 'ibpjax = ibpjax.cli.main:main' in script.read_text()
  start = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); from ibpjax.cli.main import main; main()'
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run([sys.executable, '-c', start, 'train', '--help'], cwd=tmp_path, env=environment,
                        capture_output=True, text=True, timeout=300)
  assert '<alsubaihi2019_cifar10|' in done.stdout


FLAGS = ['--model=mlp', '--hidden=8', '--epochs=1', '--warmup_epochs=0', '--ramp_epochs=1']


def test_commands_keep_what_they_compile(tmp_path):
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'} | dict(
      HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0')

  def train(out, *flags, **more):
    return subprocess.run([sys.executable, '-m', 'experiments.train', *FLAGS, f'--out={tmp_path / out}', *flags],
                          cwd=ROOT, env=environment | more, capture_output=True, text=True, timeout=300)
  kept = tmp_path / '.cache' / 'ibpjax'
  stopped = train('none', '--max_minutes=0', JAX_ENABLE_COMPILATION_CACHE='0')   # after a step, which it compiled
  assert stopped.returncode == 0
  assert 'the same command goes on' in stopped.stdout
  assert not kept.exists()
  assert train('first').returncode == 0
  programs = {p.name for p in kept.iterdir() if p.name.endswith('-cache')}
  assert any(name.startswith('jit_advance') for name in programs)
  second = commands.run_code(f'''
import os, runpy, sys
import jax
os.environ['HOME'] = {str(tmp_path)!r}
jax.config.update('jax_compilation_cache_dir', None)   # as without variables, which the first run shows
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
sys.argv = ['experiments.train', *{FLAGS!r}, {f'--out={tmp_path}/second'!r}]
runpy.run_module('experiments.train', run_name='__main__')
''')
  assert second.returncode == 0, second.stderr
  assert {p.name for p in kept.iterdir() if p.name.endswith('-cache')} == programs

  def metrics(out):
    (line,) = (tmp_path / out / 'metrics.jsonl').read_text().splitlines()
    return {k: v for k, v in json.loads(line).items() if 'second' not in k}
  assert metrics('first') == metrics('second')


def test_the_map_in_the_readme_names_what_there_is():
  text = (ROOT / 'README.md').read_text()
  missing, named = [], 0
  for line in text.split('## The map')[1].split('Sources:')[0].splitlines():
    names = re.findall(r'`([\w/]+(?:\.py|/))`', line)
    room = [name for name in names[:1] if (ROOT / 'ibpjax' / name).is_dir()]
    folders = [ROOT / 'ibpjax' / room[0]] if room else []
    missing += [name for name in names if not any((top / name).exists() for top in (*folders, ROOT, ROOT / 'ibpjax'))]
    named += len(names)
  assert named > 60
  assert not missing
