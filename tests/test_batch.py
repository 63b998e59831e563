"""Batch files: what make_batch.py writes and checks, and how run_batch.sh runs it."""

import csv
import importlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import make_batch
from conftest import DATASET, ROOT, run_script
from make_batch import SNOWBALLS, STEPS, STRIPES, WISPS
from simulation import crds_environment, write_crds_cache, write_templates

import pytest
from astropy.io import fits

BATCHES = ROOT / 'batch_scripts'
TABLE = BATCHES / 'stage1_images.csv'
RUN = BATCHES / 'run_batch.sh'
ODD_NAMES = ['a b', "it's", '-dash', '$(touch pwned)', 'x;y&z', 'star*?[1]', 'new\nline', 'tab\tback\\slash\'', 'é"',
             '~']
AGAIN = '--redo_done'
needs_parallel = pytest.mark.skipif(not shutil.which('parallel'), reason='GNU parallel is not installed')


# --- files without pixels ----------------------------------------------------------------------------

def write_sparse(path, extensions, history=(), **keywords):
    """Write a FITS file whose data, all 0, take no space on the disk."""
    header = fits.Header([('SIMPLE', True), ('BITPIX', 8), ('NAXIS', 0), ('EXTEND', True)])
    header.update({'TELESCOP': 'JWST', 'INSTRUME': 'NIRCAM', 'EXP_TYPE': 'NRC_IMAGE', 'PUPIL': 'CLEAR',
                   'SUBARRAY': 'FULL', 'READPATT': 'MEDIUM8', 'NINTS': 1, 'NGROUPS': 5,
                   'DATE-OBS': '2022-12-21', 'TIME-OBS': '10:00:00'} | keywords)
    for entry in history:
        header.add_history(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as file:
        file.write(header.tostring().encode())
        for name, bitpix, shape in extensions:
            axes = [(f'NAXIS{i}', n) for i, n in enumerate(reversed(shape), 1)]
            image = fits.Header([('XTENSION', 'IMAGE'), ('BITPIX', bitpix), ('NAXIS', len(shape)), *axes,
                                 ('PCOUNT', 0), ('GCOUNT', 1), ('EXTNAME', name)])
            file.write(image.tostring().encode())
            file.truncate(file.tell() + (abs(bitpix) // 8 * math.prod(shape) + 2879) // 2880 * 2880)
            file.seek(0, os.SEEK_END)
    return path


def write_uncal(path, detector='NRCA3', filter_='F200W', **keywords):
    return write_sparse(path, [('SCI', 16, (1, 5, 2048, 2048))], DETECTOR=detector, FILTER=filter_, **keywords)


def write_rate(path, detector='NRCA3', filter_='F200W', history=(), **keywords):
    names = (('SCI', -32), ('ERR', -32), ('DQ', 32), ('VAR_POISSON', -32), ('VAR_RNOISE', -32))
    return write_sparse(path, [(name, bitpix, (2048, 2048)) for name, bitpix in names], history,
                        DETECTOR=detector, FILTER=filter_, **keywords)


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


def parsed(line):
    """The options of a command line, as the parser of its script takes them."""
    python, script, *arguments = words(line)
    assert python == 'python' and script.endswith('.py')
    return importlib.import_module(script.removesuffix('.py')).build_parser().parse_args(arguments)


# --- the release -------------------------------------------------------------------------------------

def test_release_files_are_those_of_the_generator(tmp_path):
    assert make_batch.main(['--out', str(tmp_path)]) == 0
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob('*.run'))
    assert made == sorted(path.relative_to(BATCHES) for path in BATCHES.rglob('*.run') if path.parent.parent == BATCHES)
    for name in made:
        assert (tmp_path / name).read_bytes() == (BATCHES / name).read_bytes(), name


@pytest.mark.parametrize('name, numbers', [('nircam1', (210, 36, 210)), ('nircam2', (240, 48, 240)),
                                           ('nircam3', (120, 24, 120)), ('nircam6', (120, 24, 120)),
                                           ('all', (690, 132, 690))])
def test_release_lines_are_the_rows_of_the_table(name, numbers):
    with open(TABLE, newline='', encoding='ascii') as file:
        rows = [row for row in csv.DictReader(file) if name in ('all', row['pointing'])]
    wisps = [row for row in rows if row['wisp_scale']]
    assert read_lines(BATCHES / name / f'{SNOWBALLS}.run') == \
        [f"python snowball_wrapper.py {row['dataset']}_uncal.fits" for row in rows]
    assert read_lines(BATCHES / name / f'{WISPS}.run') == \
        [f"python wispsub.py --scale {row['wisp_scale']} {row['dataset']}_rate.fits" for row in wisps]
    assert read_lines(BATCHES / name / f'{STRIPES}.run') == \
        [f"python remstriping.py --save_patterns --thresh {row['mask_threshold']} {row['dataset']}_rate.fits"
         for row in rows]
    assert (len(rows), len(wisps), len(rows)) == numbers


def test_scripts_take_every_release_line():
    import remstriping
    import snowball_wrapper
    import wispsub
    parsers = {script.__name__ + '.py': script.build_parser() for script in (remstriping, snowball_wrapper, wispsub)}
    with open(TABLE, newline='', encoding='ascii') as file:
        table = {row['dataset']: row for row in csv.DictReader(file)}
    for path in BATCHES.glob('*/*.run'):
        for line in read_lines(path):
            python, script, *arguments = shlex.split(line)
            options = vars(parsers[script].parse_args(arguments))
            files = options.get('uncals') or options['images']
            row = table[files[0].rsplit('_', 1)[0]]
            if script == 'wispsub.py':
                assert options['scale'] == float(row['wisp_scale'])
            if script == 'remstriping.py':
                assert options['thresh'] == float(row['mask_threshold']) and options['save_patterns']


# --- a directory -------------------------------------------------------------------------------------

def test_directory_wisps_only_where_corrected(tmp_path):
    for detector, filter_ in (('NRCA3', 'F200W'), ('NRCB4', 'F150W'), ('NRCA3', 'F115W'), ('NRCA1', 'F200W'),
                              ('NRCBLONG', 'F444W')):
        write_uncal(tmp_path / f'jw1_{detector.lower()}{filter_}_uncal.fits', detector, filter_)
    table = write_table(tmp_path / 't.csv', ['jw1_nrca3F200W', '0.61', '0.150', '', ''],
                        ['jw1_nrca1F200W', '0.5', '', '', ''])
    status, lines = batch_of(tmp_path, '--table', table)
    assert status == 0
    assert [len(lines[step]) for step in STEPS] == [5, 2, 5]
    rate = tmp_path / 'calibrated' / 'jw1_nrca3F200W_rate.fits'
    where = f'--output_dir {tmp_path}/calibrated'
    assert lines[SNOWBALLS][2] == f'python snowball_wrapper.py {where} {tmp_path}/jw1_nrca3F200W_uncal.fits'
    assert lines[WISPS][0] == f'python wispsub.py {where} --scale 0.61 {rate}'
    assert '--fit_scaling' in lines[WISPS][1] and 'nrcb4F150W' in lines[WISPS][1]
    assert lines[STRIPES][2] == f'python remstriping.py {where} --save_patterns --thresh 0.150 {rate}'
    assert not any('--thresh' in line for line in lines[STRIPES] if 'nrca3F200W' not in line)
    for step in STEPS:
        for line in lines[step]:
            parsed(line)


def test_adaptive_wisps_where_there_is_a_template(tmp_path):
    for detector, filter_ in (('NRCA3', 'F200W'), ('NRCB2', 'F182M')):
        write_uncal(tmp_path / f'{detector}_uncal.fits', detector, filter_)
    (tmp_path / 'wisps').mkdir()
    (tmp_path / 'wisps' / 'wisps_nrcb2_F182M.fits').touch()
    lines = batch_of(tmp_path, '--method', 'adaptive', '--wisp_dir', tmp_path / 'wisps')[1]
    assert lines[WISPS] == [f'python wispsub.py --wisp_dir {tmp_path}/wisps --output_dir {tmp_path}/calibrated '
                            f'--fit_scaling --method adaptive {tmp_path}/calibrated/NRCB2_rate.fits']
    assert all('--save_patterns --method adaptive' in line for line in lines[STRIPES])


def test_paths_below_the_top_level_are_short(monkeypatch, tmp_path):
    monkeypatch.setattr(make_batch, 'TOP', tmp_path)
    write_uncal(tmp_path / 'uncals' / 'x_uncal.fits')
    assert make_batch.main([str(tmp_path / 'uncals'), '--out', str(tmp_path / 'b'), '--wisp_dir',
                            str(make_batch.DEFAULT_WISPDIR)]) == 0
    assert [read_lines(tmp_path / 'b' / f'{step}.run') for step in STEPS] == [
        ['python snowball_wrapper.py uncals/x_uncal.fits'],
        ['python wispsub.py --fit_scaling calibrated/x_rate.fits'],
        ['python remstriping.py --save_patterns calibrated/x_rate.fits']]
    assert make_batch.from_top(tmp_path / '-x') == './-x'


@pytest.mark.parametrize('name', ODD_NAMES)
def test_any_name_stays_one_word(tmp_path, name):
    directory = tmp_path / f'dir {name}'
    uncal = write_uncal(directory / f'{name}_uncal.fits')
    lines = batch_of(directory)[1]
    for step in STEPS:
        line, = lines[step]
        rate = directory / 'calibrated' / f'{name}_rate.fits'
        assert words(line)[-1] == str(uncal if step == SNOWBALLS else rate)
        parsed(line)


def test_todo_leaves_out_what_is_done(tmp_path):
    rates = tmp_path / 'calibrated'
    for name in 'none', 'rate', 'wisps', 'all', 'damaged':
        write_uncal(tmp_path / f'{name}_uncal.fits')
    write_rate(rates / 'rate_rate.fits')
    write_rate(rates / 'wisps_rate.fits', history=[WISPS_DONE])
    write_rate(rates / 'all_rate.fits', history=[WISPS_DONE, STRIPES_DONE])
    damaged = write_rate(rates / 'damaged_rate.fits', history=[WISPS_DONE, STRIPES_DONE])
    os.truncate(damaged, damaged.stat().st_size // 2)
    lines = batch_of(tmp_path, '--todo')[1]
    left = {step: {Path(words(line)[-1]).name.split('_')[0] for line in lines[step]} for step in STEPS}
    assert left == {SNOWBALLS: {'none', 'damaged'}, WISPS: {'none', 'damaged', 'rate'},
                    STRIPES: {'none', 'damaged', 'rate', 'wisps'}}
    assert ['--redo' in line for line in lines[SNOWBALLS]] == [True, False]


def test_redo_takes_the_table_of_the_review_page(tmp_path):
    for name, history in {'wisp': [WISPS_DONE, STRIPES_DONE], 'stripe': [WISPS_DONE, STRIPES_DONE], 'new': [],
                          'flag': [STRIPES_DONE], 'good': [STRIPES_DONE], 'adapt': [WISPS_DONE, STRIPES_DONE]}.items():
        write_rate(tmp_path / f'{name}_rate.fits', history=history)
    table = write_table(tmp_path / 'review.csv', ['wisp', '0.7', '0.2', '', ''], ['stripe', '', '0.3', 'dr05', 'ugly'],
                        ['new', 'fit', '0.1', '', '1'], ['flag', '', '', '', 'look again'],
                        ['adapt', 'fit', '', 'adaptive', ''])
    (tmp_path / 'wisps_nrca3_F200W.fits').touch()
    out = tmp_path / 'redo'
    before = out / 'log' / STRIPES / 'stripe.done'
    before.parent.mkdir(parents=True)
    before.touch()
    assert make_batch.main([*map(str, (tmp_path, '--table', table, '--redo', '--out', out,
                                       '--wisp_dir', tmp_path))]) == 0
    assert not before.exists()
    lines = {step: [line.replace(f'--output_dir {tmp_path} ', '').replace(f'--wisp_dir {tmp_path} ', '')
                    .replace(f'{tmp_path}/', '') for line in read_lines(out / f'{step}.run')] for step in STEPS}
    assert lines == {
        SNOWBALLS: [],
        WISPS: ['python wispsub.py --redo --fit_scaling --method adaptive adapt_rate.fits',
                'python wispsub.py --fit_scaling new_rate.fits',
                'python wispsub.py --redo --scale 0.7 wisp_rate.fits'],
        STRIPES: ['python remstriping.py --save_patterns --method adaptive adapt_rate.fits',
                  'python remstriping.py --save_patterns --thresh 0.1 new_rate.fits',
                  'python remstriping.py --redo --save_patterns --thresh 0.3 stripe_rate.fits',
                  'python remstriping.py --save_patterns --thresh 0.2 wisp_rate.fits']}


def test_bad_files_are_named_and_left_out(tmp_path, capsys):
    write_uncal(tmp_path / 'good_uncal.fits')
    (tmp_path / 'text_uncal.fits').write_text('no FITS')
    (tmp_path / 'empty_uncal.fits').touch()
    write_uncal(tmp_path / 'grism_uncal.fits', PUPIL='GRISMR', EXP_TYPE='NRC_WFSS')
    write_rate(tmp_path / 'rate_uncal.fits')
    cut = write_uncal(tmp_path / 'cut_uncal.fits')
    os.truncate(cut, 10_000_000)
    status, lines = batch_of(tmp_path)
    assert status == 1 and [len(lines[step]) for step in STEPS] == [1, 1, 1]
    said = capsys.readouterr().err
    for name in 'text', 'empty', 'grism', 'rate', 'cut':
        assert f'{name}_uncal.fits' in said
    assert 'is a rate product' in said and 'is truncated' in said


@pytest.mark.parametrize('rows, columns, problem', [
    ([['x', '0.5', '0.1']], 'name,wisp_scale,mask_threshold', 'no column "dataset"'),
    ([['x', 'nan', '0.1']], 'dataset,wisp_scale,mask_threshold', 'line 2: x has wisp_scale nan'),
    ([['x', '0.5; rm x', '0.1']], 'dataset,wisp_scale,mask_threshold', 'no number'),
    ([['x', '0.5', '1.2']], 'dataset,wisp_scale,mask_threshold', 'mask_threshold 1.2'),
    ([['x', '0.5', 'fit']], 'dataset,wisp_scale,mask_threshold', 'mask_threshold fit'),
    ([['x', '0.5', '1']] * 2, 'dataset,wisp_scale,mask_threshold', 'line 3: x comes twice'),
    ([['x', 'magic']], 'dataset,method', 'has method magic'),
    ([['../x', 'dr05']], 'dataset,method', 'is no dataset'),
    ([['x', '../../etc']], 'dataset,pointing', 'names no directory'),
    ([['x', '0.5']], 'dataset,wisp_scale', 'has no pointing')])
def test_tables_that_are_refused(tmp_path, capsys, rows, columns, problem):
    table = write_table(tmp_path / 't.csv', *rows, columns=columns)
    assert make_batch.main(['--table', str(table), '--out', str(tmp_path / 'out')]) == 1
    assert problem in capsys.readouterr().err and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('arguments', [['--redo'], ['d', '--redo', '--todo', '--table', 't'], ['d', '--method', 'x']])
def test_misuse(arguments):
    with pytest.raises(SystemExit, match='2'):
        make_batch.main(arguments)


def test_directory_without_exposures(tmp_path, capsys):
    assert make_batch.main([str(tmp_path)]) == 1
    assert 'neither *_uncal.fits nor *_rate.fits' in capsys.readouterr().err


# --- before it starts --------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def night(tmp_path_factory):
    """A directory with rate images, templates and a cache of flats."""
    directory = tmp_path_factory.mktemp('night')
    for name, detector, filter_ in (('a', 'NRCA3', 'F200W'), ('b', 'NRCALONG', 'F444W')):
        write_rate(directory / 'rates' / f'{name}_rate.fits', detector, filter_)
        write_crds_cache(directory / 'cache', [detector], [filter_])
    write_templates(directory / 'wisps', ['NRCA3'], ['F200W'])
    return directory


def checked(night, *arguments, **environment):
    """Run --check as a user does; returns the exit status and the lines of the table."""
    environment = {'CRDS_READONLY_CACHE': '1'} | crds_environment(night / 'cache') | environment
    done = run_script('batch_scripts/make_batch.py', '--check', '--wisp_dir', night / 'wisps', '--out', night / 'batch',
                      *arguments, cwd=night, **{key: str(value) for key, value in environment.items()})
    assert 'Traceback' not in done.stderr and not (night / 'batch').exists(), done.stderr
    return done.returncode, done.stdout.splitlines()


def test_check_finds_everything_there(night):
    before = sorted(night.rglob('*'))
    status, table = checked(night, night / 'rates')
    assert status == 0 and all(line.startswith('ok') for line in table), table
    assert [line.split()[1] for line in table] == ['inputs', 'templates', 'references', 'disk', 'writable', 'writable']
    assert sorted(night.rglob('*')) == before


def test_check_names_what_is_missing(night, tmp_path):
    shutil.copytree(night / 'rates', tmp_path / 'rates')
    write_rate(tmp_path / 'rates' / 'c_rate.fits', 'NRCB3', 'F150W')
    (tmp_path / 'rates' / 'd_rate.fits').touch()
    shutil.copytree(night / 'cache', tmp_path / 'cache')
    flat = next((tmp_path / 'cache' / 'references').rglob('*flat*nrcalong*.fits'))
    flat.unlink()
    status, table = checked(night, tmp_path / 'rates', '--out', '/dev/null/batch', CRDS_PATH=tmp_path / 'cache')
    missing = [line for line in table if line.startswith('MISSING')]
    assert status == 1
    for text in ('inputs      d_rate.fits: ', 'templates   NRCB3 F150W: no wisp template', 'NRCB3 F150W CLEAR: no flat',
                 f'flat {flat.name} is not in the cache (1 exposures, first b)', 'writable    /dev/null/batch: '):
        assert sum(text in line for line in missing) == 1, (text, table)


def test_check_of_uncals_asks_for_the_references_of_detector1(night, tmp_path):
    write_uncal(tmp_path / 'a_uncal.fits')
    status, table = checked(night, tmp_path)
    assert status == 1 and sum('CRDS has no gain' in line for line in table) == 1, table


def test_check_says_that_crds_does_not_answer(night):
    for wrong in {'CRDS_CONTEXT': 'jwst_9999.pmap'}, {'CRDS_PATH': str(night / 'nowhere')}:
        status, table = checked(night, night / 'rates', **wrong)
        assert status == 1 and any(line.startswith('MISSING references') for line in table), table


def test_check_disk_space(monkeypatch, tmp_path):
    exposure = make_batch.Exposure('x', tmp_path / 'x', tmp_path / 'not' / 'yet' / 'x', {'NINTS': 1, 'NGROUPS': 9})
    monkeypatch.setattr(make_batch.shutil, 'disk_usage', lambda _: SimpleNamespace(free=1e9))
    (subject, good, text), = make_batch.check_space([(exposure, {step: '' for step in STEPS})] * 2)
    assert (subject, good) == ('disk space', False) and '1.0 GB free' in text
    (_, good, _), = make_batch.check_space([(exposure, {WISPS: ''})])
    assert good


# --- run_batch.sh ------------------------------------------------------------------------------------

class Batch:
    """A batch of stand-in commands that note what they did."""

    def __init__(self, directory, names, wisps):
        self.directory, self.done = directory / 'my A&A {} {#} {= $_ = 1 =} batch', directory / 'done'
        self.directory.mkdir()
        self.script = directory / 'work.sh'
        self.script.write_text('#!/bin/bash\n'                            # STEP TRACE FILE
                               'name=${3##*/}; name=${name%_*}\n'
                               'sleep "${WORK_SECONDS-0}"\n'
                               'echo "threads $OMP_NUM_THREADS $NUMBA_NUM_THREADS"\n'
                               'if [[ "$1 $name" == "${WORK_FAILS-}" ]]; then echo "ERROR: no good"; exit 1; fi\n'
                               'printf "%s %q %s\\n" "$1" "$name" "${*:4}" >>"$2"\n')
        for step in STEPS:
            self.write(step, names if step != WISPS else wisps)

    def write(self, step, names):
        ending = 'uncal' if step == SNOWBALLS else 'rate'
        lines = [make_batch.command('x', str(self.script), step, str(self.done), f'dir x/{name}_{ending}.fits')
                 .replace('python x', 'bash', 1) + '\n' for name in names]
        (self.directory / f'{step}.run').write_text(''.join(lines), 'utf-8', 'surrogateescape')

    def line(self, step):
        """The file with the commands of a step."""
        return self.directory / f'{step}.run'

    def change(self, step):
        """Change the commands of a step."""
        self.line(step).write_text(self.line(step).read_text().replace('dir x', 'dir y'))

    def run(self, *options, **environment):
        return subprocess.run([RUN, self.directory, *options], env=os.environ | environment, text=True,
                              capture_output=True, timeout=120, check=False, cwd='/')

    def trace(self):
        """What was done, as (step, dataset), in order; forgets it."""
        lines = self.done.read_text('utf-8', 'surrogateescape').splitlines() if self.done.exists() else []
        self.done.unlink(missing_ok=True)
        return [tuple(words(line)) for line in lines]


@pytest.fixture
def finished(tmp_path):
    """A batch of one exposure that was run."""
    batch = Batch(tmp_path, ['a'], ['a'])
    assert batch.run().returncode == 0 and len(batch.trace()) == 3
    return batch


@needs_parallel
def test_run_batch_runs_the_files_in_order(tmp_path):
    batch = Batch(tmp_path, ODD_NAMES, ODD_NAMES[:3])
    done = batch.run('-j', '2')
    assert done.returncode == 0, done.stderr
    trace = batch.trace()
    assert sorted(trace) == sorted([(step, name) for step in (SNOWBALLS, STRIPES) for name in ODD_NAMES]
                                   + [(WISPS, name) for name in ODD_NAMES[:3]])
    assert [step for step, _ in trace] == sorted((step for step, _ in trace), key=STEPS.index)
    assert '10 exposures done, 0 failed' in done.stdout
    assert '[10/10, 0:00:00 left]' in done.stdout
    log = batch.directory / 'log' / STRIPES / 'a b.log'
    assert 'threads 1 1' in log.read_text() and 'exit status 0' in log.read_text()
    assert len((batch.directory / 'log' / f'{STRIPES}.joblog').read_text().splitlines()) == 11
    assert batch.run().returncode == 0 and batch.trace() == []       # nothing left


@needs_parallel
@pytest.mark.parametrize('step, before', [(SNOWBALLS, 0), (WISPS, 1), (STRIPES, 2)])
def test_run_batch_failure_stops_only_itself_and_resumes(tmp_path, step, before):
    batch = Batch(tmp_path, ['a', 'b c', 'd'], ['b c', 'd'])
    done = batch.run(WORK_FAILS=f'{step} b c')
    assert done.returncode == 1
    trace = batch.trace()
    assert len(trace) == 5 + before and sum(name == 'b c' for _, name in trace) == before
    assert '2 exposures done, 1 failed' in done.stdout
    assert f'{step} b c: {batch.directory}/log/{step}/b c.log\n      ERROR: no good' in done.stdout
    done = batch.run()
    assert done.returncode == 0 and batch.trace() == [(s, 'b c') for s in STEPS[STEPS.index(step):]]


@needs_parallel
def test_run_batch_changed_command_runs_again_with_the_later_steps(tmp_path):
    batch = Batch(tmp_path, ['a', 'b'], ['a', 'b'])
    batch.run()
    batch.trace()
    path = batch.directory / f'{WISPS}.run'
    path.write_text(path.read_text().replace('b_rate', './b_rate').replace('dir x/./b', 'dir y/b'))
    assert batch.run().returncode == 0 and batch.trace() == [(WISPS, 'b', AGAIN), (STRIPES, 'b', AGAIN)]
    assert batch.run().returncode == 0 and batch.trace() == []


@needs_parallel
def test_a_changed_table_changes_the_images(scratch, field):
    """The whole way, with the scripts themselves: which leave a corrected image alone unless they are told."""
    rate = scratch / 'calibrated' / f'{DATASET}_rate.fits'
    rate.parent.mkdir()
    shutil.copy(field / 'calibrated' / rate.name, rate)
    original = rate.read_bytes()
    environment = os.environ | crds_environment(field / 'crds_cache')
    environment['PATH'] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def reduce(scale, threshold):
        table = write_table(scratch / 't.csv', [DATASET, scale or '', threshold, '', ''])
        assert make_batch.main([*map(str, (scratch / 'calibrated', '--table', table, '--out', scratch / 'night',
                                           '--wisp_dir', field / 'wisps'))]) == 0
        if scale is None:
            (scratch / 'night' / f'{WISPS}.run').write_text('')
        done = subprocess.run([RUN, scratch / 'night'], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert scale is None or rate.with_name(f'{DATASET}_rate_prewisp.fits').read_bytes() == original
        header = fits.getheader(rate)
        return header.get('WISPSCAL'), header['STRPTHR'], str(header['HISTORY']).count('settings')

    assert reduce(None, 0.8) == (None, 0.8, 1)
    assert reduce(0.6, 0.8) == (0.6, 0.8, 2)                             # wisps come before the stripes
    assert reduce(0.6, 0.2) == (0.6, 0.2, 2)
    assert reduce(0.3, 0.2) == (0.3, 0.2, 2)
    (rate.with_name(f'{DATASET}_rate_pre1f.fits')).replace(rate)         # as the README has it
    assert reduce(0.3, 0.4) == (0.3, 0.4, 2)


@needs_parallel
def test_run_batch_starts_again_whatever_an_image_may_hold_of_another_command(finished):
    batch = finished
    first = batch.line(WISPS).read_text()
    batch.change(WISPS)
    assert batch.run(WORK_FAILS=f'{WISPS} a').returncode == 1            # may have been killed just after it wrote
    batch.line(WISPS).write_text(first)
    batch.change(STRIPES)                                                # void since then, and changed besides
    assert batch.run().returncode == 0
    assert batch.trace() == [(WISPS, 'a', AGAIN), (STRIPES, 'a', AGAIN)]
    assert batch.run().returncode == 0 and batch.trace() == []


@needs_parallel
def test_run_batch_runs_a_step_again_whose_line_was_away(finished):
    batch = finished
    line = batch.line(STRIPES).read_text()
    batch.line(STRIPES).write_text('')
    batch.change(WISPS)
    assert batch.run().returncode == 0 and batch.trace() == [(WISPS, 'a', AGAIN)]
    batch.line(STRIPES).write_text(line)
    assert batch.run().returncode == 0 and batch.trace() == [(STRIPES, 'a', AGAIN)]
    shutil.rmtree(batch.directory / 'log' / WISPS)
    assert batch.run().returncode == 0 and batch.trace() == [(WISPS, 'a', AGAIN), (STRIPES, 'a', AGAIN)]


@needs_parallel
def test_run_batch_does_not_change_an_explicit_redo(finished):
    batch, path = finished, finished.line(STRIPES)
    path.write_text(path.read_text().replace(' dir', ' --redo dir').replace("'dir x", "--redo 'dir x"))
    assert batch.run().returncode == 0 and [entry[0] for entry in batch.trace()] == [STRIPES]
    assert AGAIN not in (batch.directory / 'log' / STRIPES / 'a.log').read_text()


@needs_parallel
def test_a_batch_that_changes_while_it_runs_ends_with_all_steps(finished):
    batch = finished
    batch.change(STRIPES)
    begun = batch.directory / 'log' / STRIPES / 'a.done'
    with subprocess.Popen([RUN, batch.directory], env=os.environ | {'WORK_SECONDS': '2'}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as first:
        while begun.read_text():
            time.sleep(0.05)
        batch.change(WISPS)
        assert batch.run().returncode == 0
        first.wait(60)
    assert batch.trace() == [(STRIPES, 'a', AGAIN), (WISPS, 'a', AGAIN), (STRIPES, 'a', AGAIN)]


@needs_parallel
def test_run_batch_killed_goes_on(tmp_path):
    batch = Batch(tmp_path, [f'x{i}' for i in range(6)], ['x1'])
    with subprocess.Popen([RUN, batch.directory, '-j2'], env=os.environ | {'WORK_SECONDS': '0.7'}, cwd='/',
                          start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while not batch.done.exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.killpg(running.pid, signal.SIGKILL)
    time.sleep(1.5)                                  # what parallel started in other process groups ends
    first = batch.trace()
    assert 0 < len(first) < 6
    assert batch.run().returncode == 0
    number = Counter(first + batch.trace())
    assert len(number) == 13 and sum(number.values()) <= 15          # at most the two that were running, twice


@needs_parallel
@pytest.mark.parametrize('send', [os.kill, os.killpg])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_run_batch_stops_when_told(tmp_path, send, number):
    batch = Batch(tmp_path, ['a', 'b', 'c', 'd'], [])
    with subprocess.Popen([RUN, batch.directory, '-j1'], env=os.environ | {'WORK_SECONDS': '2'}, cwd='/',
                          start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        while not batch.done.exists():
            time.sleep(0.05)
        send(running.pid, number)
        _, said = running.communicate(timeout=10)
        assert running.returncode == 130 and b'start again to go on' in said
    assert len(batch.trace()) == 1                   # the second was killed
    assert batch.run().returncode == 0


@needs_parallel
def test_two_batches_at_once_do_each_command_once(tmp_path):
    batch = Batch(tmp_path, ['a', 'b', 'c'], ['b'])
    start = [RUN, batch.directory, '-j2']
    both = [subprocess.Popen(start, env=os.environ | {'WORK_SECONDS': '0.5'}, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert sorted(Counter(batch.trace()).values()) == [1] * 7


@pytest.mark.parametrize('arguments, message', [
    ([], 'which directory'), (['nowhere'], 'no such directory: nowhere'), (['.', '-j', 'x'], "not 'x'"),
    (['.', '-j0'], "not '0'"), (['.'], 'holds none of'), (['--fast', '.'], 'unknown option --fast')])
@needs_parallel
def test_run_batch_misuse(tmp_path, arguments, message):
    done = subprocess.run([RUN, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr


@needs_parallel
@pytest.mark.parametrize('line', ['echo x; rm y_rate.fits', 'python x.py y_rate.fits > log', "python x.py 'open"])
def test_run_batch_refuses_what_is_no_plain_command(tmp_path, line):
    batch = Batch(tmp_path, ['a'], [])
    (batch.directory / f'{WISPS}.run').write_text(line + '\n')
    done = batch.run()
    assert done.returncode == 2 and 'not one plain command' in done.stderr and batch.trace() == []


def test_run_batch_without_parallel(tmp_path):
    tools = tmp_path / 'bin'
    tools.mkdir()
    for name in 'bash', 'realpath', 'dirname', 'python':
        tool = shutil.which(name) or sys.executable
        (tools / name).symlink_to(tool)
    (tmp_path / 'remstriping.run').touch()
    done = subprocess.run([RUN, tmp_path], env={'PATH': str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'GNU parallel is missing' in done.stderr


def test_xargs_line_of_the_readme(tmp_path):
    readme = (BATCHES / 'README.md').read_text('utf-8')
    line, = (line.strip() for line in readme.splitlines() if line.strip().startswith('xargs'))
    batch = Batch(tmp_path, ODD_NAMES, [])
    file = batch.directory / f'{STRIPES}.run'
    line = line.replace('batch_scripts/nircam1/remstriping.run', shlex.quote(str(file)))
    assert subprocess.run(['bash', '-c', line], check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert sorted(name for _, name in batch.trace()) == sorted(ODD_NAMES)


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='shellcheck is not installed')
def test_shell_scripts_are_clean():
    subprocess.run(['shellcheck', '-x', *BATCHES.glob('*.sh')], check=True)


@pytest.mark.parametrize('name', ['run_batch.sh', 'submit_slurm.sh'])
def test_shell_scripts_introduce_themselves(name):
    done = subprocess.run([BATCHES / name, '--help'], capture_output=True, text=True, check=True)
    assert f'batch_scripts/{name} DIR' in done.stdout and '#' not in done.stdout
