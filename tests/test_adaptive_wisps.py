"""The adaptive wisp fit: against injected wisps, where there are none, and with several planes."""

import numpy as np
import pytest
from adaptive_wisps import cubic_splines, eliminate, fill_nan, fit_trend, wisp_support

import accuracy
import simulate
import wispsub
from conftest import run_script

NAME = 'jw01345001001_10201_00001_{}_rate.fits'


def fit(scene, planes=None):
    """The adaptive fit of a scene; planes (n, ny, nx), the distributed template unless given."""
    sci = np.where(scene.sci == 0, np.nan, scene.sci) / scene.flat
    return wispsub.fit_adaptive(sci, scene.dq, scene.template[None] if planes is None else planes)


@pytest.mark.parametrize(('detector', 'filter_', 'wisp'), [
    ('NRCA3', 'F200W', 0.2), ('NRCA4', 'F150W', 1.0), ('NRCB4', 'F200W', 2.0)])
def test_the_injected_scale_comes_back(detector, filter_, wisp):
    found = fit(simulate.rate_scene(detector, filter_, seed=301, wisp=wisp))
    assert abs(found.scale - wisp) < 4 * found.error
    assert 0.003 < found.error < 0.03
    assert not found.warning


def test_a_bright_wisp_is_not_masked_as_a_source():
    """A fit that begins too low masks the filaments, whose rest is then masked again, until nothing is left."""
    found = fit(simulate.rate_scene('NRCB4', 'F200W', seed=312, wisp=8.))
    assert abs(found.scale - 8) < 4 * found.error and found.error < 0.03 and not found.warning


@pytest.mark.parametrize('factor', [0.01, 100.])
def test_the_unit_of_the_template_does_not_matter(factor):
    scene = simulate.rate_scene('NRCA3', 'F200W', seed=308, wisp=2.)
    found, same = fit(scene), fit(scene, scene.template[None] * np.float32(factor))
    assert same.scale * factor == pytest.approx(found.scale, rel=1e-3)


def test_a_wisp_under_a_mask_is_a_warning():
    scene = simulate.rate_scene('NRCA3', 'F200W', seed=308, wisp=1.)
    scene.dq[scene.wisp_unit > 0.02] |= 1
    assert 'cover more than 60%' in fit(scene).warning


@pytest.mark.parametrize('big', [False, True])
def test_no_wisp_gives_zero_and_an_error(big):
    found = fit(simulate.rate_scene('NRCB3', 'F200W', seed=302, big=big))
    assert found.scale == 0 and not found.template.any() and found.error > 0


def test_light_in_the_shape_of_the_mirrored_template_is_a_warning():
    """Mirrored within the fit region, and too faint to be masked as a source."""
    scene = simulate.rate_scene('NRCA4', 'F200W', seed=303, wisp=0.5)
    unit = fill_nan(scene.template)
    _, (rows, _) = wisp_support(unit[None])
    scene.sci[rows] += 0.12 * unit[rows][::-1]
    found = fit(scene)
    assert 'contaminated' in found.warning, found.cards


def test_planes_are_combined_with_scales_that_are_not_negative():
    scene = simulate.rate_scene('NRCA3', 'F200W', seed=304, wisp=1.)
    left = scene.template * (np.arange(2048) < 800)
    found = fit(scene, np.stack([left, scene.template - left, np.nan_to_num(scene.template[::-1])]))
    cards = {key: value for key, value, _ in found.cards}
    assert [cards[f'WISPSC{i}'] for i in range(3)] == pytest.approx([1, 1, 0], abs=0.05)
    combined = np.nan_to_num(found.scale * found.template)
    inside = scene.wisp_unit > 0.03
    assert abs((combined[inside] / scene.wisp_unit[inside]).mean() - 1) < 0.05
    assert found.template.min() >= np.nanmin(scene.template) - 1e-3


@pytest.mark.parametrize('level', accuracy.COMPONENT_LEVELS)
def test_wisps_of_varying_shape_are_taken_out(level):
    """Components measured on flight data: better than any single template, and nothing where nothing is."""
    _, components = measured_components()
    single, aim = accuracy.COMPONENT_LEVELS[level]
    _, best, _, left = accuracy.score_components(components, 'F200W', 311, single)
    assert best == pytest.approx(single, rel=0.02) and left <= aim


def test_measured_components_serve_as_a_template_as_they_are():
    path, components = measured_components()
    found = wispsub.find_template(path.parent, 'NRCB4', 'F200W')
    assert found == path
    np.testing.assert_array_equal(wispsub.read_template(found, (2048, 2048)), components)


def measured_components():
    """`simulate.wisp_components`; skips without the package."""
    try:
        return simulate.wisp_components('F200W')
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_inputs_stay_as_they_are():
    scene = simulate.rate_scene(seed=305, wisp=0.6)
    sci, template = scene.sci.copy(), scene.template.copy()
    wispsub.fit_adaptive(sci, scene.dq, template[None])
    np.testing.assert_array_equal(sci, scene.sci)
    np.testing.assert_array_equal(template, scene.template)


def test_template_without_a_wisp_is_an_error():
    scene = simulate.rate_scene(seed=305)
    with pytest.raises(wispsub.ExposureError, match='cannot be fitted'):
        fit(scene, np.zeros((1, 2048, 2048), np.float32))


def test_splines_add_up_to_one():
    np.testing.assert_allclose(cubic_splines(np.arange(300), 64).sum(axis=1), 1)


def test_nan_is_filled_from_around():
    image = np.ones((40, 40))
    image[10:12, 10:12] = np.nan
    np.testing.assert_allclose(fill_nan(image), 1, rtol=1e-5)


def test_trend_takes_rows_columns_and_background(seed=1):
    """What the trend models is gone, whatever the mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.repeat(rng.normal(size=(256, 2)), 64, axis=1), rng.normal(size=128)
    smooth = np.add.outer(np.linspace(0, 1, 256)**2, np.linspace(0, 1, 128))
    weight = rng.integers(0, 9, (256, 128)).astype(np.float32)
    cells = (rows + columns + smooth).astype(np.float32)[None]
    left = (cells - fit_trend(cells, weight))[0][weight > 0]
    assert np.abs(left).std() < 0.02


def test_equal_operation_on_image_and_template():
    """An image that is a template and stripes is fitted exactly, with any mask."""
    scene = simulate.rate_scene(seed=306)
    unit = scene.wisp_unit.astype(np.float32)
    _, region = wisp_support(unit[None])
    stripes = np.random.default_rng(0).normal(0, 0.01, (2048, 1)).astype(np.float32)
    mask = np.random.default_rng(1).random((2048, 2048))[region] < 0.3
    equations = eliminate((0.7 * unit + stripes)[region], unit[None][(slice(None), *region)], mask)
    scale = (equations.data * equations.design[0] * equations.number).sum() / \
        (equations.design[0]**2 * equations.number).sum()
    assert abs(scale - 0.7) < 1e-4


def test_command_corrects_a_detector_that_dr05_leaves_alone(scratch):
    scene = simulate.rate_scene('NRCB2', 'F115W', seed=307, wisp=0., template=simulate.wisp_shape('NRCA3', 'F200W'))
    scene.sci += (0.8 * scene.flat * simulate.wisp_shape('NRCA3', 'F200W')).astype(np.float32)
    path = simulate.write_rate(scene, scratch / 'calibrated' / NAME.format('nrcb2'))
    simulate.write_templates(scratch / 'wisps', ['NRCB2'], ['F115W'],
                             templates={('NRCB2', 'F115W'): simulate.wisp_shape('NRCA3', 'F200W')})
    environment = simulate.crds_environment(simulate.write_crds_cache(scratch / 'crds', ['NRCB2'], ['F115W']))
    plain = run_script('wispsub.py', '--fit_scaling', '--wisp_dir', 'wisps', path, cwd=scratch, **environment)
    assert plain.returncode == 0 and 'left alone' in plain.stderr
    done = run_script('wispsub.py', '--fit_scaling', '--method', 'adaptive', '--wisp_dir', 'wisps', path,
                      cwd=scratch, **environment)
    assert done.returncode == 0, done.stderr
    from astropy.io import fits
    header = fits.getheader(path)
    assert header['WISPMETH'] == 'adaptive' and abs(header['WISPSCAL'] - 0.8) < 4 * header['WISPERR']
    removed = fits.getdata(path.with_name(NAME.format('nrcb2').replace('rate', 'rate_prewisp'))) - fits.getdata(path)
    left = (0.8 * scene.flat * simulate.wisp_shape('NRCA3', 'F200W') - removed)[scene.good]
    assert np.nanstd(left) < 1e-3
