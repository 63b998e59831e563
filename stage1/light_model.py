"""The light of a rate image as the adaptive striping understands it: sources to mask, extended light to model.

Images are (ny, nx), rates in DN/s; masks are True where a pixel is to be ignored. `source_finder` and `model_light`
are the two verbs; the rest serves them.
"""
from stage1.masks import block_sums, blown_up, grow

import numpy as np
from astropy.stats import mad_std
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from skimage.filters import apply_hysteresis_threshold

# sources to be masked, in pixels of the image
SOURCE_SCALES = (1.5, 4.)       # Gaussian sigma: about the PSF, and a small galaxy
SOURCE_GROWTH = 1.5             # grown by a square of so many Gaussian sigma to each side

# light to be modelled, on means over squares of SQUARE x SQUARE pixels
SQUARE = 8
OBJECT_SIGMA = 5.               # isophote that gives position and ellipse, of the map smoothed by SQUARE
OBJECT_AREA = 4000              # pixels within that isophote: profiles of smaller ones would take stripes along
OBJECTS = 25                    # the largest so many
REACH = 12.                     # profile out to so many times the radius of the isophote
RINGS = 25                      # of a profile, in equal steps of log radius
LIGHT_SCALES = (64, 32, 16, 8)  # pixels, Gaussian sigma
LIGHT_SIGMA = (3., 7.)          # light is added within 3 sigma around a peak of 7


# -- sources: what is masked

def source_finder(unusable):
    """Return the function that masks sources: deviations of either sign beyond a threshold at the scales of sources.

    It takes a residual, (ny, nx) float32, and the threshold in sigma; True = on a source, or unusable.
    """
    usable = (~unusable).astype(np.float32)
    parts = [np.maximum(ndimage.gaussian_filter(usable, scale, truncate=3), 0.1) for scale in SOURCE_SCALES]

    def find_sources(residual, threshold):
        mask, values = unusable.copy(), np.where(unusable, np.float32(0), residual)
        for scale, part in zip(SOURCE_SCALES, parts, strict=True):
            mean = ndimage.gaussian_filter(values, scale, truncate=3) / part
            seen = mean[::4, ::4][~unusable[::4, ::4]]
            hit = np.abs(mean) > threshold * robust_spread(seen)
            mask |= grow(hit, 2 * round(SOURCE_GROWTH * scale) + 1)
        return mask

    return find_sources


# -- light: what is modelled

def model_light(image, mask, unusable, halos, borders=(), caution=1.):
    """Model the light of a destriped image: sky plane, halos of extended objects, smooth rest.

    Parameters
    ----------
    image : (ny, nx) float32 array
    mask, unusable : (ny, nx) bool array
        True = on a source or unusable; unusable alone, for an object's own profile needs its bright parts.
    halos : (ny/8, nx/8) float array or 0
        Halos of the round before, DN/s, left out of the sky level.
    borders : sequence of int
        First columns of amplifiers with offsets: a step there is no sky.
    caution : float
        Factor on the thresholds for light, 1 or more: stripes that are not known yet are not light.

    Returns
    -------
    sky : (ny/8, nx/8) float array
        The sky plane, DN/s.
    halos : (ny/8, nx/8) float array
    light : (ny, nx) float32 array
        All three together, DN/s.
    extended : (ny, nx) bool array
        True = light other than sky in the model.
    """
    free, free_number = cell_means(image, mask)
    every, every_number = cell_means(image, unusable)
    sky, _ = sky_plane(free - halos, free_number, borders)
    labels, objects = find_objects(every - sky, every_number, caution)
    halos = model_halos(every - sky, every_number, free - sky, free_number, labels, objects)
    rest, zone = smooth_light(free - sky - halos, free_number, caution)
    light = (sky + halos + rest).astype(np.float32)
    ny, nx = image.shape
    light = ndimage.zoom(light, SQUARE, order=1, grid_mode=True, mode='nearest')[:ny, :nx]
    extended = blown_up(zone | (labels > 0), SQUARE)[:ny, :nx] > 0
    return sky, halos, light, extended


def cell_means(image, mask):
    """Means over the unmasked pixels of each square, and their number, (ny/8, nx/8), rounded up."""
    number = block_sums((~mask).astype(np.float32), SQUARE)
    return (block_sums(np.where(mask, np.float32(0), image), SQUARE) / np.maximum(number, 1)).astype(np.float32), number


def sky_plane(means, number, borders):
    """Fit a plane, and steps that are no sky, to cell means weighted by `number`, without cells beyond 2.5 sigma.

    Returns the plane, and the steps at `borders`.
    """
    y, x = np.indices(means.shape)
    steps = [x * SQUARE >= border for border in borders]
    terms = np.stack([x / max(means.shape), y / max(means.shape), *steps], axis=-1)
    terms = np.insert(terms - terms.mean(axis=(0, 1)), 0, 1, axis=-1)
    used = number > 0
    for _ in range(5):
        weighted = terms[used] * number[used, None]
        found = np.linalg.lstsq(weighted.T @ terms[used], weighted.T @ means[used], rcond=None)[0]
        left = means - terms @ found
        used = (number > 0) & (np.abs(left) <= 2.5 * robust_spread(left[used]))
    return terms[..., :3] @ found[:3], found[3:]


def find_objects(means, number, caution=1.):
    """Find the largest isophotes and their ellipses; `caution`: see `model_light`.

    Returns
    -------
    labels : (ny/8, nx/8) int array
        0 = sky.
    objects : list of (label, y, x, yy, xx, xy, radius)
        Centre, second moments scaled to unit determinant, and radius of the isophote, in cells.
    """
    smooth = smoothed(means, number, 1)
    labels, count = ndimage.label(smooth > caution * OBJECT_SIGMA * robust_spread(smooth[number > 0]))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    area[0] = 0
    objects = []
    for label in np.argsort(-area, kind='stable')[:OBJECTS]:
        if area[label] * SQUARE**2 < OBJECT_AREA:
            break
        own = labels == label
        y, x = np.nonzero(own)
        yc, xc = np.average([y, x], axis=1, weights=smooth[y, x])
        # a neighbour is on one side only: the shape is that of what the opposite side has too, if that is in the image
        opposite = ndimage.map_coordinates(np.where(own, smooth, 0), [2 * yc - y, 2 * xc - x], order=1, cval=np.inf)
        weight = np.sqrt(np.minimum(smooth[y, x], opposite))    # a root: the outer shape counts
        weight /= max(weight.sum(), 1e-30)
        yy, xx, xy = weight @ (y - yc)**2, weight @ (x - xc)**2, weight @ ((y - yc) * (x - xc))
        unit = np.sqrt(max(yy * xx - xy**2, 1e-6))
        objects.append((label, yc, xc, yy / unit, xx / unit, xy / unit, np.sqrt(area[label] / np.pi)))
    return labels, objects


def model_halos(every, every_number, free, free_number, labels, objects):
    """Sum of the elliptical profiles of `objects`, each measured on what the ones before it left.

    Within its own isophote an object is measured on all pixels, outside on those off the sources.
    """
    halos = np.zeros_like(every)
    for label, yc, xc, yy, xx, xy, radius in objects:
        reach = REACH * radius + 5
        box = tuple(slice(max(int(c - reach), 0), min(int(c + reach) + 1, n))
                    for c, n in zip((yc, xc), every.shape, strict=True))
        y, x = np.ogrid[box]
        r = np.sqrt(xx * (y - yc)**2 - 2 * xy * (x - xc) * (y - yc) + yy * (x - xc)**2)
        own = labels[box] == label
        used = (np.where(own, every_number[box], free_number[box]) > SQUARE**2 / 2) & (r < reach)
        values = np.where(own, every[box], free[box]) - halos[box]
        halos[box] += radial_profile(r, values, used, reach)
    return halos


def radial_profile(r, values, used, reach):
    """Ring medians of `values`, made to fall outwards to zero, as an image at all `r` < `reach`."""
    ring = np.where(used, np.digitize(r, np.geomspace(1, reach, RINGS)), -1)
    number = np.bincount(ring[used], minlength=RINGS + 1)
    rings = np.flatnonzero(number > 5)
    if len(rings) < 4:
        return np.zeros_like(r)
    radius = ndimage.mean(r, ring, rings)
    profile = non_increasing(ndimage.median(values, ring, rings), number[rings])
    smooth = PchipInterpolator(np.log(radius), np.maximum(profile, 0))(np.log(np.clip(r, radius[0], radius[-1])))
    return np.where(r <= radius[-1], smooth, 0)


def non_increasing(values, weights):
    """Least-squares fit of a sequence that never increases (min-max formula of isotonic regression)."""
    sums, total = np.append(0, np.cumsum(values * weights)), np.append(0, np.cumsum(weights))
    n = len(values)
    start, stop = np.arange(n)[:, None], np.arange(n) + 1
    means = (sums[stop] - sums[start]) / np.maximum(total[stop] - total[start], 1)
    means = np.where(stop > start, means, -np.inf)
    best = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]       # over all stops behind an element
    return np.array([best[:i + 1, i].min() for i in range(n)])


def smooth_light(means, number, caution):
    """Light that is significant on large scales, from coarse to fine; nothing elsewhere; `caution`: see `model_light`.

    Returns the light, (ny/8, nx/8), and where it is not zero, bool.
    """
    light, zone = np.zeros(means.shape), np.zeros(means.shape, bool)
    low, high = LIGHT_SIGMA
    for scale in LIGHT_SCALES:
        smooth = smoothed(means - light, number, scale / SQUARE)
        noise = caution * robust_spread(smooth[~zone & (number > 0)])
        found = apply_hysteresis_threshold(np.abs(smooth), low * noise, high * noise)
        light += np.where(found, smooth, 0)
        zone |= found
    return light, zone


def smoothed(means, number, sigma):
    """Gaussian mean of cells weighted by `number` of pixels; 0 where less than 5 % of the weight is left."""
    weight = ndimage.gaussian_filter(number.astype(float), sigma, mode='constant')
    total = ndimage.gaussian_filter(means * number.astype(float), sigma, mode='constant')
    return np.where(weight > 0.05 * SQUARE**2, total / np.maximum(weight, 1e-3), 0)


def robust_spread(values):
    """Standard deviation from the median absolute deviation; 0 of nothing."""
    return float(mad_std(values)) if values.size else 0.
