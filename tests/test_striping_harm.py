"""The harm warning: silent where a correction helps, one line where light was taken for stripes."""
from stage1.adaptive_striping import expand
from stage1.striping_harm import harm

import numpy as np
import pytest

AMPS = tuple(slice(256 * k, 256 * (k + 1)) for k in range(4))
READ_NOISE = 0.0023


def scene(seed=0, light=0., stripes=0.004):
    """Image with rows that the amplifiers have half in common, and a galaxy of `light` DN/s; rows, columns, mask."""
    rng = np.random.default_rng(seed)
    rows = stripes * (rng.normal(0, 0.7, (1024, 1)) + rng.normal(0, 0.7, (1024, 4)))
    columns = 0.3 * stripes * rng.standard_normal(1024)
    y, x = np.indices((1024, 1024))
    galaxy = light * np.exp(-np.hypot((y - 500) / 1.5, x - 400) / 120)
    image = 0.2 + galaxy + expand(rows, columns, AMPS) + rng.normal(0, 0.012, (1024, 1024))
    return image, rows, columns, galaxy


@pytest.mark.parametrize('stripes', [0.001, 0.004, 0.02])
def test_a_right_correction_is_silent(stripes):
    image, rows, columns, _ = scene(stripes=stripes)
    pattern = expand(rows, columns, AMPS)
    assert harm(pattern, image, np.zeros(image.shape, bool), AMPS, READ_NOISE) == ''
    assert 'nothing was subtracted' in harm(0 * pattern, image, np.zeros(image.shape, bool), AMPS, READ_NOISE)


@pytest.mark.parametrize('light, says', [(1., 'larger'), (0.08, 'borders')])
def test_light_taken_for_stripes_is_said(light, says):
    image, rows, columns, galaxy = scene(light=light)
    taken = np.stack([galaxy[:, amp].mean(axis=1) for amp in AMPS], axis=1)
    message = harm(expand(rows + taken, columns, AMPS), image, np.zeros(image.shape, bool), AMPS, READ_NOISE)
    assert says in message and '\n' not in message


def test_columns_that_follow_the_light_are_said():
    """What unresolved stars of a globular cluster do to medians of columns."""
    image, rows, columns, cluster = scene(light=0.1)
    message = harm(expand(rows, columns + 0.3 * cluster.mean(axis=0), AMPS), image, np.zeros(image.shape, bool), AMPS,
                   READ_NOISE)
    assert 'columns' in message and 'follow' in message


def test_noise_added_to_a_quiet_image_is_said():
    """What a method of medians does to a deep exposure."""
    image, *_ = scene(stripes=0.)
    rows = np.random.default_rng(1).normal(0, 0.003, (1024, 1))
    message = harm(np.broadcast_to(rows, image.shape), image, np.zeros(image.shape, bool), AMPS, READ_NOISE)
    assert 'sky' in message


def test_one_amplifier_and_undefined_pixels():
    image, rows, columns, _ = scene()
    image[:4], image[:, :4] = np.nan, np.nan
    one = (slice(0, 1024),)
    pattern = np.broadcast_to(rows[:, :1], image.shape).copy()
    pattern[0] = np.nan
    assert isinstance(harm(pattern, image, np.zeros(image.shape, bool), one, READ_NOISE), str)
