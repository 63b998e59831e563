"""snowball_wrapper.py: the mask against its slow form and the DR0.5 results, and whole runs of the script."""

import math
import os
import subprocess
import sys

import simulation
import slow_snowballs
import snowball_wrapper
from accuracy import score_snowballs
from conftest import DATASET, ROOT, load_case, run_script
from stage1.exposure import ExposureError

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

# --- the mask ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['snowball_nrca3', 'snowball_crafted'])
def test_flags_are_those_of_dr05(name):
    case = load_case(name)
    before = case['groupdq_in']
    kept = before.copy()
    after, _, fraction = snowball_wrapper.flag_snowballs(before)
    assert np.mean(after != before) <= fraction <= np.mean(after & 4 > 0)
    assert after.dtype == np.uint8
    assert np.array_equal(after, case['groupdq_out'])
    assert np.array_equal(before, kept)


def test_a_snowball_in_a_corner_by_eye():
    plane = np.zeros((64, 64), np.uint8)
    plane[:9, :9] = 4
    plane[:4, :4] = 2                                        # the saturated core
    mask, _ = snowball_wrapper.grow_snowballs(snowball_wrapper.find_snowballs(plane))
    assert mask[:4, :4].all() and mask[0, 14] and mask[14, 0]
    assert not mask[20:].any() and not mask[:, 20:].any()    # too small for the tier that grows by 35 pixels


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
    mask, _ = snowball_wrapper.grow_snowballs(snowball_wrapper.find_snowballs(plane))
    assert mask.dtype == bool and mask.shape == plane.shape
    assert np.array_equal(mask, slow_snowballs.find_snowballs(plane))
    assert np.array_equal(plane, kept)


@pytest.mark.parametrize('value', [0, 2, 4, 6])
@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (15, 16), (48, 31), (100, 130)])
def test_uniform_planes(value, shape):
    plane = np.full(shape, value, np.uint8)
    mask, _ = snowball_wrapper.grow_snowballs(snowball_wrapper.find_snowballs(plane))
    assert np.array_equal(mask, slow_snowballs.find_snowballs(plane))


def draw_integration(seed, ngroups, ny, nx, within, bad):
    """Planes with snowballs and stars that saturate within a group, and pixels that are bad throughout."""
    rng = np.random.default_rng(seed)
    planes = np.stack([draw_plane(seed + group, ny, nx, 0.02, 1) for group in range(ngroups)])
    y, x = np.ogrid[:ny, :nx]
    for _ in range(within):
        group, r = rng.integers(ngroups), np.hypot(y - rng.integers(ny), x - rng.integers(nx))
        core, rim = rng.uniform(1, 12), rng.uniform(0, 7, 2)
        for g in range(group, ngroups):
            if g < group + 2:
                planes[g][(r < core + rim[g - group]) & (rng.random((ny, nx)) < 0.95)] = 4
            planes[g][r < core] = 2 if g > group else rng.choice([1, 1, 2, 4])
    planes[:, rng.random((ny, nx)) < bad] |= 1
    return planes


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), ngroups=st.integers(1, 4), ny=st.integers(1, 60), nx=st.integers(1, 60),
       within=st.integers(0, 3), bad=st.sampled_from([0, 0.02]))
def test_flags_within_groups_equal_the_slow_form(seed, ngroups, ny, nx, within, bad):
    groupdq = draw_integration(seed, ngroups, ny, nx, within, bad)[None]
    kept = groupdq.copy()
    flagged = snowball_wrapper.flag_snowballs(groupdq)[0]
    assert np.array_equal(flagged, slow_snowballs.flag_snowballs(groupdq))
    assert np.array_equal(groupdq, kept) and not ((flagged ^ groupdq) & ~np.uint8(4)).any()


def snowball_within(rims, core=6, group=1):
    """GROUPDQ (1, 4, 128, 128) of a core that saturates within `group`, with `rims` of jumps then and one later."""
    groupdq = np.zeros((1, 4, 128, 128), np.uint8)
    y, x = np.ogrid[:128, :128]
    r = np.hypot(y - 64, x - 64)
    for later, rim in enumerate(rims):
        groupdq[0, group + later][r <= core + rim] = 4 * (group + later > 0)
    groupdq[0, group][r <= core], groupdq[0, group + 1:, r <= core] = 1, 2
    return groupdq, r


@pytest.mark.parametrize('rims', [(3, 3), (7, 3), (3, 7)])
def test_thin_rings_about_a_core_that_saturates_within_a_group(rims):
    groupdq, r = snowball_within(rims)
    flagged = snowball_wrapper.flag_snowballs(groupdq)[0] & 4 > 0
    assert flagged[0, 1:3, r <= 12].all() and not flagged[0, [0, 3]].any()
    _, rows, _ = snowball_wrapper.flag_snowballs(groupdq)
    assert [row[:3] for row in rows] == [(1, 0, 1), (1, 0, 2)]


def test_a_snowball_in_the_first_group_is_flagged_in_the_second():
    groupdq, r = snowball_within((3, 3), group=0)      # no jump can be seen in the first
    flagged = snowball_wrapper.flag_snowballs(groupdq)[0] & 4 > 0
    assert flagged[0, 1, r <= 12].all() and not flagged[0, 2:].any() and not flagged[0, 0].any()


def test_a_snowball_without_a_saturated_core_is_flagged_in_both_groups_that_show_it():
    """Where another pixel tells that groups are means of frames."""
    groupdq = np.zeros((1, 4, 128, 128), np.uint8)
    y, x = np.ogrid[:128, :128]
    r = np.hypot(y - 64, x - 64)
    groupdq[0, 1][r <= 8], groupdq[0, 2][r <= 4] = 4, 4
    plain = snowball_wrapper.flag_snowballs(groupdq)[0] & 4 > 0
    assert plain[0, 1, r <= 10].all() and not plain[0, 2, r > 4].any()
    groupdq[0, 1, 3, 3], groupdq[0, 2:, 3, 3] = 1, 2
    flagged = snowball_wrapper.flag_snowballs(groupdq)[0] & 4 > 0
    assert flagged[0, 1:3, r <= 10].all() and not flagged[0, [0, 3]].any()


def test_stars_and_bad_pixels_are_no_snowballs():
    """A star saturates without a rim of jumps; bad pixels are DO_NOT_USE throughout, and may saturate as well."""
    star, _ = snowball_within((0, 0), core=9)
    assert np.array_equal(snowball_wrapper.flag_snowballs(star)[0], star)
    bad, _ = snowball_within((3, 3))
    bad[:, 2:][bad[:, 2:] == 2] = 3
    assert np.array_equal(snowball_wrapper.flag_snowballs(bad)[0], bad)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), ngroups=st.integers(1, 4))
def test_ramps_in_which_nothing_saturates_within_a_group_are_flagged_as_in_the_paper(seed, ngroups):
    planes = draw_integration(seed, ngroups, 60, 50, 2, 0.01)
    for plane, after in zip(planes[-2::-1], planes[:0:-1], strict=True):
        plane[(plane == 1) & (after == 2)] = 2
    expected = [plane | np.uint8(4) * slow_snowballs.find_snowballs(plane) for plane in planes]
    assert np.array_equal(snowball_wrapper.flag_snowballs(planes[None])[0][0], expected)


def test_catalogue_of_a_drawn_snowball(tmp_path):
    groupdq = np.zeros((2, 3, 256, 256), np.uint8)
    y, x = np.ogrid[:256, :256]
    groupdq[1, 2][np.hypot(x - 150, y - 90) <= 20] = 4
    groupdq, rows, fraction = snowball_wrapper.flag_snowballs(groupdq)
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


# --- whole runs --------------------------------------------------------------------------------------

RECORDED = '''
"""The command, with a copy of the flags that the jump step left; then the ramp fit alone, of the ramp product."""
import sys
import numpy as np
import snowball_wrapper
flag_snowballs, found = snowball_wrapper.flag_snowballs, []
snowball_wrapper.flag_snowballs = lambda groupdq: (found.append(np.array(groupdq)), flag_snowballs(groupdq))[1]
status = snowball_wrapper.main(sys.argv[1:2])
if status == 0:
    from jwst.ramp_fitting import RampFitStep
    fitted = zip(('rate', 'rateints'), RampFitStep().run(sys.argv[2]))
    arrays = {f'{kind}_{name}': getattr(model, attribute) for kind, model in fitted
              for name, attribute in (('SCI', 'data'), ('ERR', 'err'), ('DQ', 'dq'), ('VAR_POISSON', 'var_poisson'),
                                      ('VAR_RNOISE', 'var_rnoise'))}
    np.savez('second_pass.npz', found=found[0], **arrays)
sys.exit(status)
'''


@pytest.fixture(scope='module')
def exposure(tmp_path_factory):
    """Directory with a raw exposure of two integrations, its CRDS cache, and what the script made of it."""
    directory = tmp_path_factory.mktemp('snowballs')
    told = simulation.write_exposure(directory, groups=3, ints=2, snowballs=8, crowd=0.1)
    cache = str(told['cache'].resolve())
    done = subprocess.run([sys.executable, '-c', RECORDED, told['exposure'].name, f'calibrated/{DATASET}_ramp.fits'],
                          cwd=directory, env=os.environ | {'CRDS_PATH': cache, 'PYTHONPATH': str(ROOT)}, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory, told['exposure'].resolve(), cache, done.stderr


@pytest.fixture(scope='module')
def second_pass(exposure):
    """`found`, GROUPDQ as the jump step left it, and rate and rateints by the ramp fit alone."""
    with np.load(exposure[0] / 'second_pass.npz') as arrays:
        return dict(arrays)


def product(exposure, kind):
    """Path of a product."""
    return exposure[0] / 'calibrated' / f'{DATASET}_{kind}'


@pytest.mark.parametrize('kind', ['rate', 'rateints'])
def test_one_pass_equals_two(exposure, second_pass, kind):
    """The ramps are fitted once, with the grown flags: fitting the ramp product again gives the same."""
    with fits.open(product(exposure, f'{kind}.fits')) as hdul:
        for name in ('SCI', 'ERR', 'VAR_POISSON', 'VAR_RNOISE', 'DQ'):
            assert np.array_equal(hdul[name].data, second_pass[f'{kind}_{name}'], equal_nan=name != 'DQ'), name


def test_ramp_holds_flags_grown_as_by_the_slow_form(exposure, second_pass):
    """Nothing beyond 15 + 15 + 35 pixels matters for a pixel, so a window is enough for the slow form."""
    table = Table.read(product(exposure, 'snowballs.ecsv'))
    row = table[np.argmax(table['pixels'])]
    y, x = (int(np.clip(row[name], 120, 1927)) for name in ('y', 'x'))
    window, inner = np.s_[:, y - 120:y + 120, x - 120:x + 120], np.s_[65:-65, 65:-65]
    integration, group, found = row['integration'], row['group'], second_pass['found'][row['integration']]
    groupdq = fits.getdata(product(exposure, 'ramp.fits'), 'GROUPDQ')
    planes, within = found[window].copy(), np.argwhere(saturated_within(found))
    if len(within):                                     # one pixel tells it to the whole ramp
        planes[:, 0, 0] = found[:, within[0][1], within[0][2]]
    slow, flagged = slow_snowballs.find_in_group(planes, group)[inner], planes[group][inner] & 4 != 0
    assert (slow & ~flagged).any()
    assert np.array_equal(groupdq[integration][window][group][inner] & 4 != 0, slow | flagged)
    assert np.array_equal(groupdq, snowball_wrapper.flag_snowballs(second_pass['found'])[0])
    assert np.array_equal(groupdq & ~np.uint8(4), second_pass['found'] & ~np.uint8(4))


def saturated_within(planes):
    """Pixels that the pipeline says saturate within a group, (..., ngroups - 1, ny, nx); jwst 1.7.2 says none."""
    return (planes[..., :-1, :, :] == 1) & (planes[..., 1:, :, :] == 2)


@pytest.mark.parametrize('later', [0, 1])
def test_true_jumps_are_flagged_in_the_group_of_a_snowball_and_the_next(exposure, second_pass, later):
    if not saturated_within(second_pass['found']).any():
        pytest.skip('this pipeline does not tell what saturates within a group')
    truth = simulation.load_truth(exposure[0] / 'truth.npz')
    scores = score_snowballs(truth, fits.getdata(product(exposure, 'ramp.fits'), 'GROUPDQ'), later)
    assert min(scores.values()) >= 0.995, scores


def test_products_and_what_they_say(exposure):
    directory, _, _, said = exposure
    assert sorted(path.name for path in (directory / 'calibrated').iterdir()) == sorted(
        f'{DATASET}_{end}' for end in ('rate.fits', 'rateints.fits', 'ramp.fits', 'snowballs.ecsv', 'snowballs.reg',
                             'detector1.log'))
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


def test_large_snowballs_are_found_and_a_number_is_one_of_them(exposure):
    truth = simulation.load_truth(exposure[0] / 'truth.npz').snowballs
    table = Table.read(product(exposure, 'snowballs.ecsv'))
    pairs = set()
    for row in table:
        later = row['group'] - truth['group']
        near = (truth['integration'] == row['integration']) & (later >= 0) & (later <= 1) \
            & (np.hypot(row['x'] - truth['x'], row['y'] - truth['y']) < np.maximum(row['grown_radius'], truth['halo']))
        assert near.any()
        pairs.add((row['snowball'], int(near.argmax())))
    # what landed within the first group shows in pieces under jwst 1.7.2
    pairs = {(number, ball) for number, ball in pairs if truth['group'][ball] > 0}
    assert len(pairs) == len({number for number, _ in pairs}) == len({ball for _, ball in pairs})
    # how faint a snowball is seen depends on the jump step; these are always
    for ball in truth[(truth['core'] > 6) & (truth['group'] > 0)]:
        same = (table['integration'] == ball['integration']) & (abs(table['group'] - ball['group']) <= 1)
        assert np.hypot(table['x'] - ball['x'], table['y'] - ball['y'])[same].min() < 0.5 * ball['core']


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

@pytest.mark.parametrize('environment', [{'CRDS_CONTEXT': 'jwst_9999.pmap'}, {'CRDS_PATH': 'nowhere'}])
def test_crds_trouble_is_one_line_and_leaves_no_file(exposure, tmp_path, environment):
    _, uncal, cache, _ = exposure
    done = run_script('snowball_wrapper.py', uncal, cwd=tmp_path, **{'CRDS_PATH': cache} | environment)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    errors = [line for line in done.stderr.splitlines() if 'ERROR' in line]
    assert len(errors) == 1 and 'NRCA3 F200W' in errors[0] and 'CRDS_CONTEXT' in errors[0]
    assert not list(tmp_path.glob('calibrated/*'))


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
                          ('wrong', 'rate product'), ('_rate.fits', 'give the raw exposure'), (DATASET, 'left alone')):
        assert any(name in line and problem in line for line in done.stderr.splitlines()), problem


def test_ctrl_c_while_the_parameter_file_is_read_is_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt
    monkeypatch.setattr(snowball_wrapper, 'read_parameters', interrupted)
    with pytest.raises(SystemExit, match='130'):
        snowball_wrapper.main(['--params', 'a.asdf', 'x_uncal.fits'])
    assert capsys.readouterr().err.strip().endswith('interrupted')


def test_a_name_that_no_header_holds_is_said_before_the_pipeline_runs(tmp_path, capsys):
    (tmp_path / 'é_uncal.fits').write_bytes(b'would be another error')
    assert snowball_wrapper.main([str(tmp_path / 'é_uncal.fits'), '--output_dir', str(tmp_path / 'out')]) == 1
    assert 'plain ASCII' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_what_this_script_did_not_make_is_replaced_only_when_told(tmp_path):
    rate = tmp_path / 'x_rate.fits'
    once, again = (snowball_wrapper.build_parser().parse_args(['x', *words]) for words in ([], ['--redo']))
    assert not snowball_wrapper.finished(rate, once) and not snowball_wrapper.finished(rate, again)
    bare = fits.PrimaryHDU().header.tostring().encode()
    for content, problem in ((b'', 'is empty'), (bare, 'was not made by this script')):
        rate.write_bytes(content)
        with pytest.raises(ExposureError, match=problem):
            snowball_wrapper.finished(rate, once)
        assert not snowball_wrapper.finished(rate, again)
    fits.setval(rate, 'HISTORY', value=snowball_wrapper.ENTRY)
    assert snowball_wrapper.finished(rate, once) and not snowball_wrapper.finished(rate, again)


# --- the command line --------------------------------------------------------------------------------

def test_help_needs_no_heavy_import():
    code = 'import sys, snowball_wrapper as s; s.build_parser().format_help(); ' \
           'sys.exit(any(m in sys.modules for m in ("numpy", "scipy", "astropy", "jwst", "crds")))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0
