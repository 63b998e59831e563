"""Tell from the image alone when a striping correction, of either method, did harm.

Light that was taken for stripes shows in four ways: the pattern is larger than 1/f noise can be; its columns follow the
light; it makes steps at the borders of amplifiers, where sky and sources have none; the rows of the quietest sky vary
more after the correction than before.
"""
from stage1.masks import block_sums, polynomial

import numpy as np
from astropy.stats import mad_std
from scipy.ndimage import gaussian_filter1d

LARGEST = 12.                   # rms of amp-rows or columns in units of the read noise of the rate
SMOOTH = 24                     # columns, Gaussian sigma over which a pattern of noise averages out
SMOOTHED = np.sqrt(2 * np.sqrt(np.pi) * SMOOTH)     # by how much that lessens noise from column to column
SMOOTH_RAISED = 3.              # rms of the smoothed columns of a pattern over what noise makes of it
FOLLOWS = 0.4                   # its correlation with the smoothed columns of the light
BORDER = 16                     # pixels on each side of a border
STEP_SCALES = (1, 16, 128)      # rows over which steps are averaged
STEPS_RAISED = 1.15             # rms of steps after over before
SEGMENT = 128                   # pixels, width of the pieces of rows in which the sky is looked at
SKY_SCALES = (16, 64)           # rows over which those are averaged
QUIET = 0.3                     # quantile of the blocks of SEGMENT x SEGMENT pixels that is looked at: the quiet ones
SKY_RAISED = 1.15               # rms of second differences down the rows there, after over before


def harm(pattern, image, mask, amps, read_noise):
    """Return '' or one line that says why the pattern is not believable as stripes, or that there is none.

    Parameters
    ----------
    pattern : (ny, nx) float array
        What was subtracted, rows and columns, DN/s; NaN where none could be measured.
    image : (ny, nx) float array
        Flat-fielded rate before the correction, DN/s; NaN = undefined.
    mask : (ny, nx) bool array
        True = source, or unusable.
    amps : sequence of slice
        Columns of each amplifier.
    read_noise : float
        Noise of a pixel in the rate without that of photons, DN/s: the root of the median of VAR_RNOISE.

    Returns
    -------
    str
    """
    pattern = np.nan_to_num(pattern)
    if not pattern.any():
        return 'nothing was subtracted: no stripes were found, or too little of the image tells them from light'
    size = max(measures(pattern, amps))
    if size > LARGEST * read_noise:
        return (f'the pattern, {1e3 * size:.1f}e-3 DN/s rms, is larger than 1/f noise can be '
                f'({size / read_noise:.0f} times the read noise): light was taken for stripes')
    smooth, noise, correlation = smooth_columns(pattern, image, amps)
    if np.isfinite(read_noise):         # in a small subarray there may be hardly any pattern
        noise = max(noise, read_noise / np.sqrt(len(pattern)) / SMOOTHED)
    if smooth > SMOOTH_RAISED * noise and correlation > FOLLOWS:
        return (f'the columns of the pattern follow the light: over {SMOOTH} columns they vary by '
                f'{1e3 * smooth:.2f}e-3 DN/s, noise would by {1e3 * noise:.2f}e-3: light was taken for stripes')
    for scale, before, after in border_steps(pattern, image, mask, amps):
        if after > STEPS_RAISED * before:
            return (f'steps at the borders of amplifiers rise from {1e3 * before:.2f}e-3 to {1e3 * after:.2f}e-3 DN/s '
                    f'over {scale} rows: light was taken for stripes')
    for scale, before, after in sky_structure(pattern, image, mask):
        if after > SKY_RAISED * before:
            return (f'the quiet sky varies more than before from row to row, {1e3 * before:.2f}e-3 to '
                    f'{1e3 * after:.2f}e-3 DN/s over {scale} rows: light was taken for stripes')
    return ''


def measures(pattern, amps):
    """Rms of the amp-rows and of the columns of a pattern, without offsets of amplifiers, DN/s."""
    parts = [pattern[:, amp] - pattern[:, amp].mean() for amp in amps]
    return tuple(np.concatenate([part.mean(axis=axis) for part in parts]).std() for axis in (1, 0))


def smooth_columns(pattern, image, amps):
    """How much the smoothed columns of a pattern vary within amplifiers, and whether they follow the light.

    Returns
    -------
    rms, noise : float
        Rms over all amplifiers, and what noise from column to column would make of it, DN/s.
    correlation : float
        Of those columns with the columns of the corrected image, smoothed alike, both without a trend.
    """
    corrected = np.where(np.isfinite(image), image - pattern, np.nan)
    corrected = np.minimum(corrected, np.nanquantile(corrected, 0.99))          # without bright cores
    light = np.nansum(corrected, axis=0) / np.maximum(np.isfinite(corrected).sum(axis=0), 1)
    columns = pattern.mean(axis=0)
    smooth, smooth_light = ([gaussian_filter1d(values[amp], SMOOTH)[::SMOOTH] for amp in amps]
                            for values in (columns, light))
    rms = np.concatenate([part - part.mean() for part in smooth]).std()
    noise = mad_std(np.concatenate([np.diff(columns[amp]) for amp in amps])) / np.sqrt(2)
    smooth, smooth_light = (values - polynomial(values, 1) for values in map(np.concatenate, (smooth, smooth_light)))
    spread = smooth.std() * smooth_light.std()
    return rms, noise / SMOOTHED, np.mean(smooth * smooth_light) / spread if spread > 0 else 0.


def border_steps(pattern, image, mask, amps):
    """Rms of steps at the borders of amplifiers, (rows averaged, before, after), DN/s; nothing for one amplifier."""
    mask = mask | ~np.isfinite(image)
    sides = [(np.s_[:, left.stop - BORDER:left.stop], np.s_[:, right.start:right.start + BORDER])
             for left, right in zip(amps[:-1], amps[1:], strict=True)]
    number, before, after = (np.array([[plane[side].sum(axis=1) for side in pair] for pair in sides])
                             for plane in (~mask, np.where(mask, 0, image), np.where(mask, 0, image - pattern)))
    for scale in STEP_SCALES:
        if len(image) < 4 * scale or not sides:
            continue
        edges = np.arange(0, len(image) - len(image) % scale, scale)
        some = np.add.reduceat(number, edges, axis=2)
        enough = (some > BORDER * scale / 3).all(axis=1)
        if np.count_nonzero(enough) < 8:
            continue
        rms = []
        for steps in (before, after):
            means = np.add.reduceat(steps, edges, axis=2) / np.maximum(some, 1)
            rms.append(float(np.sqrt(np.mean(clipped((means[:, 1] - means[:, 0])[enough])**2))))
        yield scale, *rms


def clipped(values):
    """Values within 5 of their robust standard deviations."""
    middle = np.median(values)
    spread = mad_std(values)
    return values[np.abs(values - middle) <= 5 * spread] if spread > 0 else values


def sky_structure(pattern, image, mask):
    """Rms down the rows of second differences of the quietest sky, (rows averaged, before, after), DN/s."""
    mask = mask | ~np.isfinite(image)
    for scale in SKY_SCALES:
        step, number = max(SEGMENT // scale, 1), block_sums((~mask).astype(float), scale, SEGMENT)
        some = number > number.max() / 3
        seen = some[2:] & some[1:-1] & some[:-2]
        blocks = np.arange(0, len(seen), step)
        if not seen.any():
            continue
        count = np.add.reduceat(seen, blocks, axis=0, dtype=float)
        squares = []
        for values in (image, image - pattern):
            means = block_sums(np.where(mask, 0., values), scale, SEGMENT) / np.maximum(number, 1)
            square = np.where(seen, (means[2:] - 2 * means[1:-1] + means[:-2])**2, 0)
            squares.append(np.add.reduceat(square, blocks, axis=0) / np.maximum(count, 1))
        enough = count > step / 3
        if np.count_nonzero(enough) < 8:
            continue
        # a quantile of each: blocks chosen for being quiet before would be so by chance
        yield scale, *(float(np.sqrt(np.quantile(square[enough], QUIET))) for square in squares)
