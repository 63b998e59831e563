"""The slow, obvious form of the snowball mask: scipy's own filters, one group at a time."""

import numpy as np
from scipy import ndimage

TIERS = ((7, 7), (15, 35))


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


def find_cores(plane, radius, also=False):
    """One tier before its growth; `plane` is GROUPDQ of one group, uint8 (ny, nx); `also` count as jumps."""
    jumps = (plane == 4) | also
    jumps |= disc_median(jumps, radius) & (plane == 2)
    return disc_median(jumps, radius)


def find_snowballs(plane, tiers=TIERS, also=False):
    """True = flagged because of a snowball, bool (ny, nx)."""
    mask = np.zeros(plane.shape, bool)
    for radius, growth in tiers:
        mask |= ndimage.binary_dilation(find_cores(plane, radius, also), disc(growth))
    return mask


def groups_of(flags):
    """Each connected group of bool (ny, nx) `flags` as a mask of its own."""
    labels, number = ndimage.label(flags, np.ones((3, 3)))
    return [labels == label for label in range(1, number + 1)]


def just_saturated(planes, group):
    """What saturates in or within `group`, or within the one before, and has a rim of jumps in `group`."""
    fresh = planes[group] == 2
    if group + 1 < len(planes):
        fresh |= (planes[group] == 1) & (planes[group + 1] == 2)
    if group:
        fresh &= planes[group - 1] != 2
    kept = np.zeros_like(fresh)
    for part in groups_of(fresh):
        rim = ndimage.binary_dilation(part, disc(2)) & ~part
        if rim.any() and np.mean(planes[group][rim] == 4) > 0.5:
            kept |= part
    return kept


def find_in_group(planes, group):
    """True = flagged in `group` of an integration, uint8 (ngroups, ny, nx), because of a snowball."""
    plane = planes[group]
    if not ((planes[:-1] == 1) & (planes[1:] == 2)).any():
        return find_snowballs(plane)
    mask = find_snowballs(plane, also=just_saturated(planes, group))
    beside = np.zeros(plane.shape, bool)
    for other in (group - 1, group + 1):
        if 0 <= other < len(planes):
            for radius, _ in TIERS:
                beside |= find_cores(planes[other], radius, just_saturated(planes, other))
    for core in groups_of(beside):
        usable = plane[core & (plane & 3 == 0)]
        if usable.size and np.mean(usable == 4) > 0.1:
            mask |= ndimage.binary_dilation(core, disc(7))
    return mask


def flag_snowballs(groupdq):
    """GROUPDQ, uint8 (nints, ngroups, ny, nx), with JUMP_DET in those masks."""
    return np.array([[plane | np.uint8(4) * find_in_group(planes, group) for group, plane in enumerate(planes)]
                     for planes in groupdq], dtype=np.uint8)
