"""The slow, obvious form of the wisp fit: astropy's own statistics and smoothing, plain sums for the blocks."""

from slow_snowballs import groups_of
from slow_striping import grown

import numpy as np


def median_absolute_deviations(image, template, scales):
    """One scale after the other; float32 (ny, nx) in, a list of n numbers out."""
    from astropy.stats import median_absolute_deviation
    return [float(median_absolute_deviation(image - np.float32(scale) * template)) for scale in scales]


def connected(detected, npixels):
    """Groups of at least `npixels` pixels, looked at one by one (True = detected)."""
    groups = [group for group in groups_of(detected) if group.sum() >= npixels]
    return np.any([*groups, np.zeros_like(detected)], axis=0)


def bright_sources(sci):
    """Bright-source mask of an image without NaN, float32 (ny, nx); True = source."""
    from astropy.convolution import Gaussian2DKernel, convolve
    from astropy.stats import SigmaClip, gaussian_fwhm_to_sigma
    kept = SigmaClip(3.0, maxiters=10)(sci, masked=False)
    kernel = Gaussian2DKernel(gaussian_fwhm_to_sigma, x_size=3, y_size=3)
    kernel.normalize()
    smooth = convolve(sci, kernel, normalize_kernel=True)
    return grown(connected(smooth > kept.mean() + 5 * kept.std(), 5), 11)


def block_means(image, ignore, size):
    """Means of the blocks, one by one; NaN where half or more is ignored (True)."""
    ny, nx = (n // size for n in image.shape)
    means = np.full((ny, nx), np.nan)
    for y in range(ny):
        for x in range(nx):
            block = slice(y * size, (y + 1) * size), slice(x * size, (x + 1) * size)
            good = ~ignore[block]
            if 2 * good.sum() > size**2:
                means[y, x] = image[block][good].astype(float).mean()
    return means
