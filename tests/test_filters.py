"""stage1/filters.py: every fast filter equals the slow form that its docstring names."""

import logging

import slow_snowballs
import slow_striping
from stage1 import filters

import numpy as np
import pytest
from astropy.stats import median_absolute_deviation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FLOATS = st.floats(-8, 8, width=32)
TIES = st.integers(-2, 2).map(float)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)),
              elements=st.sampled_from([0, 1, 1.5, 2, -3, 1024, np.nan])), st.integers(1, 5), st.integers(1, 3))
def test_ring_median_of_any_image_is_the_slow_one(image, radius, width):
    before = image.copy()
    np.testing.assert_array_equal(filters.ring_median(image, radius, width),
                                  slow_striping.ring_median(image, radius, width))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('holes', [0, 0.02, 0.7])
def test_ring_median_across_tiles(holes):
    """Sizes that are not a multiple of a tile; without NaN the slow form is scipy's rank filter."""
    np.testing.assert_array_equal(filters.ring_footprint(40, 3), slow_striping.ring_kernel())
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (141, 269)).astype(np.float32).round(2)
    image[rng.random(image.shape) < holes] = np.nan
    if holes:
        image[:60, :100] = np.nan                                   # rings without a pixel
    median = filters.ring_median(image, 40, 3)
    np.testing.assert_array_equal(median, slow_striping.ring_median(image, 40, 3))
    assert np.isnan(median).any() == (holes > 0)


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint32, st.integers(0, 80)))
def test_order_of_any_floats_is_that_of_argsort(bits):
    """All bit patterns: infinities, denormal numbers, both zeros, NaN of either sign."""
    values = bits.view(np.float32)
    order = filters.ascending(values)
    np.testing.assert_array_equal(values[order], np.sort(values))
    np.testing.assert_array_equal(np.sort(order), np.arange(values.size))


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
    monkeypatch.setattr(logging.getLogger('nircam'), 'propagate', True)
    image = np.random.default_rng(7).normal(size=(20, 20)).astype(np.float32)
    expected = slow_striping.ring_median(image, 3, 2)
    filters.compiled_slide_ring.cache_clear()
    np.testing.assert_array_equal(filters.ring_median(image, 3, 2), expected)
    filters.compiled_slide_ring.cache_clear()
    assert 'NUMBA_CACHE_DIR' in caplog.text and str(trouble) in caplog.text


@pytest.mark.parametrize('holes', [False, True])
def test_smoothings_are_those_of_astropy(holes):
    rng = np.random.default_rng(3)
    image = rng.normal(0, 1, (150, 211))
    image[70, 80] = 600
    if holes:
        image[rng.random(image.shape) < 0.02] = np.nan
        image[40:60, 100:130], image[:4] = np.nan, np.nan
    for sigma, smooth in zip((25, 15, 5, 2), filters.gaussian_smoothings(image, [25, 15, 5, 2]), strict=True):
        reference = slow_striping.smoothed(image, sigma)
        far = sigma == 2 and holes                                  # no valid pixel, or hardly, within reach
        reached = np.ones(image.shape, bool)
        reached[42:58, 102:128] = not far
        np.testing.assert_allclose(smooth[reached], reference[reached], 0, 1e-11)
        assert np.isfinite(smooth).all() and np.abs(smooth).max() < 600
        assert not far or smooth[50, 115] == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70), st.sampled_from([0.02, 0.4, 0.5, 0.6, 1.0]),
       st.sampled_from([7, 15]))
def test_disc_median_is_that_of_scipy(seed, ny, nx, density, radius):
    """At half the density the counts are about the number that decides."""
    flags = np.random.default_rng(seed).random((ny, nx)) < density
    flags[:ny // 2] = False                                         # steps between much and nothing
    before = flags.copy()
    np.testing.assert_array_equal(filters.disc_median(flags, radius), slow_snowballs.disc_median(flags, radius))
    np.testing.assert_array_equal(flags, before)


@settings(max_examples=150, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=FLOATS | TIES))
def test_medians_are_those_of_numpy_and_astropy(values):
    before = values.copy()
    for found, expected in ((filters.median(values), np.median(values)),
                            (filters.mad(values), median_absolute_deviation(values))):
        assert found == expected and found.dtype == np.float32
    np.testing.assert_array_equal(values, before)
