"""The slow, obvious forms of the striping correction: scipy, astropy and photutils as they come."""

import warnings

import numpy as np
from scipy import ndimage


def ring_kernel(radius=40, width=3):
    """Ring of 776 pixels, as a footprint."""
    from astropy.convolution import Ring2DKernel
    return Ring2DKernel(radius, width).array > 0


def ring_median(image, radius=40, width=3):
    """Rank filter where there is no NaN; else the ring's pixels sorted, row by row, without NaN."""
    ring = ring_kernel(radius, width)
    if not np.isnan(image).any():
        return ndimage.median_filter(image, footprint=ring, mode='reflect')
    padded = np.pad(image, ring.shape[0] // 2, mode='symmetric')
    windows = np.lib.stride_tricks.sliding_window_view(padded, ring.shape)
    result = np.empty_like(image)
    for row, window in zip(result, windows, strict=True):
        values = np.sort(window[:, ring], axis=1)                   # NaN last
        number = np.isfinite(values).sum(axis=1)
        row[:] = np.where(number > 0, values[np.arange(len(values)), number // 2], np.nan)
    return result


def smoothed(image, sigma):
    """Gaussian smoothing with a kernel cut at 4 sigma."""
    from astropy.convolution import Gaussian2DKernel, convolve_fft
    size = 8 * sigma + 1
    return convolve_fft(image, Gaussian2DKernel(sigma, x_size=size, y_size=size), allow_huge=True)


def sky_statistics(values):
    """Mean and standard deviation after astropy's clipping."""
    from astropy.stats import SigmaClip
    with warnings.catch_warnings(action='ignore'):
        kept = SigmaClip(3, maxiters=10)(values, masked=False)
    return kept.mean(), kept.std()


def detect(image, ignore, npixels, grow):
    """Threshold, segmentation and dilation by photutils and scipy."""
    from astropy.stats import SigmaClip
    from photutils.segmentation import detect_sources, detect_threshold
    with warnings.catch_warnings(action='ignore'):                  # no source found
        threshold = detect_threshold(image, 3, mask=ignore, sigma_clip=SigmaClip(3, maxiters=10))
        segments = detect_sources(image, threshold, npixels)
    found = np.zeros(image.shape, bool) if segments is None else segments.data > 0
    return grown(found, grow)


def grown(mask, side):
    """Dilation by a square."""
    return ndimage.binary_dilation(mask, np.ones((side, side)))


def source_mask(sci, err):
    """The four tiers of DR0.5, one after the other."""
    difference = sci - ring_median(sci)

    def unseen(sigma):
        return ndimage.minimum_filter(np.isnan(difference), 8 * sigma + 1, mode='constant', cval=1)
    mask = detect(smoothed(difference, 25), np.isnan(err) | unseen(25), 15, 11)
    mask = grown(mask, 11)
    for sigma, npixels, grow in ((15, 15, 11), (5, 5, 11), (2, 3, 3)):
        mask = mask | detect(smoothed(difference, sigma), mask | unseen(sigma), npixels, grow)
    return mask


def clipped_median(image, mask, axis):
    """astropy's statistics of all lines."""
    from astropy.stats import sigma_clipped_stats
    with warnings.catch_warnings(action='ignore'):                  # lines without a pixel
        return sigma_clipped_stats(image, mask=mask, sigma=2, maxiters=5, cenfunc='median', stdfunc='std', axis=axis)[1]


def row_pattern(image, mask, thresh):
    """Row by row, amplifier by amplifier: pattern (ny, 4) and the rows with the full-row median."""
    full = clipped_median(image, mask, 1)
    pattern, counts = [], []
    for columns in (slice(4, 512), slice(512, 1024), slice(1024, 1536), slice(1536, 2044)):
        own = clipped_median(image[:, columns], mask[:, columns], 1)
        crowded = [row.sum() / row.size > thresh or row.all() for row in mask[:, columns]]
        pattern.append(np.where(crowded, full, own))
        counts.append(sum(crowded))
    return np.array(pattern).T, counts
