"""The adaptive striping: against injected patterns, where there are none, and next to a big galaxy."""

from functools import cache

import remstriping
import simulation
from accuracy import block_rms, score_striping
from conftest import RATE, stripes
from simulation.detector import one_over_f, stripe_pattern
from stage1.adaptive_striping import (
    adaptive,
    amp_offsets,
    bending,
    credible,
    expand,
    mean_square,
    measure_columns,
    outlying,
)
from stage1.exposure import AMPLIFIERS, reading_directions
from stage1.light_model import find_objects
from stage1.within_rows import WithoutLight

import numpy as np
import pytest
from astropy.io import fits
from scipy import ndimage

SCENES = {'ordinary': {}, 'long wavelength': {'detector': 'NRCALONG', 'filter_': 'F444W'}, 'big galaxy': {'big': True},
          'no stripes': {'stripes': False}, 'strong stripes': {'noise': 20e-3, 'columns': 6e-3}}


@cache
def measured(name):
    """A scene and what the method finds in it, neither to be changed: some seconds each."""
    scene = simulation.rate_scene(seed=8, **SCENES[name])
    return scene, remstriping.adaptive(scene.sci, scene.err, scene.dq, scene.sci / scene.flat, 0.8)


@pytest.mark.parametrize(('field', 'rows', 'columns', 'blocks', 'near'), [
    ('ordinary', 0.75, 0.4, 0.45, 0.25), ('long wavelength', 0.95, 0.5, 0.55, 0.25),
    ('big galaxy', 1.0, 0.45, 0.5, 0.35), ('no stripes', 0.1, 0.05, 0.1, 0.05), ('strong stripes', 1.9, 0.7, 1.9, 1.0)])
def test_what_is_left_of_injected_patterns(field, rows, columns, blocks, near):
    """Limits in 1e-3 DN/s: amp-row rms, column rms, rms in blocks of 32 pixels, bias near bright galaxies."""
    (scene, pattern), strength = measured(field), SCENES[field].get('noise', 4e-3) / 4e-3
    sci, dq = remstriping.subtract_striping(scene.sci, scene.dq, pattern.horizontal, pattern.vertical)
    found = score_striping(scene, scene.sci, sci, scene.good, dq)
    assert found['amp-row'] < rows and found['column'] < columns and found['block32'] < blocks
    assert abs(found['near']) < near and abs(found['flux far']) < 0.03 * strength and found['lost'] == 0
    before, after = ([pattern.numbers[key + when] for key in ('STRPROW', 'STRPCOL')] for when in '01')
    assert (before[0] > 3e-3) == (field != 'no stripes')                # of stripes, not of a galaxy
    assert np.all(np.less((before, after), np.multiply(strength, ((6e-3, 3e-3), (1.5e-3, 1e-3)))))


def test_how_far_light_bends_is_measured_through_the_noise_and_not_where_little_is_seen():
    rng, weight = np.random.default_rng(5), np.full((2, 30, 2048), 9e4)
    weight[1, :, ::2] = weight[1, :, :900] = 0                          # noise of 3e-3 DN/s in a cell
    for freedom in 1e-4, 1e-6:                                          # DN/s, from row to row
        light = np.cumsum(np.cumsum(rng.normal(0, freedom, weight.shape), axis=2), axis=2)
        found = bending(light + rng.normal(0, 3e-3, weight.shape), weight)
        assert np.isinf(found[1, :, :800]).all() and np.isfinite(found[0, :, 32:-32]).all()
        ratio = np.median(np.sqrt(found[0])) / freedom
        assert 0.7 < ratio < 1.3 if freedom == 1e-4 else 1 < ratio < 10   # which the noise hides


def test_finite_undefined_pixels_change_little():
    scenes = [simulation.rate_scene(subarray='SUB640', crowd=0.2, undefined=how) for how in ('nan', 'finite')]
    amps = {'A': slice(0, 640)}
    rows = [remstriping.adaptive(x.sci, x.err, x.dq, x.sci / x.flat, 0.8, amps=amps).horizontal for x in scenes]
    assert np.abs(rows[0] - rows[1]).max() < 1e-4


def noise(shape=(256, 256), seed=0):
    """Sky of 0.2 DN/s with the noise of a short exposure."""
    return (0.2 + np.random.default_rng(seed).normal(0, 0.012, shape)).astype(np.float32)


AMPS = (slice(4, 128), slice(128, 252))
QUARTERS = tuple(slice(128 * k, 128 * (k + 1)) for k in range(4))


def test_injected_rows_and_columns_come_back():
    rng = np.random.default_rng(1)
    rows, columns = rng.normal(0, 0.02, (256, 2)), rng.normal(0, 0.01, 256)
    found_rows, found_columns, *_ = adaptive(noise() + expand(rows, columns, AMPS), np.zeros((256, 256), bool), AMPS)
    assert max(np.std(found_rows - rows), np.std((found_columns - columns)[4:252])) < 0.003     # a mean's noise: 0.0011


def test_beside_a_mask_of_half_the_image_rows_are_measured():
    rng = np.random.default_rng(2)
    rows, mask = rng.normal(0, 0.005, (512, 4)), ndimage.gaussian_filter(rng.normal(size=(512, 512)), 12) > 0
    found, *_ = adaptive(noise(mask.shape) + expand(rows, np.zeros(512), QUARTERS), mask, QUARTERS)
    assert np.std(found - rows) < 0.5 * np.std(rows)


def test_columns_are_as_large_whatever_noise_is_assumed_and_whatever_light_is_there():
    rng, columns = np.random.default_rng(1), np.random.default_rng(2).normal(0, 1e-3, 400)
    light = ndimage.gaussian_filter1d(rng.normal(0, 8e-3, (1, 100, 400)), 4, axis=1)
    data = light + columns + rng.normal(0, 3e-3, light.shape)
    found = [measure_columns(data, strips, strips, rng)[1] for strips in (
        WithoutLight(*(np.full(data.shape, value) for value in (sigma**-2, 1e-12, 3e-4))) for sigma in (2e-3, 4e-3))]
    assert found[0] == pytest.approx(found[1], rel=0.01) and found[0] == pytest.approx(columns.std(), rel=0.1)


def test_a_neighbour_does_not_bend_an_ellipse():
    y, x = np.mgrid[-100:100, -100:100]
    light = np.exp(-np.hypot(y, x / 2) / 10) + 0.5 * np.exp(-np.hypot(y - 30, x - 25) / 5)
    (_, *_, yy, xx, xy, _), *_ = find_objects(light + noise(light.shape) - 0.2, np.full(light.shape, 64))[1]
    assert (yy, xx, xy) == pytest.approx((0.5, 2, 0), abs=0.12)


def test_inputs_stay_and_a_constant_moves_only_the_pedestal():
    image, unusable = noise(), np.zeros((256, 256), bool)
    rows, *_, numbers, _ = adaptive(image, unusable, AMPS)
    np.testing.assert_array_equal(image, noise())
    shifted, *_, moved, _ = adaptive(image + np.float32(0.5), unusable, AMPS)
    np.testing.assert_allclose(shifted, rows, atol=1e-6)
    assert moved['pedestal'] - numbers['pedestal'] == pytest.approx(0.5, abs=1e-5)
    assert not unusable.any()


def test_images_without_sky_are_errors():
    with pytest.raises(ValueError, match='unusable'):
        adaptive(np.full((256, 256), np.nan), np.zeros((256, 256), bool), AMPS)


def test_command_writes_scores_and_finds_its_own_mask_again(place):
    """A second run with --redo ignores the mask that the first made, and gives the same image."""
    scene, data = simulation.rate_scene(subarray='SUB640', crowd=0.2, noise=0.01), []
    simulation.write_rate(scene, place / 'calibrated' / RATE)
    for redo in [], ['--redo']:
        assert stripes('--method', 'adaptive', '--output_dir', 'out', *redo) == 0
        data.append(fits.getdata(place / 'out' / RATE))
    header = fits.getheader(place / 'out' / RATE)
    np.testing.assert_array_equal(*data)
    assert header['STRPMETH'] == 'adaptive' and header['STRPROW1'] < header['STRPROW0']
    assert 0 <= header['STRPSH_A'] < 0.2


def smooth_field(rng, scale, shape):
    """Gaussian random field with structure down to `scale` pixels, rms 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), scale, mode='wrap')
    return field / field.std()


def light_of(kind, rng, shape):
    """Light of a kind that no model foresees, (ny, nx), largest value about 1."""
    y, x = np.indices(shape) / shape[0] - rng.uniform(0.3, 0.7, 2)[:, None, None]
    if kind == 'random':
        return smooth_field(rng, 40, shape) / 5
    if kind == 'gradient':
        return rng.uniform(0.2, 1) * (1 + x + y)**2 / 2
    if kind == 'rings':
        return np.exp(-((np.hypot(x, y) - 0.3) / 0.03)**2) + 0.5 * np.exp(-((np.hypot(x, y) - 0.15) / 0.01)**2)
    if kind == 'filaments':
        return np.exp(-3 * np.abs(smooth_field(rng, 30, shape)))
    if kind == 'clouds':
        return np.exp(smooth_field(rng, 40, shape) + 0.5 * smooth_field(rng, 8, shape)) / 5
    if kind == 'edge-on':
        return np.exp(-np.abs(y) / 0.02) * np.exp(-np.abs(x) / 0.3) * (1 + 0.2 * smooth_field(rng, 6, shape))
    from skimage import data
    return data.hubble_deep_field()[:shape[0], :shape[1]].mean(axis=2) / 255


def striped(rng, shape, longest, rms):
    """1/f noise of four amplifiers, half of its variance common to them, of `rms` in an amp-row."""
    common = one_over_f(rng, shape[0], shape[1] // 4, longest)
    parts = [(common + one_over_f(rng, *common.shape, longest))[:, ::1 - 2 * (k % 2)] for k in range(4)]
    return np.concatenate(parts, axis=1) * rms / np.sqrt(2)


@pytest.mark.parametrize('level', [0.02, 0.1, 0.3])
@pytest.mark.parametrize('kind', ['gradient', 'rings', 'filaments', 'clouds', 'edge-on', 'hubble', 'random'])
def test_no_light_makes_an_image_worse(kind, level):
    assert worst(kind, level, len(kind), round(100 * level)) < 1.05


def test_faint_filaments_of_a_small_image_take_little():
    assert worst('filaments', 0.02, 2) < 1.1


def test_stripes_that_are_larger_than_a_rehearsal_are_light():
    """In the bands that light is in, and only there."""
    for shape in (4, 32, 2000), (1, 1, 2000):           # rows, columns
        stripes, truth, light = np.random.default_rng(9).standard_normal((3, *shape))
        light = ndimage.gaussian_filter1d(10 * light, 40)
        left = credible(stripes + light, truth, truth) - stripes
        assert np.std(credible(stripes, truth, truth) - stripes) < 0.05 and left.std() < 0.3 * light.std()
        np.testing.assert_allclose(credible(3 * stripes, truth, truth), 3 * stripes, atol=0.3)     # too little expected


def worst(kind, level, *seed):
    """The rms that rose most, or fell least, by the correction of 512 x 512 pixels, over what it was."""
    shape, rng = (512, 512), np.random.default_rng(seed)
    light = 0.2 + level * light_of(kind, rng, shape)
    before = striped(rng, shape, 100, 0.004) + rng.normal(0, 0.0012, 512)
    image = light + before + rng.normal(0, 0.012 * np.sqrt((light + 1) / 1.2), shape)
    assert not amp_offsets(image, np.zeros(shape, bool), [128, 256, 384]).any()
    rows, found, *_, inside = adaptive(image, np.zeros(shape, bool), QUARTERS)
    after = before - expand(rows, found, QUARTERS) - inside
    rows, columns = (lambda a: np.std([a[:, amp].mean(axis=1) for amp in QUARTERS])), (lambda a: np.std(a.mean(axis=0)))
    return max(rms(after) / rms(before) for rms in (rows, columns, block_rms))


def test_what_is_left_in_cells_tells_how_much_to_believe_them():
    """Those of a bump of ten rows count less; light is as large as what noise does not explain."""
    rest, seen = np.random.default_rng(8).choice([-2., 2.], (1, 6, 500)), np.ones((1, 6, 500), bool)
    seen[:, :, 400:] = False
    assert mean_square(rest, 3., seen.astype(float))[..., :350] == pytest.approx(1)
    assert np.isinf(mean_square(rest, 3., seen.astype(float))[..., 420:]).all()
    rest[0, 3, 200:210] += 8
    factors = outlying(rest, np.full(rest.shape, 4.), seen)
    assert factors[0, 3, 203:207].min() > 2 and np.median(factors) == 1 and (factors[..., 400:] == 1).all()


def test_noise_within_rows_is_measured_and_can_be_left():
    shape, rng = (512, 512), np.random.default_rng(3)
    stripes = striped(rng, shape, 100, 0.01)
    image = (0.2 + stripes + rng.normal(0, 0.012, shape)).astype(np.float32)
    rows, columns, *_, inside = adaptive(image, np.zeros(shape, bool), QUARTERS)
    left = stripes - expand(rows, columns, QUARTERS)
    assert block_rms(left - inside) < 0.8 * block_rms(left) and np.std(left - inside) < 0.9 * np.std(left)
    np.testing.assert_allclose([inside[:, amp].mean(axis=1) for amp in QUARTERS], 0, atol=1e-6)
    only, *_, nothing = adaptive(image, np.zeros(shape, bool), QUARTERS, within=False)
    np.testing.assert_array_equal(only, rows)
    assert not nothing.any()


@pytest.mark.parametrize(('detector', 'subarray'), [(a, b) for a in ('NRCA3', 'NRCB1') for b in ('FULL', 'SUB320')])
def test_order_of_readout_is_used(detector, subarray):
    """Noise is found better when rows are read in the direction of the detector than in the opposite one."""
    stripes, _, _ = stripe_pattern(np.random.default_rng(5), detector=detector, subarray=subarray)
    stripes = stripes[simulation.subarray_place(detector, subarray)][8:264]
    amps = tuple(AMPLIFIERS.values()) if subarray == 'FULL' else (slice(0, 320),)
    directions, left = reading_directions(simulation.reading_axes(detector), len(amps)), []
    for given in directions, [-one for one in directions]:
        rows, columns, *_, inside = adaptive(noise(stripes.shape) + stripes, stripes == 0, amps, given)
        left.append(np.std(stripes - expand(rows, columns, amps) - inside))
    assert left[0] < left[1]


def test_amplifiers_that_swing_slowly_are_no_light():
    """Each has an offset besides, which strong columns and the plane of the sky hide at first."""
    kind = {'noise': 'measured', 'strength': 11., 'tgroup': 107.4, 'columns': 2e-3}
    stripes, _, columns = stripe_pattern(np.random.default_rng(4), **kind)
    stripes, amps = (stripes + columns)[500:1524], tuple(AMPLIFIERS.values())
    rows, columns, *_, inside = adaptive(noise(stripes.shape) + stripes, np.zeros(stripes.shape, bool), amps)
    left = stripes - expand(rows, columns, amps) - inside
    assert np.std([left[:, amp].mean(axis=1) for amp in amps]) < 1.3e-3 and left[:, 4:-4].mean(axis=0).std() < 0.8e-3


def test_white_noise_alone_stays():
    rows, columns, _, _, numbers, inside = adaptive(noise((512, 512)), np.zeros((512, 512), bool), (slice(0, 512),))
    assert np.abs(rows).max() < 2e-4 and np.abs(columns).max() < 2e-4 and inside.std() < 2e-4


@pytest.mark.parametrize('shape', [(64, 64), (160, 160), (203, 317), (640, 640)])
def test_subarrays_with_one_amplifier(shape):
    rng = np.random.default_rng(4)
    rows = rng.normal(0, 0.01, shape[0])
    image = noise(shape) + rows[:, None].astype(np.float32)
    found, columns, mask, light, numbers, inside = adaptive(image, np.zeros(shape, bool), (slice(0, shape[1]),))
    assert found.shape == (shape[0], 1) and columns.shape == (shape[1],)
    assert mask.shape == light.shape == inside.shape == shape and numbers['shrinkage'].shape == (1,)
    limit = 0.5 if shape[0] > 100 else 1.01         # 64 x 64: hardly any sky
    assert np.std(rows - found[:, 0]) < limit * np.std(rows)


@cache
def empty_sky():
    """A sky with stripes and noise but no source, and what the method takes from it."""
    shape, rng = (1024, 512), np.random.default_rng(6)
    image = 0.2 + striped(rng, shape, 200, 0.004) + rng.normal(0, 0.012, shape)
    return image, taken(image)


def taken(image):
    """All that the method takes from an image."""
    rows, columns, *_, inside = adaptive(image.astype(np.float32), np.zeros(image.shape, bool), QUARTERS)
    return expand(rows, columns, QUARTERS) + inside


@pytest.mark.parametrize('offset', [2e-3, 2e-2])
def test_offsets_of_amplifiers_are_stripes(offset):
    image, without = empty_sky()
    change = taken(image + np.repeat(offset * np.array([1, -1, 0.5, -0.5]), 128)) - without
    assert [change[:, amp].mean() / offset for amp in QUARTERS] == pytest.approx([1, -1, 0.5, -0.5], abs=2e-4 / offset)


@pytest.mark.parametrize('size', [1, 3, 10, 30, 100])
@pytest.mark.parametrize('along', [1, 4])
def test_sources_keep_their_light(size, along):
    """Sources of every size, round and stretched along or across the rows, keep 98 % of it."""
    image, without = empty_sky()
    (y, x), sources = np.indices(image.shape), np.zeros(image.shape)
    for number, (yc, xc) in enumerate([(150, 120), (420, 330), (700, 200), (900, 400)]):
        stretch = (along, 1)[:: 1 - 2 * (number % 2)]
        r2 = ((y - yc) / stretch[0])**2 + ((x - xc) / stretch[1])**2
        sources += 0.3 * np.exp(-r2 / (2 * (size / 2)**2))
    change, inside = taken(image + sources) - without, sources > 0.03
    assert abs(change[inside].sum()) < 0.02 * sources[inside].sum()


def test_small_sources_too_faint_to_be_masked_keep_their_light():
    """They look like noise within rows, which costs them a fifth of their flux if their own cells are asked."""
    image, without = empty_sky()
    rng, points = np.random.default_rng(7), np.zeros(image.shape)
    points[tuple(rng.integers(20, n - 20, 300) for n in image.shape)] = 0.04
    sources = ndimage.gaussian_filter(points, 1.)           # 0.5 sigma of a pixel at the peak
    change, inside = taken(image + sources) - without, ndimage.maximum_filter(points, 9) > 0
    assert abs(change[inside].sum()) < 0.1 * sources[inside].sum()
