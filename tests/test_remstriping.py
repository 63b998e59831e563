"""remstriping.py: against the DR0.5 script, against slow obvious forms, and as a user runs it."""

from types import SimpleNamespace

import remstriping
import simulation
import slow_striping as slow
from conftest import DATASET, case_meta, load_case, stripes, unpack
from stage1.exposure import AMPLIFIERS, ExposureError, undefined
from stage1.files import write_map

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

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


def test_mask_is_that_of_dr05(case):
    """And each tier of it, and the median over a ring that it begins with."""
    np.testing.assert_array_equal(case.rings[0][case.out['rows']], case.out['ring_rows'])
    for number, tier in enumerate(case.tiers, 1):
        expected = unpack(case.out[f'tier{number}'])
        if number == 1:     # DR0.5 grew it once more in the mask
            expected = ndimage.binary_dilation(expected, np.ones((11, 11)))
        np.testing.assert_array_equal(tier, expected, f'tier {number}')
    np.testing.assert_array_equal(case.striping.mask, unpack(case.out['mask1f']))
    assert case.striping.numbers['STRPMASK'] == case.out['masked_fraction']


def test_pedestal_and_patterns_are_those_of_dr05(case):
    assert abs(case.striping.numbers['STRPPED'] - case.out['pedestal']) < 1e-5
    image = case.flat - np.float32(case.out['pedestal'])
    np.testing.assert_allclose(remstriping.clipped_median(image, case.mask, 1), case.out['full_horiz'], 0, 1e-6)
    rows, counts = remstriping.row_pattern(image, case.mask, case.thresh)
    np.testing.assert_allclose(rows[:, PROBE], case.out['horiz'], 0, 1e-6)
    np.testing.assert_array_equal(list(counts.values()), case.out['fullrow_counts'])
    np.testing.assert_allclose(remstriping.clipped_median(image - rows, case.mask, 0), case.out['vert'], 0, 1e-6)
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

@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (24, 31), elements=st.sampled_from([0., 0.1, 0.2, 5, 6])), st.integers(1, 15),
       arrays(bool, (24, 31)))
def test_detection_is_that_of_photutils(image, npixels, ignore):
    if (~ignore).sum() < 2:
        return
    level, spread = slow.sky_statistics(image[~ignore])
    if np.abs(image - level - 3 * spread).min() < 1e-9:             # decided by rounding
        return
    np.testing.assert_array_equal(remstriping.detect(image, ignore, npixels, 3), slow.detect(image, ignore, npixels, 3))


@pytest.mark.parametrize('kind', ['as it is', 'NaN', 'NaN error', 'half NaN'])
def test_source_mask_is_that_of_astropy_and_photutils(kind):
    case = load_case('striping_nrca3_f200w_galaxy')
    sci, err = (case[key][:301, 700:1103].copy() for key in ('sci', 'err'))
    rng = np.random.default_rng(5)
    if kind == 'NaN':
        sci[undefined(sci) | (rng.random(sci.shape) < 0.02)] = np.nan
    if kind == 'NaN error':
        err[rng.random(sci.shape) < 0.4] = np.nan
    if kind == 'half NaN':                                      # far from the rest: no part of the sky
        sci[:, :260] = np.nan
    mask = remstriping.source_mask(sci, err)
    np.testing.assert_array_equal(mask, slow.source_mask(sci, err))
    assert 0.1 < mask[:, 300:].mean() < 0.9


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
    np.testing.assert_allclose(remstriping.clipped_median(image, mask, 0), slow.clipped_median(image, mask, 0), 0, 1e-8)
    assert np.isnan(rows[3, 4:2044]).all() and np.isfinite(rows[4]).all()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


# --- properties --------------------------------------------------------------------------------------

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
    for amplifier, pattern in zip(AMPLIFIERS.values(), rows.T, strict=True):
        image[:, amplifier] = pattern[:, None]
    horizontal, _ = remstriping.row_pattern(image, np.zeros(image.shape, bool), 0.8)
    np.testing.assert_array_equal(horizontal, image)
    result, _ = remstriping.subtract_striping(image, np.zeros(image.shape, np.uint32), horizontal, columns)
    assert not result.any()


def test_masked_pixels_do_not_matter_and_nothing_else_changes():
    """What lies under the mask has no influence on the patterns; arguments stay bit-identical."""
    shape = 256, 2048
    sci, err, dq = sky(shape=shape), np.full(shape, 0.01, np.float32), np.zeros(shape, np.uint32)
    sources = np.zeros(shape, bool)
    sources[100:200, 500:900] = True
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
    with pytest.raises(ExposureError, match='every pixel is masked'):
        remstriping.dr05(sci, err, dq, sci, 0.8, np.ones(shape, bool))


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


def test_simulated_stripes_are_found():
    """An image of today's pipeline, with NaN (reference pixels too): no band is masked, no good pixel is lost."""
    scene = simulation.rate_scene(seed=3)
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


# --- the mask on disk --------------------------------------------------------------------------------

@pytest.fixture
def image(tmp_path):
    """What `supplied_mask` needs of an image."""
    return SimpleNamespace(name=f'{DATASET}_rate.fits', sci=sky(shape=(64, 2048)),
                           product=lambda ending: tmp_path / f'{DATASET}{ending}', start=tmp_path / 'in' / 'x')


def test_a_mask_is_used_when_supplied_or_edited(image, caplog):
    path, mask = image.product('_rate_1fmask.fits'), image.sci > 0.21
    assert remstriping.supplied_mask(image) is None and not caplog.text
    (path.parent / 'in').mkdir()
    (path.parent / 'in' / path.name).touch()                            # where it is not looked for
    assert remstriping.supplied_mask(image) is None and f'put it into {path.parent}' in caplog.text
    write_map(path, mask, [('MASKSUM', remstriping.checksum(mask, image.name), '')])    # as the script does
    assert remstriping.supplied_mask(image) is None
    header, edited = fits.getheader(path, 1), fits.getdata(path)
    edited[10:20] = 1
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(edited, header)]).writeto(path, overwrite=True)
    np.testing.assert_array_equal(remstriping.supplied_mask(image), edited > 0)
    fits.writeto(path, mask.astype(np.int32), overwrite=True)               # as the DR0.5 script wrote it
    np.testing.assert_array_equal(remstriping.supplied_mask(image), mask)
    fits.setval(path, 'MASKSUM', value=remstriping.checksum(mask, 'another_rate.fits'))     # a copy from there
    np.testing.assert_array_equal(remstriping.supplied_mask(image), mask)


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'cannot be read'), (b'not FITS', 'cannot be read'), (b'SIMPLE  =                    T', 'cannot be read'),
    (fits.PrimaryHDU(np.zeros((64, 2048), np.int32)).header.tostring().encode() + bytes(97_120), 'cannot be read'),
    (np.zeros((64, 2047), np.uint8), r'shape \(64, 2047\)'), (None, 'cannot be read')])
def test_an_unusable_mask_is_an_error(image, content, words):
    path = image.product('_rate_1fmask.fits')
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        fits.writeto(path, content)
    with pytest.raises(ExposureError, match=f'source mask .* {words}'):
        remstriping.supplied_mask(image)


# --- as a user runs it -------------------------------------------------------------------------------

def test_end_to_end(place, capsys):
    """Correct, then redo with an edited mask."""
    path, untouched, mask_path, *patterns = (place / 'calibrated' / f'{DATASET}_rate{end}.fits'
                                             for end in ('', '_pre1f', '_1fmask', '_horiz', '_vert'))
    before = path.read_bytes()
    assert stripes('--save_patterns') == 0
    said = capsys.readouterr().err
    assert 'sky 0.' in said and 'source mask' in said
    assert set(path.parent.iterdir()) == {path, untouched, mask_path, *patterns}
    assert untouched.read_bytes() == before and mask_path.stat().st_size < 1e6
    horizontal, vertical = map(fits.getdata, patterns)
    assert horizontal.dtype.name == vertical.dtype.name == 'float32' and horizontal.shape == (2048, 2048)
    with fits.open(path) as after, fits.open(untouched) as hdul:
        header, sci, old = after[0].header, after['SCI'].data, hdul['SCI'].data
        good = np.isfinite(sci) & (sci != 0)
        np.testing.assert_allclose((old - sci)[good], (horizontal + vertical)[good], 0,
                                   2e-3 if np.nanmax(old) > 9 else 1e-4)
        np.testing.assert_array_equal(np.isnan(sci), np.isnan(old))
        for name in ('ERR', 'DQ', 'VAR_POISSON', 'VAR_RNOISE'):
            np.testing.assert_array_equal(after[name].data, hdul[name].data)
    entries = [entry for entry in header['HISTORY'] if entry.startswith('Removed horizontal,vertical striping; ')]
    assert len(entries) == 1 and len(entries[0]) == 72
    assert all(key in header for key in remstriping.KEYWORDS
               if not key.startswith(('STRPSH_', 'STRPINNR', 'STRPWITH', 'STRPPCE', 'STRPWARN')))
    assert header['STRPROW1'] < header['STRPROW0'] / 2 and 'STRPWARN' not in header
    with fits.open(mask_path, mode='update') as hdul:
        hdul[1].data[1000:1010] = 1
    assert stripes('--redo', '--thresh', '0.2') == 0
    said = capsys.readouterr().err
    assert (fits.getdata(mask_path)[1000:1010] == 1).all() and 'supplied or edited' in said
    assert fits.getval(path, 'STRPTHR') == 0.2 and fits.getval(path, 'STRPFR_A') > header['STRPFR_A']
    assert untouched.read_bytes() == before
    # ten rows without a pixel: zeroed, flagged, and said
    assert 'pixels lost' in fits.getval(path, 'STRPWARN') and 'pixels lost' in said
    assert (fits.getdata(path, 'DQ')[1000:1010] & 1).all()


def test_reference_pixels_are_not_lost_pixels(place, quick, flat_of_one):  # noqa: ARG001
    """Detector1 leaves them finite and without DO_NOT_USE; they hold no sky that could be lost."""
    path, border = place / 'calibrated' / f'{DATASET}_rate.fits', simulation.reference_pixels()
    with fits.open(path, mode='update') as hdul:
        hdul['SCI'].data[border] = 0.001
        hdul['DQ'].data[border] = 2**31
    assert stripes() == 0
    assert 'pixels lost' not in fits.getheader(path).get('STRPWARN', '')
    assert (fits.getdata(path, 'DQ')[border] & 1).all()
