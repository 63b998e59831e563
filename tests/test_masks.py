"""stage1/masks.py: each function equals the slow form that its docstring names."""

import slow_striping
import slow_wisps
from stage1 import masks

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

MASKS = arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30)))
FLOATS = st.floats(-8, 8, width=32)


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(1, 9), st.sampled_from([1, 3, 5, 11, 15, 21]))
def test_groups_and_growth_are_the_slow_ones(mask, npixels, side):
    before = mask.copy()
    np.testing.assert_array_equal(masks.keep_groups(mask, npixels), slow_wisps.connected(mask, npixels))
    np.testing.assert_array_equal(masks.grow(mask, side), slow_striping.grown(mask, side))
    np.testing.assert_array_equal(mask, before)


@settings(max_examples=25, deadline=None)
@given(arrays(np.float32, (17, 13), elements=FLOATS), arrays(bool, (17, 13)), st.sampled_from((2, 4, 5)))
def test_block_means_are_the_slow_ones(image, ignore, size):
    expected = slow_wisps.block_means(image, ignore, size)
    np.testing.assert_allclose(masks.block_means(image, ignore, size), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(arrays(np.float32, (11, 37), elements=FLOATS), st.sampled_from((1, 8, 16, 40)))
def test_sums_along_rows_are_those_of_numpy(image, size):
    for plane in image, image[:, ::-1], image.T:
        expected = np.add.reduceat(plane, np.arange(0, plane.shape[1], size), axis=1)
        np.testing.assert_allclose(masks.sums_along_rows(plane, size), expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from(['normal', 'lognormal', 'cauchy', 'ties']))
def test_clipped_mean_and_spread_are_those_of_astropy(seed, number, kind):
    rng = np.random.default_rng(seed)
    values = {'normal': rng.normal(5, 0.01, number), 'lognormal': rng.lognormal(0, 2, number),
              'cauchy': rng.standard_cauchy(number), 'ties': rng.normal(0, 2, number).round()}[kind]
    before = values.copy()
    np.testing.assert_allclose(masks.clipped_mean_and_spread(values), slow_striping.sky_statistics(values), 1e-9, 1e-9)
    np.testing.assert_array_equal(values, before)


def test_clipping_that_moves_the_median_far_and_rms_from_zero():
    values = np.concatenate([np.random.default_rng(4).normal(0, 0.01, 600), 10**np.linspace(0, 6, 390)])
    np.testing.assert_allclose(masks.clipped_mean_and_spread(values), slow_striping.sky_statistics(values), 1e-9)
    assert np.isnan(masks.clipped_mean_and_spread(values[:0])).all()
    wild = np.append(values, 1e30).astype('f')          # whose square float32 does not hold
    np.testing.assert_allclose(masks.clipped_mean_and_spread(wild), slow_striping.sky_statistics(np.double(wild)), 1e-6)
    assert masks.robust_rms(np.array([-1., 2., 300.])) == 1.4826 * 2
