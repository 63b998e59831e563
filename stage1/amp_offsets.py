"""Offsets of whole amplifiers in an image with light: steps at the borders, where light has none.

Images are (ny, nx), DN/s; masks are True where a pixel is to be ignored. `amp_offsets` is the verb; `amp_levels` tells
what a pattern, measured beside a plane of sky, may hold of them.
"""
import warnings

from stage1.light_model import SQUARE, cell_means, sky_plane
from stage1.masks import polynomial, sums_along_rows

import numpy as np

STEP_WIDTHS, STEP_ROWS = (2, 4, 8, 12), 8   # squares, whose medians make a line: two such on each side of a border
STEP_SIGMA = 4.                 # significance of steps; else they may be light
LEVEL_BLOCK = 64                # columns, over which the scatter about a line is measured


def amp_offsets(image, ignore, borders, doubt=0.):
    """Offsets of whole amplifiers; none unless steps at the borders stand out from the light.

    A step is by how much straight lines through both sides miss each other, in the median down the rows. Within the
    amplifiers there are none, so what is found there is the error, and tells how wide the sides had better be. A plane
    with steps, fitted to the whole image, tells them better, if it is not far off: then the light is a plane.

    Parameters
    ----------
    image : (ny, nx) float array
    ignore : (ny, nx) bool array
    borders : sequence of int
        First columns of the amplifiers but the left one.
    doubt : float
        Further error of the steps, DN/s.

    Returns
    -------
    (nx,) float32 array
        DN/s; their mean over the amplifiers is 0.
    """
    offsets = np.zeros(len(borders) + 1)
    if borders:
        means, number = cell_means(image, ignore)
        means[number == 0] = np.nan
        edges = [0, *(round(border / SQUARE) for border in borders), means.shape[1]]
        error, steps = np.inf, np.zeros(len(borders))
        for width in STEP_WIDTHS:
            within = [place for left, right in zip(edges[:-1], edges[1:], strict=True)
                      for place in range(left + 2 * width, right - 2 * width + 1, width // 2)]
            if len(within) > len(borders):
                known = np.sqrt(np.mean(steps_across(means, within, width)**2))
                if known < error:
                    error, steps = known, steps_across(means, edges[1:-1], width)
        sure = STEP_SIGMA**2 * (error**2 + doubt**2)
        if np.mean(steps**2) > sure:
            _, wide = sky_plane(np.nan_to_num(means), number, borders)
            offsets[1:] = np.cumsum(wide if np.mean((wide - steps)**2) < sure else steps)
            offsets -= offsets.mean()
    return offsets.astype(np.float32)[np.digitize(np.arange(image.shape[1]), borders)]


def steps_across(means, places, width):
    """Steps from the left to the right of columns of cells, (len(places),), DN/s."""
    down = len(means) // STEP_ROWS
    sides = np.array([means[:down * STEP_ROWS, place - 2 * width:place + 2 * width] for place in places])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)         # where all is masked
        medians = np.nanmedian(sides.reshape(len(places), down, STEP_ROWS, 4, width), axis=(2, 4))
        return np.nan_to_num(np.nanmedian(medians @ (0.5, -1.5, 1.5, -0.5), axis=1))


def amp_levels(pattern, amps):
    """Straight lines through the columns of a pattern in each amplifier: a plane of sky may have hidden offsets there.

    Returns these levels, (nx,) float32, DN/s, 0 outside the amplifiers, and the error of the steps between the lines,
    DN/s: their ends are known to 2 / sqrt(n) of the scatter of n columns, or of n blocks of them, for what light
    leaves in a pattern goes on over many columns.
    """
    profile = pattern.mean(axis=0, dtype=float)
    levels = np.zeros_like(profile)
    for amp in amps:
        levels[amp] = polynomial(profile[amp], 1)
    blocks = sums_along_rows((profile - levels)[None], LEVEL_BLOCK) / LEVEL_BLOCK
    return levels.astype(np.float32), np.sqrt(8 * len(amps) / blocks.size) * blocks.std()
