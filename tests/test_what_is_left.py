"""What is left of stripes and wisps, measured on images whose truth is known."""
from stage1.striping_score import line_rms
from what_is_left import find_sky, flatten, light_taken, wisp_rms

import numpy as np
import pytest


def quarters(width):
    """Four amplifiers of equal width."""
    return {name: slice(k * width // 4, (k + 1) * width // 4) for k, name in enumerate('ABCD')}


@pytest.mark.parametrize('axis, found', [(1, 0), (0, 1)])
def test_the_rms_of_lines_is_that_of_the_stripes(axis, found):
    rng = np.random.default_rng(2)
    stripes = 0.004 * rng.standard_normal((512, 1) if axis else (1, 512))
    image = (0.3 + 0.012 * rng.standard_normal((512, 512)) + stripes).astype(np.float32)
    image += np.linspace(0, 0.01, 512)                          # what varies slowly is no stripe
    image[200:215, 300:315] += 5
    flat, deviations = flatten(image, np.zeros(image.shape, bool))
    sky = find_sky(flat, deviations, np.zeros(image.shape, bool))
    assert not sky[200:215, 300:315].any() and sky.mean() > 0.8
    rms, noise = line_rms(flat, sky, quarters(512)), 0.012 / np.sqrt([512 / 4, 512])
    assert rms[found] == pytest.approx(np.hypot(stripes.std(), noise[found]), rel=0.1)
    assert rms[1 - found] == pytest.approx(noise[1 - found], rel=0.25)


def test_what_is_ignored_does_not_deviate():
    image = 0.3 + np.linspace(0, 0.5, 512) + np.zeros((512, 1))
    ignore = np.zeros(image.shape, bool)
    ignore[64:96, :64] = True
    assert not flatten(image, ignore)[1][4:6, :4].any()


def test_stripes_in_the_wisp_are_no_wisp():
    rng = np.random.default_rng(3)
    wisp = np.zeros((256, 256), bool)
    wisp[100:180, 60:160] = True
    image = 0.004 * rng.standard_normal((256, 256)) + 0.004 * rng.standard_normal((256, 1))
    sky = np.ones((256, 256), bool)
    left = 0.01 * np.sin(np.arange(256) / 5) * wisp
    assert wisp_rms(image, sky, ~sky, wisp) < 0.0015
    assert wisp_rms(image + left, sky, ~sky, wisp) == pytest.approx(1.4826 * np.median(np.abs(left[wisp])), rel=0.2)
    assert wisp_rms(image + 3 * left, sky & (np.abs(left) < 0.003), ~sky, wisp) > 0.01      # taken for sources
    assert wisp_rms(image, sky, ~sky, ~sky) is None


def test_light_that_was_taken_along_is_told_from_stripes():
    rng = np.random.default_rng(4)
    removed = 0.004 * rng.standard_normal((2048, 1)) + np.zeros((2048, 64))
    ignore = np.zeros(removed.shape, bool)
    assert light_taken(removed, ignore, quarters(64)) == 0
    removed[900:1000, 16:32] += 0.08                             # one amplifier's part of a galaxy
    assert light_taken(removed, ignore, quarters(64)) == pytest.approx(0.08 * (100 / 4 / 2048)**0.5, rel=0.1)
