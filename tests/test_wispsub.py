"""wispsub.py: against the DR0.5 scripts, against slow obvious forms, and as a user runs it."""

import hashlib
import shutil
from datetime import UTC, datetime
from pathlib import Path

import simulation
import slow_wisps as slow
import wispsub
from conftest import DATASET, case_meta, load_case, unpack, wisps
from stage1.exposure import ExposureError, undefined
from stage1.pipeline import history_lines
from stage1.wisp_picture import plot_wisp

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

FLOATS = st.floats(-8, 8, width=32)


class Case:
    """A reference case: arrays, flat-fielded image `sci` and its `err` in float32."""

    def __init__(self, name):
        case, flats = load_case(f'wisp_{name}'), load_case(f'flat_{name}')
        self.raw, self.dq, self.out = case['sci'], case['dq'], {key: case[key] for key in case.files}
        flat = flats['flat']
        self.sci = self.raw / flat
        self.err = np.sqrt(case['var_poisson'] / flat**2 + case['var_rnoise'] / flat**2
                           + self.sci**2 / flat**2 * flats['flat_err']**2)
        self.detector, self.filter = (case_meta(case)['header'][key] for key in ('DETECTOR', 'FILTER'))
        self.window = wispsub.WINDOWS[self.detector]
        self.planes, self.blank = case['template'][None], undefined(self.raw)


@pytest.fixture(scope='module', params=['nrca3_f200w', 'nrcb4_f150w'])
def case(request):
    return Case(request.param)


@pytest.fixture(scope='module')
def dr05_fit(case):
    return wispsub.fit_dr05(case.sci, case.err, case.dq, case.planes, case.blank, case.window)


def without_wisp(sci, flat_fielded, fit):
    """An image less the wisp that a fit found."""
    return wispsub.subtract_wisp(sci, wispsub.wisp_light(sci, flat_fielded, fit))


def test_source_mask_is_that_of_dr05(case, dr05_fit):
    bright = wispsub.bright_sources(case.sci)
    uncovered = np.isnan(case.err)
    np.testing.assert_array_equal(bright, unpack(case.out['bright_mask']))
    mesh = case.out['background_mesh']
    spline = ndimage.zoom(mesh, wispsub.BOX, mode='reflect', grid_mode=True).clip(mesh.min(), mesh.max())
    np.testing.assert_allclose(wispsub.fit_background(case.sci, bright, uncovered), np.where(uncovered, 0, spline),
                               rtol=0, atol=1e-6)
    np.testing.assert_array_equal(dr05_fit.sources, unpack(case.out['segm']))


def test_scale_is_that_of_dr05(case, dr05_fit):
    np.testing.assert_array_equal(wispsub.SCALES, case.out['coeffs'])
    np.testing.assert_allclose(dr05_fit.trials[1], case.out['variances'], rtol=1e-5)
    np.testing.assert_allclose(dr05_fit.trials[2], np.polyval(case.out['polyfit'], wispsub.SCALES), rtol=1e-5)
    assert dr05_fit.scale == case.out['scale']
    assert not dr05_fit.warning


def test_corrected_image_is_that_of_dr05(case, dr05_fit):
    before = case.raw.copy()
    corrected = without_wisp(case.raw, case.sci, dr05_fit)
    assert hashlib.sha1(corrected.astype('<f4').tobytes()).hexdigest() == str(case.out['out_sci_sha1'])
    np.testing.assert_array_equal(case.raw, before)
    np.testing.assert_array_equal(corrected == 0, unpack(case.out['out_zero']))


def test_history_is_that_of_dr05(case):
    template = Path('wisps/wisps_2022_08_26') / case_meta(case.out)['template_name']
    line = history_lines(wispsub.wisp_entry(template, float(case.out['scale'])), 'wispsub.py', 'none', {})[0]
    entry, time = line.rsplit('wispsub.py ', 1)
    assert f'{entry}wispsub.py <time>' == str(case.out['history'])
    assert abs(datetime.fromisoformat(f'{time}Z') - datetime.now(UTC)).total_seconds() < 60


def test_image_with_nan_gives_the_same_scale_as_with_zeros(case, dr05_fit):
    zero = case.raw == 0
    nan = [np.where(zero, np.float32(np.nan), image) for image in (case.raw, case.sci)]
    fit = wispsub.fit_dr05(nan[1], case.err, case.dq, case.planes, undefined(nan[0]), case.window)
    np.testing.assert_array_equal(fit.template, dr05_fit.template)
    assert fit.scale == dr05_fit.scale
    corrected = without_wisp(*nan, fit)
    expected = without_wisp(case.raw, case.sci, dr05_fit)
    np.testing.assert_array_equal(np.isnan(corrected), zero)
    np.testing.assert_array_equal(corrected[~zero], expected[~zero])


@pytest.mark.parametrize('kind', ['noise', 'quantised', 'mostly masked', 'odd', 'jump', 'constant'])
def test_variances_are_the_slow_ones_to_the_bit(kind):
    rng = np.random.default_rng(1)
    template = np.abs(rng.normal(0, 0.02, (301, 200))).astype(np.float32)
    image = (rng.normal(0.2, 0.01, template.shape) + 0.6 * template).astype(np.float32)
    image = {'noise': image, 'quantised': np.round(image * 128) / 128, 'odd': image[:, :199],
             'mostly masked': np.where(rng.random(image.shape) < 0.7, 0, image),
             'jump': np.where(template > 0.02, image + 5, image), 'constant': np.ones_like(image)}[kind]
    image, template = image.astype(np.float32), template[:, :image.shape[1]].copy()
    _, variances, _ = wispsub.fit_scale(image, template, wispsub.SCALES)
    np.testing.assert_array_equal(
        variances, np.square(slow.median_absolute_deviations(image, template, wispsub.SCALES)))


def test_values_beyond_float32_are_an_error():
    image = np.full((8, 8), 3e38, np.float32)
    image[::2] *= -1
    with pytest.raises(ExposureError, match='float32'), np.errstate(all='ignore'):
        wispsub.fit_scale(image, image, wispsub.SCALES)


def sky(shape=(512, 512), number=12, seed=3):
    """An image with a gradient and a few sources, its error, DN/s, and where the sources are."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    image = 0.2 + 2e-5 * x + rng.normal(0, 0.01, shape)
    centers = rng.uniform(20, min(shape) - 20, (number, 2))
    for y0, x0 in centers:
        image += 2 * np.exp(-0.5 * ((y - y0)**2 + (x - x0)**2) / 3**2)
    return image.astype(np.float32), np.full(shape, 0.01, np.float32), centers.astype(int)


@pytest.mark.parametrize('shape', [(512, 512), (300, 700), (1030, 256), (200, 900)])
def test_bright_sources_are_the_slow_ones(shape):
    sci, _, _ = sky(shape, number=4)
    np.testing.assert_array_equal(wispsub.bright_sources(sci), slow.bright_sources(sci))


def test_sources_are_found_and_inputs_untouched():
    sci, err, centers = sky()
    before = sci.copy(), err.copy()
    mask = wispsub.find_sources(sci, err)
    assert mask[tuple(centers.T)].all() and mask.mean() < 0.1
    np.testing.assert_array_equal((sci, err), before)


HALF, FAR = np.random.default_rng(4).random((512, 512)) < 0.5, np.maximum.outer(np.arange(512), np.arange(512)) > 255
DAMAGE = {       # name: (SCI, ERR) made of an image and its error
    'no source': lambda sci, err: (np.where(HALF, sci.dtype.type(0.19), sci.dtype.type(0.21)), err),
    'half NaN': lambda sci, err: (np.where(HALF, np.nan, sci), err),
    'one box': lambda sci, err: (np.where(FAR, np.nan, sci), err),
    'ERR all NaN': lambda sci, err: (sci, err * np.float32(np.nan)), 'ERR 0': lambda sci, err: (sci, 0 * err),
    'bright rows': lambda sci, err: (sci + 100 * (np.arange(512)[:, None] % 2 == 0).astype(sci.dtype), err),
    'one pixel': lambda sci, err: (np.where(np.arange(sci.size).reshape(sci.shape), np.nan, sci), err)}


@pytest.mark.parametrize('damage', DAMAGE)
def test_difficult_images_give_a_mask(damage):
    sci, err, _ = sky()
    mask = wispsub.find_sources(*DAMAGE[damage](sci, err))
    assert mask.shape == sci.shape and mask.dtype == bool
    assert not (damage in ('no source', 'ERR all NaN', 'one pixel') and mask.any())


def test_boxes_masked_too_much_still_give_a_sky():
    sci, _, _ = sky()
    nothing = np.zeros(sci.shape, bool)
    most = np.random.default_rng(5).random(sci.shape) < 0.5
    assert abs(np.median(wispsub.fit_background(sci, most, nothing)) - 0.205) < 0.005
    assert abs(np.median(wispsub.fit_background(sci, ~nothing, nothing)) - 0.205) < 0.005


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (6, 5), elements=FLOATS | st.just(np.nan)),
       arrays(np.float32, (6, 5), elements=FLOATS | st.just(np.nan) | st.just(np.inf)), st.floats(0, 10),
       st.sampled_from(list(wispsub.METHODS)))
def test_subtraction(sci, raw_template, scale, method):
    before = sci.copy(), raw_template.copy()
    template = wispsub.defined_template(raw_template[None], undefined(sci))
    fits_ = (wispsub.Fit(method, template, value) for value in (scale, 0))
    out, same = (without_wisp(sci, sci / np.float32(0.5), fit) for fit in fits_)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(sci))        # NaN stays, none is added
    np.testing.assert_array_equal(out[template == 0], sci[template == 0])
    assert (out[sci == 0] == 0).all()
    np.testing.assert_array_equal(same, sci)
    expected = sci - np.float32(scale) * template * np.float32(0.5 if method == 'adaptive' else 1)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal((sci, raw_template), before)


@pytest.mark.parametrize('detector', wispsub.WINDOWS)
@pytest.mark.parametrize('injected', [0.3, 0.8])
def test_injected_wisp_is_found(detector, injected):
    rng = np.random.default_rng(6)
    window = wispsub.WINDOWS[detector]
    template = simulation.wisp_shape(detector, 'F200W')
    image = (rng.normal(0.2, 0.012, template[window].shape) + injected * template[window]).astype(np.float32)
    smooth = ndimage.gaussian_filter(template, 2, mode='constant', truncate=3.5)[window]
    scale, _, _ = wispsub.fit_scale(image, smooth, wispsub.SCALES)
    # the quadratic is put through a curve that is none: that is how well DR0.5 does
    assert abs(scale - injected) < 0.13
    nothing = np.zeros(image.shape, bool)
    before, after = (wispsub.wisp_rms(image - s * template[window], nothing, template[window]) for s in (0, scale))
    assert after < before / 2


@pytest.mark.parametrize(('scale', 'masked', 'words'), [
    (0.5, 0.02, ''), (-0.5, 0, 'best scale 0.01 is at the end of the trial range'),
    (2., 0, 'best scale 1.19 is at the end of the trial range'), (0.5, 0.6, '60 % of the fit window is masked')])
def test_doubtful_fits_are_said(scale, masked, words):
    rng, shape = np.random.default_rng(7), (512, 512)
    profile = np.exp(-0.5 * ((np.arange(512) - 250) / 80)**2)
    template = (0.05 * np.outer(profile, profile)).astype(np.float32)
    image = rng.normal(0.2, 0.01, shape).astype(np.float32) + np.float32(scale) * template
    dq = (np.arange(512) % 100 < 100 * masked).astype(np.uint32) * np.ones(shape, np.uint32)
    fit = wispsub.fit_dr05(image, np.full(shape, 0.1, np.float32), dq, template[None], image == 0, np.s_[:500, :500])
    assert words in fit.warning and bool(words) == bool(fit.warning)
    cards = {card[0]: card[1] for card in wispsub.score_cards(Path('t.fits'), fit, (0.01, 0.001))}
    assert cards.get('WISPWARN', '') == fit.warning


@pytest.mark.parametrize(('bad', 'words'), [('flags', 'every pixel of the fit window'), ('template', 'template is 0')])
def test_nothing_to_fit_is_an_error(bad, words):
    sci, err, _ = sky()
    dq, template = np.zeros(sci.shape, np.uint32), np.ones((1, *sci.shape), np.float32)
    (dq if bad == 'flags' else template[0])[:100] = bad == 'flags'
    with pytest.raises(ExposureError, match=words):
        wispsub.fit_dr05(sci, err, dq, template, sci == 0, np.s_[:100, :512])


def test_no_score_where_nothing_can_be_measured():
    image = np.ones((16, 16), np.float32)
    everything, nothing = np.ones((16, 16), bool), np.zeros((16, 16), bool)
    assert np.isnan(wispsub.wisp_rms(image, everything, image))
    assert np.isnan(wispsub.wisp_rms(image, nothing, image))           # no sky
    fit = wispsub.Fit('dr05', image, 0.5)
    assert 'WISPRMS0' not in [card[0] for card in wispsub.score_cards(Path('t.fits'), fit, (np.nan, np.nan))]


def test_one_image_end_to_end(place, capsys):
    image, untouched, sources_path, pdf = (place / 'calibrated' / f'{DATASET}{end}' for end in (
        '_rate.fits', '_rate_prewisp.fits', '_segm_cold.fits', '_wisp.pdf'))
    before = image.read_bytes()
    assert wisps('--fit_scaling') == 0
    assert 'wisps_nrca3_F200W.fits, scale 0.' in capsys.readouterr().err
    assert set(image.parent.iterdir()) == {image, untouched, sources_path, pdf}
    assert untouched.read_bytes() == before and pdf.read_bytes().startswith(b'%PDF')
    sources = fits.getdata(sources_path)
    assert sources.shape == (2048, 2048) and sources.dtype == np.uint8 and 0 < sources.mean() < 0.2
    assert sources_path.stat().st_size < 1e6
    with fits.open(image) as after, fits.open(untouched) as hdul:
        header = after[0].header
        assert 'Wisps: subtracted' in str(header['HISTORY']) and header['WISPMETH'] == 'dr05'
        assert abs(header['WISPSCAL'] - 0.6) < 0.1 and header['WISPRMS1'] < header['WISPRMS0'] / 3
        assert header['WISPTMPL'] == 'wisps_nrca3_F200W.fits' and 'WISPWARN' not in header
        template = np.nan_to_num(fits.getdata('wisps/wisps_nrca3_F200W.fits'))
        template[np.isnan(hdul['SCI'].data)] = np.nan
        inner = np.s_[100:-100, 100:-100]
        np.testing.assert_allclose((hdul['SCI'].data - after['SCI'].data)[inner], header['WISPSCAL'] * template[inner],
                                   rtol=1e-3, atol=1e-3)
        for name in ('ERR', 'DQ', 'VAR_POISSON', 'VAR_RNOISE'):
            np.testing.assert_array_equal(after[name].data, hdul[name].data)


def test_several_files_with_a_scale_that_is_given(image, capsys):
    """One that is missing, a detector without wisps, one without a template, and a good one."""
    others = [Path(shutil.copy(image, str(image).replace('nrca3', name))) for name in ('nrca1', 'nrca4')]
    for path in others:
        fits.setval(path, 'DETECTOR', value=path.name.split('_')[3].upper())
    before = [path.read_bytes() for path in others]
    names = [path.name for path in (*others, image)]
    assert wispsub.main(['missing_rate.fits', *names, '--wisp_dir', 'wisps', '--scale', '0.5']) == 1
    said = capsys.readouterr().err
    assert 'missing_rate.fits: no such file' in said and f'{names[0]}: no wisp correction' in said
    assert f'{names[1]}: no wisp template in' in said and said.count('ERROR') == 3
    assert fits.getval(image, 'WISPSCAL') == 0.5 and fits.getval(image, 'WISPMETH') == 'fixed'
    assert [path.read_bytes() for path in others] == before
    assert {path.name for path in image.parent.iterdir()} == {*names, f'{DATASET}_rate_prewisp.fits'}


@pytest.mark.parametrize('warning', ['', 'best scale 1.19 is at the end of the trial range'])
def test_picture_is_drawn_even_of_nothing(tmp_path, warning):
    scales, zeros = wispsub.SCALES, np.zeros((64, 64), np.float32)
    for ignore, trials in ((zeros > 0, (scales, scales**2, scales**2)), (zeros == 0, None)):
        fit = wispsub.Fit('dr05', zeros, 0.5, zeros > 0, trials, warning, cards=(('A', 1., 'a card'),))
        plot_wisp(tmp_path / 'p.pdf', fit, zeros, zeros, ignore, np.s_[0:64, 0:64], 'x_$^rate{$.fits')
        assert (tmp_path / 'p.pdf').read_bytes().startswith(b'%PDF')
