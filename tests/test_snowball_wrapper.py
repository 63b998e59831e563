"""snowball_wrapper.py: the mask against its slow form and the DR0.5 results, and whole runs of the script."""

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path

import nircam_io
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import simulate
import slow_snowballs
import snowball_wrapper
from conftest import ROOT, load_case, run_script

PARAMETERS = ROOT / 'detector1_1.7.2.asdf'
DATASET = 'jw01345001001_10201_00001_nrca3'

# What jwst 3.0 runs with where it differs from the 1.7.2 defaults in PARAMETERS.
CHANGED_DEFAULTS = {'firstframe.skip': True, 'persistence.skip': True, 'jump.maximum_cores': '1'}
REMOVED = {'rscd.type', 'persistence.flag_pers_cutoff', 'persistence.input_trapsfilled',
           'persistence.save_persistence', 'persistence.save_trapsfilled'}


# --- the mask ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['snowball_nrca3', 'snowball_crafted'])
def test_flags_are_those_of_dr05(name):
    case = load_case(name)
    before = case['groupdq_in']
    kept = before.copy()
    after = snowball_wrapper.flag_snowballs(before)
    assert after.dtype == np.uint8
    assert np.array_equal(after, case['groupdq_out'])
    assert np.array_equal(before, kept)


def test_a_snowball_in_a_corner_by_eye():
    plane = np.zeros((64, 64), np.uint8)
    plane[:9, :9] = 4
    plane[:4, :4] = 2                                        # the saturated core
    mask = snowball_wrapper.find_snowballs(plane)
    assert mask[:4, :4].all() and mask[0, 14] and mask[14, 0]
    assert not mask[20:].any() and not mask[:, 20:].any()    # too small for the tier that grows by 35 pixels


@pytest.mark.parametrize('radius', [7, 15])
def test_count_threshold(radius):
    """Exactly the upper median of a disc's pixels, not one less, makes a core."""
    disc = slow_snowballs.disc(radius)
    needed = disc.sum() - disc.sum() // 2
    for count in (needed - 1, needed):
        flags = np.zeros((80, 80), bool)
        flags[40 - radius:41 + radius, 40 - radius:41 + radius][disc] = np.arange(disc.sum()) < count
        assert snowball_wrapper.disc_median(flags, radius)[40, 40] == (count == needed)


def draw_plane(seed, ny, nx, density, balls):
    """A plane with cosmic rays, saturated and odd pixels, and snowballs anywhere, also across the border."""
    rng = np.random.default_rng(seed)
    plane = rng.choice(np.array([0, 1, 2, 4, 5, 6, 20], np.uint8), (ny, nx),
                       p=[1 - density, 0.05 * density, 0.1 * density, 0.7 * density, 0.05 * density,
                          0.05 * density, 0.05 * density])
    y, x = np.ogrid[:ny, :nx]
    for _ in range(balls):
        r = np.hypot(y - rng.integers(-5, ny + 5), x - rng.integers(-5, nx + 5))
        size = rng.uniform(3, 22)
        plane[(r < size) & (rng.random((ny, nx)) < rng.uniform(0.5, 1))] = 4
        plane[r < rng.uniform(0, 0.8) * size] = rng.choice([2, 2, 2, 6])
    return plane


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), ny=st.integers(1, 90), nx=st.integers(1, 90),
       density=st.sampled_from([0, 0.01, 0.1, 0.5, 0.7, 1.0]), balls=st.integers(0, 4))
def test_mask_equals_the_slow_form(seed, ny, nx, density, balls):
    plane = draw_plane(seed, ny, nx, density, balls)
    kept = plane.copy()
    mask = snowball_wrapper.find_snowballs(plane)
    assert mask.dtype == bool and mask.shape == plane.shape
    assert np.array_equal(mask, slow_snowballs.find_snowballs(plane))
    assert np.array_equal(plane, kept)


@pytest.mark.parametrize('value', [0, 2, 4, 6])
@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (15, 16), (48, 31), (100, 130)])
def test_uniform_planes(value, shape):
    plane = np.full(shape, value, np.uint8)
    assert np.array_equal(snowball_wrapper.find_snowballs(plane), slow_snowballs.find_snowballs(plane))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), ny=st.integers(1, 70), nx=st.integers(1, 70))
def test_connected_groups_are_those_of_scipy(seed, ny, nx):
    flags = np.random.default_rng(seed).random((ny, nx)) < 0.2
    labels, number = ndimage.label(flags, np.ones((3, 3)))
    groups = list(snowball_wrapper.connected(flags, 3))
    assert len(groups) == number
    total = np.zeros(flags.shape, int)
    for box, group in groups:
        total[box] += group
        assert len(np.unique(labels[box][group])) == 1
    assert np.array_equal(total, flags)


def test_catalogue_of_a_drawn_snowball(tmp_path):
    groupdq = np.zeros((2, 3, 256, 256), np.uint8)
    y, x = np.ogrid[:256, :256]
    groupdq[1, 2][np.hypot(x - 150, y - 90) <= 20] = 4
    rows, fraction = snowball_wrapper.grow_flags(groupdq)
    (number, integration, group, at_x, at_y, core, grown, pixels), = rows
    assert (number, integration, group) == (1, 1, 2)
    assert math.isclose(at_x, 150) and math.isclose(at_y, 90)
    # the second median filter trims convex edges a little
    assert 19 < core < 20.5 and abs(grown - math.sqrt(pixels / math.pi)) < 0.5
    assert pixels == np.count_nonzero(groupdq == 4) and math.isclose(fraction, pixels / groupdq.size)
    snowball_wrapper.write_catalogue(rows, tmp_path / 'c.ecsv')
    snowball_wrapper.write_regions(rows, tmp_path / 'c.reg')
    table = Table.read(tmp_path / 'c.ecsv')
    assert table.colnames == [name for name, _ in snowball_wrapper.COLUMNS] and len(table) == 1
    assert 'circle(151.00,91.00,' in (tmp_path / 'c.reg').read_text()
    snowball_wrapper.write_catalogue([], tmp_path / 'none.ecsv')
    assert len(Table.read(tmp_path / 'none.ecsv')) == 0


def test_pieces_and_later_groups_are_one_snowball():
    """A saturated core that leaves pieces of a ring, and is flagged in the next group; two others far off."""
    def area(group, x, y, grown=20., integration=0):
        return integration, group, x, y, 5., grown, 300

    areas = [area(1, 100, 100), area(1, 110, 100), area(2, 104, 103, grown=40.), area(2, 900, 100),
             area(4, 100, 100), area(4, 100, 100, integration=1)]
    rows = snowball_wrapper.number_snowballs(areas)
    assert [row[0] for row in rows] == [1, 1, 1, 2, 3, 4] and [row[1:] for row in rows] == areas
    assert snowball_wrapper.count_snowballs(rows) == 4 and snowball_wrapper.count_snowballs([]) == 0


# --- parameter files ---------------------------------------------------------------------------------

def leaves(tree):
    """Parameters in the tree of a parameter file: {'jump.rejection_threshold': 4.0, ...}."""
    flat = dict(tree['parameters'])
    for step in tree['steps']:
        flat |= {f"{step['name']}.{key}": value for key, value in step['parameters'].items()}
    return flat


@pytest.fixture(scope='module')
def parameter_file():
    """Every parameter in detector1_1.7.2.asdf."""
    asdf = pytest.importorskip('asdf')
    with asdf.open(PARAMETERS) as file:
        return leaves(file.tree)


def test_parameter_file_holds_the_defaults_that_the_wrapper_runs_with(parameter_file):
    pipeline = snowball_wrapper.make_pipeline()
    pipeline.ramp_fit.maximum_cores = snowball_wrapper.MAXCORES
    running = snowball_wrapper.flat_parameters(pipeline.get_pars())
    wrong = {}
    for key, value in parameter_file.items():
        if key in REMOVED and (key not in running or running[key] is None):
            continue
        assert key in running
        if running[key] != value:
            wrong[key] = running[key]
    newer = 'rscd.type' not in running
    assert wrong == (CHANGED_DEFAULTS if newer else {})


def test_parameter_file_is_read_and_what_is_gone_is_named(caplog, monkeypatch):
    monkeypatch.setattr(nircam_io.log, 'propagate', True)
    parameters = snowball_wrapper.read_parameters(PARAMETERS)
    newer = 'rscd.type' not in snowball_wrapper.flat_parameters(snowball_wrapper.make_pipeline().get_pars())
    said = ' '.join(record.getMessage() for record in caplog.records if record.name == nircam_io.log.name)
    assert all((name in said) == newer for name in REMOVED)
    assert snowball_wrapper.make_pipeline(parameters).jump.rejection_threshold == 4.0


@pytest.mark.parametrize(('old', 'new', 'named'), [
    ('rejection_threshold: 4.0', 'rejection_threshold: -4.0', 'rejection_threshold'),
    ('skip: false', 'skip: maybe', 'skip'),
    ('calwebb_detector1.Detector1Pipeline', 'calwebb_image2.Image2Pipeline', 'Detector1Pipeline'),
    ('parameters:', 'nonsense:', 'cannot be read'),
])
def test_a_wrong_parameter_file_is_an_error(tmp_path, old, new, named):
    wrong = tmp_path / 'wrong.asdf'
    wrong.write_text(PARAMETERS.read_text().replace(old, new, 1))
    with pytest.raises(nircam_io.ExposureError, match=named):
        snowball_wrapper.read_parameters(wrong)


def test_a_parameter_file_starts_no_program(tmp_path):
    hooked = tmp_path / 'hooked.asdf'
    hooked.write_text(PARAMETERS.read_text().replace('post_hooks: []', f"post_hooks: ['touch {tmp_path}/ran']"))
    parameters = snowball_wrapper.read_parameters(hooked)
    assert not snowball_wrapper.make_pipeline(parameters).jump.post_hooks


# --- whole runs --------------------------------------------------------------------------------------

TWO_PASSES = '''
"""Detector1 up to the ramp fit, the flags grown, the ramps fitted: what the script does in one pass."""
import sys
import numpy as np
from jwst.pipeline import Detector1Pipeline
from jwst.ramp_fitting import RampFitStep
import snowball_wrapper
uncal, out = sys.argv[1:]
pipeline = Detector1Pipeline()
pipeline.ramp_fit.skip = True
ramp = pipeline.run(uncal)
found = np.array(ramp.groupdq)
grown = snowball_wrapper.flag_snowballs(found)
ramp.groupdq = grown.copy()    # the ramp fit of jwst 1.7.2 sets flags in its input
rate, rateints = RampFitStep().run(ramp)
arrays = {f'{kind}_{name}': getattr(model, attribute)
          for kind, model in (('rate', rate), ('rateints', rateints))
          for name, attribute in (('SCI', 'data'), ('ERR', 'err'), ('DQ', 'dq'), ('VAR_POISSON', 'var_poisson'),
                                  ('VAR_RNOISE', 'var_rnoise'))}
np.savez(out, found=found, grown=grown, **arrays)
'''


@pytest.fixture(scope='module')
def exposure(tmp_path_factory):
    """Directory with a raw exposure of two integrations, its CRDS cache, and what the script made of it."""
    directory = tmp_path_factory.mktemp('snowballs')
    told = simulate.write_exposure(directory, groups=3, ints=2, snowballs=8, crowd=0.1)
    done = run_script('snowball_wrapper.py', told['exposure'].name, cwd=directory,
                      CRDS_PATH=str(told['cache'].resolve()))
    assert done.returncode == 0, done.stderr
    return directory, told['exposure'].resolve(), str(told['cache'].resolve()), done.stderr


@pytest.fixture(scope='module')
def two_passes(exposure):
    """Arrays of the same exposure reduced in two passes."""
    directory, uncal, cache, _ = exposure
    out = directory / 'two_passes.npz'
    subprocess.run([sys.executable, '-c', TWO_PASSES, str(uncal), str(out)], check=True, capture_output=True,
                   env=os.environ | {'CRDS_PATH': cache, 'PYTHONPATH': str(ROOT)})
    with np.load(out) as arrays:
        return dict(arrays)


def product(exposure, kind):
    """Path of a product."""
    return exposure[0] / 'calibrated' / f'{DATASET}_{kind}'


@pytest.mark.parametrize('kind', ['rate', 'rateints'])
def test_one_pass_equals_two(exposure, two_passes, kind):
    with fits.open(product(exposure, f'{kind}.fits')) as hdul:
        for name in ('SCI', 'ERR', 'VAR_POISSON', 'VAR_RNOISE', 'DQ'):
            assert np.array_equal(hdul[name].data, two_passes[f'{kind}_{name}'], equal_nan=name != 'DQ'), name


def test_ramp_holds_the_grown_flags(exposure, two_passes):
    groupdq = fits.getdata(product(exposure, 'ramp.fits'), 'GROUPDQ')
    assert np.array_equal(groupdq, two_passes['grown'])
    new = two_passes['grown'] & ~two_passes['found']
    assert new.any() and not (new & ~np.uint8(4)).any()


def test_growth_equals_the_slow_form_around_a_snowball(exposure, two_passes):
    """Nothing beyond 15 + 15 + 35 pixels matters for a pixel, so a window is enough for the slow form."""
    table = Table.read(product(exposure, 'snowballs.ecsv'))
    row = table[np.argmax(table['pixels'])]
    y, x = (int(np.clip(row[name], 120, 1927)) for name in ('y', 'x'))
    window = (row['integration'], row['group'], slice(y - 120, y + 120), slice(x - 120, x + 120))
    inner = slice(65, -65)
    slow = slow_snowballs.find_snowballs(two_passes['found'][window])[inner, inner]
    added = slow & (two_passes['found'][window][inner, inner] & 4 == 0)
    assert added.any()
    grown = two_passes['grown'][window][inner, inner]
    assert np.array_equal(grown & 4 != 0, slow | (two_passes['found'][window][inner, inner] & 4 != 0))


def test_products_and_what_they_say(exposure):
    directory, _, _, said = exposure
    assert sorted(path.name for path in (directory / 'calibrated').iterdir()) == sorted(
        f'{DATASET}_{end}' for end in ('rate.fits', 'rateints.fits', 'ramp.fits', 'snowballs.ecsv', 'snowballs.reg'))
    table = Table.read(product(exposure, 'snowballs.ecsv'))
    groupdq = fits.getdata(product(exposure, 'ramp.fits'), 'GROUPDQ')
    for kind in ('rate', 'rateints', 'ramp'):
        header = fits.getheader(product(exposure, f'{kind}.fits'))
        history = ''.join(header['HISTORY'])
        assert history.count('Snowballs: flags grown; snowball_wrapper.py ') == 1
        assert 'CRDS jwst_0001.pmap' in history and 'code defaults' in history
        assert header['SNOWNUM'] == len(set(table['snowball'])) > 0
        assert 0 < header['SNOWFRAC'] <= np.mean(groupdq & 4 != 0)
        assert header['FILENAME'] == f'{DATASET}_{kind}.fits'
    assert f"{len(set(table['snowball']))} snowballs" in said and 'Traceback' not in said


def test_injected_large_snowballs_are_found(exposure):
    truth = simulate.load_truth(exposure[0] / 'truth.npz').snowballs
    table = Table.read(product(exposure, 'snowballs.ecsv'))
    for ball in truth[truth['core'] > 6]:
        same = (table['integration'] == ball['integration']) & (abs(table['group'] - ball['group']) <= 1)
        assert np.hypot(table['x'] - ball['x'], table['y'] - ball['y'])[same].min() < 0.5 * ball['core']


def test_a_number_in_the_catalogue_is_one_injected_snowball(exposure):
    truth = simulate.load_truth(exposure[0] / 'truth.npz').snowballs
    table = Table.read(product(exposure, 'snowballs.ecsv'))
    pairs = set()
    for row in table:
        later = row['group'] - truth['group']
        near = (truth['integration'] == row['integration']) & (later >= 0) & (later <= 1) \
            & (np.hypot(row['x'] - truth['x'], row['y'] - truth['y']) < row['grown_radius'])
        assert near.any()
        pairs.add((row['snowball'], int(near.argmax())))
    balls = {ball for _, ball in pairs}
    assert len(pairs) == len(set(table['snowball'])) == len(balls)
    # how faint a snowball is seen depends on the jump step of each pipeline; these are by both
    assert balls >= set(np.flatnonzero(truth['core'] > 6))


def test_a_finished_exposure_is_left_alone(exposure):
    directory, uncal, cache, _ = exposure
    before = product(exposure, 'rate.fits').stat()
    debris = directory / 'calibrated' / f'.{DATASET}.tmp'
    debris.mkdir()
    (debris / 'half_a_ramp.fits').write_text('left by a killed process')
    done = run_script('snowball_wrapper.py', uncal, cwd=directory, CRDS_PATH=cache)
    assert done.returncode == 0 and 'left alone' in done.stderr
    assert product(exposure, 'rate.fits').stat().st_mtime_ns == before.st_mtime_ns
    assert not debris.exists()


def test_delinterim_of_several_integrations_keeps_rateints(exposure, tmp_path):
    directory, uncal, cache, _ = exposure
    for kind in ('rate', 'rateints'):
        (tmp_path / f'{DATASET}_{kind}.fits').symlink_to(product(exposure, f'{kind}.fits'))
    (tmp_path / f'{DATASET}_ramp.fits').touch()
    done = run_script('snowball_wrapper.py', '--delinterim', '--output_dir', tmp_path, uncal, cwd=directory,
                      CRDS_PATH=cache)
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {f'{DATASET}_rate.fits', f'{DATASET}_rateints.fits'}


# --- what can go wrong -------------------------------------------------------------------------------

def test_a_rate_image_of_someone_else_is_not_replaced(exposure, tmp_path):
    directory, uncal, cache, _ = exposure
    other = tmp_path / f'{DATASET}_rate.fits'
    fits.PrimaryHDU().writeto(other)
    before = other.read_bytes()
    done = run_script('snowball_wrapper.py', '--output_dir', tmp_path, uncal, cwd=directory, CRDS_PATH=cache)
    assert done.returncode == 1 and 'not made by this script' in done.stderr
    assert other.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('environment', [{'CRDS_CONTEXT': 'jwst_9999.pmap'}, {'CRDS_PATH': 'nowhere'}])
def test_crds_trouble_is_one_line_and_leaves_nothing(exposure, tmp_path, environment):
    _, uncal, cache, _ = exposure
    done = run_script('snowball_wrapper.py', uncal, cwd=tmp_path, **{'CRDS_PATH': cache} | environment)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    errors = [line for line in done.stderr.splitlines() if 'ERROR' in line]
    assert len(errors) == 1 and 'NRCA3 F200W' in errors[0] and 'CRDS_CONTEXT' in errors[0]
    assert not (tmp_path / 'calibrated').exists()


def test_bad_input_does_not_stop_the_others(exposure, tmp_path):
    directory, uncal, cache, _ = exposure
    cut = tmp_path / 'cut_uncal.fits'
    cut.write_bytes(uncal.read_bytes()[:1000000])
    empty = tmp_path / 'empty_uncal.fits'
    empty.touch()
    wrong = tmp_path / 'wrong_uncal.fits'
    wrong.symlink_to(product(exposure, 'rate.fits'))
    done = run_script('snowball_wrapper.py', 'missing_uncal.fits', cut, empty, wrong, product(exposure, 'rate.fits'),
                      uncal, cwd=directory, CRDS_PATH=cache)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    for name, problem in (('missing', 'no such file'), ('cut', 'truncated'), ('empty', 'is empty'),
                          ('wrong', 'rate product'), ('_rate.fits', 'not named'), (DATASET, 'left alone')):
        assert any(name in line and problem in line for line in done.stderr.splitlines()), problem


def test_wrong_parameter_file_is_misuse(tmp_path):
    done = run_script('snowball_wrapper.py', '--params', 'missing.asdf', 'x_uncal.fits', cwd=tmp_path)
    assert done.returncode == 2 and 'missing.asdf' in done.stderr and 'Traceback' not in done.stderr


def test_ctrl_c_while_the_parameter_file_is_read_is_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt
    monkeypatch.setattr(snowball_wrapper, 'read_parameters', interrupted)
    with pytest.raises(SystemExit, match='130'):
        snowball_wrapper.main(['--params', str(PARAMETERS), 'x_uncal.fits'])
    assert capsys.readouterr().err.strip().endswith('interrupted')


def test_a_name_that_no_header_holds_is_said_before_the_pipeline_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(snowball_wrapper, 'open_exposure', lambda *_: pytest.fail('was opened'))
    (tmp_path / 'é_uncal.fits').touch()
    assert snowball_wrapper.main([str(tmp_path / 'é_uncal.fits'), '--output_dir', str(tmp_path / 'out')]) == 1
    assert 'plain ASCII' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_what_this_script_did_not_make_is_replaced_only_when_told(tmp_path):
    rate = tmp_path / 'x_rate.fits'
    assert not any(snowball_wrapper.finished(rate, redo) for redo in (False, True, 'done'))
    rate.touch()
    assert not snowball_wrapper.finished(rate, True)
    with pytest.raises(nircam_io.ExposureError, match='is empty'):
        snowball_wrapper.finished(rate, 'done')
    rate.unlink()
    fits.PrimaryHDU().writeto(rate)
    for redo in False, 'done':
        with pytest.raises(nircam_io.ExposureError, match='was not made by this script'):
            snowball_wrapper.finished(rate, redo)
    assert not snowball_wrapper.finished(rate, True)
    fits.setval(rate, 'HISTORY', value=snowball_wrapper.ENTRY)
    assert [snowball_wrapper.finished(rate, redo) for redo in (False, 'done', True)] == [True, False, False]


# --- the command line --------------------------------------------------------------------------------

def test_settings_are_the_defaults_of_the_options(monkeypatch):
    for name, value in (('UNCALDIR', 'here'), ('OUTPUTDIR', 'there'), ('MAXCORES', 'half'), ('DELINTERIM', True),
                        ('PARAMFILE', 'a.asdf')):
        monkeypatch.setattr(snowball_wrapper, name, value)
    options = snowball_wrapper.build_parser().parse_args(['a_uncal.fits'])
    assert options == argparse.Namespace(uncals=['a_uncal.fits'], input_dir=Path('here'), output_dir=Path('there'),
                                         maxcores='half', delinterim=True, params=Path('a.asdf'), redo=False)
    assert not snowball_wrapper.build_parser().parse_args(['--no-delinterim', 'a_uncal.fits']).delinterim


def test_help_needs_no_heavy_import():
    code = 'import sys, snowball_wrapper as s; s.build_parser().format_help(); ' \
           'sys.exit(any(m in sys.modules for m in ("numpy", "scipy", "astropy", "jwst", "crds")))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0
