"""Score corrected images against the truth of their simulated exposure.

The figures of the striping and the wisp benchmark are free of pixel noise: what was taken out is compared with
what was put in. `score_striping` and `score_wisp` return them; rates are in 1e-3 DN/s, flux biases in units of
the probe's flux.
"""

import numpy as np

from simulate import AMPS, JUMP_DET, SATURATED, WISP_WINDOWS

BLOCK = 32                                       # pixels, side of the blocks of `block_rms`
APERTURE = 5                                     # pixels, radius of the aperture at the probes
WISP_FLOOR = 0.01                                # DN/s of the unit wisp: where a residual counts as in the wisp
JUMP_SIZES = ((0.5, 1), (1, 3), (3, 10), (10, np.inf))  # sigma of a group difference


# --- striping ----------------------------------------------------------------------------------------

def left_over(truth, before, after, good):
    """Pattern that is left in a corrected image: (injected pattern) - (before - after), DN/s.

    Parameters
    ----------
    truth : simulate.Truth
    before, after : ndarray, shape (ny, nx)
        Rate image without and with the correction.
    good : ndarray of bool, shape (ny, nx)
        True = pixel to count.

    Returns
    -------
    ndarray of float64, shape (ny, nx)
        NaN where a pixel is not good, or zero or not finite in either image.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    defined = good & np.isfinite(before) & np.isfinite(after) & (after != 0)
    return np.where(defined, truth.pattern - (before - after), np.nan)


def amp_row_rms(left):
    """Rms over all amp-rows of their mean."""
    return rms(np.concatenate([mean(left[:, amp], axis=1) for amp in AMPS]))


def column_rms(left):
    """Rms over the columns of their mean."""
    return rms(mean(left, axis=0))


def block_rms(left, size=BLOCK):
    """Rms of the means over blocks of `size` x `size` pixels; the image is cut to whole blocks."""
    ny, nx = (n - n % size for n in left.shape)
    blocks = left[:ny, :nx].reshape(ny // size, size, nx // size, size)
    return rms(mean(blocks.swapaxes(1, 2).reshape(-1, size * size), axis=1))


def flux_bias(left, probes, radius=APERTURE):
    """Mean over the probes of the change of their aperture sum, in units of their flux."""
    y, x = np.ogrid[:left.shape[0], :left.shape[1]]
    reach, changes = radius + 1, []
    for probe in probes:
        column, row = round(float(probe['x'])), round(float(probe['y']))
        box = np.s_[max(row - reach, 0):row + reach + 1, max(column - reach, 0):column + reach + 1]
        r2 = (x[:, box[1]] - probe['x'])**2 + (y[box[0]] - probe['y'])**2
        changes.append(np.nansum(left[box][r2 <= radius**2]) / probe['flux'])
    return float(np.mean(changes)) if changes else np.nan


def pixels_lost(before, after, good, dq=None):
    """Number of good pixels that are zero, not finite, or newly DO_NOT_USE in the corrected image."""
    lost = ~np.isfinite(after) | (np.asarray(after) == 0)
    if dq is not None:
        lost |= dq & 1 > 0
    return int(np.count_nonzero(lost & good & np.isfinite(before) & (before != 0)))


def score_striping(truth, before, after, good, dq=None):
    """All figures of the striping benchmark, {name: value}.

    Parameters
    ----------
    truth : simulate.Truth
    before, after, good
        See `left_over`.
    dq : ndarray of uint32, shape (ny, nx), optional
        Flags after the correction.
    """
    left = left_over(truth, before, after, good)
    level = float(np.nanmean(left[truth.blank]))
    flat = left - level
    near = truth.probes['host'] >= 0
    return {'level': 1e3 * level, 'amp-row': 1e3 * amp_row_rms(flat), 'column': 1e3 * column_rms(flat),
            'block32': 1e3 * block_rms(flat), 'near': 1e3 * float(np.nanmean(left[truth.near])),
            'flux near': flux_bias(left, truth.probes[near]), 'flux far': flux_bias(left, truth.probes[~near]),
            'lost': pixels_lost(before, after, good, dq)}


def mean(values, axis):
    """Mean without NaN along an axis; NaN where there is nothing else."""
    number = np.isfinite(values).sum(axis)
    return np.where(number > 0, np.nansum(values, axis) / np.maximum(number, 1), np.nan)


def rms(values):
    """Root mean square without NaN."""
    return float(np.sqrt(np.nanmean(values**2)))


# --- wisps and snowballs -----------------------------------------------------------------------------

def score_wisp(truth, removed, good):
    """Rms and mean in the wisp of what was left, {name: value}.

    Parameters
    ----------
    truth : simulate.Truth
    removed : ndarray, shape (ny, nx)
        DN/s that were subtracted from the rate image; 0 for the figures before the correction.
    good : ndarray of bool, shape (ny, nx)
        True = pixel to count.
    """
    y1, y2, x1, x2 = WISP_WINDOWS[truth.detector]
    inside = np.zeros_like(good)
    inside[y1:y2, x1:x2] = True
    inside &= good & (truth.wisp_unit > WISP_FLOOR)
    left = (truth.wisp_light - removed)[inside & np.isfinite(truth.wisp_light - removed)]
    return {'wisp rms': 1e3 * rms(left), 'wisp mean': 1e3 * float(left.mean())}


def score_snowballs(truth, groupdq, reach=1.5):
    """Fraction of pixel-groups flagged near snowballs, by true jump size in sigma of a group difference.

    Parameters
    ----------
    truth : simulate.Exposure
    groupdq : ndarray of uint8, shape (nints, ngroups, ny, nx)
    reach : float
        Radii of the halo that belong to a snowball.

    Returns
    -------
    dict
        {(low, high): fraction} for `JUMP_SIZES`.
    """
    jumps = truth.jumps
    size = np.abs(jumps['dn']) / truth.sigma
    ours = np.zeros(len(jumps), bool)
    for ball in truth.snowballs:
        ours |= ((jumps['integration'] == ball['integration']) & (jumps['group'] == ball['group'])
                 & (np.hypot(jumps['x'] - ball['x'], jumps['y'] - ball['y']) <= reach * ball['halo']))
    flags = groupdq[jumps['integration'], jumps['group'], jumps['y'], jumps['x']]
    flagged = flags & (JUMP_DET | SATURATED) > 0
    return {(low, high): float(flagged[ours & (size >= low) & (size < high)].mean()) for low, high in JUMP_SIZES}
