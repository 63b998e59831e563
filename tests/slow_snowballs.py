"""The slow, obvious form of the snowball mask: scipy's own filters, one plane at a time."""

import numpy as np
from scipy import ndimage


def disc(radius):
    """True where x^2 + y^2 <= radius^2."""
    y, x = np.mgrid[-radius:radius + 1, -radius:radius + 1]
    return x**2 + y**2 <= radius**2


def disc_median(flags, radius):
    """Median filter of bool (ny, nx) `flags` over a disc, border 'reflect'."""
    pad = 0
    if min(flags.shape) < radius:    # scipy's filter goes wrong where it would reflect many times, as in (41, 2)
        pad = radius
        flags = np.pad(flags, pad, mode='symmetric')
    filtered = ndimage.median_filter(flags.astype(np.uint8), footprint=disc(radius), mode='reflect') > 0
    return filtered[pad:filtered.shape[0] - pad, pad:filtered.shape[1] - pad]


def find_cores(plane, radius):
    """One tier before its growth; `plane` is GROUPDQ of one group, uint8 (ny, nx)."""
    jumps = plane == 4
    jumps |= disc_median(jumps, radius) & (plane == 2)
    return disc_median(jumps, radius)


def find_snowballs(plane, tiers=((7, 7), (15, 35))):
    """True = flagged because of a snowball, bool (ny, nx)."""
    mask = np.zeros(plane.shape, bool)
    for radius, growth in tiers:
        mask |= ndimage.binary_dilation(find_cores(plane, radius), disc(growth))
    return mask


def flag_snowballs(groupdq):
    """GROUPDQ, uint8 (nints, ngroups, ny, nx), with JUMP_DET in those masks."""
    return np.array([[plane | np.uint8(4) * find_snowballs(plane) for plane in planes] for planes in groupdq],
                    dtype=np.uint8)
