"""The simulator: what it returns as truth is what its images hold."""

import simulation
from accuracy import rms
from simulation import AMPS, NX, NY, detector, rate_scene, reference_pixels
from simulation.frame import TFRAME, TGROUP

import numpy as np
import pytest
from astropy.io import fits


@pytest.fixture(scope='module')
def scene():
    return rate_scene(seed=11, wisp=0.6)


@pytest.fixture(scope='module')
def raw():
    return simulation.exposure(seed=11, groups=3, ints=2, snowballs=6, wisp=0.6)


def same(one, two, *names):
    for name in names:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), name)


def test_a_seed_gives_one_scene(scene):
    again, other = rate_scene(seed=11, wisp=0.6), rate_scene(seed=12, wisp=0.6)
    same(again, scene, 'sci', 'err', 'dq', 'source', 'true_stripes', 'template')
    same(other, scene, 'flat', 'wisp_unit', 'template', 'bad', 'hot')         # the detector's own
    assert not np.array_equal(other.source, scene.source)


def test_an_option_changes_only_what_it_names(scene):
    np.testing.assert_allclose(scene.light - rate_scene(seed=11).light, scene.wisp_light, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(scene.wisp_light, 0.6 * scene.flat * scene.wisp_unit, rtol=1e-5)
    plain, crowded = rate_scene(seed=11, wisp=0.6, stripes=False), rate_scene(seed=11, crowd=4, wisp=0.6)
    assert not plain.pattern.any()
    np.testing.assert_allclose((scene.sci - plain.sci)[scene.good], scene.pattern[scene.good], atol=1e-3)
    same(plain, scene, 'err')
    assert len(crowded.galaxies) == 4 * len(scene.galaxies) == 2800
    steps = rate_scene(seed=11, wisp=0.6, offsets=0.01).row_pattern - scene.row_pattern
    assert np.ptp(steps, axis=0) == pytest.approx(0, abs=1e-7) and rms(steps) == pytest.approx(0.01, rel=0.5)
    same(crowded, scene, 'extended', 'stars', 'probes', 'true_stripes')


def test_noise_is_what_err_says(scene):
    quiet = scene.good & (scene.dq == 0)
    assert np.median(scene.err[quiet]) == pytest.approx(0.0119, rel=0.02)
    pull = ((scene.sci - scene.light - scene.pattern) / scene.err)[quiet]
    assert abs(pull.mean()) < 0.003 and pull.std() == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize('seed', [1, 2])
def test_pattern_is_at_the_measured_level(seed):
    stripes, rows, columns = detector.stripe_pattern(np.random.default_rng(seed))
    pattern = np.where(reference_pixels(), np.nan, stripes + columns)
    assert rms(rows) == pytest.approx(4.0e-3, abs=0.15e-3)
    assert rms(np.nanmean(pattern[4:-4, 4:-4], axis=0)) == pytest.approx(1.2e-3, abs=0.05e-3)
    assert rms(np.nanmean(pattern.reshape(64, 32, 64, 32), axis=(1, 3))) == pytest.approx(2.2e-3, abs=0.2e-3)
    for amp in range(4):
        np.testing.assert_allclose(rows[:, amp], stripes[:, AMPS[amp]].mean(axis=1))
    correlation = np.corrcoef(rows.T)[np.triu_indices(4, 1)]
    assert correlation.mean() == pytest.approx(detector.COMMON_STRIPES**2, abs=0.08)


def test_amplifiers_are_read_in_alternate_directions():
    stripes, _, _ = detector.stripe_pattern(np.random.default_rng(1))
    a, b = (amp - amp.mean(axis=1, keepdims=True) for amp in (stripes[4:-4, 8:504], stripes[4:-4, 520:1016]))
    assert np.mean(a * b[:, ::-1]) > 5 * abs(np.mean(a * b))


def test_undefined_pixels(scene):
    undefined = scene.dq & simulation.DO_NOT_USE > 0
    assert np.array_equal(np.isnan(scene.sci), undefined)
    assert not scene.err[undefined].any() and not scene.var_poisson[undefined].any()
    old = rate_scene(seed=11, wisp=0.6, undefined='finite')
    assert np.isfinite(old.sci).all() and 1000 < np.sum(old.sci == 0) < 6000
    same(old, scene, 'dq')
    np.testing.assert_array_equal(old.sci[scene.good], scene.sci[scene.good])
    with pytest.raises(ValueError, match='zero'):
        rate_scene(undefined='zero')


def test_ramp_rises_by_the_truth(raw):
    data, truth = raw
    assert data.shape == (2, 3, NY, NX) and data.dtype == np.uint16
    difference = data[:, 1:].astype(int) - data[:, :-1]
    assert np.abs(difference[..., reference_pixels()]).max() <= 4        # reference pixels do not see light
    assert not np.array_equal(data[0], data[1])
    slope = (data[:, 2].astype(np.float32) - data[:, 0]).mean(axis=0) / (2 * TGROUP)
    quiet = truth.blank & ~truth.bad & (truth.hot == 0)
    quiet[truth.jumps['y'], truth.jumps['x']] = False
    residual = np.where(quiet, slope - truth.light - truth.pattern, np.nan)[4:-4]
    assert abs(np.nanmean(residual)) < 5e-4
    assert np.nanstd(residual) == pytest.approx(0.0157, rel=0.1)
    rows = np.stack([np.nanmean(residual[:, amp], axis=1) for amp in AMPS], axis=1)
    assert rms(rows) < 1.2e-3                                            # pixel noise alone gives 0.8e-3


def test_ramp_shows_its_hits(raw):
    data, truth = raw
    assert len(truth.snowballs) == 12 and set(truth.snowballs['integration']) == {0, 1}
    assert truth.snowballs['frame'].min() >= 1 and truth.snowballs['group'].max() <= 2
    assert len(truth.cosmic_rays) == pytest.approx(2 * 6 * 28 * TFRAME, rel=0.1)
    seen = truth.jumps[~truth.bad[truth.jumps['y'], truth.jumps['x']]]
    seen = seen[(seen['dn'] > 50 * truth.sigma) & (seen['dn'] < 5000)]   # brighter ones saturate within a group
    integration, group, y, x = (seen[name] for name in ('integration', 'group', 'y', 'x'))
    after, before = data[integration, group, y, x], data[integration, group - 1, y, x]
    expected = seen['dn'] + TGROUP * (truth.light + truth.hot)[y, x]
    whole = after < detector.FULL_WELL
    np.testing.assert_allclose((after.astype(float) - before)[whole] / expected[whole], 1, atol=0.3)


@pytest.mark.parametrize('readout', ['SHALLOW4', 'RAPID'])
def test_what_saturates_within_a_group_is_lower_in_the_mean(readout):
    """Each frame is cut at the full well, then they are averaged."""
    data, truth = simulation.exposure(seed=11, groups=3, snowballs=12, cosmic_rays=0, crowd=0., readout=readout)
    assert (truth.readout, truth.tgroup) == (readout, sum(simulation.READOUTS[readout]) * TFRAME)
    for ball in truth.snowballs[truth.snowballs['core'] > 5]:
        group, y, x = ball['group'], round(ball['y']), round(ball['x'])
        before = detector.superbias('NRCA3')[y, x] + 0.5 * truth.light[y, x] * truth.tgroup * group
        share = simulation.share_of(group, ball['frame'], readout)
        expected = (1 - share) * before + share * detector.FULL_WELL
        assert abs(data[0, group, y, x] - expected) < 500


def test_a_subarray_is_cut_from_the_full_frame(scene):
    part = rate_scene(seed=11, wisp=0.6, subarray='SUB640')
    assert part.place == (slice(1408, 2048), slice(0, 640)) and part.sci.shape == (640, 640)
    for name in 'light', 'flat', 'bad', 'template':
        np.testing.assert_array_equal(getattr(part, name), getattr(scene, name)[part.place], name)
    assert part.row_pattern.shape == (640, 1) and part.column_pattern.shape == (640,)
    assert part.dq[-1, -1] == part.dq[0, 0] == 2**31 + 1 and part.dq[0, -1] < 2**31
    brightest = part.galaxies[part.galaxies['flux'].argmax()]
    assert np.any((scene.galaxies['x'] == brightest['x']) & (scene.galaxies['y'] == brightest['y'] + 1408))
    assert part.source[round(brightest['y']), round(brightest['x'])] > 10 * np.median(part.source[part.source > 0])


@pytest.mark.parametrize(('name', 'left', 'whole'), [('NRCA3', 0.55, 1.0), ('NRCB1', 0.72, 1.9)])
def test_measured_noise_is_as_strong_as_in_darks(name, left, whole):
    kind = {'detector': name, 'noise': 'measured', 'groups': 9, 'tgroup': TGROUP}
    stripes, rows, _ = detector.stripe_pattern(np.random.default_rng(1), **kind)
    assert not stripes[reference_pixels()].any() and 1e3 * rms(rows) == pytest.approx(left, rel=0.1)
    frames = [detector.measured_noise(np.random.default_rng(seed), name) for seed in (1, 2)]
    scale = 1e3 * np.sqrt(12 / (9**3 - 9) / 8) / TGROUP
    assert scale * rms(detector.row_means(frames[0], simulation.subarray_place(name, 'FULL'), 'FULL')) == pytest.approx(
        whole, rel=0.2)
    assert abs(np.corrcoef(*(frame[:, 600].ravel() for frame in frames))[0, 1]) < 0.2


def test_integrations_have_stripes_of_their_own():
    scenes = [rate_scene(subarray='SUB64P', integration=number) for number in (0, 1)]
    same(*scenes, 'light', 'flat', 'bad')
    assert np.abs(np.corrcoef(scenes[0].row_pattern[4:, 0], scenes[1].row_pattern[4:, 0])[0, 1]) < 0.6
    mean, good = simulation.mean_scene(scenes), scenes[0].good & scenes[1].good
    weights = np.stack([1 / scene.var_rnoise[good] for scene in scenes])
    expected = np.average([scene.sci[good] for scene in scenes], axis=0, weights=weights)
    np.testing.assert_allclose(mean.sci[good], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean.var_rnoise[good], 1 / weights.sum(axis=0), rtol=1e-4)


def test_files_and_truth_can_be_read(scene, raw, tmp_path):
    from jwst import datamodels

    name = simulation.NAME.format('nrca3')
    with datamodels.open(simulation.write_rate(scene, tmp_path / f'{name}_rate.fits')) as model:
        assert isinstance(model, datamodels.ImageModel)
        np.testing.assert_array_equal(model.data, scene.sci)
        np.testing.assert_array_equal(model.dq, scene.dq)
    with datamodels.open(simulation.write_uncal(*raw, tmp_path / f'{name}_uncal.fits')) as model:
        assert isinstance(model, datamodels.Level1bModel)
        np.testing.assert_array_equal(model.data, raw[0])
    header = fits.getheader(tmp_path / f'{name}_uncal.fits')
    expected = {'PROGRAM': '01345', 'OBSERVTN': '001', 'VISIT': '001', 'EXPOSURE': '00001', 'FILTER': 'F200W',
                'READPATT': 'MEDIUM8', 'SUBARRAY': 'FULL', 'FASTAXIS': '-1', 'DATE-OBS': '2022-12-21', 'NINTS': '2',
                'NGROUPS': '3', 'DETECTOR': 'NRCA3', 'EXP_TYPE': 'NRC_IMAGE'}
    assert {key: str(header[key]) for key in expected} == expected
    truth = simulation.load_truth(simulation.save_truth(raw[1], tmp_path / 'truth.npz'))
    assert isinstance(truth, simulation.Exposure) and (truth.groups, truth.ints) == (3, 2)
    same(truth, raw[1], 'jumps', 'pattern')


def test_integrations_of_a_subarray_behind_a_pupil_are_written_with_all_that_their_reduction_needs(tmp_path):
    simulation.write_exposure(tmp_path, rate_only=True, subarray='SUB160', ints=2, filter_='F150W2', pupil='F162M')
    path = tmp_path / 'calibrated' / f"{simulation.NAME.format('nrca3')}_rateints.fits"
    header = fits.getheader(path)
    expected = {'PUPIL': 'F162M', 'SUBARRAY': 'SUB160', 'SUBSTRT1': 1, 'SUBSTRT2': 1889, 'SUBSIZE1': 160, 'NOUTPUTS': 1,
                'NINTS': 2, 'TFRAME': pytest.approx(172 * 162e-5)}
    assert {key: header[key] for key in expected} == expected
    assert fits.getdata(path).shape == (2, 160, 160)
    assert fits.getdata(path.with_name(path.name.replace('rateints', 'rate'))).shape == (160, 160)
    assert fits.getdata(tmp_path / 'wisps/wisps_2022_08_26/WISP_NRCA3_F150W2_F162M.fits', 'RATE').shape == (NY, NX)
    flat, = tmp_path.rglob('*flat*.fits')
    assert fits.getheader(flat)['PUPIL'] == 'F162M' and 'f162m' in flat.name
