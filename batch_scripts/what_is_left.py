"""What stripes and wisps are left in a rate image, measured the same way whatever the method was.

Rate images are not flat-fielded, and there is light in them, so all is measured on what differs from the sky around
it (`flatten`), in sky pixels (`find_sky`). Arrays in, numbers out, DN/s.
"""
import math

from stage1.masks import block_means, grow, robust_rms

import numpy as np
from scipy import ndimage

CELL, NEAR = 16, 9              # pixels, cells: the sky at a place is the median of NEAR x NEAR means over cells
LEAST_SIZE = CELL * NEAR        # pixels: of an image
LUMP = 16                       # rows, over which stripes average out, and light does not


def flatten(image, ignore):
    """Take off the sky around each place: the median of `NEAR` x `NEAR` means over cells.

    `image` is (ny, nx) float32, DN/s; `ignore`, (ny, nx) bool, True = ignore.

    Returns what is left, (ny, nx) float32, and the means themselves less that sky, (ny // CELL, nx // CELL); these are
    0 where half or more of a cell is ignored.
    """
    cells = block_means(image, ignore, CELL)
    known = np.isfinite(cells)
    cells = np.where(known, cells, np.nanmedian(cells))
    sky = ndimage.median_filter(cells, NEAR).astype(np.float32)
    return image - whole_size(sky, image.shape, smooth=True), np.where(known, cells - sky, 0)


def whole_size(cells, shape, smooth=False):
    """Values of cells as an image, (ny, nx), constant in each or, `smooth`, linear between their middles."""
    image = ndimage.zoom(cells, CELL, order=int(smooth), mode='nearest', grid_mode=True)
    return np.pad(image, [(0, n - m) for n, m in zip(shape, image.shape, strict=True)], mode='edge')


def find_sky(flattened, deviations, ignore):
    """Pixels of the sky, bool (ny, nx), True = sky: no source within a cell, and no more than 4 sigma off."""
    sources = np.abs(deviations) > 3 * robust_rms(deviations - np.median(deviations))
    sky = ~(whole_size(grow(sources, 3), flattened.shape) | ignore)
    return sky & (np.abs(flattened) < 4 * robust_rms(flattened[sky][::7])) if sky.any() else sky


def wisp_rms(flattened, sky, ignore, wisp):
    """Robust rms of 8 x 8 means where the template is bright (`wisp`) beyond that of the sky elsewhere; DN/s.

    Inside, all that is not ignored counts: the brightest of a wisp would pass for a source.
    """
    inside, outside = (block_means(flattened, unseen, 8) for unseen in (ignore | ~wisp, ~sky | wisp))
    inside, outside = (blocks[np.isfinite(blocks)] for blocks in (inside, outside))
    if not inside.size or not outside.size:
        return None
    level = np.median(outside)
    return math.sqrt(max(robust_rms(inside - level)**2 - robust_rms(outside - level)**2, 0))


def light_taken(removed, ignore, amps):
    """What amp-rows lost to a striping correction besides stripes, rms, DN/s; 0 where all is well.

    Stripes change from row to row. Where `LUMP` rows of an amplifier have in common what is more than three times the
    usual of one, they followed the light of a source. `removed` is the image before less that after the correction,
    (ny, nx), DN/s; `ignore`, (ny, nx) bool, True = ignore; `amps` the columns of each amplifier.
    """
    good = ~ignore & np.isfinite(removed)
    number, total = (np.stack([values[:, amp].sum(axis=1) for amp in amps.values()], axis=1)
                     for values in (good, np.where(good, removed, 0)))
    rows = total / np.maximum(number, 1)
    rows = np.where(number > 0, rows - np.median(rows[number.all(axis=1)], axis=0), 0)
    lumps = ndimage.uniform_filter1d(rows, LUMP, axis=0)
    return float(np.sqrt(np.mean(np.where(np.abs(lumps) > 3 * robust_rms(rows), lumps, 0)**2)))
