"""The simulator: what it returns as truth is what its images hold."""
import os
import subprocess
import sys

import numpy as np
import pytest

import simulate
from simulate import AMPS, NAME, NX, NY, WISP_WINDOWS, exposure, rate_scene, reference_pixels


@pytest.fixture(scope='module')
def scene():
    return rate_scene(seed=11, wisp=0.6)


@pytest.fixture(scope='module')
def ramp():
    return exposure(seed=11, groups=3, ints=2, snowballs=6, wisp=0.6)


def rms(values):
    return np.sqrt(np.nanmean(np.square(values)))


# rate images

def test_a_seed_gives_one_scene(scene):
    again, other = rate_scene(seed=11, wisp=0.6), rate_scene(seed=12, wisp=0.6)
    for name in ('sci', 'err', 'dq', 'source', 'true_stripes', 'template'):
        np.testing.assert_array_equal(getattr(again, name), getattr(scene, name))
    assert not np.array_equal(other.source, scene.source)
    for name in ('flat', 'wisp_unit', 'template', 'bad', 'hot'):          # the detector's own
        np.testing.assert_array_equal(getattr(other, name), getattr(scene, name))


def test_an_option_changes_only_what_it_names(scene):
    plain = rate_scene(seed=11, wisp=0.6, stripes=False)
    assert not plain.pattern.any()
    np.testing.assert_allclose((scene.sci - plain.sci)[scene.good], scene.pattern[scene.good], atol=1e-3)
    np.testing.assert_array_equal(plain.err, scene.err)
    crowded = rate_scene(seed=11, crowd=4, wisp=0.6)
    assert len(crowded.galaxies) == 4 * len(scene.galaxies) == 2800
    for name in ('extended', 'stars', 'probes', 'true_stripes'):
        np.testing.assert_array_equal(getattr(crowded, name), getattr(scene, name))


def test_noise_is_what_err_says(scene):
    quiet = scene.good & (scene.dq == 0)
    assert np.median(scene.err[quiet]) == pytest.approx(0.0119, rel=0.02)
    pull = ((scene.sci - scene.light - scene.pattern) / scene.err)[quiet]
    assert abs(pull.mean()) < 0.003 and pull.std() == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_pattern_is_at_the_measured_level(seed):
    stripes, rows, columns = simulate.stripe_pattern(np.random.default_rng(seed))
    pattern = np.where(reference_pixels(), np.nan, stripes + columns)[4:-4, 4:-4]
    assert rms(rows) == pytest.approx(4.0e-3, abs=0.15e-3)
    assert rms(np.nanmean(pattern, axis=0)) == pytest.approx(1.2e-3, abs=0.05e-3)
    blocks = np.pad(pattern, 4, constant_values=np.nan).reshape(64, 32, 64, 32)
    assert rms(np.nanmean(blocks, axis=(1, 3))) == pytest.approx(2.2e-3, abs=0.2e-3)
    for amp in range(4):
        np.testing.assert_allclose(rows[:, amp], stripes[:, AMPS[amp]].mean(axis=1))
    correlation = np.corrcoef(rows.T)[np.triu_indices(4, 1)]
    assert correlation.mean() == pytest.approx(simulate.COMMON_STRIPES**2, abs=0.08)


def test_one_over_f_runs_in_readout_order():
    series = simulate.one_over_f(np.random.default_rng(1))
    assert series.shape == (NY, 512)
    power = np.abs(np.fft.rfft(series.mean(axis=1)))**2
    assert power[1:5].mean() < 0.02 * power[7:12].mean()                 # nothing slower than 300 rows
    first, last = series[:, :20].mean(axis=1), series[:, -20:].mean(axis=1)
    across = np.corrcoef(last[:-1], first[1:])[0, 1]                     # 12 idle pixels in between
    assert across > np.corrcoef(last, first)[0, 1] + 0.05
    assert rms(series[:, 100:].mean(axis=1)) < rms(series)               # it varies along a row too


def test_amplifiers_are_read_in_alternate_directions():
    stripes, _, _ = simulate.stripe_pattern(np.random.default_rng(1))
    a, b = stripes[4:-4, 8:504], stripes[4:-4, 520:1016]
    fast_a, fast_b = (amp - amp.mean(axis=1, keepdims=True) for amp in (a, b))
    assert np.mean(fast_a * fast_b[:, ::-1]) > 5 * abs(np.mean(fast_a * fast_b))


def test_probes_and_extended_galaxies(scene):
    none = scene.probes[:0]
    for probe in (scene.probes[0], scene.probes[-1]):
        alone = simulate.draw_sources(none, none, none, [probe])
        assert alone.sum() == pytest.approx(1, abs=1e-3)
        y, x = np.unravel_index(alone.argmax(), alone.shape)
        assert abs(x - probe['x']) <= 0.5 and abs(y - probe['y']) <= 0.5
    far = scene.probes[scene.probes['host'] == -1]
    assert len(far) == 150
    for galaxy, host in zip(scene.extended, range(3), strict=True):
        assert np.hypot(far['x'] - galaxy['x'], far['y'] - galaxy['y']).min() > 6 * galaxy['radius']
        own = scene.probes[scene.probes['host'] == host]
        distance = np.hypot(own['x'] - galaxy['x'], own['y'] - galaxy['y']) / galaxy['radius']
        assert distance.min() >= 1.5 and distance.max() <= 4.5
        area = simulate.sersic_area(*(galaxy[name] for name in ('radius', 'sersic', 'q')))
        assert 0.039 < galaxy['flux'] / area < 0.251                     # surface brightness at that radius
    assert 0.01 < scene.near.mean() < 0.2
    assert 0.8 < scene.blank.mean() < 0.99


def test_big_galaxy():
    galaxies, extended, stars, probes = simulate.catalogue(np.random.default_rng(1), big=True)
    assert extended['radius'][0] == 130 and abs(extended['x'][0] - NX / 2) <= 150
    image = simulate.draw_sources(galaxies[:0], extended[:1], stars[:0], probes[:0])
    angle = extended['pa'][0]
    y, x = (round(extended[c][0] + 130 * f(angle)) for c, f in (('y', np.sin), ('x', np.cos)))
    assert image[y, x] == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize('detector', sorted(WISP_WINDOWS))
def test_wisp_fills_its_window(detector):
    unit = simulate.wisp_shape(detector, 'F200W')
    y1, y2, x1, x2 = WISP_WINDOWS[detector]
    inside = unit[y1:y2, x1:x2]
    assert unit.max() == pytest.approx(0.06) and unit.min() == 0
    assert inside.sum(dtype=float) == pytest.approx(unit.sum(dtype=float))
    assert 0.02 < (inside > 0.01).mean() < 0.5
    template = simulate.distributed_template(unit, detector, 'F200W')
    missing = np.isnan(template)
    assert missing[reference_pixels()].all() and 1000 < missing[~reference_pixels()].sum() < 4000
    assert (template - unit)[~missing].std() == pytest.approx(0.0008, rel=0.02)


def test_the_truth_of_the_wisp(scene):
    without = rate_scene(seed=11)
    np.testing.assert_allclose(scene.light - without.light, scene.wisp_light, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(scene.wisp_light, 0.6 * scene.flat * scene.wisp_unit, rtol=1e-5)


def test_a_wisp_of_ones_own():
    shape = np.full((NY, NX), 0.01)
    shape[100, 100] = np.nan
    own = rate_scene('NRCA1', wisp=2, template=shape)
    assert own.wisp_scale == 2 and own.wisp_unit[100, 100] == 0
    assert own.wisp_unit[500, 500] == pytest.approx(0.01) and not own.wisp_unit[reference_pixels()].any()
    assert rate_scene('NRCA1', wisp=2).wisp_scale == 0                   # it has none of its own


def test_undefined_pixels(scene):
    undefined = scene.dq & simulate.DO_NOT_USE > 0
    np.testing.assert_array_equal(np.isnan(scene.sci), undefined)
    assert not scene.err[undefined].any() and not scene.var_poisson[undefined].any()
    old = rate_scene(seed=11, wisp=0.6, undefined='finite')
    assert np.isfinite(old.sci).all() and 1000 < np.sum(old.sci == 0) < 6000
    np.testing.assert_array_equal(old.dq, scene.dq)
    np.testing.assert_array_equal(old.sci[scene.good], scene.sci[scene.good])
    with pytest.raises(ValueError, match='zero'):
        rate_scene(undefined='zero')


# ramps

def test_ramp_layout(ramp):
    data, truth = ramp
    assert data.shape == (2, 3, NY, NX) and data.dtype == np.uint16
    assert (truth.ints, truth.groups) == (2, 3)
    difference = data[:, 1:].astype(int) - data[:, :-1]
    assert np.abs(difference[..., reference_pixels()]).max() <= 4        # reference pixels do not see light
    assert not np.array_equal(data[0], data[1])


def test_ramp_rises_by_the_truth(ramp):
    data, truth = ramp
    slope = (data[:, 2].astype(np.float32) - data[:, 0]).mean(axis=0) / (2 * simulate.TGROUP)
    quiet = truth.blank & ~truth.bad & (truth.hot == 0)
    quiet[truth.jumps['y'], truth.jumps['x']] = False
    residual = np.where(quiet, slope - truth.light - truth.pattern, np.nan)[4:-4]
    assert abs(np.nanmean(residual)) < 5e-4
    assert np.nanstd(residual) == pytest.approx(0.0157, rel=0.1)
    rows = np.stack([np.nanmean(residual[:, amp], axis=1) for amp in AMPS], axis=1)
    assert rms(rows) < 1.2e-3                                            # pixel noise alone gives 0.8e-3


def test_ramp_shows_its_hits(ramp):
    data, truth = ramp
    assert len(truth.snowballs) == 12 and set(truth.snowballs['integration']) == {0, 1}
    assert truth.snowballs['group'].min() >= 1 and truth.snowballs['group'].max() <= 2
    assert len(truth.cosmic_rays) == pytest.approx(2 * 6 * 28 * simulate.TFRAME, rel=0.1)
    seen = truth.jumps[~truth.bad[truth.jumps['y'], truth.jumps['x']]]
    seen = seen[(seen['dn'] > 50 * truth.sigma) & (seen['dn'] < 20000)]
    index = seen['integration'], seen['group'], seen['y'], seen['x']
    before = seen['integration'], seen['group'] - 1, seen['y'], seen['x']
    step = data[index].astype(float) - data[before]
    below_full_well = data[index] < simulate.FULL_WELL
    steady = simulate.TGROUP * (truth.light + truth.hot)[index[2:]]
    expected = (seen['dn'] + steady)[below_full_well]
    np.testing.assert_allclose(step[below_full_well] / expected, 1, atol=0.3)


def test_snowballs_have_saturated_cores_and_halos():
    sigma = 4.
    table, charges = simulate.draw_snowballs(np.random.default_rng(1), 9, 30, sigma)
    for row, (frame, index, charge) in zip(table, charges, strict=True):
        assert row['group'] == simulate.first_group(frame)
        assert (charge.max() > simulate.FULL_WELL) == (row['core'] > 3.5)
        y, x = np.divmod(index, NX)
        r = np.hypot(y - row['y'], x - row['x'])
        assert np.all(charge[r < 0.85 * row['core']] > 1000)
        edge = charge[np.abs(r - row['halo']) < 1]                       # about one sigma; lobes spread it
        assert edge.size == 0 or 0.4 * sigma < np.median(edge) < 2.5 * sigma


def test_a_hit_within_a_group_shows_in_part():
    def step(group, frame):
        return simulate._step(group, [(frame, np.array([5]), np.float32([80]))])[0, 5]

    assert (step(0, 3), step(1, 3), step(2, 3)) == (50, 30, 0)           # 5 of the 8 frames come after it
    assert (step(0, 8), step(1, 8), step(2, 8)) == (0, 80, 0)            # skipped frame: whole
    assert [simulate.first_group(frame) for frame in (0, 7, 8, 9, 10)] == [0, 0, 1, 1, 1]


# files

def test_files_open_in_the_data_models(scene, ramp, tmp_path):
    from astropy.io import fits
    from jwst import datamodels

    data, truth = ramp
    name = NAME.format('nrca3')
    with datamodels.open(simulate.write_rate(scene, tmp_path / f'{name}_rate.fits')) as model:
        assert isinstance(model, datamodels.ImageModel)
        np.testing.assert_array_equal(model.data, scene.sci)
        np.testing.assert_array_equal(model.dq, scene.dq)
        assert model.meta.instrument.detector == 'NRCA3' and model.meta.exposure.type == 'NRC_IMAGE'
    with datamodels.open(simulate.write_uncal(data, truth, tmp_path / f'{name}_uncal.fits')) as model:
        assert isinstance(model, datamodels.Level1bModel)
        np.testing.assert_array_equal(model.data, data)
        assert (model.meta.exposure.nints, model.meta.exposure.ngroups) == (2, 3)
    header = fits.getheader(tmp_path / f'{name}_uncal.fits')
    assert {'ASDF', 'SCI'} <= {hdu[1] for hdu in fits.info(tmp_path / f'{name}_uncal.fits', output=False)}
    expected = {'PROGRAM': '01345', 'OBSERVTN': '001', 'VISIT': '001', 'EXPOSURE': '00001', 'FILTER': 'F200W',
                'READPATT': 'MEDIUM8', 'SUBARRAY': 'FULL', 'FASTAXIS': -1, 'DATE-OBS': '2022-12-21'}
    assert {key: str(header[key]) for key in expected} == {key: str(v) for key, v in expected.items()}


def test_template_names(tmp_path):
    from astropy.io import fits

    own = {('NRCA3', 'F200W'): np.ones((2, 8, 8), np.float32)}
    names = {scheme: simulate.write_templates(tmp_path / scheme, scheme=scheme, extensions=('SCI', 'RATE'),
                                              templates=own)[0]
             for scheme in ('2022', '2022-lower', 'later')}
    assert [path.name for path in names.values()] == [
        'wisps_nrca3_F200W.fits', 'wisps_nrca3_f200w.fits', 'WISP_NRCA3_F200W_CLEAR.fits']
    assert fits.getdata(names['2022']).shape == (2, 8, 8)
    with fits.open(names['later']) as hdus:
        assert hdus[0].data is None and [hdu.name for hdu in hdus[1:]] == ['SCI', 'RATE']


LOOK_UP = '''
import sys, crds
for detector, filter_ in (a.split(',') for a in sys.argv[1:]):
    try:
        sys.stdout.write(crds.getreferences(
            {'INSTRUME': 'NIRCAM', 'DETECTOR': detector, 'FILTER': filter_, 'PUPIL': 'CLEAR',
             'DATE-OBS': '2022-12-21', 'TIME-OBS': '10:00:00'},
            reftypes=['flat'], context='jwst_0001.pmap', observatory='jwst')['flat'] + '\\n')
    except crds.CrdsLookupError:
        sys.stdout.write('none\\n')
'''


def test_crds_finds_the_flats(tmp_path):
    from astropy.io import fits

    cache = simulate.write_crds_cache(tmp_path)
    first = sorted(tmp_path.rglob('*flat*.fits'))
    before = first[0].stat().st_mtime_ns
    flat = np.full((NY, NX), 1.5, np.float32)
    simulate.write_crds_cache(tmp_path, ['NRCA3', 'NRCALONG'], [], flats={('NRCALONG', 'F444W'): flat})
    assert first[0].stat().st_mtime_ns == before                         # adding leaves the rest alone
    environment = os.environ | simulate.crds_environment(cache)
    run = subprocess.run([sys.executable, '-c', LOOK_UP, 'NRCA3,F200W', 'NRCALONG,F444W', 'NRCA3,F444W'],
                         env=environment, capture_output=True, text=True, check=True)
    a3, along, none = run.stdout.split()
    assert none == 'none' and a3.endswith('jwst_nircam_flat_nrca3_f200w_0001.fits')
    assert fits.getdata(along)[5, 5] == 1.5
    np.testing.assert_array_equal(fits.getdata(a3), simulate.make_flat('NRCA3', 'F200W'))


def test_command_writes_a_rate_image_and_its_truth(tmp_path, capsys):
    arguments = [str(tmp_path), '--rate_only', '--detector', 'NRCB4', '--filter', 'F150W', '--seed', '4']
    assert simulate.main(arguments) == 0
    assert 'export CRDS_CONTEXT=jwst_0001.pmap' in capsys.readouterr().out
    assert (tmp_path / 'calibrated' / 'jw01345001001_10201_00001_nrcb4_rate.fits').exists()
    assert (tmp_path / 'wisps' / 'wisps_2022_08_26' / 'wisps_nrcb4_F150W.fits').exists()
    assert (tmp_path / 'crds_cache' / 'config' / 'jwst' / 'server_config').exists()
    truth = simulate.load_truth(tmp_path / 'truth.npz')
    assert truth.detector == 'NRCB4' and truth.wisp_scale == 0.6
    np.testing.assert_array_equal(truth.true_stripes, rate_scene('NRCB4', 'F150W', 4).true_stripes)


def test_truth_of_a_ramp_survives_the_disk(ramp, tmp_path):
    truth = simulate.load_truth(simulate.save_truth(ramp[1], tmp_path / 'truth.npz'))
    assert isinstance(truth, simulate.Exposure) and (truth.groups, truth.ints) == (3, 2)
    np.testing.assert_array_equal(truth.jumps, ramp[1].jumps)
    np.testing.assert_array_equal(truth.pattern, ramp[1].pattern)


@pytest.mark.parametrize('arguments', [['--groups', '0'], ['--detector', 'NRS1'], []])
def test_misuse_is_refused(arguments, tmp_path):
    with pytest.raises(SystemExit) as stop:
        simulate.main([str(tmp_path)] * bool(arguments) + arguments)
    assert stop.value.code == 2 and not list(tmp_path.iterdir())
