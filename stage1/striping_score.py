"""Score a striping correction on the image that it was measured on. Images are (ny, nx), rates in DN/s."""

import math

from stage1.exposure import AMPLIFIERS
from stage1.masks import robust_rms

import numpy as np

PIECE = 32          # pixels, of a row or column: the score of noise within rows


def striping_rms(image, mask, horizontal, vertical, amps=AMPLIFIERS):
    """Score the correction on the image it was measured on.

    Sky pixels are unmasked and within 5 sigma (1.4826 x median absolute deviation) of the sky level. The rms of
    amp-rows is the standard deviation, over all rows of all amplifiers, of the mean of a row's sky pixels; the
    rms of columns that of the columns' means. Rows and columns with less than a tenth of sky pixels are left
    out. Both hold the noise of a mean, about 0.0006 DN/s in a rate with 0.012 DN/s a pixel and 400 sky pixels.

    Parameters
    ----------
    image, mask, horizontal, vertical, amps
        As for `row_pattern` and as it returns.

    Returns
    -------
    dict
        STRPROW0, STRPROW1, STRPCOL0, STRPCOL1: before and after, DN/s; NaN where there is too little sky.
    """
    numbers = {}
    for when, result, sky in before_and_after(image, mask, horizontal, vertical):
        rows = np.concatenate([means(result[:, columns], sky[:, columns], 1) for columns in amps.values()])
        numbers[f'STRPROW{when}'] = rows.std() if rows.size else math.nan
        columns = means(result, sky, 0)
        numbers[f'STRPCOL{when}'] = columns.std() if columns.size else math.nan
    return numbers


def piece_rms(image, mask, horizontal, vertical):
    """Score for noise within rows: rms of pieces of rows beyond that of pieces of columns, {STRPPCE0, STRPPCE1}, DN/s.

    Pieces are `PIECE` pixels long and have the same pixel noise. Arguments as for `striping_rms`.
    """
    numbers = {}
    for when, result, sky in before_and_after(image, mask, horizontal, vertical):
        along, across = (piece_variance(*planes) for planes in ((result, sky), (result.T, sky.T)))
        numbers[f'STRPPCE{when}'] = math.sqrt(max(along - across, 0)) if along and across else math.nan
    return numbers


def before_and_after(image, mask, horizontal, vertical):
    """The image before (0) and after (1) the correction, 0 outside the sky, and the sky pixels (True)."""
    sky = ~mask & (np.abs(image) < 5 * robust_rms(image[~mask]))
    for when, result in ((0, image), (1, image - horizontal - vertical)):
        yield when, np.where(sky, result, 0), sky


def piece_variance(image, sky):
    """Variance of the means of pieces of `PIECE` pixels along rows, of those that are mostly sky; 0 without any."""
    edges = np.arange(0, image.shape[1], PIECE)
    number = np.add.reduceat(sky, edges, axis=1, dtype=float)
    used = number > PIECE / 2
    total = np.add.reduceat(image, edges, axis=1, dtype=float)
    return float((total[used] / number[used]).var()) if used.any() else 0.


def means(image, sky, axis):
    """Mean along an axis of an image that is 0 outside `sky`, of lines with at least a tenth of sky."""
    number = sky.sum(axis=axis)
    enough = number > 0.1 * sky.shape[axis]
    return image.sum(axis=axis, dtype=float)[enough] / number[enough]
