"""The documentation builds without a warning, its links lead somewhere, its code runs."""
import pathlib
import re
import subprocess
import sys

import commands
import pytest

import ibpjax
from ibpjax import nn, training

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])
WITH_CODE = [p for p in PAGES if '```python\n' in p.read_text()]


def name(path):
  return str(path.relative_to(ROOT))


def test_the_site_builds(tmp_path):
  done = subprocess.run([sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', str(ROOT / 'docs'), str(tmp_path)],
                        capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'api' / 'bounds.html').read_text()
  assert 'CROWN: bounds of' in page
  assert 'round_outward' in page


def test_the_reference_has_all_that_is_public():
  text = ''.join(p.read_text() for p in (ROOT / 'docs' / 'api').glob('*.md'))
  described = set(re.findall(r'auto\w+:: (\S+)', text))
  public = {f'{module.__name__}.{n}' for module in (ibpjax, training, nn) for n in module.__all__}
  modules = {'ibpjax.nn', 'ibpjax.__version__'}
  assert public - described - modules == set()


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_links_lead_somewhere(page):
  text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    assert not target.startswith('/'), target
    if not target.startswith('http'):
      assert (page.parent / target.split('#')[0]).exists(), target


def test_the_picture_is_drawn(tmp_path):
  done = commands.run('experiments.picture', f'--out={tmp_path}/picture.png')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('page', WITH_CODE, ids=name)
def test_code_runs(page):
  script = '\n'.join(re.findall(r'```python\n(.*?)```', page.read_text(), re.S))
  done = commands.run_code(script)
  assert done.returncode == 0, done.stderr
