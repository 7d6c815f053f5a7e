"""The evaluation protocol: the cascade, its verdicts, its records on the disk; comparisons of runs."""
import json
import pathlib
import random
import shutil
import statistics

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibpjax
from ibpjax.cli.flags import radius
from ibpjax.plotting import lipschitz_figures
from ibpjax.training import parallel
from ibpjax.verification import evaluation, lipschitz_cascade
from ibpjax.verification.report import summarise

ROOT = pathlib.Path(__file__).parent.parent
N, EPS = 60, .04
IMAGES = np.random.default_rng(0).uniform(size=(N, 6)).astype(np.float32)


def f(params, x):
  return params['w2'] @ jax.nn.relu(params['w1'] @ x)


a, b = jax.random.split(jax.random.key(0))
PARAMS = dict(w1=jax.random.normal(a, (16, 6)) / 2, w2=jax.random.normal(b, (4, 16)) / 4)
LABELS = np.asarray(jax.vmap(f, (None, 0))(PARAMS, IMAGES).argmax(-1)).astype(np.int32)
LABELS[::10] = (LABELS[::10] + 1) % 4  # misclassified


def cascade(f=f, params=PARAMS, methods=('ibp',), attacks=((5, 1),), batch_size=32, mesh=None):
  return evaluation.Cascade(f, params, methods=methods, attacks=attacks, seed=0, batch_size=batch_size, mesh=mesh)


def run(path, radii=(EPS,), **options):
  path.mkdir(exist_ok=True)
  return evaluation.evaluate(cascade(**options), IMAGES, LABELS, radii, path / 'certificates.jsonl')


def without_seconds(records):
  return [{k: v for k, v in r.items() if k != 'seconds'} for r in records]


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished evaluation at two radii: its folder, its cascade and its records."""
  folder, whole = tmp_path_factory.mktemp('finished'), cascade(attacks=((10, 1), (20, 2)))
  return folder, whole, evaluation.evaluate(whole, IMAGES, LABELS, (EPS, .02), folder / 'certificates.jsonl')


def test_records(finished):
  folder, _, records = finished
  assert records == lines(folder / 'certificates.jsonl')
  assert [(r['eps'], r['index']) for r in records] == [(eps, i) for eps in (EPS, .02) for i in range(N)]
  assert [r['label'] for r in records] == [*LABELS.tolist()] * 2
  for eps in (EPS, .02):
    ours = [r for r in records if r['eps'] == eps]
    known = ibpjax.certify(f, PARAMS, IMAGES, LABELS, eps, method='ibp')
    np.testing.assert_allclose([r['margins']['ibp'] for r in ours], known.lower.min(-1), rtol=1e-5, atol=1e-6)
    assert [r['verdict'] == 'verified' for r in ours] == known.verified.tolist()
    assert [r['verdict'] == 'misclassified' for r in ours] == [i % 10 == 0 for i in range(N)]
    for r in ours:
      assert r['pgd_margin'] >= r['margins']['ibp']
      assert r['method'] == ('ibp' if r['verdict'] == 'verified' else None)
      assert r['seconds'] > 0
      assert (r['prediction'] == r['label']) == (r['verdict'] != 'misclassified')
      if r['verdict'] in ('attacked', 'unknown'):
        assert (r['verdict'] == 'attacked') == (r['pgd_margin'] <= 0)
  verdicts = [{r['verdict'] for r in records if r['eps'] == eps} for eps in (EPS, .02)]
  assert verdicts[0] == {'misclassified', 'attacked', 'verified', 'unknown'}
  small, large = (summarise([r for r in records if r['eps'] == eps]) for eps in (.02, EPS))
  assert small['natural_error'] == large['natural_error'] == 10
  assert small['verified_error'] < large['verified_error']
  assert large['natural_error'] < large['attacked_error'] < large['verified_error']
  assert '10.00 %' in evaluation.table([small, large])


def test_records_do_not_depend_on_devices(finished, tmp_path):
  """Batches of 32 and of 28 on two devices, and all rows of an example on both."""
  _, _, alone = finished
  for rows in (1, 2):
    mesh = parallel.data_mesh(rows=rows)
    records = run(tmp_path / str(rows), attacks=((10, 1), (20, 2)), mesh=mesh)
    for found, known in zip(records, alone[:N], strict=True):
      assert found['verdict'] == known['verdict']
      assert found['margins']['ibp'] == pytest.approx(known['margins']['ibp'], abs=1e-5)
      assert found['pgd_margin'] == pytest.approx(known['pgd_margin'], abs=1e-4)


def test_a_tighter_method_sees_what_remains_and_nothing_is_compiled_twice(tmp_path, monkeypatch):
  """The cheap method here certifies twice the radius, which is sound and loose."""
  seen, traced, certify = [], [], ibpjax.certify

  def watched(f, params, xs, labels, eps, *, method, mesh):
    assert mesh is None
    seen.append((method, np.asarray(xs)))
    return certify(f, params, xs, labels, 2 * eps if method == 'cheap' else eps, method='ibp')

  def g(params, x):
    traced.append(x)
    return f(params, x)

  monkeypatch.setattr(evaluation, 'certify', watched)
  whole = cascade(f=g, methods=('cheap', 'ibp'), attacks=((1, 1),))
  records = evaluation.evaluate(whole, IMAGES, LABELS, (EPS,), tmp_path / 'records')
  by_cheap, by_ibp = ([r['index'] for r in records if r['method'] == m] for m in ('cheap', 'ibp'))
  assert len(by_cheap) > 3
  assert len(by_ibp) > 3
  remaining = [r['index'] for r in records if r['verdict'] != 'misclassified' and r['method'] != 'cheap']
  assert [r['index'] for r in records if r['margins']['ibp'] is not None] == remaining
  assert all(r['margins']['cheap'] is not None for r in records)
  rows = {tuple(x) for method, xs in seen if method == 'ibp' for x in xs.tolist()}
  assert rows == {tuple(x) for x in IMAGES[remaining].tolist()}
  assert {(method, len(xs)) for method, xs in seen} == {('cheap', 32), ('ibp', 4)}
  assert {*np.flatnonzero(certify(f, PARAMS, IMAGES, LABELS, EPS, method='ibp').verified)} == {*by_cheap, *by_ibp}

  count, calls = len(traced), len(seen)
  whole(IMAGES[32:], LABELS[32:], np.arange(32, N), EPS / 2)
  assert len(traced) - count <= 2 * (len(seen) - calls)  # `certify` looks at the shape and at the code; that is all


def test_a_later_attack_sees_what_no_attack_has_broken(tmp_path, monkeypatch):
  """Only the first attack looks at what is verified or broken: a second one that lies is heard for the others alone."""
  pgd = evaluation.pgd_by_steps

  def liar(f, params, xs, labels, eps, key, *, steps, restarts):
    found = pgd(f, params, xs, labels, eps, key, steps=1, restarts=1)
    return found if steps == 1 else (None, jnp.full(len(xs), -7.))

  monkeypatch.setattr(evaluation, 'pgd_by_steps', liar)
  records = run(tmp_path, attacks=((1, 1), (2, 1)))
  first = run(tmp_path / 'first', attacks=((1, 1),))
  for old, new in zip(first, records):
    assert (new['pgd_margin'] == -7) == (old['verdict'] == 'unknown')
    assert new['verdict'] == ('attacked' if old['verdict'] == 'unknown' else old['verdict'])


def test_nan_is_never_verified_and_counts_as_broken(tmp_path, monkeypatch):
  broken = run(tmp_path / 'weights', params=dict(PARAMS, w2=PARAMS['w2'].at[0, 0].set(jnp.nan)))
  assert {r['verdict'] for r in broken} == {'misclassified'}
  assert summarise(lines(tmp_path / 'weights' / 'certificates.jsonl'))['verified_error'] == 100

  certificate = lambda lower: ibpjax.Certificate(jnp.full((32, 3), lower), jnp.ones((32, 3)))
  monkeypatch.setattr(evaluation, 'certify', lambda *_, **__: certificate(jnp.nan))
  records = run(tmp_path / 'bounds')
  assert {r['verdict'] for r in records} == {'misclassified', 'attacked', 'unknown'}
  assert np.isnan([r['margins']['ibp'] for r in records]).all()

  monkeypatch.setattr(evaluation, 'pgd_by_steps', lambda f, p, xs, *_, **__: (None, jnp.full(len(xs), jnp.nan)))
  attacked = run(tmp_path / 'attacks')
  assert {r['verdict'] for r in attacked} == {'misclassified', 'attacked'}
  monkeypatch.setattr(evaluation, 'certify', lambda *_, **__: certificate(1.))
  with pytest.raises(RuntimeError, match='a bound is wrong'):
    run(tmp_path / 'contradiction')


def test_ties_are_misclassified(tmp_path):
  tie = run(tmp_path, f=lambda p, x: jnp.stack([x[0], x[0], x[0], x[0]]))
  assert {r['verdict'] for r in tie} == {'misclassified'}


def test_a_contradiction_stops_the_evaluation(tmp_path, monkeypatch):
  """An example that is verified and attacked at once means that a bound is wrong: nothing is summarised then."""
  everything = lambda f, params, xs, *_, **__: ibpjax.Certificate(jnp.ones((len(xs), 3)), jnp.ones((len(xs), 3)))
  monkeypatch.setattr(evaluation, 'certify', everything)
  with pytest.raises(RuntimeError, match=r'eps 0.04: examples \[0, .*a bound is wrong'):
    run(tmp_path)
  records = lines(tmp_path / 'certificates.jsonl')
  assert len(records) == 32
  wrong = [r for r in records if r['verdict'] == 'contradiction']
  assert len(wrong) > 3
  assert all(r['pgd_margin'] <= 0 for r in wrong)
  monkeypatch.setattr(evaluation, 'certify', None)  # it is found again before anything is computed
  with pytest.raises(RuntimeError, match='a bound is wrong'):
    run(tmp_path)
  assert records == lines(tmp_path / 'certificates.jsonl')


def test_the_key_of_an_example_does_not_depend_on_batches(monkeypatch):
  one = jax.random.key_data(evaluation.example_key(3, .1, 5, 0))
  for other in ((4, .1, 5, 0), (3, .2, 5, 0), (3, .1, 6, 0), (3, .1, 5, 1)):
    assert not np.array_equal(one, jax.random.key_data(evaluation.example_key(*other)))
  batch = jax.jit(jax.vmap(evaluation.example_key, (None, None, 0, None)), static_argnums=(0, 3))
  np.testing.assert_array_equal(one, jax.random.key_data(batch(3, .1, np.array([7, 5]), 0))[1])

  monkeypatch.setattr(evaluation, 'certify',
                      lambda f, p, xs, *_, **__: ibpjax.Certificate(-jnp.ones((len(xs), 3)), None))

  def found(batch_size, order):
    short = cascade(attacks=((1, 1),), batch_size=batch_size)
    parts = [order[i:i + batch_size] for i in range(0, N, batch_size)]
    records = sorted((r for i in parts for r in short(IMAGES[i], LABELS[i], i, .3)), key=lambda r: r['index'])
    return [r['pgd_margin'] for r in records]

  whole = found(N, np.arange(N))
  np.testing.assert_allclose(whole, found(16, np.random.default_rng(1).permutation(N)), rtol=1e-4, atol=1e-5)


def test_what_was_cut_off_is_computed_again(finished, tmp_path):
  folder, whole, records = finished
  text = (folder / 'certificates.jsonl').read_bytes()
  rng, end = random.Random(0), text.index(b'\n')
  cuts = [0, 5, end, end + 1, len(text) - 1, len(text), *(rng.randrange(len(text)) for _ in range(12))]
  for cut in cuts:
    path = tmp_path / f'{cut}.jsonl'
    path.write_bytes(text[:cut])
    again = evaluation.evaluate(whole, IMAGES, LABELS, (EPS, .02), path)
    assert without_seconds(again) == without_seconds(records)
    kept = text[:cut].count(b'\n')
    assert path.read_bytes().splitlines()[:kept] == text.splitlines()[:kept]
    assert lines(path) == again


def test_nothing_is_computed_twice(finished, tmp_path, monkeypatch):
  folder, whole, records = finished
  path = tmp_path / 'certificates.jsonl'
  shutil.copy(folder / 'certificates.jsonl', path)
  calls = []

  compute = evaluation.Cascade.__call__

  def watched(self, images, labels, indices, eps):
    calls.append((eps, indices[0]))
    return compute(self, images, labels, indices, eps)

  monkeypatch.setattr(evaluation.Cascade, '__call__', watched)
  assert evaluation.evaluate(whole, IMAGES, LABELS, (EPS, .02), path) == records
  assert calls == []
  path.write_text(''.join(json.dumps(r) + '\n' for r in records[:N + 40]))
  evaluation.evaluate(whole, IMAGES, LABELS, (EPS, .02), path)
  assert calls == [(.02, 32)]


def test_records_of_other_settings_are_refused(tmp_path):
  settings = dict(seed=0, methods=('ibp',), weights='ab')
  path = evaluation.begin(tmp_path, settings)
  assert evaluation.begin(tmp_path, dict(settings, seed=1)) == path  # no record was made yet
  assert evaluation.begin(tmp_path, settings) == path
  path.write_text('')
  assert evaluation.begin(tmp_path, settings) == path
  with pytest.raises(ValueError, match=r'seed 0 there and 1 here.*weights ab there and cd here.*or delete .*jsonl'):
    evaluation.begin(tmp_path, dict(settings, seed=1, weights='cd'))
  (tmp_path / 'certificate.json').unlink()
  with pytest.raises(ValueError, match=r'is missing or was changed.*or delete'):
    evaluation.begin(tmp_path, settings)
  path.unlink()
  evaluation.begin(tmp_path, dict(settings, seed=1))


def test_the_summary_on_the_disk(finished, tmp_path):
  partly = [*finished[2], dict(finished[2][0], eps=.5)]  # a radius that was stopped is not summarised
  results = evaluation.finish(tmp_path, dict(examples=N, seed=0), partly, batch_size=32)
  stored = json.loads((tmp_path / 'certificate.json').read_text())
  assert stored == dict(settings=dict(examples=N, seed=0), results=results, batch_size=32)
  assert [(r['eps'], r['examples']) for r in results] == [(EPS, N), (.02, N)]


def test_fingerprints_tell_arrays_apart():
  one = dict(a=jnp.arange(3.), b=jnp.ones((2, 2)))
  assert evaluation.fingerprint(one) == evaluation.fingerprint(jax.tree.map(np.asarray, one))
  others = (dict(one, a=jnp.arange(3)), dict(one, b=jnp.ones(4)), dict(one, b=jnp.ones((2, 2)).at[1, 1].set(2.)))
  assert len({evaluation.fingerprint(x) for x in (one, *others)}) == 4


def test_radii_are_numbers_or_fractions():
  assert radius('8/255') == 8 / 255
  assert radius('0.1') == .1
  for wrong, remedy in (('8', '8/255 and not 8'), ('-1', r'\[0, 1\]'), ('1/0', 'write 0.1'), ('8/', '8/255')):
    with pytest.raises(ValueError, match=remedy):
      radius(wrong)


@pytest.mark.parametrize(('flag', 'message'), [
    ('--eps=8/255,8', 'so write 8/255 and not 8'), ('--pgd=40', 'write steps x restarts')])
def test_bad_flags_are_one_clear_error(flag, message):
  done = commands.run('experiments.certify', flag)
  assert done.returncode != 0
  assert message in done.stderr + done.stdout


def write_run(folder, natural, verified, radii=(.1,), seed=0, model='mlp', split='test'):
  """A run as training and certification leave it, with given errors of 100 examples."""
  folder.mkdir(parents=True)
  flags = dict(dataset='digits', model=model, eps=8 / 255, epochs=3, seed=seed, parameters=1234)
  (folder / 'config.json').write_text(json.dumps(dict(flags=flags, versions=[{}])))
  metrics = [dict(epoch=e, test_error=natural + 3. - e, test_verified_error=90. - e, seconds=e * 2.) for e in (1, 2, 3)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(m) + '\n' for m in metrics))
  if not radii:
    return
  verdicts = ['misclassified'] * natural + ['unknown'] * (verified - natural) + ['verified'] * (100 - verified)
  results = [summarise([dict(eps=eps, verdict=v, method=None, seconds=.5) for v in verdicts]) for eps in radii]
  settings = dict(examples=100, of=500, split=split)
  (folder / 'certificate.json').write_text(json.dumps(dict(settings=settings, results=results)))


def test_compare(tmp_path):
  write_run(tmp_path / 'a', 3, 20, radii=(2 / 255, .1))
  write_run(tmp_path / 'b', 5, 30, radii=())
  for seed, verified in enumerate((10, 14, 15)):
    write_run(tmp_path / 'c' / f'seed{seed}', 4, verified, seed=seed)
  folders = [tmp_path / name for name in ('a', 'b', 'c')]
  done = commands.run('experiments.compare', f'--runs={",".join(map(str, folders))}', f'--out={tmp_path}/out')
  assert done.returncode == 0, done.stderr
  text = (tmp_path / 'out' / 'table.md').read_text()
  assert text in done.stdout
  head, _, *body = [[cell.strip() for cell in line.strip('|\n').split('|')] for line in text.splitlines()]
  rows = [dict(zip(head, cells)) for cells in body]
  assert [(r['run'], r['eps']) for r in rows] == [('a', '2/255'), ('a', '0.1'), ('b', '-'), ('c (3 seeds)', '0.1')]
  assert rows[0]['natural error [%]'] == '3.00 [1.03, 8.45]'
  assert rows[0]['examples'] == '100 of 500 test'
  assert (rows[0]['training eps'], rows[0]['parameters'], rows[0]['training [s]']) == ('8/255', '1234', '6')
  assert rows[2]['verified error [%]'] == '-'
  assert rows[3]['verified error [%]'] == f'13.00 ± {statistics.stdev([10, 14, 15]):.2f}'
  for picture in ('curves.png', 'tradeoff.png'):
    assert (tmp_path / 'out' / picture).read_bytes().startswith(b'\x89PNG')

  (tmp_path / 'nothing').mkdir()
  done = commands.run('experiments.compare', f'--runs={tmp_path}/a,{tmp_path}/nothing', f'--out={tmp_path}/other')
  assert done.returncode != 0
  assert 'nothing is not the folder of a run' in done.stderr
  assert not (tmp_path / 'other').exists()


def test_seeds_of_unlike_runs_are_not_averaged(tmp_path):
  for seed, model in enumerate(('mlp', 'cnn7')):
    write_run(tmp_path / f'seed{seed}', 4, 10, seed=seed, model=model)
  done = commands.run('experiments.compare', f'--runs={tmp_path}/seed0,{tmp_path}/seed1', f'--out={tmp_path}/out')
  assert done.returncode != 0
  assert 'differ in --model' in done.stderr
  write_run(tmp_path / 'other' / 'seed0', 4, 10)
  write_run(tmp_path / 'other' / 'seed1', 4, 10, seed=1, split='validation')
  done = commands.run('experiments.compare', f'--runs={tmp_path}/other', f'--out={tmp_path}/out')
  assert done.returncode != 0
  assert 'differ in how they were certified: split' in done.stderr


def test_an_audit_of_a_network_that_is_switched_off():
  """And one of a network that is not: what is reached is the norm of its matrix."""
  f = lambda scale, x: scale * jax.nn.relu(x)
  for scale, reached in ((0., 0.), (3., 3.)):
    bound = ibpjax.lipschitz(f)(jnp.asarray(scale), jnp.zeros(2))
    found = lipschitz_cascade.audit(f, jnp.asarray(scale), bound, jnp.ones((2, 2)), steps=20)
    assert found['reached'] == pytest.approx(reached)
    assert ('inf' in lipschitz_cascade.audit_table(found)) == (not scale)


def test_pictures_of_lipschitz_networks(tmp_path):
  """Of several runs and kinds of blocks; of networks that are constant too."""
  lipschitz_figures.radii(tmp_path / 'radii.png', dict(a=[np.inf] * 5 + [0.] * 5, b=[.5, 1.]))
  lipschitz_figures.depth(tmp_path / 'depth.png', [
      dict(block=block, depth=depth, eps=eps, verified=90 - depth - eps)
      for block in ('linear', 'conventional') for depth in (4, 1) for eps in (.5, 1.)])
  audits = [dict(pairs=dict(bound=bound, reached=bound / 2)) for bound in (3., 2., 0.)]
  lipschitz_figures.tightness(tmp_path / 'tightness.png', dict(zip(('linear', 'conventional', 'off'), audits)))
  assert all(path.read_bytes().startswith(b'\x89PNG') for path in tmp_path.iterdir())
  assert len(list(tmp_path.iterdir())) == 3
