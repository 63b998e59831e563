"""remstriping.py: against the DR0.5 script, against slow obvious forms, and as a user runs it."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

import remstriping
import simulate
import slow_striping as slow
from conftest import case_meta, load_case, run_script, unpack
from stage1 import filters
from stage1.exposure import ExposureError, undefined
from stage1.files import write_map

NAME = 'jw01345001001_10201_00001_nrca3_rate.fits'
PROBE = [100, 600, 1100, 1600]              # a column in each amplifier


# --- the numbers of DR0.5 ----------------------------------------------------------------------------

class Case:
    """A reference case and what the script makes of it."""

    def __init__(self, name, flat):
        case = load_case(f'striping_{name}')
        self.out = {key: case[key] for key in case.files}
        self.sci, self.err, self.dq = (self.out[key] for key in ('sci', 'err', 'dq'))
        self.flat = self.sci / load_case(f'flat_{flat}')['flat']
        options = case_meta(case)['options']
        self.thresh = float(options[-1]) if options else remstriping.MASKTHRESH
        self.mask = unpack(self.out['mask1f']) | (self.dq > 0)
        self.rings, self.tiers = [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remstriping, 'ring_median', recorder(remstriping.ring_median, self.rings))
            patch.setattr(remstriping, 'detect', recorder(remstriping.detect, self.tiers))
            self.striping = remstriping.dr05(self.sci, self.err, self.dq, self.flat, self.thresh)
        self.result, self.new_dq = remstriping.subtract_striping(self.sci, self.dq, self.striping.horizontal,
                                                                 self.striping.vertical)


def recorder(function, results):
    """The same function, which also keeps its results."""
    def call(*arguments):
        results.append(function(*arguments))
        return results[-1]
    return call


@pytest.fixture(scope='module', params=[('nrca3_f200w_galaxy', 'nrca3_f200w'), ('nrca3_f200w_field', 'nrca3_f200w'),
                                        ('nrcalong_f444w', 'nrcalong_f444w')], ids=lambda names: names[0])
def case(request):
    return Case(*request.param)


def test_ring_median_is_that_of_dr05(case):
    np.testing.assert_array_equal(case.rings[0][case.out['rows']], case.out['ring_rows'])


def test_mask_is_that_of_dr05(case):
    np.testing.assert_array_equal(case.striping.mask, unpack(case.out['mask1f']))
    assert case.striping.numbers['STRPMASK'] == case.out['masked_fraction']


def test_every_tier_is_that_of_dr05(case):
    for number, tier in enumerate(case.tiers, 1):
        expected = unpack(case.out[f'tier{number}'])
        if number == 1:     # DR0.5 grew it once more in the mask
            expected = ndimage.binary_dilation(expected, np.ones((11, 11)))
        np.testing.assert_array_equal(tier, expected, f'tier {number}')


def test_pedestal_is_that_of_dr05(case):
    assert abs(case.striping.numbers['STRPPED'] - case.out['pedestal']) < 1e-5


def test_patterns_are_those_of_dr05(case):
    image = case.flat - np.float32(case.out['pedestal'])
    np.testing.assert_allclose(remstriping.clipped_median(image, case.mask, 1), case.out['full_horiz'], 0, 1e-6)
    rows, counts = remstriping.row_pattern(image, case.mask, case.thresh)
    np.testing.assert_allclose(rows[:, PROBE], case.out['horiz'], 0, 1e-6)
    np.testing.assert_array_equal(list(counts.values()), case.out['fullrow_counts'])
    np.testing.assert_allclose(remstriping.column_pattern(image - rows, case.mask), case.out['vert'], 0, 1e-6)
    assert not rows[:, [0, 3, 2044, 2047]].any()


def test_corrected_image_is_that_of_dr05(case):
    y, x = case.out['out_cut_y0x0']
    assert case.result.dtype == np.float32
    np.testing.assert_allclose(case.result[case.out['rows']], case.out['out_sci_rows'], 0, 1e-6)
    np.testing.assert_allclose(case.result[y:y + 256, x:x + 256], case.out['out_sci_cut'], 0, 1e-6)
    np.testing.assert_array_equal(case.result == 0, unpack(case.out['out_zero']))
    np.testing.assert_array_equal(case.new_dq & 1 > case.dq & 1, unpack(case.out['out_new_dnu']))
    np.testing.assert_allclose(case.result.sum(dtype=float), case.out['out_sum'], 1e-6)


def test_nan_gives_the_patterns_of_zero(case):
    """Today's pipeline has NaN where DR0.5 had 0, and its flat-field step adds more; the mask being the same."""
    nan = np.where(undefined(case.sci), np.nan, case.sci)
    flat = np.where(undefined(case.sci) | (case.dq & 1 > 0), np.nan, case.flat)
    striping = remstriping.dr05(nan, case.err, case.dq, flat, case.thresh, case.striping.mask)
    np.testing.assert_array_equal(striping.horizontal, case.striping.horizontal)
    np.testing.assert_array_equal(striping.vertical, case.striping.vertical)
    result, dq = remstriping.subtract_striping(nan, case.dq, striping.horizontal, striping.vertical)
    np.testing.assert_array_equal(result, np.where(undefined(case.sci), np.nan, case.result))
    np.testing.assert_array_equal(dq, case.new_dq)


# --- fast forms against slow ones --------------------------------------------------------------------

VALUES = st.sampled_from([0, 1, 1.5, 2, -3, 1024, np.nan])         # many ties
IMAGES = arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=VALUES)


@settings(max_examples=60, deadline=None)
@given(IMAGES, st.integers(1, 5), st.integers(0, 3))
def test_ring_median_of_any_image_is_the_slow_one(image, radius, width):
    before = image.copy()
    if width == 0:
        ring = filters.ring_footprint(radius, width)
        assert ring.sum() == sum(x * x + y * y == radius**2 for x in range(-9, 10) for y in range(-9, 10))
        return
    np.testing.assert_array_equal(remstriping.ring_median(image, radius, width),
                                  slow.ring_median(image, radius, width))
    np.testing.assert_array_equal(image, before)


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint32, st.integers(0, 80)))
def test_order_of_any_floats_is_that_of_argsort(bits):
    """All bit patterns: infinities, denormal numbers, both zeros, NaN of either sign."""
    values = bits.view(np.float32)
    order = filters.ascending(values)
    np.testing.assert_array_equal(values[order], np.sort(values))
    np.testing.assert_array_equal(np.sort(order), np.arange(values.size))


def test_ring_is_that_of_dr05():
    np.testing.assert_array_equal(filters.ring_footprint(40, 3), slow.ring_kernel())
    assert slow.ring_kernel().sum() == 776


@pytest.mark.parametrize('holes', [0, 0.02, 0.7])
def test_ring_median_across_tiles(holes):
    """Sizes that are no multiple of a tile; without NaN the slow form is scipy's rank filter."""
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (141, 269)).astype(np.float32).round(2)
    image[rng.random(image.shape) < holes] = np.nan
    if holes:
        image[:60, :100] = np.nan                                   # rings without a pixel
    median = remstriping.ring_median(image)
    np.testing.assert_array_equal(median, slow.ring_median(image))
    assert np.isnan(median).any() == (holes > 0)


def test_nan_frame_leaves_ring_median_alone():
    """Medians that do not reach the frame are as without it."""
    image = np.random.default_rng(2).normal(0, 1, (140, 130)).astype(np.float32)
    framed = np.full_like(image, np.nan)
    framed[4:-4, 4:-4] = image[4:-4, 4:-4]
    inner = (slice(47, -47), slice(47, -47))
    np.testing.assert_array_equal(remstriping.ring_median(framed)[inner], remstriping.ring_median(image)[inner])
    assert np.isfinite(remstriping.ring_median(framed)).all()


@pytest.mark.parametrize('holes', [False, True])
def test_smoothings_are_those_of_astropy(holes):
    rng = np.random.default_rng(3)
    image = rng.normal(0, 1, (150, 211))
    image[70, 80] = 600
    if holes:
        image[rng.random(image.shape) < 0.02] = np.nan
        image[40:60, 100:130], image[:4] = np.nan, np.nan
    for sigma, smooth in zip((25, 15, 5, 2), remstriping.gaussian_smoothings(image, [25, 15, 5, 2]), strict=True):
        reference = slow.smoothed(image, sigma)
        far = sigma == 2 and holes                                  # no valid pixel, or hardly, within reach
        reached = np.ones(image.shape, bool)
        reached[42:58, 102:128] = not far
        np.testing.assert_allclose(smooth[reached], reference[reached], 0, 1e-11)
        assert np.isfinite(smooth).all() and np.abs(smooth).max() < 600
        assert not far or smooth[50, 115] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from(['normal', 'lognormal', 'cauchy', 'ties']))
def test_sky_statistics_are_those_of_astropy(seed, number, kind):
    rng = np.random.default_rng(seed)
    values = {'normal': rng.normal(5, 0.01, number), 'lognormal': rng.lognormal(0, 2, number),
              'cauchy': rng.standard_cauchy(number), 'ties': rng.normal(0, 2, number).round()}[kind]
    before = values.copy()
    np.testing.assert_allclose(remstriping.sky_statistics(values), slow.sky_statistics(values), 1e-9, 1e-9)
    np.testing.assert_array_equal(values, before)


def test_sky_statistics_when_clipping_moves_the_median_far():
    values = np.concatenate([np.random.default_rng(4).normal(0, 0.01, 600), 10**np.linspace(0, 6, 390)])
    np.testing.assert_allclose(remstriping.sky_statistics(values), slow.sky_statistics(values), 1e-9)
    assert np.isnan(remstriping.sky_statistics(values[:0])).all()


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))), st.sampled_from([1, 3, 5, 11, 21]))
def test_growth_is_dilation(mask, side):
    np.testing.assert_array_equal(remstriping.grown(mask, side), slow.grown(mask, side))


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (24, 31), elements=st.sampled_from([0., 0.1, 0.2, 5, 6])), st.integers(1, 15),
       arrays(bool, (24, 31)))
def test_detection_is_that_of_photutils(image, npixels, ignore):
    if (~ignore).sum() < 2:
        return
    level, spread = slow.sky_statistics(image[~ignore])
    if np.abs(image - level - 3 * spread).min() < 1e-9:             # decided by rounding
        return
    np.testing.assert_array_equal(remstriping.detect(image, ignore, npixels, 3),
                                  slow.detect(image, ignore, npixels, 3))


@pytest.mark.parametrize('kind', ['as it is', 'NaN', 'NaN error'])
def test_source_mask_is_that_of_astropy_and_photutils(kind):
    case = load_case('striping_nrca3_f200w_galaxy')
    sci, err = (case[key][:301, 700:1103].copy() for key in ('sci', 'err'))
    rng = np.random.default_rng(5)
    if kind == 'NaN':
        sci[undefined(sci) | (rng.random(sci.shape) < 0.02)] = np.nan
    if kind == 'NaN error':
        err[rng.random(sci.shape) < 0.4] = np.nan
    mask = remstriping.source_mask(sci, err)
    np.testing.assert_array_equal(mask, slow.source_mask(sci, err))
    assert 0.1 < mask.mean() < 0.9


@pytest.mark.parametrize('thresh', [0, 0.3, 0.8, 1])
def test_patterns_are_those_of_astropy(thresh):
    rng = np.random.default_rng(6)
    image = rng.normal(0, 0.01, (23, 2048)).astype(np.float32)
    image[rng.random(image.shape) < 0.01] = 50
    mask = rng.random(image.shape) < rng.random((23, 1))            # rows from hardly to almost all masked
    mask[3], mask[4, 512:1024], mask[:, 77] = True, True, True
    before = image.copy(), mask.copy()
    rows, counts = remstriping.row_pattern(image, mask, thresh)
    reference, reference_counts = slow.row_pattern(image, mask, thresh)
    np.testing.assert_allclose(rows[:, PROBE], reference, 0, 1e-8)
    assert list(counts.values()) == reference_counts
    np.testing.assert_allclose(remstriping.column_pattern(image, mask), slow.clipped_median(image, mask, 0), 0, 1e-8)
    assert np.isnan(rows[3, 4:2044]).all() and np.isfinite(rows[4]).all()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize('trouble', [RuntimeError('cannot cache function: no locator available'),
                                     OSError(28, 'No space left on device'), EOFError('Ran out of input')])
def test_code_that_cannot_be_kept_is_compiled_for_the_run(monkeypatch, caplog, trouble):
    import numba
    plain = numba.njit

    def njit(*arguments, cache=False, **options):
        if cache:
            raise trouble
        return plain(*arguments, **options)

    monkeypatch.setattr(numba, 'njit', njit)
    monkeypatch.setattr(remstriping.log, 'propagate', True)
    image = np.random.default_rng(7).normal(size=(20, 20)).astype(np.float32)
    expected = remstriping.ring_median(image, 3, 2)
    filters.compiled_slide_ring.cache_clear()
    np.testing.assert_array_equal(remstriping.ring_median(image, 3, 2), expected)
    filters.compiled_slide_ring.cache_clear()
    assert 'NUMBA_CACHE_DIR' in caplog.text and str(trouble) in caplog.text


# --- properties ----------------------------------------------------------------------------------------

def sky(level=0.2, noise=0.01, seed=8, shape=(2048, 2048)):
    return np.random.default_rng(seed).normal(level, noise, shape).astype(np.float32)


@pytest.mark.parametrize('level', [-5, -0.9, 0, 0.2, 1.49, 1.51, 2.2, 600])
def test_pedestal_of_any_sky_level(level):
    values = sky(level, shape=400_000)
    values[::10] += np.random.default_rng(9).exponential(0.2, 40_000).astype(np.float32)       # sources
    assert abs(remstriping.fit_pedestal(values) - level) < 5e-4


@pytest.mark.parametrize('values', [[0.1, 0.3], [0.1, 0.1, 0.1, 7], np.linspace(-100, 100, 999)])
def test_pedestal_of_no_gaussian_is_among_the_values(values):
    assert np.min(values) <= remstriping.fit_pedestal(np.array(values, np.float32)) <= np.max(values)


@pytest.mark.parametrize(('values', 'words'), [([], 'every pixel is masked'), ([0.25] * 9, 'all 0.25 DN/s')])
def test_no_sky_is_an_error(values, words):
    with pytest.raises(ExposureError, match=words):
        remstriping.fit_pedestal(np.array(values, np.float32))


@settings(max_examples=10, deadline=None)
@given(arrays(np.float32, (40, 4), elements=st.floats(-1, 1, width=16)), arrays(np.float32, 2048, elements=st.just(0)))
def test_constant_row_pattern_is_removed_exactly(rows, columns):
    image = np.zeros((40, 2048), np.float32)
    for amplifier, pattern in zip(remstriping.AMPLIFIERS.values(), rows.T, strict=True):
        image[:, amplifier] = pattern[:, None]
    horizontal, _ = remstriping.row_pattern(image, np.zeros(image.shape, bool), 0.8)
    np.testing.assert_array_equal(horizontal, image)
    result, _ = remstriping.subtract_striping(image, np.zeros(image.shape, np.uint32), horizontal, columns)
    assert not result.any()


def test_masked_pixels_do_not_matter_and_nothing_else_changes():
    """What lies under the mask has no influence on the patterns; arguments stay bit-identical."""
    sci, err, dq = sky(), np.full((2048, 2048), 0.01, np.float32), np.zeros((2048, 2048), np.uint32)
    sources = np.zeros(sci.shape, bool)
    sources[300:400, 500:900] = True
    dq[50, 60] = 4
    bright = np.where(sources | (dq > 0), np.float32(1e4), sci)
    copies = [array.copy() for array in (sci, err, dq, sources)]
    plain = remstriping.dr05(sci, err, dq, sci, 0.8, sources)
    other = remstriping.dr05(bright, err, dq, bright, 0.8, sources)
    np.testing.assert_array_equal(plain.horizontal, other.horizontal)
    np.testing.assert_array_equal(plain.vertical, other.vertical)
    result, new_dq = remstriping.subtract_striping(sci, dq, plain.horizontal, plain.vertical)
    assert np.abs(result - sci).max() < 0.01 and result is not sci
    np.testing.assert_array_equal(new_dq, dq)
    for array, copy in zip((sci, err, dq, sources), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_undefined_and_unmeasured_pixels():
    sci = np.array([[0, np.nan, 1], [0, np.nan, 1], [1, 1, np.inf]], np.float32)
    horizontal = np.array([[0.5] * 3, [np.nan] * 3, [0.5] * 3])
    result, dq = remstriping.subtract_striping(sci, np.full((3, 3), 4, np.uint32), horizontal, np.array([0, 0.25, 0]))
    np.testing.assert_array_equal(result, [[0, np.nan, 0.5], [0, np.nan, 0], [0.5, 0.25, np.inf]])
    np.testing.assert_array_equal(dq, [[4] * 3, [5] * 3, [4] * 3])
    assert dq.dtype == np.uint32


def test_blank_and_empty_images_have_no_sources():
    assert remstriping.source_mask(sky(shape=(120, 130)), np.ones((120, 130))).mean() < 0.2
    for value in (0, 0.25, np.nan):
        assert not remstriping.source_mask(np.full((120, 130), value, np.float32), np.ones((120, 130))).any()
    assert not remstriping.source_mask(sky(shape=(120, 130)), np.full((120, 130), np.nan)).any()


def test_entirely_masked_image_is_an_error():
    image = sky(shape=(64, 2048))
    with pytest.raises(ExposureError, match='every pixel is masked'):
        remstriping.dr05(image, image, np.zeros(image.shape, np.uint32), image, 0.8, np.ones(image.shape, bool))


def test_simulated_stripes_are_found():
    """An image of today's pipeline, with NaN (reference pixels too): no band is masked, no good pixel is lost."""
    scene = simulate.rate_scene(seed=3)
    flat = (scene.sci / scene.flat).astype(np.float32)
    striping = remstriping.dr05(scene.sci, scene.err, scene.dq, flat, 0.8)
    assert striping.mask.mean(axis=1).max() < 0.9 and 0.25 < striping.mask.mean() < 0.4
    result, dq = remstriping.subtract_striping(scene.sci, scene.dq, striping.horizontal, striping.vertical)
    np.testing.assert_array_equal(dq[scene.good], scene.dq[scene.good])
    np.testing.assert_array_equal(np.isnan(result), np.isnan(scene.sci))
    rows = striping.horizontal[4:-4, PROBE] - scene.row_pattern[4:-4]
    assert rows.std() < 0.55 * scene.row_pattern.std()
    numbers = striping.numbers
    assert numbers['STRPROW1'] < numbers['STRPROW0'] / 2 and numbers['STRPCOL1'] < numbers['STRPCOL0']
    assert abs(numbers['STRPPED'] - 0.2) < 0.01


# --- the mask on disk ------------------------------------------------------------------------------------

@pytest.fixture
def exposure(tmp_path):
    """What `saved_mask` and `save_mask` need of an image."""
    def product(ending):
        return tmp_path / NAME.replace('_rate.fits', ending)

    return SimpleNamespace(name=NAME, sci=sky(shape=(64, 2048)), product=product, draft=product)


def test_mask_is_reused_unless_ours_of_another_image(exposure):
    path, mask = exposure.product('_rate_1fmask.fits'), sky(shape=(64, 2048)) > 0.21
    assert remstriping.saved_mask(exposure, 'dr05 1') is None
    remstriping.save_mask(exposure, mask, 'dr05 1')
    assert fits.getdata(path).dtype == np.uint8 and fits.getdata(path).max() == 1
    np.testing.assert_array_equal(remstriping.saved_mask(exposure, 'dr05 1'), mask)
    assert remstriping.saved_mask(exposure, 'dr05 2') is None
    header, edited = fits.getheader(path, 1), fits.getdata(path)
    edited[10:20] = 1
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(edited, header)]).writeto(path, overwrite=True)
    np.testing.assert_array_equal(remstriping.saved_mask(exposure, 'dr05 2'), edited > 0)
    fits.writeto(path, mask.astype(np.int32), overwrite=True)       # as the DR0.5 script wrote it
    np.testing.assert_array_equal(remstriping.saved_mask(exposure, 'dr05 2'), mask)


@pytest.mark.parametrize('content', [b'', b'no FITS', b'SIMPLE  =                    T'])
def test_unreadable_mask_is_an_error(exposure, content):
    exposure.product('_rate_1fmask.fits').write_bytes(content)
    with pytest.raises(ExposureError, match='source mask .* unreadable'):
        remstriping.saved_mask(exposure, 'dr05 1')


def test_truncated_mask_and_mask_of_another_shape_are_errors(exposure):
    path = exposure.product('_rate_1fmask.fits')
    write_map(path, np.zeros((64, 2047), bool))
    with pytest.raises(ExposureError, match=r'shape \(64, 2047\)'):
        remstriping.saved_mask(exposure, 'dr05 1')
    fits.writeto(path, np.zeros((64, 2048), np.int32), overwrite=True)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ExposureError, match='unreadable'):
        remstriping.saved_mask(exposure, 'dr05 1')


# --- as a user runs it -----------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments', [[], ['--thresh', 'nan', 'x'], ['--thresh', 'inf', 'x'], ['--thresh=-0.1', 'x'],
                                       ['--thresh', '1.01', 'x'], ['--method', 'best', 'x']])
def test_misuse_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        remstriping.main(arguments)
    assert stop.value.code == 2 and 'usage:' in capsys.readouterr().err


@pytest.mark.parametrize(('setting', 'value'), [('MASKTHRESH', 7), ('METHOD', 'best')])
def test_wrong_settings_are_usage_errors(monkeypatch, setting, value):
    monkeypatch.setattr(remstriping, setting, value)
    with pytest.raises(SystemExit) as stop:
        remstriping.main(['x'])
    assert stop.value.code == 2


@pytest.fixture(scope='module')
def field(tmp_path_factory):
    """A directory with a CRDS cache and one simulated rate image."""
    directory = tmp_path_factory.mktemp('field')
    simulate.write_crds_cache(directory / 'crds')
    simulate.write_rate(simulate.rate_scene(), directory / NAME)
    return directory


def test_end_to_end(field, tmp_path):
    """Three calls, because each imports the pipeline: correct; once only; redo with an edited mask."""
    calibrated, stem = tmp_path / 'calibrated', NAME.removesuffix('.fits')
    calibrated.mkdir()
    path, mask_path = calibrated / NAME, calibrated / f'{stem}_1fmask.fits'
    path.write_bytes((field / NAME).read_bytes())

    def run(*arguments):
        done = run_script('remstriping.py', *arguments, cwd=tmp_path, **simulate.crds_environment(field / 'crds'))
        assert 'Traceback' not in done.stderr
        return done

    done = run(NAME, '--save_patterns')
    assert done.returncode == 0 and 'sky 0.1' in done.stderr and 'source mask' in done.stderr, done.stderr
    assert sorted(p.name for p in calibrated.iterdir()) == [
        f'{stem}{end}.fits' for end in ('', '_1fmask', '_horiz', '_pre1f', '_vert')]
    assert (calibrated / f'{stem}_pre1f.fits').read_bytes() == (field / NAME).read_bytes()
    assert mask_path.stat().st_size < 1e6
    horizontal, vertical = (fits.getdata(calibrated / f'{stem}_{end}.fits') for end in ('horiz', 'vert'))
    assert horizontal.dtype.name == vertical.dtype.name == 'float32' and horizontal.shape == (2048, 2048)
    with fits.open(path) as after, fits.open(field / NAME) as before:
        removed = before['SCI'].data - after['SCI'].data
        good = np.isfinite(removed) & (after['SCI'].data != 0)
        np.testing.assert_allclose(removed[good], (horizontal + vertical)[good], 0, 2e-3 if removed.max() > 9 else 1e-4)
        np.testing.assert_array_equal(np.isnan(after['SCI'].data), np.isnan(before['SCI'].data))
        for name in ('ERR', 'DQ', 'VAR_POISSON', 'VAR_RNOISE'):
            np.testing.assert_array_equal(after[name].data, before[name].data)
        header = after[0].header
    entries = [entry for entry in header['HISTORY'] if entry.startswith('Removed horizontal,vertical striping; ')]
    assert len(entries) == 1 and len(entries[0]) == 72
    assert all(key in header for key in remstriping.KEYWORDS if not key.startswith(('STRPSH_', 'STRPWARN')))
    assert header['STRPROW1'] < header['STRPROW0'] / 2 and 'STRPWARN' not in header

    first = hashlib.sha1(path.read_bytes()).hexdigest()
    done = run('missing_rate.fits', NAME)
    assert done.returncode == 1 and 'no such file' in done.stderr and 'left alone' in done.stderr
    assert hashlib.sha1(path.read_bytes()).hexdigest() == first

    with fits.open(mask_path, mode='update') as hdul:
        hdul[1].data[1000:1010] = 1
    done = run(NAME, '--redo', '--thresh', '0.2')
    assert done.returncode == 0 and 'supplied or edited, is used' in done.stderr, done.stderr
    assert (fits.getdata(mask_path)[1000:1010] == 1).all()
    assert fits.getval(path, 'STRPTHR') == 0.2 and fits.getval(path, 'STRPFR_A') > header['STRPFR_A']
    assert (calibrated / f'{stem}_pre1f.fits').read_bytes() == (field / NAME).read_bytes()
    # ten rows without a pixel: zeroed, flagged, and said
    assert 'pixels lost' in fits.getval(path, 'STRPWARN') and 'pixels lost' in done.stderr
    assert (fits.getdata(path, 'DQ')[1000:1010] & 1).all()
