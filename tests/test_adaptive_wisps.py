"""The adaptive wisp fit: against injected wisps, where there are none, and with several planes."""

from dataclasses import replace

import accuracy
import simulation
import wispsub
from conftest import RATE, wisps
from stage1.adaptive_wisps import eliminate, fill_nan, seen, template_noise, wisp_support
from stage1.exposure import ExposureError
from stage1.wisp_templates import find_template, read_template

import numpy as np
import pytest
from astropy.io import fits


def fit(scene, planes=None):
    """The adaptive fit of a scene; planes (n, ny, nx), the distributed template unless given."""
    sci = np.where(scene.sci == 0, np.nan, scene.sci) / scene.flat
    planes = scene.template[None] if planes is None else planes
    return wispsub.fit_adaptive(sci, scene.err, scene.dq, planes, np.isnan(sci), None)


@pytest.fixture(scope='module')
def scene():
    """A scene with a wisp of scale 1, not to be changed."""
    return simulation.rate_scene('NRCA3', 'F200W', seed=308, wisp=1.)


@pytest.fixture(scope='module')
def found(scene):
    """The fit of it, after which the arguments are as before."""
    arrays = scene.sci, scene.err, scene.dq, scene.template
    copies, found = [array.copy() for array in arrays], fit(scene)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    return found


@pytest.mark.parametrize(('detector', 'filter_', 'wisp'), [
    ('NRCA3', 'F200W', 0.2), ('NRCA4', 'F150W', 1.0), ('NRCB4', 'F200W', 8.0)])
def test_the_injected_scale_comes_back(detector, filter_, wisp):
    """Also of a wisp so bright that a fit which began too low would mask it as sources, until nothing is left."""
    found = fit(simulation.rate_scene(detector, filter_, seed=301, wisp=wisp))
    assert abs(found.scale - wisp) < 4 * found.error
    assert 0.003 < found.error < 0.03
    assert not found.warning
    rows, columns = found.details.region
    assert rows.stop <= 2048 and found.sources.any() and not found.sources[:rows.start].any()


def noisy(unit, noise, seed=1):
    """A template (1, ny, nx) with white noise, DN/s."""
    return (unit + np.float32(noise) * np.random.default_rng(seed).standard_normal(unit.shape, dtype=np.float32))[None]


def test_a_plane_is_seen_by_its_light_and_not_by_its_noise():
    unit = simulation.wisp_shape('NRCA3', 'F200W')[1100:1740, 300:940]
    planes = np.concatenate([noisy(unit, 0), noisy(0.2 * unit, 1e-3), noisy(0 * unit, 1e-3)])
    assert list(seen(planes)) == [True, True, False]


def test_noise_of_the_template_does_not_dilute_the_scale():
    """A wisp that is a glow with faint ripples, of which the background leaves little: dilution takes 4 %."""
    y, x = np.ogrid[-1:1:1000j, -1:1:1000j]
    unit = np.zeros((2048, 2048), np.float32)
    unit[1048:, 300:1300] = 0.04 * np.exp(-(y / 0.35)**2 - (x / 0.6)**2) * (1 + 0.3 * np.sin(40 * y))
    scene = simulation.rate_scene('NRCA3', 'F200W', seed=309, crowd=0.3, wisp=1., template=unit)
    quiet, found = fit(scene, unit[None]), fit(scene, noisy(unit, 0.0012))
    assert abs(found.scale - quiet.scale) < 0.01 and abs(found.scale - 1) < 3 * found.error


@pytest.mark.parametrize('noise', [0, 0.0008, 0.002])
def test_template_noise_is_measured_off_the_wisp(noise):
    unit = simulation.wisp_shape('NRCB4', 'F200W')
    support, region = wisp_support(unit[None])
    measured = template_noise(noisy(unit, noise)[(slice(None), *region)], support[region])
    assert measured**0.5 == pytest.approx(noise / 8, rel=0.05, abs=1e-6)     # of means over 8 x 8 pixels
    assert not template_noise(noisy(unit, noise)[(slice(None), *region)], np.ones_like(support[region])).any()


@pytest.mark.parametrize('factor', [0.01, 100.])
def test_the_unit_of_the_template_does_not_matter(factor, scene, found):
    assert fit(scene, scene.template[None] * np.float32(factor)).scale * factor == pytest.approx(found.scale, rel=1e-3)


def test_a_wisp_under_a_mask_is_a_warning(scene):
    masked = replace(scene, dq=np.where(scene.wisp_unit > 0.02, scene.dq | 1, scene.dq))
    assert 'cover more than 60%' in fit(masked).warning


def test_no_wisp_gives_zero_and_an_error():
    found = fit(simulation.rate_scene('NRCB3', 'F200W', seed=302, big=True))
    assert found.scale == 0 and not found.template.any() and found.error > 0


def test_light_in_the_shape_of_the_mirrored_template_is_a_warning():
    """Mirrored within the fit region, and too faint to be masked as a source."""
    scene = simulation.rate_scene('NRCA4', 'F200W', seed=303, wisp=0.5)
    unit = fill_nan(scene.template)
    _, (rows, _) = wisp_support(unit[None])
    scene.sci[rows] += 0.12 * unit[rows][::-1]
    found = fit(scene)
    assert 'contaminated' in found.warning, found.cards


def test_planes_are_combined_with_scales_that_are_not_negative(scene):
    left = scene.template * (np.arange(2048) < 800)
    found = fit(scene, np.stack([left, scene.template - left, np.nan_to_num(scene.template[::-1])]))
    cards = {key: value for key, value, _ in found.cards}
    assert [cards[f'WISPSC{i}'] for i in range(3)] == pytest.approx([1, 1, 0], abs=0.05)
    combined = np.nan_to_num(found.scale * found.template)
    inside = scene.wisp_unit > 0.03
    assert abs((combined[inside] / scene.wisp_unit[inside]).mean() - 1) < 0.05
    assert found.template.min() >= np.nanmin(scene.template) - 1e-3


@pytest.mark.parametrize('level', ['none', 'bright'])
def test_wisps_of_varying_shape_are_taken_out(level):
    """Components measured on flight data, read as they come: better than any single template, and nothing where
    nothing is. `make accuracy` has the levels in between."""
    try:
        path, components = simulation.wisp_components('F200W')
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    if level == 'none':
        assert find_template(path.parent, 'NRCB4', 'F200W') == path
        np.testing.assert_array_equal(read_template(path), components)
    single, aim = accuracy.COMPONENT_LEVELS[level]
    _, best, _, left = accuracy.score_components(components, 'F200W', 311, single)
    assert best == pytest.approx(single, rel=0.02) and left <= aim


def test_template_without_a_wisp_is_an_error(scene):
    with pytest.raises(ExposureError, match='cannot be fitted'):
        fit(scene, np.zeros((1, 2048, 2048), np.float32))


def test_equal_operation_on_image_and_template(scene):
    """An image that is a template and stripes is fitted exactly, with any mask."""
    unit = scene.wisp_unit.astype(np.float32)
    _, region = wisp_support(unit[None])
    stripes = np.random.default_rng(0).normal(0, 0.01, (2048, 1)).astype(np.float32)
    mask = np.random.default_rng(1).random((2048, 2048))[region] < 0.3
    equations = eliminate((0.7 * unit + stripes)[region], unit[None][(slice(None), *region)], mask)
    scale = (equations.data * equations.design[0] * equations.number).sum() / \
        (equations.design[0]**2 * equations.number).sum()
    assert abs(scale - 0.7) < 1e-4


def test_command_corrects_a_detector_that_dr05_leaves_alone(place, capsys):
    shape = simulation.wisp_shape('NRCA3', 'F200W')
    scene = simulation.rate_scene('NRCB2', 'F115W', seed=307, wisp=0.8, template=shape)
    path = simulation.write_rate(scene, place / 'calibrated' / RATE)
    simulation.write_templates('shapes', ['NRCB2'], ['F115W'], templates={('NRCB2', 'F115W'): shape})
    assert wisps('--fit_scaling', '--wisp_dir', 'shapes') == 0 and 'left alone' in capsys.readouterr().err
    assert wisps('--fit_scaling', '--wisp_dir', 'shapes', '--method', 'adaptive') == 0
    header = fits.getheader(path)
    assert header['WISPMETH'] == 'adaptive' and abs(header['WISPSCAL'] - 0.8) < 4 * header['WISPERR']
    removed = fits.getdata(path.with_name(RATE.replace('rate', 'rate_prewisp'))) - fits.getdata(path)
    assert np.nanstd((scene.wisp_light - removed)[scene.good]) < 1e-3
    assert wisps('--scale', header['WISPSCAL'], '--wisp_dir', 'shapes', '--method', 'adaptive', '--redo') == 0
    given = fits.getdata(path.with_name(RATE.replace('rate', 'rate_prewisp'))) - fits.getdata(path)
    np.testing.assert_allclose(given, removed, atol=1e-6)       # the same, with the scale that was found
