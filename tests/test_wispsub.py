"""wispsub.py: against the DR0.5 scripts, against slow obvious forms, and as a user runs it."""

import hashlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import simulate
import slow_wisps as slow
import wispsub
from conftest import case_meta, load_case, run_script, unpack
from stage1 import filters
from stage1.exposure import ExposureError, undefined

NAME = 'jw01345001001_10201_00001_nrca3_rate.fits'


# --- the numbers of DR0.5 ----------------------------------------------------------------------------

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


def test_source_mask_is_that_of_dr05(case, dr05_fit):
    bright = wispsub.bright_sources(case.sci)
    mesh = wispsub.background_mesh(case.sci, bright, np.isnan(case.err))
    np.testing.assert_array_equal(bright, unpack(case.out['bright_mask']))
    np.testing.assert_allclose(mesh, case.out['background_mesh'], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(dr05_fit.sources, unpack(case.out['segm']))


def test_scale_is_that_of_dr05(case, dr05_fit):
    np.testing.assert_array_equal(wispsub.SCALES, case.out['coeffs'])
    np.testing.assert_allclose(dr05_fit.trials[1], case.out['variances'], rtol=1e-5)
    np.testing.assert_allclose(dr05_fit.trials[2], np.polyval(case.out['polyfit'], wispsub.SCALES), rtol=1e-5)
    assert dr05_fit.scale == case.out['scale']
    assert not dr05_fit.warning


def test_corrected_image_is_that_of_dr05(case, dr05_fit):
    before = case.raw.copy()
    corrected = wispsub.subtract_wisp(case.raw, case.sci, dr05_fit)
    assert hashlib.sha1(corrected.astype('<f4').tobytes()).hexdigest() == str(case.out['out_sci_sha1'])
    np.testing.assert_array_equal(case.raw, before)
    np.testing.assert_array_equal(corrected == 0, unpack(case.out['out_zero']))


def test_history_is_that_of_dr05(case):
    template = Path('wisps/wisps_2022_08_26') / case_meta(case.out)['template_name']
    line = wispsub.history(template, float(case.out['scale']))
    entry, time = line.rsplit('wispsub.py ', 1)
    assert f'{entry}wispsub.py <time>' == str(case.out['history'])
    assert abs(datetime.strptime(time, '%Y-%m-%d %H:%M:%S') - datetime.now()).total_seconds() < 60


def test_image_with_nan_gives_the_same_scale_as_with_zeros(case, dr05_fit):
    if case.detector != 'NRCA3':
        pytest.skip('one detector will do')
    zero = case.raw == 0
    nan = [np.where(zero, np.float32(np.nan), image) for image in (case.raw, case.sci)]
    fit = wispsub.fit_dr05(nan[1], case.err, case.dq, case.planes, undefined(nan[0]), case.window)
    np.testing.assert_array_equal(fit.template, dr05_fit.template)
    assert fit.scale == dr05_fit.scale
    corrected = wispsub.subtract_wisp(*nan, fit)
    expected = wispsub.subtract_wisp(case.raw, case.sci, dr05_fit)
    np.testing.assert_array_equal(np.isnan(corrected), zero)
    np.testing.assert_array_equal(corrected[~zero], expected[~zero])


# --- fast forms against slow ones --------------------------------------------------------------------

floats = st.floats(-8, 8, width=32)
ties = st.integers(-2, 2).map(float)


@settings(max_examples=150, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=floats | ties), floats, st.floats(0, 4, width=32))
def test_median_near_a_guess_is_the_median(values, guess, reach):
    before = values.copy()
    assert filters.median(values, guess, reach) == np.median(values)
    assert filters.median(values, np.median(values), 0) == np.median(values)
    np.testing.assert_array_equal(values, before)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (7, 9), elements=floats | ties), arrays(np.float32, (7, 9), elements=floats | ties))
def test_deviations_of_any_images_are_the_slow_ones(image, template):
    before = image.copy(), template.copy()
    fast = filters.mad(image, template, wispsub.SCALES)
    np.testing.assert_array_equal(fast, slow.median_absolute_deviations(image, template, wispsub.SCALES))
    np.testing.assert_array_equal((image, template), before)


@pytest.mark.parametrize('kind', ['noise', 'quantised', 'mostly masked', 'odd', 'jump', 'constant'])
def test_fit_is_the_slow_one_to_the_bit(kind):
    rng = np.random.default_rng(1)
    template = np.abs(rng.normal(0, 0.02, (301, 200))).astype(np.float32)
    image = (rng.normal(0.2, 0.01, template.shape) + 0.6 * template).astype(np.float32)
    image = {'noise': image, 'quantised': np.round(image * 128) / 128, 'odd': image[:, :199],
             'mostly masked': np.where(rng.random(image.shape) < 0.7, 0, image),
             'jump': np.where(template > 0.02, image + 5, image), 'constant': np.ones_like(image)}[kind]
    image = image.astype(np.float32)
    template = template[:, :image.shape[1]].copy()
    for fast, obvious in zip(wispsub.fit_scale(image, template, wispsub.SCALES),
                             slow.fit_scale(image, template, wispsub.SCALES), strict=True):
        np.testing.assert_array_equal(fast, obvious)


def test_values_beyond_float32_are_an_error():
    image = np.full((8, 8), 3e38, np.float32)
    image[::2] *= -1
    with pytest.raises(ExposureError, match='float32'), np.errstate(all='ignore'):
        wispsub.fit_scale(image, image, wispsub.SCALES)


@pytest.mark.parametrize('window', [(0, 20, 0, 30), (5, 60, 3, 50), (30, 64, 40, 64), (0, 64, 0, 64)])
def test_smoothing_the_window_is_smoothing_the_image(window):
    template = np.random.default_rng(2).random((64, 64), np.float32)
    np.testing.assert_array_equal(wispsub.smooth_template(template, window), slow.smooth_template(template, window))


@settings(max_examples=40, deadline=None)
@given(arrays(bool, (12, 14)), st.integers(1, 9), st.sampled_from((1, 3, 5, 15)))
def test_groups_and_growth_are_the_slow_ones(mask, npixels, size):
    np.testing.assert_array_equal(wispsub.connected(mask, npixels), slow.connected(mask, npixels))
    np.testing.assert_array_equal(wispsub.grow(mask, size), slow.grow(mask, size))


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
def test_background_and_bright_sources_are_the_slow_ones(shape):
    sci, _, _ = sky(shape, number=4)
    bright = wispsub.bright_sources(sci)
    np.testing.assert_array_equal(bright, slow.bright_sources(sci))
    uncovered = np.zeros(shape, bool)
    uncovered[:9, :7] = True
    np.testing.assert_allclose(wispsub.fit_background(sci, bright, uncovered),
                               slow.fit_background(sci, bright, uncovered), rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(arrays(np.float32, (17, 13), elements=floats), arrays(bool, (17, 13)), st.sampled_from((2, 4, 5)))
def test_block_means_are_the_slow_ones(image, ignore, size):
    np.testing.assert_allclose(wispsub.block_means(image, ignore, size), slow.block_means(image, ignore, size),
                               rtol=1e-4, atol=1e-5)


# --- what must hold whatever the input ---------------------------------------------------------------

def test_sources_are_found_and_inputs_untouched():
    sci, err, centers = sky()
    before = sci.copy(), err.copy()
    mask = wispsub.find_sources(sci, err)
    assert mask[tuple(centers.T)].all() and mask.mean() < 0.1
    np.testing.assert_array_equal((sci, err), before)


@pytest.mark.parametrize('damage', ['no source', 'half NaN', 'all but one box NaN', 'ERR all NaN', 'ERR 0',
                                    'everything bright', 'one pixel'])
def test_difficult_images_give_a_mask(damage):
    sci, err, _ = sky()
    rng = np.random.default_rng(4)
    if damage == 'no source':
        sci = rng.normal(0.2, 0.01, sci.shape).astype(np.float32)
    elif damage == 'half NaN':
        sci[rng.random(sci.shape) < 0.5] = np.nan
    elif damage == 'all but one box NaN':
        sci[256:], sci[:, 256:] = np.nan, np.nan
    elif damage == 'ERR all NaN':
        err[:] = np.nan
    elif damage == 'ERR 0':
        err[:] = 0
    elif damage == 'everything bright':
        sci[::2] += 100
    elif damage == 'one pixel':
        sci[:], sci[0, 0] = np.nan, 1
    mask = wispsub.find_sources(sci, err)
    assert mask.shape == sci.shape and mask.dtype == bool
    if damage in ('no source', 'ERR all NaN', 'one pixel'):
        assert not mask.any()


def test_boxes_masked_too_much_still_give_a_sky():
    sci, _, _ = sky()
    nothing = np.zeros(sci.shape, bool)
    most = np.random.default_rng(5).random(sci.shape) < 0.5
    assert abs(np.median(wispsub.fit_background(sci, most, nothing)) - 0.205) < 0.005
    assert abs(np.median(wispsub.fit_background(sci, ~nothing, nothing)) - 0.205) < 0.005


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (6, 5), elements=floats | st.just(np.nan)),
       arrays(np.float32, (6, 5), elements=floats | st.just(np.nan) | st.just(np.inf)), st.floats(0, 10))
def test_subtraction(sci, raw_template, scale):
    before = sci.copy(), raw_template.copy()
    template = wispsub.defined_template(raw_template, undefined(sci))
    out = wispsub.subtract_wisp(sci, template, scale)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(sci))        # NaN stays, none is added
    np.testing.assert_array_equal(out[template == 0], sci[template == 0])
    assert (out[sci == 0] == 0).all()
    np.testing.assert_array_equal(wispsub.subtract_wisp(sci, template, 0), sci)
    np.testing.assert_array_equal((sci, raw_template), before)


@pytest.mark.parametrize('detector', wispsub.WINDOWS)
@pytest.mark.parametrize('injected', [0.3, 0.8])
def test_injected_wisp_is_found(detector, injected):
    rng = np.random.default_rng(6)
    y1, y2, x1, x2 = wispsub.WINDOWS[detector]
    template = np.zeros((2048, 2048), np.float32)
    template[y1:y2, x1:x2] = simulate.wisp_shape(detector, 'F200W')[y1:y2, x1:x2]
    window = wispsub.cutout(wispsub.WINDOWS[detector])
    image = (rng.normal(0.2, 0.012, template[window].shape) + injected * template[window]).astype(np.float32)
    smooth = wispsub.smooth_template(template, wispsub.WINDOWS[detector])
    scale, _, _ = wispsub.fit_scale(image, smooth, wispsub.SCALES)
    # the quadratic is put through a curve that is none: that is how well DR0.5 does
    assert abs(scale - injected) < 0.13
    nothing = np.zeros(image.shape, bool)
    before, after = (wispsub.wisp_rms(image - s * template[window], nothing, template[window]) for s in (0, scale))
    assert after < before / 2


@pytest.mark.parametrize(('scale', 'masked', 'words'), [
    (0.47, 0.02, ''), (wispsub.SCALES[0], 0, '0.01 is at the end'), (wispsub.SCALES[-1], 0, '1.19 is at the end'),
    (0.47, 0.6, '60 % of the fit window is masked')])
def test_doubtful_fits_are_said(scale, masked, words):
    warning = wispsub.fit_warning(scale, wispsub.SCALES, masked)
    assert words in warning and bool(words) == bool(warning)


def test_no_score_where_nothing_can_be_measured():
    image = np.ones((16, 16), np.float32)
    everything, nothing = np.ones((16, 16), bool), np.zeros((16, 16), bool)
    assert np.isnan(wispsub.wisp_rms(image, everything, image))
    assert np.isnan(wispsub.wisp_rms(image, nothing, image))           # no sky
    fit = wispsub.Fit('dr05', image, 0.5)
    assert 'WISPRMS0' not in [card[0] for card in wispsub.score_cards(Path('t.fits'), fit, (np.nan, np.nan))]


# --- templates ---------------------------------------------------------------------------------------

SHAPE = 6, 8


def write_template(path, *extensions, primary=None):
    """A file with image `extensions` (name, value), filled with the value."""
    hdus = [fits.PrimaryHDU(primary)]
    for name, value in extensions:
        data = np.full((len(value), *SHAPE) if np.ndim(value) else SHAPE, value, np.float32)
        hdus.append(fits.ImageHDU(data, name=name))
    fits.HDUList(hdus).writeto(path)
    return path


@pytest.mark.parametrize('name', ['wisps_nrca3_F200W.fits', 'wisps_nrca3_f200w.fits',
                                  'WISP_NRCA3_F200W_CLEAR.fits'])
def test_every_naming_scheme_is_found(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / 'wisps_nrca4_F200W.fits').touch()
    assert wispsub.find_template(tmp_path, 'NRCA3', 'F200W') == tmp_path / name


def test_missing_template_names_what_was_looked_for(tmp_path):
    with pytest.raises(ExposureError, match='wisps_nrcb4_F150W.fits.*WISP_NRCB4_F150W_CLEAR.fits'):
        wispsub.find_template(tmp_path, 'NRCB4', 'F150W')


@pytest.mark.parametrize('extensions', [
    [('SCI', 1)], [('ERR', 2), ('SCI', 1), ('DQ', 3)], [('CAL', 2), ('RATE', 1)], [('SCI', 2), ('RATE', 1)],
    [('WISP_CAL', 2), ('WISP_RATE', 1)], [('TEMPLATE', 1)], [('', 1)]])
def test_the_image_for_rates_is_taken(tmp_path, extensions):
    path = write_template(tmp_path / 't.fits', *extensions)
    np.testing.assert_array_equal(wispsub.read_template(path, SHAPE), np.ones((1, *SHAPE), np.float32))


def test_primary_image_is_taken(tmp_path):
    image = np.ones(SHAPE, '>f8')
    image[0] = np.nan
    template, = wispsub.read_template(write_template(tmp_path / 't.fits', ('ERR', 2), primary=image), SHAPE)
    np.testing.assert_array_equal(template, image)
    assert template.dtype == np.float32 and template.dtype.isnative


@pytest.mark.parametrize(('extensions', 'words'), [
    ([('CAL', 1)], 'no image for rates'), ([], 'no image for rates'), ([('SCI', np.nan)], 'NaN everywhere')])
def test_unusable_templates_are_errors(tmp_path, extensions, words):
    with pytest.raises(ExposureError, match=words):
        wispsub.read_template(write_template(tmp_path / 't.fits', *extensions), SHAPE)


@pytest.mark.parametrize('extensions', [[('WISP_0', 0), ('WISP_1', 1), ('MASK', 5)], [('SCI', [[[0.]], [[1.]]])]])
def test_planes_of_a_template_are_extensions_or_a_cube(tmp_path, extensions):
    planes = wispsub.read_template(write_template(tmp_path / 't.fits', *extensions), SHAPE)
    assert planes.shape == (2, *SHAPE) and planes[0].max() == 0 and planes[1].min() == 1
    with pytest.raises(ExposureError, match='adaptive'):
        wispsub.single(planes)


def test_template_of_another_shape_or_no_template_at_all(tmp_path):
    with pytest.raises(ExposureError, match=r'shape \(6, 8\)'):
        wispsub.read_template(write_template(tmp_path / 't.fits', ('SCI', 1)), (8, 8))
    (tmp_path / 'junk.fits').write_bytes(b'junk' * 1000)
    with pytest.raises(ExposureError, match='cannot be read'):
        wispsub.read_template(tmp_path / 'junk.fits', SHAPE)


# --- the command -------------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments', [
    [], ['a.fits'], ['a.fits', '--fit_scaling', '--scale', '1'], ['--fit_scaling'], *(
        ['a.fits', '--scale', scale] for scale in ('nan', 'inf', '-0.1', '10.1', 'x', '')),
    ['a.fits', '--fit_scaling', '--method', 'guess']])
def test_misuse_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        wispsub.main(arguments)
    assert stop.value.code == 2
    assert 'usage:' in capsys.readouterr().err


def test_scale_zero_and_ten_are_allowed():
    parse = wispsub.build_parser().parse_args
    assert [parse(['a', '--scale', scale]).scale for scale in ('0', '10')] == [0, 10]


@pytest.fixture(scope='module')
def field(tmp_path_factory):
    """A directory with templates, a CRDS cache and one simulated rate image with a wisp of scale 0.6."""
    directory = tmp_path_factory.mktemp('field')
    simulate.write_crds_cache(directory / 'crds')
    simulate.write_templates(directory / wispsub.WISPDIR)
    simulate.write_rate(simulate.rate_scene(wisp=0.6), directory / NAME)
    return directory


@pytest.fixture
def run(field, tmp_path):
    """Run the script in `tmp_path`, where calibrated/NAME is the simulated image."""
    (tmp_path / 'calibrated').mkdir()
    (tmp_path / 'calibrated' / NAME).write_bytes((field / NAME).read_bytes())

    def call(*arguments, wisp_dir=field / wispsub.WISPDIR):
        return run_script('wispsub.py', *arguments, '--wisp_dir', wisp_dir, cwd=tmp_path, MPLCONFIGDIR=str(field),
                          **simulate.crds_environment(field / 'crds'))
    return call


def test_one_image_end_to_end(run, tmp_path, field):
    done = run(NAME, '--fit_scaling')
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr and 'wisps_nrca3_F200W.fits, scale 0.' in done.stderr
    calibrated = tmp_path / 'calibrated'
    stem = NAME.removesuffix('_rate.fits')
    assert sorted(p.name for p in calibrated.iterdir()) == [
        f'{stem}{end}' for end in ('_rate.fits', '_rate_prewisp.fits', '_segm_cold.fits', '_wisp.pdf')]
    assert (calibrated / f'{stem}_rate_prewisp.fits').read_bytes() == (field / NAME).read_bytes()
    sources = fits.getdata(calibrated / f'{stem}_segm_cold.fits')
    assert sources.shape == (2048, 2048) and sources.dtype == np.uint8 and 0 < sources.mean() < 0.2
    assert (calibrated / f'{stem}_segm_cold.fits').stat().st_size < 1e6
    assert (calibrated / f'{stem}_wisp.pdf').read_bytes().startswith(b'%PDF')
    with fits.open(calibrated / NAME) as after, fits.open(field / NAME) as before:
        header = after[0].header
        assert 'Wisps: subtracted' in str(header['HISTORY']) and header['WISPMETH'] == 'dr05'
        assert abs(header['WISPSCAL'] - 0.6) < 0.1 and header['WISPRMS1'] < header['WISPRMS0'] / 3
        assert header['WISPTMPL'] == 'wisps_nrca3_F200W.fits' and 'WISPWARN' not in header
        template = fits.getdata(field / wispsub.WISPDIR / 'wisps_nrca3_F200W.fits')
        removed = before['SCI'].data - after['SCI'].data
        np.testing.assert_allclose(removed[100:-100, 100:-100],
                                   header['WISPSCAL'] * np.where(np.isnan(before['SCI'].data), np.nan,
                                                                 np.nan_to_num(template))[100:-100, 100:-100],
                                   rtol=1e-3, atol=1e-3)
        for name in ('ERR', 'DQ', 'VAR_POISSON', 'VAR_RNOISE'):
            np.testing.assert_array_equal(after[name].data, before[name].data)


def test_several_files_once_only_and_redo(run, tmp_path):
    """Two calls, because each imports the pipeline: bad files, other detectors, the same image twice; redo."""
    path = tmp_path / 'calibrated' / NAME
    other = path.with_name(NAME.replace('nrca3', 'nrca1'))
    other.write_bytes(path.read_bytes())
    fits.setval(other, 'DETECTOR', value='NRCA1')
    untouched, other_before = path.read_bytes(), other.read_bytes()

    done = run('missing_rate.fits', other.name, NAME, NAME, '--scale', '0.5')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'missing_rate.fits: no such file' in done.stderr
    assert f'{other.name}: no wisp correction' in done.stderr
    assert 'in its HISTORY already: left alone' in done.stderr
    assert fits.getval(path, 'WISPSCAL') == 0.5 and fits.getval(path, 'WISPMETH') == 'fixed'

    with fits.open(path, mode='update') as hdul:
        hdul[0].header.add_history('Removed horizontal,vertical striping; remstriping.py 2022-01-01 00:00:00')
    done = run(NAME, other.name, '--scale', '0.7', '--redo')
    assert done.returncode == 0 and 'remstriping.py must be run again' in done.stderr
    assert fits.getval(path, 'WISPSCAL') == 0.7
    assert path.with_name(path.name.replace('_rate', '_rate_prewisp')).read_bytes() == untouched
    assert other.read_bytes() == other_before
    assert not list(path.parent.glob('*.pdf'))


def test_missing_template_is_one_line(run, tmp_path):
    before = (tmp_path / 'calibrated' / NAME).read_bytes()
    done = run(NAME, '--fit_scaling', wisp_dir=tmp_path)
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and 'no wisp template in' in done.stderr
    assert (tmp_path / 'calibrated' / NAME).read_bytes() == before


def test_scale_at_the_end_of_the_trial_range_is_said(tmp_path):
    warning = wispsub.fit_warning(wispsub.SCALES[-1], wispsub.SCALES, 0)
    fit = wispsub.Fit('dr05', np.zeros((64, 64), np.float32), 1.19, warning=warning)
    cards = dict(card[:2] for card in wispsub.score_cards(tmp_path / 't.fits', fit, (0.01, 0.001)))
    assert cards['WISPWARN'] == 'best scale 1.19 is at the end of the trial range'


@pytest.mark.parametrize('warning', ['', 'best scale 1.19 is at the end of the trial range'])
def test_picture_is_drawn_even_of_nothing(tmp_path, warning):
    scales, zeros = wispsub.SCALES, np.zeros((64, 64), np.float32)
    for ignore in (zeros > 0, zeros == 0):
        fit = wispsub.Fit('dr05', zeros, 0.5, zeros > 0, scales, scales**2, scales**2, warning)
        wispsub.plot_scaling(tmp_path / 'p.pdf', fit, zeros, ignore, (0, 64, 0, 64), 'x_$^rate{$.fits')
        assert (tmp_path / 'p.pdf').stat().st_size > 1000
