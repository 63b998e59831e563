"""snowball_wrapper.py: the mask against its slow form and the DR0.5 results, and whole runs of the script."""

import contextlib
import io
import math
from pathlib import Path
from types import SimpleNamespace

import simulation
import slow_snowballs
import snowball_wrapper
from accuracy import score_snowballs
from conftest import DATASET, RATE, UNCAL, load_case
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


@pytest.mark.parametrize(('rims', 'group', 'seen'), [((3, 3), 1, [1, 2]), ((7, 3), 1, [1, 2]), ((3, 7), 1, [1, 2]),
                                                     ((3, 3), 0, [1])])    # no jump can be seen in the first group
def test_thin_rings_about_a_core_that_saturates_within_a_group(rims, group, seen):
    groupdq, r = snowball_within(rims, group=group)
    flagged, rows, _ = snowball_wrapper.flag_snowballs(groupdq)
    assert (flagged[0, seen][:, r <= 12] & 4).all()
    assert np.flatnonzero((flagged & 4).any(axis=(0, 2, 3))).tolist() == seen
    assert [row[:3] for row in rows] == [(1, 0, group) for group in seen]


def test_a_snowball_without_a_saturated_core_is_flagged_in_both_groups_that_show_it():
    """Where another pixel tells that groups are means of frames."""
    groupdq, r = snowball_within((9, 5), core=-1)               # jumps within 8 pixels, then within 4
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

@pytest.fixture(scope='module')
def run(field, tmp_path_factory):
    """The script run on a raw exposure of two integrations.

    `directory`; `truth`; `found`, GROUPDQ as the jump step left it; what was `said`; `again`, rate and rateints by the
    ramp fit alone, of the ramp product.
    """
    from jwst.ramp_fitting import RampFitStep
    directory, found, said = tmp_path_factory.mktemp('snowballs'), [], io.StringIO()
    data, truth = simulation.exposure(groups=3, ints=2, snowballs=5, crowd=0.1, subarray='SUB640')
    simulation.write_uncal(data, truth, directory / 'uncals' / UNCAL)
    flag_snowballs = snowball_wrapper.flag_snowballs
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(snowball_wrapper, 'flag_snowballs',
                      lambda groupdq: (found.append(np.array(groupdq)), flag_snowballs(groupdq))[1])
        patch.chdir(directory)
        for key, value in simulation.crds_environment(field / 'crds_cache').items():
            patch.setenv(key, value)
        assert snowball_wrapper.main([UNCAL]) == 0, said.getvalue()
        again = RampFitStep().run(str(directory / 'calibrated' / f'{DATASET}_ramp.fits'))
    return SimpleNamespace(directory=directory, truth=truth, found=found[0], said=said.getvalue(),
                           again=dict(zip(('rate', 'rateints'), again, strict=True)))


def product(run, kind):
    """Path of a product."""
    return run.directory / 'calibrated' / f'{DATASET}_{kind}'


@pytest.mark.parametrize('kind', ['rate', 'rateints'])
def test_one_pass_equals_two(run, kind):
    """The ramps are fitted once, with the grown flags: fitting the ramp product again gives the same."""
    with fits.open(product(run, f'{kind}.fits')) as hdul:
        for name, attribute in (('SCI', 'data'), ('ERR', 'err'), ('VAR_POISSON', 'var_poisson'),
                                ('VAR_RNOISE', 'var_rnoise'), ('DQ', 'dq')):
            np.testing.assert_array_equal(hdul[name].data, getattr(run.again[kind], attribute), name)


def test_ramp_holds_flags_grown_as_by_the_slow_form(run):
    """Nothing beyond 15 + 15 + 35 pixels matters for a pixel, so a window is enough for the slow form."""
    table = Table.read(product(run, 'snowballs.ecsv'))
    row = table[np.argmax(table['pixels'])]
    y, x = (int(np.clip(row[name], 120, 520)) for name in ('y', 'x'))
    window, inner = np.s_[:, y - 120:y + 120, x - 120:x + 120], np.s_[65:-65, 65:-65]
    integration, group, found = row['integration'], row['group'], run.found[row['integration']]
    groupdq = fits.getdata(product(run, 'ramp.fits'), 'GROUPDQ')
    planes, within = found[window].copy(), np.argwhere(saturated_within(found))
    if len(within):                                     # one pixel tells it to the whole ramp
        planes[:, 0, 0] = found[:, within[0][1], within[0][2]]
    slow, flagged = slow_snowballs.find_in_group(planes, group)[inner], planes[group][inner] & 4 != 0
    assert (slow & ~flagged).any()
    assert np.array_equal(groupdq[integration][window][group][inner] & 4 != 0, slow | flagged)
    assert np.array_equal(groupdq, snowball_wrapper.flag_snowballs(run.found)[0])
    assert np.array_equal(groupdq & ~np.uint8(4), run.found & ~np.uint8(4))


def saturated_within(planes):
    """Pixels that the pipeline says saturate within a group, (..., ngroups - 1, ny, nx); jwst 1.7.2 says none."""
    return (planes[..., :-1, :, :] == 1) & (planes[..., 1:, :, :] == 2)


@pytest.mark.parametrize('later', [0, 1])
def test_true_jumps_are_flagged_in_the_group_of_a_snowball_and_the_next(run, later):
    if not saturated_within(run.found).any():
        pytest.skip('this pipeline does not tell what saturates within a group')
    scores = score_snowballs(run.truth, fits.getdata(product(run, 'ramp.fits'), 'GROUPDQ'), later)
    assert min(scores.values()) >= 0.995, scores


def test_products_and_what_they_say(run):
    assert sorted(path.name for path in (run.directory / 'calibrated').iterdir()) == sorted(
        f'{DATASET}_{end}' for end in ('rate.fits', 'rateints.fits', 'ramp.fits', 'snowballs.ecsv', 'snowballs.reg',
                             'detector1.log'))
    table = Table.read(product(run, 'snowballs.ecsv'))
    groupdq = fits.getdata(product(run, 'ramp.fits'), 'GROUPDQ')
    for kind in ('rate', 'rateints', 'ramp'):
        header = fits.getheader(product(run, f'{kind}.fits'))
        history = ''.join(header['HISTORY'])
        assert history.count('Snowballs: flags grown; snowball_wrapper.py ') == 1
        assert 'CRDS jwst_0001.pmap' in history and 'code defaults' in history
        assert header['SNOWNUM'] == len(set(table['snowball'])) > 0
        assert 0 < header['SNOWFRAC'] <= np.mean(groupdq & 4 != 0)
        assert header['FILENAME'] == f'{DATASET}_{kind}.fits'
    assert f"{len(set(table['snowball']))} snowballs" in run.said
    regions = product(run, 'snowballs.reg').read_text()
    assert snowball_wrapper.ENTRY in regions
    assert any(snowball_wrapper.ENTRY in line for line in table.meta['comments'])
    for row in table:
        assert f"text={{{row['snowball']}: integration {row['integration']} group {row['group']}}}" in regions


def test_a_parameter_file_that_skips_the_jump_step_is_refused(tmp_path):
    options = SimpleNamespace(parameters={'steps': {'jump': {'skip': True}}}, params=Path('mine.asdf'))
    with pytest.raises(ExposureError, match='mine.asdf skips the jump step'):
        snowball_wrapper.run_with_grown_flags(tmp_path / 'x_uncal.fits', tmp_path, options)


def test_each_step_is_told_with_its_time_and_the_whole_log_is_kept(run):
    for step in 'dq_init', 'saturation', 'superbias', 'jump', 'ramp_fit':
        assert sum(f'{UNCAL}: {step}, ' in line and line.endswith(' s') for line in run.said.splitlines()) == 1
    log = product(run, 'detector1.log').read_text()
    assert 'Step jump done' in log and 'jwst_nircam_gain' in log and len(log.splitlines()) > 50
    assert f'calibrated/{RATE}: written' in run.said


def test_large_snowballs_are_found_and_a_number_is_one_of_them(run):
    truth = run.truth.snowballs
    table = Table.read(product(run, 'snowballs.ecsv'))
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


def test_a_finished_exposure_is_left_alone(run, monkeypatch, capsys):
    monkeypatch.chdir(run.directory)
    before = product(run, 'rate.fits').stat()
    debris = run.directory / 'calibrated' / f'.{DATASET}.tmp'
    debris.mkdir()
    (debris / 'half_a_ramp.fits').write_text('left by a killed process')
    assert snowball_wrapper.main([UNCAL]) == 0 and 'left alone' in capsys.readouterr().err
    assert product(run, 'rate.fits').stat().st_mtime_ns == before.st_mtime_ns and not debris.exists()
    monkeypatch.setattr(snowball_wrapper, 'workspace', None)            # which wants a directory to write in
    assert snowball_wrapper.main([UNCAL]) == 0
    monkeypatch.setattr(snowball_wrapper, 'SAME', ('FILENAME',))        # of another exposure of this name
    assert snowball_wrapper.main([UNCAL]) == 1 and 'was made of another exposure' in capsys.readouterr().err


def test_delinterim_of_several_integrations_keeps_rateints(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.directory)
    for kind in ('rate', 'rateints'):
        (tmp_path / f'{DATASET}_{kind}.fits').symlink_to(product(run, f'{kind}.fits'))
    (tmp_path / f'{DATASET}_ramp.fits').touch()
    assert snowball_wrapper.main(['--delinterim', '--output_dir', str(tmp_path), UNCAL]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f'{DATASET}_rate.fits', f'{DATASET}_rateints.fits'}


# --- what can go wrong -------------------------------------------------------------------------------

def test_ctrl_c_while_the_parameter_file_is_read_is_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt
    monkeypatch.setattr(snowball_wrapper, 'read_parameters', interrupted)
    with pytest.raises(SystemExit, match='130'):
        snowball_wrapper.main(['--params', 'a.asdf', 'x_uncal.fits'])
    assert capsys.readouterr().err.strip().endswith('interrupted')


@pytest.mark.parametrize('name, words', [('é', 'plain ASCII'), ('a$HOME', 'a variable'), ('', 'not named <dataset>')])
def test_a_name_that_cannot_be_kept_is_said_before_the_pipeline_runs(tmp_path, capsys, name, words):
    (tmp_path / f'{name}_uncal.fits').write_bytes(b'would be another error')
    assert snowball_wrapper.main([str(tmp_path / f'{name}_uncal.fits'), '--output_dir', str(tmp_path / 'out')]) == 1
    assert words in capsys.readouterr().err and not (tmp_path / 'out').exists()


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
