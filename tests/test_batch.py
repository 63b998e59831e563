"""Batches: what make_batch.py writes and checks, and how run_batch.py runs it."""

import contextlib
import csv
import functools
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import termios
import time
from collections import Counter
from types import SimpleNamespace

import make_batch
import run_batch
from conftest import DATASET, RATE, ROOT, run_script
from make_batch import SNOWBALLS, STEPS, STRIPES, WISPS
from simulation import crds_environment, rate_scene, write_crds_cache, write_exposure, write_templates
from simulation import write_rate as write_rate_image
from stand_ins import SNOW, STAND_INS, STRIPE, WISP, Batch, lines_of, write_rate, write_top, write_uncal

import psutil
import pytest
from astropy.io import fits

BATCHES = ROOT / 'batch_scripts'
ROWS = [*csv.DictReader((BATCHES / 'stage1_images.csv').read_text('ascii').splitlines())]
ODD_NAMES = ['a b', "it's", '-dash', '$(touch pwned)', 'x;y&z', 'star*?[1]', 'back\\slash\'', 'hash #', '~', '{}']
SNOW_DONE = 'Snowballs: flags grown; snowball_wrapper.py 2026-01-01 00:00:00'
WISPS_DONE = 'Wisps: subtracted wisps_nrca3_F200W.fits, scale=0.61; wispsub.py 2026-01-01 00:00:00'
STRIPES_DONE = 'Removed horizontal,vertical striping; remstriping.py 2026-01-01 00:00:00'


def write_table(path, *rows, columns='dataset,wisp_scale,mask_threshold,method,flag'):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([columns.split(','), *rows])
    return path


def batch_of(directory, *options):
    """Run make_batch.py on a directory; returns the exit status and the lines of each step."""
    out = directory / 'batch'
    status = make_batch.main([*map(str, (directory, '--out', out, '--output_dir', directory / 'calibrated', *options))])
    return status, {step: read_lines(out / f'{step}.run') for step in STEPS}


def read_lines(path):
    return path.read_text('utf-8', 'surrogateescape').splitlines()


def words(line):
    """The words of a command line, as bash sees them."""
    done = subprocess.run(['bash', '-c', f"printf '%s\\0' {line}"], capture_output=True, check=True, cwd='/')
    return os.fsdecode(done.stdout).split('\0')[:-1]


def test_release_files_are_those_of_the_generator(tmp_path, capsys):
    assert make_batch.main(['--out', str(tmp_path)]) == 0
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob('*.run'))
    assert made == sorted(path.relative_to(BATCHES) for path in BATCHES.rglob('*.run') if path.parent.parent == BATCHES)
    for name in made:
        assert (tmp_path / name).read_bytes() == (BATCHES / name).read_bytes(), name
    assert make_batch.main(['--out', str(tmp_path), '--method', 'adaptive']) == 0
    assert capsys.readouterr().err.count('mask_threshold of the table is not used') == 1      # none before


@pytest.mark.parametrize('name, numbers', [('nircam1', (210, 36)), ('nircam2', (240, 48)), ('nircam3', (120, 24)),
                                           ('nircam6', (120, 24)), ('all', (690, 132))])
def test_release_lines_are_the_rows_of_the_table(name, numbers):
    rows = {row['dataset']: row for row in ROWS if name in ('all', row['pointing'])}
    assert (len(rows), sum(bool(row['wisp_scale']) for row in rows.values())) == numbers
    batch = run_batch.read_batch(BATCHES / name)
    assert list(batch) == list(rows)
    for dataset, row in rows.items():
        wisp = [(WISP, ('--scale', row['wisp_scale'], f'{dataset}_rate.fits'))] * bool(row['wisp_scale'])
        assert [(line.script, line.words) for line in batch[dataset]] == [(SNOW, (f'{dataset}_uncal.fits',)), *wisp,
            (STRIPE, ('--save_patterns', '--thresh', row['mask_threshold'], f'{dataset}_rate.fits'))]


def test_directory_wisps_only_where_corrected(tmp_path, capsys):
    for detector, filter_ in (('NRCA3', 'F200W'), ('NRCB4', 'F150W'), ('NRCA3', 'F115W'), ('NRCA1', 'F200W'),
                              ('NRCBLONG', 'F444W')):
        write_uncal(tmp_path / f'jw1_{detector.lower()}{filter_}_uncal.fits', detector, filter_)
    table = write_table(tmp_path / 't.csv', ['jw1_nrca3F200W', '0.61', '0.150', '', ''],
                        ['jw1_nrca1F200W', '0.5', '', '', ''])
    status, lines = batch_of(tmp_path, '--table', table)
    assert status == 0 and 'jw1_nrca1F200W: no wisp is corrected here: wisp_scale 0.5' in capsys.readouterr().err
    assert [len(lines[step]) for step in STEPS] == [5, 2, 5]
    rate = tmp_path / 'calibrated' / 'jw1_nrca3F200W_rate.fits'
    where = f'--output_dir {tmp_path}/calibrated'
    assert lines[SNOWBALLS][2] == f'python snowball_wrapper.py {where} {tmp_path}/jw1_nrca3F200W_uncal.fits'
    assert lines[WISPS][0] == f'python wispsub.py --scale 0.61 {where} {rate}'
    assert '--fit_scaling' in lines[WISPS][1] and 'nrcb4F150W' in lines[WISPS][1]
    assert lines[STRIPES][2] == f'python remstriping.py --save_patterns --thresh 0.150 {where} {rate}'
    assert not any('--thresh' in line for line in lines[STRIPES] if 'nrca3F200W' not in line)
    small = batch_of(tmp_path, '--table', table, '--delinterim', '--no_patterns')[1]
    options = {step: [run_batch.read_line(line, 0).options for line in small[step]] for step in STEPS}
    assert all(each.delinterim for each in options[SNOWBALLS]) and small[WISPS] == lines[WISPS]
    assert not any(each.save_patterns for each in options[STRIPES])


def test_adaptive_wisps_where_there_is_a_template(tmp_path):
    for detector, filter_ in (('NRCA3', 'F200W'), ('NRCB2', 'F182M')):
        write_uncal(tmp_path / f'{detector}_uncal.fits', detector, filter_)
    (tmp_path / 'wisps').mkdir()
    (tmp_path / 'wisps' / 'wisps_nrcb2_F182M.fits').touch()
    for scale, how in ('', '--fit_scaling'), ('0.5', '--scale 0.5'):
        lines = batch_of(tmp_path, '--method', 'adaptive', '--wisp_dir', tmp_path / 'wisps', '--table',
                         write_table(tmp_path / 't.csv', ['NRCB2', scale, '', '', '']))[1]
        assert lines[WISPS] == [f'python wispsub.py {how} --method adaptive --wisp_dir {tmp_path}/wisps '
                                f'--output_dir {tmp_path}/calibrated {tmp_path}/calibrated/NRCB2_rate.fits']
    assert all('--save_patterns --method adaptive' in line for line in lines[STRIPES])


def test_a_tree_of_mast_and_short_paths_below_the_top_level(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(make_batch, 'TOP', tmp_path)
    mast = tmp_path / 'mastDownload' / 'JWST'
    write_uncal(mast / 'x' / 'x_uncal.fits')
    write_rate(mast / 'x' / 'x_rate.fits')
    write_uncal(mast / 'y' / 'x_uncal.fits')
    write_uncal(mast / '.z.tmp' / 'z_uncal.fits')
    assert make_batch.main([str(tmp_path / 'mastDownload'), '--out', str(tmp_path / 'b')]) == 1
    assert [read_lines(tmp_path / 'b' / f'{step}.run') for step in STEPS] == [
        ['python snowball_wrapper.py mastDownload/JWST/x/x_uncal.fits'],
        ['python wispsub.py --fit_scaling calibrated/x_rate.fits'],
        ['python remstriping.py --save_patterns calibrated/x_rate.fits']]
    assert f'x_uncal.fits: is there twice, also as {mast}/x/x_uncal.fits' in capsys.readouterr().err
    assert make_batch.from_top(tmp_path / '-x') == './-x'


@pytest.mark.parametrize('name', ODD_NAMES)
def test_any_name_stays_one_word(tmp_path, name):
    directory = tmp_path / f'dir {name}'
    uncal = write_uncal(directory / f'{name}_uncal.fits')
    lines = batch_of(directory)[1]
    for step in STEPS:
        line, = lines[step]
        rate = directory / 'calibrated' / f'{name}_rate.fits'
        assert words(line) == shlex.split(line) and words(line)[-1] == str(uncal if step == SNOWBALLS else rate)
    assert list(run_batch.read_batch(directory / 'batch')) == [name]


def test_redo_takes_the_table_of_the_review_page(tmp_path):
    for name in 'wisp', 'stripe', 'new', 'flag', 'good', 'adapt':
        write_rate(tmp_path / f'{name}_rate.fits', STRPINNR=False, STRPMETH='adaptive')
    write_rate(tmp_path / 'wisp_rateints.fits', history=[WISPS_DONE])
    write_uncal(tmp_path / 'wisp_uncal.fits')
    assert make_batch.as_it_is({'mask_threshold': '0.1'}, {'STRPMETH': 'adaptive'})['remstriping'] == 'dr05'
    write_rate(tmp_path / 'held_rate.fits', WISPMETH='adaptive', STRPMETH='dr05', STRPTHR=0.3)
    table = write_table(tmp_path / 'review.csv', ['wisp', '0.7', '0.2', '', ''], ['stripe', '', '0.3', 'dr05', 'ugly'],
                        ['new', 'fit', '0.1', '', '1'], ['flag', '', '', '', 'look again'],
                        ['adapt', 'fit', '', 'adaptive', ''], ['held', 'fit', '', '', ''])
    (tmp_path / 'wisps_nrca3_F200W.fits').touch()
    assert make_batch.main([*map(str, (tmp_path, '--table', table, '--redo', '--out', tmp_path / 'redo',
                                       '--wisp_dir', tmp_path))]) == 0
    lines = {step: [line.replace(f'--output_dir {tmp_path} ', '').replace(f'--wisp_dir {tmp_path} ', '')
                    .replace(f'{tmp_path}/', '') for line in read_lines(tmp_path / 'redo' / f'{step}.run')]
             for step in STEPS}
    assert lines == {SNOWBALLS: [],
        WISPS: ['python wispsub.py --fit_scaling --method adaptive --redo adapt_rate.fits',
                'python wispsub.py --fit_scaling --method adaptive --redo held_rate.fits',
                'python wispsub.py --fit_scaling --redo new_rate.fits',
                'python wispsub.py --scale 0.7 --redo wisp_rateints.fits'],
        STRIPES: ['python remstriping.py --save_patterns --method adaptive --no-within_rows --redo adapt_rate.fits',
                  'python remstriping.py --save_patterns --thresh 0.3 --redo held_rate.fits',
                  'python remstriping.py --save_patterns --thresh 0.1 --redo new_rate.fits',
                  'python remstriping.py --save_patterns --thresh 0.3 --redo stripe_rate.fits',
                  'python remstriping.py --save_patterns --thresh 0.2 --redo wisp_rateints.fits']}


HOSTILE = {'$HOME-1': 'the $ in it', 'new\nline': 'control characters', 'é': 'plain ASCII'}


def test_bad_files_are_named_and_left_out(tmp_path, capsys):
    write_uncal(tmp_path / 'good_uncal.fits')
    (tmp_path / 'text_uncal.fits').write_text('no FITS')
    (tmp_path / 'empty_uncal.fits').touch()
    write_uncal(tmp_path / 'grism_uncal.fits', PUPIL='GRISMR', EXP_TYPE='NRC_WFSS')
    write_rate(tmp_path / 'rate_uncal.fits')
    os.truncate(write_uncal(tmp_path / 'cut_uncal.fits'), 7_000)
    for name in HOSTILE:
        write_uncal(tmp_path / f'{name}_uncal.fits')
    status, lines = batch_of(tmp_path)
    assert status == 1 and [len(lines[step]) for step in STEPS] == [1, 1, 1]
    said = capsys.readouterr().err
    for name in 'text', 'empty', 'grism', 'rate', 'cut', '$HOME-1', 'new?line', 'é':
        assert f'{name}_uncal.fits: ' in said
    for text in 'is a rate product', 'is truncated', *HOSTILE.values():
        assert text in said


@pytest.mark.parametrize('rows, columns, problem', [
    ([['x', '0.5', '0.1']], 'name,wisp_scale,mask_threshold', 'no column "dataset"'),
    ([['x', 'nan', '0.1']], 'dataset,wisp_scale,mask_threshold', 'line 2: x has wisp_scale nan'),
    ([['x', '0.5; rm x', '0.1']], 'dataset,wisp_scale,mask_threshold', 'not a number'),
    ([['x', '0.5', '1.2']], 'dataset,wisp_scale,mask_threshold', 'mask_threshold 1.2'),
    ([['x', '0.5', 'fit']], 'dataset,wisp_scale,mask_threshold', 'mask_threshold fit'),
    ([['x', '0.5', '1']] * 2, 'dataset,wisp_scale,mask_threshold', 'line 3: x comes twice'),
    ([['x', 'magic']], 'dataset,method', 'has method magic'),
    ([['x', '0.5']], 'dataset,wisp_scal', "the column 'wisp_scal'"),
    ([['x', '0.5', '1']], 'dataset,wisp_scale', 'line 2: x has more cells'),
    ([['x', 'all']], 'dataset,pointing', 'cannot be the name of a directory'),
    ([['../x', 'dr05']], 'dataset,method', 'is not the name of a dataset'),
    ([['x', '../../etc']], 'dataset,pointing', 'cannot be the name of a directory'),
    ([['x', '0.5']], 'dataset,wisp_scale', 'has no pointing')])
def test_tables_and_directories_that_are_refused(tmp_path, capsys, rows, columns, problem):
    table = write_table(tmp_path / 't.csv', *rows, columns=columns)
    assert make_batch.main(['--table', str(table), '--out', str(tmp_path / 'out')]) == 1
    assert problem in capsys.readouterr().err and not (tmp_path / 'out').exists()
    assert make_batch.main([str(tmp_path)]) == 1
    assert 'holds no *_uncal.fits and no *_rate.fits' in capsys.readouterr().err


@pytest.fixture(scope='module')
def night(tmp_path_factory):
    """A directory with rate images, templates and a cache of flats."""
    directory = tmp_path_factory.mktemp('night')
    for name, detector, filter_ in (('a', 'NRCA3', 'F200W'), ('b', 'NRCALONG', 'F444W')):
        write_rate(directory / 'rates' / f'{name}_rate.fits', detector, filter_)
        write_crds_cache(directory / 'cache', [detector], [filter_])
    write_templates(directory / 'wisps', ['NRCA3'], ['F200W'])
    return directory


def checked(night, *arguments, said='', **environment):
    """Run --check as a user does; returns the exit status and the lines of the table; `said`: the warnings."""
    environment = {'CRDS_READONLY_CACHE': '1'} | crds_environment(night / 'cache') | environment
    done = run_script('batch_scripts/make_batch.py', '--check', '--wisp_dir', night / 'wisps', '--out', night / 'batch',
                      *arguments, cwd=night, **{key: str(value) for key, value in environment.items()})
    assert 'Traceback' not in done.stderr and not (night / 'batch').exists(), done.stderr
    assert re.search(said, done.stderr, re.DOTALL), done.stderr
    return done.returncode, done.stdout.splitlines()


def test_check_finds_everything_there(night):
    before = sorted(night.rglob('*'))
    status, table = checked(night, night / 'rates')
    assert status == 0 and all(line.startswith('ok') for line in table), table
    assert [line.split()[1] for line in table] == ['inputs', 'templates', 'references', 'disk', 'writable', 'writable']
    assert sorted(night.rglob('*')) == before


def test_check_of_what_is_accepted_and_of_what_is_elsewhere(night, tmp_path):
    table = write_table(tmp_path / 'review.csv', ['a', '1'], ['gone', '1'], columns='dataset,accepted')
    status, table = checked(night, night / 'rates', '--redo', '--table', table, '--output_dir', tmp_path,
                            said='1 exposures of the table are not in .*: gone\n.*--output_dir is not used')
    assert status == 0 and 'ok      inputs      1 readable and of the right kind' in table, table


def test_check_names_what_is_missing(night, tmp_path):
    shutil.copytree(night / 'rates', tmp_path / 'rates')
    for name, start in (('c', '01:00:00'), ('e', '02:00:00')):
        write_rate(tmp_path / 'rates' / f'{name}_rate.fits', 'NRCB3', 'F150W')
        fits.setval(tmp_path / 'rates' / f'{name}_rate.fits', 'TIME-OBS', value=start)
    write_rate(tmp_path / 'rates' / '$HOME-1_rate.fits')
    (tmp_path / 'rates' / 'd_rate.fits').touch()
    shutil.copytree(night / 'cache', tmp_path / 'cache')
    flat = next((tmp_path / 'cache' / 'references').rglob('*flat*nrcalong*.fits'))
    flat.unlink()
    status, table = checked(night, tmp_path / 'rates', '--out', '/dev/null/batch', CRDS_PATH=tmp_path / 'cache')
    missing = [line for line in table if line.startswith('MISSING')]
    assert status == 1
    for text in ('inputs      d_rate.fits: ', 'inputs      $HOME-1_rate.fits: ', 'NRCB3 F150W CLEAR: no wisp template',
                 'NRCB3 F150W CLEAR: no flat', '(2 exposures, first c)',
                 f'flat {flat.name} is not in the cache (1 exposures, first b)',
                 'writable    /dev/null/batch: '):
        assert sum(text in line for line in missing) == 1, (text, table)


def test_check_asks_crds(night, tmp_path):
    write_uncal(tmp_path / 'a_uncal.fits')
    status, table = checked(night, tmp_path)                    # the references of Detector1
    assert status == 1 and sum('CRDS has no gain' in line for line in table) == 1, table
    write_rate(tmp_path / 'o' / 'a_rate.fits')                  # of somebody else
    _, table = checked(night, tmp_path, '--output_dir', tmp_path / 'o')
    assert sum('a_rate.fits was not made by snowball_wrapper.py' in line for line in table) == 1, table
    status, table = checked(night, night / 'rates', CRDS_CONTEXT='jwst_9999.pmap')
    missing, = (line for line in table if line.startswith('MISSING references'))
    assert status == 1 and 'CRDS_CONTEXT=jwst_9999.pmap' in missing, table


@pytest.mark.parametrize('options, megabytes', [((False, False), 594), ((True, True), 253)])
def test_check_disk_space(monkeypatch, tmp_path, options, megabytes):
    options = SimpleNamespace(delinterim=options[0], no_patterns=options[1])
    exposure = make_batch.Exposure('x', tmp_path / 'x', tmp_path / 'not' / 'yet' / 'x', {'NINTS': 1, 'NGROUPS': 9})
    monkeypatch.setattr(make_batch.shutil, 'disk_usage', lambda _: SimpleNamespace(free=2.3e8))
    monkeypatch.setattr(make_batch, 'version', lambda _: '3.0.0')
    (subject, good, text), = make_batch.check_space([(exposure, {step: '' for step in STEPS})] * 2, options)
    assert (subject, good) == ('disk space', False) and '0.2 GB free' in text
    assert f'{2 * megabytes / 1e3:.2f} GB will be taken, up to {megabytes} MB by an exposure' in text
    (tmp_path / 'y').mkdir()
    other = make_batch.Exposure('y', tmp_path / 'x', tmp_path / 'y' / 'x', exposure.header)
    for exposures, enough in (([exposure], True), ([exposure] * 3, False), ([exposure, exposure, other], False)):
        (_, good, _), = make_batch.check_space([(one, {WISPS: ''}) for one in exposures], options)     # on one disk
        assert good == enough
    write_rate(other.rate, history=[WISPS_DONE])
    (_, _, text), = make_batch.check_space([(other, {WISPS: ''})], options)
    assert text.startswith('0.00 GB')


@pytest.fixture(scope='module')
def top(tmp_path_factory):
    """A top level with stand-ins for the three scripts."""
    return write_top(tmp_path_factory.mktemp('stand-ins') / 'top')


def test_run_batch_takes_each_exposure_from_first_to_last_step(top, tmp_path):
    names, batch = ODD_NAMES, Batch(top, tmp_path, ODD_NAMES, ODD_NAMES[:3])
    status, said, progress = batch.run('-j', '2')
    assert status == 0, said
    trace = batch.trace()
    assert Counter(trace) == lines_of(*names, wisps=names[:3])
    for name in names:
        assert [line for line in trace if line.endswith(f' {name}')] == \
            [f'{script} {name}' for script in (SNOW, WISP, STRIPE) if script != WISP or name in names[:3]]
    assert '10 done, 0 left alone, 0 failed, 0 with a warning' in said and '[10/10, 00:00 left]' in progress
    log = (batch.directory / 'log' / 'a b.log').read_text()
    assert log.count('\npython ') == 3 and "remstriping.py --output_dir" in log
    assert {path.name for path in (batch.directory / 'log').iterdir()} == {f'{name}.log' for name in names}
    status, said, _ = batch.run()
    assert status == 0 and batch.trace() == [] and '0 done, 10 left alone' in said


@pytest.mark.parametrize('script, before, how, said', [
    (SNOW, 0, 'fails', 'b c_uncal.fits: no good'), (WISP, 1, 'killed', 'the process was killed'),
    (STRIPE, 2, 'fails', 'b c_rate.fits: no good'), (STRIPE, 2, 'killed', 'the process was killed')])
def test_what_fails_or_is_killed_stops_only_itself_and_is_tried_again(top, tmp_path, script, before, how, said):
    batch = Batch(top, tmp_path, ['a', 'b c', 'd'], ['b c', 'd'])
    (tmp_path / how).write_text(f'{script} b c')
    status, summary, progress = batch.run('-j1')
    trace = batch.trace()
    assert status == 1 and len(trace) == 5 + before and sum(line.endswith('b c') for line in trace) == before
    assert '2 done, 0 left alone, 1 failed' in summary and 'b c: FAILED' in progress and 'Warning' not in progress
    line, = (line for line in summary.splitlines() if 'b c.log: ' in line)
    assert said in line
    (tmp_path / how).unlink()
    status, summary, _ = batch.run()
    assert status == 0 and batch.trace() == [f'{other} b c' for other in (SNOW, WISP, STRIPE)[before:]]
    assert '1 done, 2 left alone, 0 failed' in summary
    alike = [run_batch.Exposure(name, failure=f'{name}_uncal.fits: no such file') for name in 'abcdefg']
    said = run_batch.summary(alike, alike, tmp_path)
    assert said.count('no such file') == 5 and 'and 2 more that failed alike' in said


def test_other_settings_are_named_and_started_again_with_redo(top, tmp_path):
    batch = Batch(top, tmp_path, ['a', 'b'], ['b'])
    batch.run()
    path = batch.directory / f'{WISPS}.run'
    path.write_text(path.read_text().replace('0.5', '0.63'))
    status, said, _ = batch.run()
    assert status == 0 and batch.trace() == [] and '2 left alone' in said
    assert 'b: wispsub.py: corrected with scale 0.5, not 0.63 as asked for' in said and '--redo' in said
    status, said, _ = batch.run('--redo')
    assert status == 0 and batch.trace() == ['wispsub.py b --redo', 'remstriping.py b']
    assert '0 with a warning' in said               # what wispsub.py undid was done again
    assert 'as asked for' not in batch.run('--redo')[1] and batch.trace() == []
    batch.write(STRIPES, ['a', 'b'], '--method', 'adaptive')
    assert batch.run()[1].count('corrected with method dr05, not adaptive') == 2
    batch.write(STRIPES, ['a', 'b'], '--thresh', '0.2')
    assert batch.run()[1].count('corrected with threshold 0.8, not 0.2') == 2
    path.write_text(path.read_text().replace('0.63', '0.7'))
    (tmp_path / 'fails').write_text('remstriping.py b')         # what is undone and not done again
    assert 'without what remstriping.py did: run that again: b' in batch.run('--redo')[1]


def test_a_line_with_redo_is_done_once(top, tmp_path):
    batch = Batch(top, tmp_path, ['a', 'b'])
    batch.run()
    batch.write(STRIPES, ['a', 'b'], '--redo')
    batch.directory.joinpath(f'{SNOWBALLS}.run').write_text('')
    os.utime(batch.directory / f'{STRIPES}.run', (time.time() + 2,) * 2)
    (tmp_path / 'killed').write_text('remstriping.py b')
    time.sleep(2.5)
    assert batch.run()[0] == 1 and batch.trace() == ['remstriping.py a --redo']
    (tmp_path / 'killed').unlink()
    assert batch.run()[0] == 0 and batch.trace() == ['remstriping.py b --redo']
    assert batch.run()[0] == 0 and batch.trace() == []
    header = fits.Header([('DETECTOR', 'NRCA1'), ('FILTER', 'F200W'), ('HISTORY', WISPS_DONE)])     # not fitted by dr05
    assert [run_batch.is_done(run_batch.read_line(f'python wispsub.py --redo {how} b_rate.fits', 9e9), header)
            for how in ('--scale 0', '--fit_scaling')] == [False, True]


def test_added_lines_and_damaged_images(top, tmp_path):
    batch = Batch(top, tmp_path, ['a'])
    batch.run()
    batch.write(WISPS, ['a'])
    assert batch.run()[0] == 0 and batch.trace() == ['wispsub.py a --redo', 'remstriping.py a']     # wisps come first
    write_rate(tmp_path / 'b_rate.fits', S_FLAT='COMPLETE')
    assert run_batch.record(tmp_path / 'b_rate.fits') == ({}, False)                # a script says what it is
    os.truncate(tmp_path / 'o' / 'a_rate.fits', 10_000)
    assert batch.run()[0] == 0 and batch.trace() == ['snowball_wrapper.py a --redo', 'wispsub.py a', 'remstriping.py a']


def test_warnings_are_in_the_summary(tmp_path):
    for name in 'a', 'b':
        write_rate(tmp_path / f'{name}_rate.fits', history=[STRIPES_DONE], STRPWARN='3 pixels lost')
    (tmp_path / 'x.run').write_text(''.join(f'python remstriping.py --output_dir {tmp_path} {tmp_path}/{name}_rate.fits'
                                            '\n# a comment\n\n' for name in 'ab'))
    done = run_script('batch_scripts/run_batch.py', tmp_path, cwd='/')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == ('0 done, 2 left alone, 0 failed, 2 with a warning\nWith a warning:\n'
                           '  3 pixels lost: a, b\n')
    write_rate(tmp_path / 'c_rate.fits', history=[WISPS_DONE], WISPWARN='far off')      # and its striping to do
    line = run_batch.read_line(f'python remstriping.py {tmp_path}/c_rate.fits', 0)
    assert run_batch.look_up('c', [line], False).warnings == ['far off']


def test_a_line_for_all_integrations_goes_by_their_mean(top, tmp_path):
    batch = Batch(top, tmp_path, ['a'])
    path = batch.directory / f'{STRIPES}.run'
    path.write_text(path.read_text().replace('_rate.fits', '_rateints.fits'))
    assert batch.run()[0] == 0 and batch.trace() == ['snowball_wrapper.py a', 'remstriping.py a']
    assert '1 left alone' in batch.run()[1] and batch.trace() == []
    line = run_batch.read_line('python remstriping.py gone_rateints.fits', 0)      # nor is there its mean
    assert run_batch.look_up('gone', [line], False).commands == [(STRIPE, line.words)]
    write_rate(tmp_path / 'a_rate.fits', history=[STRIPES_DONE], STRPMETH='dr05', STRPTHR=0.8)
    line = run_batch.read_line(f'python remstriping.py {tmp_path}/a_rateints.fits', 0)
    exposures = [run_batch.look_up('a', [line], redo) for redo in (False, True)]
    assert exposures[0].differences == ['remstriping.py: corrected without a_rateints.fits']
    assert not exposures[0].commands and exposures[1].commands == [(STRIPE, ('--redo', *line.words))]


def test_shares_are_all(top, tmp_path):
    batch = Batch(top, tmp_path, [f'x{i}' for i in range(5)])
    traces = []
    for share in '1/3', '3/3', '2/3':
        assert batch.run('--share', share)[0] == 0
        traces.append({line.split()[1] for line in batch.trace()})
    assert traces == [{'x0', 'x3'}, {'x2'}, {'x1', 'x4'}]


@pytest.mark.parametrize('everyone', [False, True])           # a terminal tells all processes
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_run_batch_stops_when_told(top, tmp_path, number, everyone):
    batch = Batch(top, tmp_path, ['a', 'b', 'c', 'd'])
    with batch.start('-j2', STEP_SECONDS='8') as running:
        batch.wait_for('begun', 2)
        before = time.monotonic()
        for process in (running, *psutil.Process(running.pid).children(recursive=True))[:None if everyone else 1]:
            with contextlib.suppress(psutil.NoSuchProcess):         # it may have ended with the first
                process.send_signal(number)
        _, said = running.communicate(timeout=20)
    assert running.returncode == 130 and 'start again to go on' in said and 'Traceback' not in said, said
    assert time.monotonic() - before < 6 and batch.trace() == []
    assert [path.name for path in (tmp_path / 'o').iterdir()] == []         # nothing half done is left
    assert batch.run()[0] == 0 and Counter(batch.trace()) == lines_of('a', 'b', 'c', 'd')


def test_run_batch_killed_goes_on(top, tmp_path):
    batch = Batch(top, tmp_path, [f'x{i}' for i in range(4)], ['x1'])
    with batch.start('-j2', STEP_SECONDS='2') as running:
        batch.wait_for('begun', 4)                          # two are done, and noted, and two have just begun
        workers = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        running.communicate()
    assert not psutil.wait_procs(workers, timeout=3)[1]                      # they end with it
    first = batch.trace()
    assert 0 < len(first) < 6
    assert batch.run()[0] == 0
    assert Counter(first + batch.trace()) == lines_of('x0', 'x1', 'x2', 'x3', wisps=['x1'])
    assert len(list((tmp_path / 'o').iterdir())) == 4


def test_two_batches_at_once_do_each_command_once(top, tmp_path):
    batch = Batch(top, tmp_path, ['a', 'b', 'c'], ['b'])
    both = [batch.start('-j2', STEP_SECONDS='0.5') for _ in range(2)]
    assert [process.communicate(timeout=60) and process.returncode for process in both] == [0, 0]
    assert Counter(batch.trace()) == lines_of('a', 'b', 'c', wisps=['b'])


def test_a_bar_on_a_terminal(top, tmp_path):
    batch, (ours, theirs) = Batch(top, tmp_path, ['a', 'b']), pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    done = batch.start(run=lambda *args, **more: subprocess.run(*args, **(more | {'stderr': theirs})))
    assert done.returncode == 0 and re.search(rb'100%.*2/2 \[00:0\d<00:00', os.read(ours, 65536))


def test_a_finished_release_costs_little(top):
    """690 exposures that are done: read from headers, in half a minute of processor time at most."""
    shutil.copytree(BATCHES / 'all', top / 'batch_scripts' / 'all')

    @functools.cache
    def image(detector, filter_, scale, threshold):
        wisps = {'WISPSCAL': float(scale), 'WISPMETH': 'fixed'} if scale else {}
        return write_rate(top / 'calibrated' / 'made_rate.fits', detector, filter_,
                          [SNOW_DONE, *[WISPS_DONE] * bool(wisps), STRIPES_DONE], **wisps,
                          STRPMETH='dr05', STRPTHR=float(threshold)).read_bytes()

    for row in ROWS:
        made = image(*map(row.get, ('detector', 'filter', 'wisp_scale', 'mask_threshold')))
        (top / 'calibrated' / f"{row['dataset']}_rate.fits").write_bytes(made)
    before = os.times()
    done = run_script(top / 'batch_scripts' / 'run_batch.py', top / 'batch_scripts' / 'all', cwd='/', **STAND_INS)
    after = os.times()
    assert done.stdout == '0 done, 690 left alone, 0 failed, 0 with a warning\n', done.stderr
    assert sum(after[2:4]) - sum(before[2:4]) < 30               # of children, as user and as system
    shutil.rmtree(top / 'calibrated')


@pytest.mark.parametrize('script, arguments, message', [
    (run_batch, [], 'required: DIR'), (run_batch, ['nowhere'], 'is not a directory that is there'),
    (run_batch, ['.', '-j', 'x'], "'x' is not a number"), (run_batch, ['.', '-j0'], "'0' is not a number"),
    (run_batch, ['.', '--share', '3/2'], 'is not a share'), (run_batch, ['.', '--fast'], '--fast'),
    (make_batch, ['--redo'], '--redo'), (make_batch, ['.', '--redo'], '--redo'),
    (make_batch, ['--check'], 'need UNCALS'), (make_batch, ['.', '--method', 'x'], "'x'")])
def test_misuse(script, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='2'):
        script.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('line, message', [
    ('echo x; rm y_rate.fits', 'is not a command'), ('python x.py y_rate.fits', 'is not a command'),
    ('OMP_NUM_THREADS=1 python remstriping.py y_rate.fits', 'is not a command'),
    ('python remstriping.py y_rate.fits > log', 'does not name one file'),
    ('python remstriping.py y_rate.fits; rm x', 'does not name one file'),
    ('python remstriping.py a_rate.fits b_rate.fits', 'does not name one file'),
    ('python remstriping.py y_uncal.fits', 'does not name one file'),
    ('python remstriping.py --thresh 7 y_rate.fits', 'is not a number from 0 to 1'),
    ('python wispsub.py y_rate.fits', 'required'), ('python remstriping.py -h y_rate.fits', '--help does nothing'),
    ("python wispsub.py 'open", 'No closing quotation'),
    ('python remstriping.py x_rate.fits', 'a second line of remstriping.py for x')])
def test_run_batch_refuses_what_is_not_one_command_of_the_scripts(top, tmp_path, capsys, line, message):
    path = Batch(top, tmp_path, ['x']).directory / f'{WISPS}.run'
    path.write_text(f'\n{line}\n')
    with pytest.raises(SystemExit, match='2'):
        run_batch.main([str(path.parent)])
    where = f'{path}, line 2: ' if 'second' not in line else ''
    said = capsys.readouterr().err
    assert where in said and message in said and not (path.parent / 'log').exists()


def test_a_changed_table_changes_the_images(scratch, field):
    rate = write_rate_image(rate_scene(subarray='SUB640', crowd=0.2), scratch / 'calibrated' / RATE)
    original = rate.read_bytes()

    def reduce(scale, threshold, *options):
        table = write_table(scratch / 't.csv', [DATASET, scale or '', threshold, '', ''])
        assert make_batch.main([*map(str, (scratch / 'calibrated', '--table', table, '--out', scratch / 'night',
                                           '--wisp_dir', field / 'wisps'))]) == 0
        if scale is None:
            (scratch / 'night' / f'{WISPS}.run').write_text('')
        done = run_script('batch_scripts/run_batch.py', scratch / 'night', *options, cwd='/',
                          **crds_environment(field / 'crds_cache'))
        assert done.returncode == 0, done.stdout + done.stderr
        assert scale is None or rate.with_name(f'{DATASET}_rate_prewisp.fits').read_bytes() == original
        header = fits.getheader(rate)
        return header.get('WISPSCAL'), header['STRPTHR'], str(header['HISTORY']).count('settings')

    assert reduce(None, 0.8) == (None, 0.8, 1)
    assert reduce(0.6, 0.8) == (0.6, 0.8, 2)                             # wisps come before the stripes
    assert reduce(0.3, 0.2) == (0.6, 0.8, 2)
    assert reduce(0.3, 0.2, '--redo') == (0.3, 0.2, 2)
    log = (scratch / 'night' / 'log' / f'{DATASET}.log').read_text()
    assert ' DEBUG ' in log and 'stpipe' in log                          # the pipeline's own words


@pytest.mark.faults
def test_warm_processes_do_what_separate_commands_do(scratch):
    write_exposure(scratch, 'NRCB4', subarray='SUB640', groups=3, wisp=0.6, name='a')
    shutil.copy(scratch / 'uncals' / 'a_uncal.fits', scratch / 'uncals' / 'b_uncal.fits')
    environment, apart = crds_environment(scratch / 'crds_cache'), scratch / 'uncals' / 'calibrated'
    status, lines = batch_of(scratch / 'uncals', '--wisp_dir', scratch / 'wisps' / 'wisps_2022_08_26')
    done = run_script('batch_scripts/run_batch.py', scratch / 'uncals' / 'batch', '-j1', cwd='/', **environment)
    assert status == done.returncode == 0, done.stdout + done.stderr
    warm = apart.rename(scratch / 'warm')
    for step in STEPS:
        for line in lines[step]:
            assert run_script(*shlex.split(line)[1:], cwd=ROOT, **environment).returncode == 0
    names = sorted(path.name for path in apart.iterdir())
    assert names == sorted(path.name for path in warm.iterdir()) and len(names) > 20
    for name in names:
        if name.endswith('.fits'):
            assert fits.FITSDiff(apart / name, warm / name, ignore_hdus=['ASDF'], ignore_keywords=['*']).identical, name


@pytest.mark.parametrize('tool', ['bash', 'xargs', 'parallel'])
def test_command_lines_of_the_readme(tmp_path, tool):
    if not shutil.which(tool):
        pytest.skip(f'{tool} is not installed')
    readme = (BATCHES / 'README.md').read_text('utf-8')
    line, = (line.strip() for line in readme.splitlines() if line.startswith(f'    {tool} ') and '.run' in line)
    names = [name for name in ODD_NAMES if tool != 'parallel' or name != '{}']
    for name in names:
        write_uncal(tmp_path / f'{name}_uncal.fits')
    batch_of(tmp_path)
    python = tmp_path / 'bin' / 'python'
    python.parent.mkdir()
    python.write_text(f'#!/bin/bash\nprintf "%s\\0" "${{@: -1}}" >>{shlex.quote(str(tmp_path))}/done\n')
    python.chmod(0o755)
    line = line.replace('batch_scripts/nircam1/', shlex.quote(f'{tmp_path}/batch/'))
    subprocess.run(['bash', '-c', line], check=True, env=os.environ | {'PATH': f"{python.parent}:{os.environ['PATH']}"})
    done = os.fsdecode((tmp_path / 'done').read_bytes()).split('\0')[:-1]
    assert sorted(done) == sorted(f'{tmp_path}/calibrated/{name}_rate.fits' for name in names)
