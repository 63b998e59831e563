"""Score a striping correction on the image that it was measured on. Images are (ny, nx), rates in DN/s."""

import math

from stage1.masks import robust_rms, sums_along_rows

import numpy as np

PIECE = 32          # pixels, of a row or column: the score of noise within rows
RAISED = 1.2        # rms of amp-rows or columns, after over before, that is harm


def striping_rms(image, mask, horizontal, vertical, amps, pieces=False):
    """Score the correction on the image it was measured on, by `line_rms` and, if `pieces`, by `piece_rms`.

    Pixels of the sky are unmasked and within 5 sigma (1.4826 x median absolute deviation) of the sky level. Arguments
    as for `row_pattern` of remstriping.py; its pattern, and that of the columns, (nx,), DN/s.

    Returns a dict: STRPPCE0, STRPPCE1 if `pieces`; STRPROW0, STRPROW1, STRPCOL0, STRPCOL1: before and after, DN/s; NaN
    where there is too little sky.
    """
    sky = ~mask & (np.abs(image) < 5 * robust_rms(image[~mask]))
    images = image, image - horizontal - vertical
    numbers = {f'STRPPCE{when}': piece_rms(images[when], sky) for when in (0, 1)} if pieces else {}
    for when in (0, 1):
        numbers[f'STRPROW{when}'], numbers[f'STRPCOL{when}'] = line_rms(images[when], sky, amps)
    return numbers


def raised(numbers):
    """Return '' or one line that says which score of `striping_rms` the correction raised."""
    for what, key in ('amp-rows', 'STRPROW'), ('columns', 'STRPCOL'):
        before, after = numbers[f'{key}0'], numbers[f'{key}1']
        if after > RAISED * before:
            return f'{what} of the sky vary more than before, {1e3 * before:.2f}e-3 to {1e3 * after:.2f}e-3 DN/s'
    return ''


def line_rms(image, sky, amps):
    """Rms of amp-rows and of columns, DN/s; NaN where there is too little sky.

    The standard deviations of the means of sky pixels: of all rows of all amplifiers, and of all columns, but for
    those with less than a tenth of sky. Both hold the noise of a mean, about 0.0006 and 0.0003 DN/s in a rate with
    0.012 DN/s a pixel. `image` is (ny, nx), DN/s, sky level 0; `sky`, (ny, nx) bool, True = use; `amps` the columns of
    each amplifier.
    """
    image = np.where(sky, image, 0)
    rows = np.concatenate([means(image[:, columns], sky[:, columns], 1) for columns in amps.values()])
    return [float(lines.std()) if lines.size else math.nan for lines in (rows, means(image, sky, 0))]


def piece_rms(image, sky):
    """Noise within rows: rms of pieces of rows beyond that of pieces of columns, DN/s; arguments as for `line_rms`.

    Pieces are `PIECE` pixels long and have the same pixel noise.
    """
    image = np.where(sky, image, 0)
    along, across = piece_variance(image, sky), piece_variance(image.T, sky.T)
    return math.sqrt(max(along - across, 0)) if along and across else math.nan


def piece_variance(image, sky):
    """Variance of the means of pieces of `PIECE` pixels along rows, of those that are mostly sky; 0 without any."""
    number, total = (sums_along_rows(plane.astype(float), PIECE) for plane in (sky, image))
    used = number > PIECE / 2
    return float((total[used] / number[used]).var()) if used.any() else 0.


def means(image, sky, axis):
    """Mean along an axis of an image that is 0 outside `sky`, of lines with at least a tenth of sky."""
    number = sky.sum(axis=axis)
    enough = number > 0.1 * sky.shape[axis]
    return image.sum(axis=axis, dtype=float)[enough] / number[enough]
