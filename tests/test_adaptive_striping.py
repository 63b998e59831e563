"""The adaptive striping: against injected patterns, where there are none, and next to a big galaxy."""

from functools import cache

import remstriping
import simulation
from accuracy import score_striping
from conftest import run_script
from stage1.adaptive_striping import adaptive, expand, non_increasing

import numpy as np
import pytest
from astropy.io import fits

SCENES = {'ordinary': {}, 'long wavelength': {'detector': 'NRCALONG', 'filter_': 'F444W'}, 'big galaxy': {'big': True},
          'no stripes': {'stripes': False}, 'finite undefined pixels': {'undefined': 'finite'}}


@cache
def measured(name):
    """A scene and what the method finds in it, neither to be changed: three seconds each."""
    scene = simulation.rate_scene(seed=8, **SCENES[name])
    return scene, remstriping.adaptive(scene.sci, scene.err, scene.dq, scene.sci / scene.flat, 0.8)


def score(name):
    """What is left of the injected pattern, 1e-3 DN/s; see `accuracy.score_striping`."""
    scene, found = measured(name)
    sci, dq = remstriping.subtract_striping(scene.sci, scene.dq, found.horizontal, found.vertical)
    return score_striping(scene, scene.sci, sci, scene.good, dq)


@pytest.mark.parametrize(('field', 'rows', 'columns', 'blocks', 'near'), [
    ('ordinary', 0.95, 0.45, 0.7, 0.25), ('long wavelength', 1.1, 0.55, 0.8, 0.25), ('big galaxy', 1.3, 0.5, 1.0, 0.35),
    ('no stripes', 0.1, 0.05, 0.1, 0.05)])
def test_what_is_left_of_injected_patterns(field, rows, columns, blocks, near):
    """Limits in 1e-3 DN/s: amp-row rms, column rms, rms in blocks of 32 pixels, bias near bright galaxies."""
    found = score(field)
    assert found['amp-row'] < rows and found['column'] < columns and found['block32'] < blocks
    assert abs(found['near']) < near and abs(found['flux far']) < 0.03
    assert found['lost'] == 0


def test_the_score_is_that_of_stripes_not_of_a_galaxy():
    found = measured('big galaxy')[1].numbers
    assert 0.003 < found['STRPROW0'] < 0.006 and found['STRPROW1'] < 0.0015
    assert found['STRPCOL0'] < 0.003 and found['STRPCOL1'] < 0.001


def test_finite_undefined_pixels_change_little():
    rows = [measured(name)[1].horizontal for name in ('ordinary', 'finite undefined pixels')]
    assert np.abs(rows[0] - rows[1]).max() < 1e-4


def noise(shape=(256, 256), seed=0):
    """Sky of 0.2 DN/s with the noise of a short exposure."""
    return (0.2 + np.random.default_rng(seed).normal(0, 0.012, shape)).astype(np.float32)


AMPS = (slice(4, 128), slice(128, 252))


def test_injected_rows_and_columns_come_back():
    rng = np.random.default_rng(1)
    rows, columns = rng.normal(0, 0.02, (256, 2)), rng.normal(0, 0.01, 256)
    found_rows, found_columns, *_ = adaptive(noise() + expand(rows, columns, AMPS), np.zeros((256, 256), bool), AMPS)
    assert np.std(found_rows - rows) < 0.0025       # noise of a mean of 124 pixels: 0.0011
    assert np.std((found_columns - columns)[4:252]) < 0.0025


def test_inputs_stay_and_a_constant_moves_only_the_pedestal():
    image, unusable = noise(), np.zeros((256, 256), bool)
    before = image.copy()
    rows, *_, numbers = adaptive(image, unusable, AMPS)
    np.testing.assert_array_equal(image, before)
    shifted, *_, moved = adaptive(image + np.float32(0.5), unusable, AMPS)
    np.testing.assert_allclose(shifted, rows, atol=1e-6)
    assert moved['pedestal'] - numbers['pedestal'] == pytest.approx(0.5, abs=1e-5)
    assert not unusable.any()


def test_images_without_sky_are_errors():
    with pytest.raises(ValueError, match='unusable'):
        adaptive(np.full((256, 256), np.nan), np.zeros((256, 256), bool), AMPS)


def test_profiles_that_fall_are_kept_and_bumps_are_levelled():
    np.testing.assert_allclose(non_increasing(np.array([3., 2, 1]), np.ones(3)), [3, 2, 1])
    np.testing.assert_allclose(non_increasing(np.array([3., 1, 2]), np.ones(3)), [3, 1.5, 1.5])


def test_command_writes_scores_and_finds_its_own_mask_again(field, scratch):
    """A second run with --redo ignores the mask that the first made, and gives the same image."""
    image, = (field / 'calibrated').glob('*_rate.fits')
    data = []
    for redo in ((), ('--redo',)):
        done = run_script('remstriping.py', '--method', 'adaptive', '--output_dir', 'out', *redo, image, cwd=scratch,
                          **simulation.crds_environment(field / 'crds_cache'))
        assert done.returncode == 0, done.stderr
        data.append(fits.getdata(scratch / 'out' / image.name))
    header = fits.getheader(scratch / 'out' / image.name)
    np.testing.assert_array_equal(*data)
    assert header['STRPMETH'] == 'adaptive' and header['STRPROW1'] < header['STRPROW0']
    assert all(0 <= header[f'STRPSH_{amplifier}'] < 0.2 for amplifier in 'ABCD')
