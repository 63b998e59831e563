"""The adaptive method for 1/f striping: light and stripes of a rate image estimated in turn.

Arrays in, new arrays out; images are (ny, nx), rates in DN/s, masks are True where a pixel is to be ignored.
`adaptive` is the verb; the light (`model_light` and below) and the stripes (`measure_rows`,
`measure_columns`) are estimated from each other's residuals, `ROUNDS` times.
"""
from stage1.masks import block_sums

import numpy as np
from astropy.stats import mad_std

ROUNDS = 3                      # of light and stripes in turn
CLIP = 3.                       # sigma; single pixels further off take no part

# stripes
SEGMENT = 128                   # pixels; a row is measured in pieces: 1/f noise drifts along a row
SLOW = 3                        # degree of the polynomial along rows and columns that belongs to the sky
LEAST_PIXELS = 50               # of a column; fewer leave it as it is

# sources to be masked, in pixels of the image
SOURCE_SCALES = (1.5, 4.)       # Gaussian sigma: about the PSF, and a small galaxy
SOURCE_SIGMA = 3.5              # detection threshold
SOURCE_GROWTH = 1.5             # grown by a square of so many Gaussian sigma to each side

# light to be modelled, on means over cells of CELL x CELL pixels
CELL = 8
OBJECT_SIGMA = 5.               # isophote that gives position and ellipse, of the map smoothed by CELL
OBJECT_AREA = 640               # pixels within that isophote: what is smaller, the source mask covers
OBJECTS = 25                    # the largest so many
REACH = 12.                     # profile out to so many times the radius of the isophote
RINGS = 25                      # of a profile, in equal steps of log radius
LIGHT_SCALES = (64, 32, 16, 8)  # pixels, Gaussian sigma
LIGHT_SIGMA = (2., 6.)          # light is added within 2 sigma around a peak of 6


def adaptive(image, unusable, amps):
    """Measure row and column pattern of a rate image while modelling its light.

    What is constant along a row cannot be told from sky that varies with y alone.  The choice: all that
    varies slowly, as a cubic over the whole image, is sky, so the patterns have no mean and no trend.
    Differences between amplifiers, and whatever varies faster, are stripes.

    Parameters
    ----------
    image : (ny, nx) float array
        Flat-fielded rate image, DN/s; ny and nx are multiples of 8.
    unusable : (ny, nx) bool array
        True = ignore: DO_NOT_USE, HOT, undefined.  What is not finite is ignored as well.
    amps : sequence of slice
        Columns of each amplifier.

    Returns
    -------
    rows : (ny, len(amps)) float array
        DN/s; their mean over the amplifiers has no slow part.
    columns : (nx,) float array
        DN/s, no slow part; 0 outside the amplifiers and where too few pixels are left.
    mask : (ny, nx) bool array
        True = took no part in the last measurement.
    light : (ny, nx) float32 array
        Sky and sources as modelled, DN/s: what the stripes were measured on is `image` less this.
    numbers : dict
        'pedestal' sky level [DN/s], 'noise' of a pixel [DN/s], 'masked' fraction, prior 'stripe_rms' and
        'column_rms' [DN/s], 'shrinkage' per amplifier: fraction of the prior variance of an amp-row that the
        data leave undetermined, mean over rows (0 = measured, 1 = nothing known).

    Raises
    ------
    ValueError
        Shapes do not fit, or hardly any usable pixel.
    """
    unusable = unusable | ~np.isfinite(image)
    if image.shape != unusable.shape or image.shape[0] % CELL or image.shape[1] % CELL:
        raise ValueError(f'image {image.shape}, mask {unusable.shape}: need equal multiples of {CELL}')
    if unusable.mean() > 0.9:
        raise ValueError(f'{unusable.mean():.0%} of the pixels are unusable')
    start = np.float32(np.median(image[~unusable]))
    image = np.where(unusable, np.float32(0), image - start).astype(np.float32)
    rows, columns = np.zeros((len(image), len(amps))), np.zeros(image.shape[1])
    light, halos = np.zeros_like(image), 0.
    for round_ in range(ROUNDS):
        pattern = expand(rows, columns, amps)
        mask = find_sources(image - pattern - light, unusable)
        level, halos, light, extended = model_light(image - pattern, mask, unusable, halos)
        residual = image - light
        noise = max(mad_std((residual - pattern)[~mask][::4]), 1e-9)      # 0 only in made-up images
        mask |= np.abs(residual - pattern) > CLIP * noise
        if round_ == 0:         # stripes not yet known have entered the light: measure beside it
            mask |= extended
        rows, shrinkage, stripe_rms = measure_rows(residual - columns.astype(np.float32), mask, noise, amps)
        residual -= expand(rows, 0 * columns, amps)
        columns, column_rms = measure_columns(residual, mask, noise, amps)
    return rows, columns, mask, light + start, {
        'pedestal': float(start + level), 'noise': noise, 'masked': float(mask.mean()),
        'stripe_rms': stripe_rms, 'column_rms': column_rms, 'shrinkage': shrinkage}


def expand(rows, columns, amps):
    """Return the pattern as a float32 image; 0 outside the amplifiers."""
    pattern = np.zeros((len(rows), len(columns)), np.float32)
    for k, amp in enumerate(amps):
        pattern[:, amp] = rows[:, k, None] + columns[amp]
    return pattern


# -- sources: what is masked

def find_sources(residual, unusable):
    """True = on a source, or unusable: significant deviations, of either sign, at the scales of a source."""
    from scipy import ndimage

    mask, usable = unusable.copy(), (~unusable).astype(np.float32)
    values = np.where(unusable, np.float32(0), residual)
    for scale in SOURCE_SCALES:
        weight = ndimage.gaussian_filter(usable, scale, truncate=3)
        mean = ndimage.gaussian_filter(values, scale, truncate=3) / np.maximum(weight, 0.1)
        hit = np.abs(mean) > SOURCE_SIGMA * mad_std(mean[::4, ::4])
        width = 2 * round(SOURCE_GROWTH * scale) + 1
        mask |= ndimage.maximum_filter(hit.view(np.uint8), width).view(bool)
    return mask


# -- light: what is modelled

def model_light(image, mask, unusable, halos):
    """Model the light of a destriped image: sky plane, halos of extended objects, smooth rest.

    Parameters
    ----------
    image : (ny, nx) float32 array
    mask, unusable : (ny, nx) bool array
        Pixels off the sources, and all that can be used: an object's own profile needs its bright parts.
    halos : (ny/8, nx/8) float array or 0
        Halos of the round before, DN/s, left out of the sky level.

    Returns
    -------
    level : float
        Mean of the sky plane, DN/s.
    halos : (ny/8, nx/8) float array
    light : (ny, nx) float32 array
        All three together, DN/s.
    extended : (ny, nx) bool array
        True = light other than sky in the model.
    """
    from scipy import ndimage

    free, free_number = cell_means(image, mask)
    every, every_number = cell_means(image, unusable)
    sky = sky_plane(free - halos, free_number)
    labels, objects = find_objects(every - sky, every_number)
    halos = model_halos(every - sky, every_number, free - sky, free_number, labels, objects)
    rest, zone = smooth_light(free - sky - halos, free_number)
    light = (sky + halos + rest).astype(np.float32)
    light = ndimage.zoom(light, CELL, order=1, grid_mode=True, mode='nearest')
    extended = np.kron(zone | (labels > 0), np.ones((CELL, CELL), bool))
    return float(sky.mean()), halos, light, extended


def cell_means(image, mask):
    """Means over the unmasked pixels of each cell, and their number, float32 (ny/8, nx/8)."""
    total, number = block_sums(image, mask, CELL, np.float32)
    return total / np.maximum(number, 1), number


def sky_plane(means, number):
    """Fit a plane to cell means, weighted by `number`, without the cells beyond 2.5 sigma."""
    y, x = (axis - axis.mean() for axis in np.indices(means.shape) / max(means.shape))
    terms, used = np.stack([np.ones_like(x), x, y], axis=-1), number > 0
    for _ in range(5):
        weighted = terms[used] * number[used, None]
        plane = terms @ np.linalg.lstsq(weighted.T @ terms[used], weighted.T @ means[used], rcond=None)[0]
        used = (number > 0) & (np.abs(means - plane) <= 2.5 * mad_std((means - plane)[used]))
    return plane


def find_objects(means, number):
    """Find the largest isophotes and their ellipses.

    Returns
    -------
    labels : (ny/8, nx/8) int array
        0 = sky.
    objects : list of (label, y, x, yy, xx, xy, radius)
        Centre, second moments scaled to unit determinant, and radius of the isophote, in cells.
    """
    from scipy import ndimage

    smooth = _smoothed(means, number, 1)
    labels, count = ndimage.label(smooth > OBJECT_SIGMA * mad_std(smooth[number > 0]))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    area[0] = 0
    objects = []
    for label in np.argsort(-area, kind='stable')[:OBJECTS]:
        if area[label] * CELL**2 < OBJECT_AREA:
            break
        y, x = np.nonzero(labels == label)
        weight = np.sqrt(smooth[y, x])          # a root: the outer shape counts
        weight /= weight.sum()
        yc, xc = weight @ y, weight @ x
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
        used = (np.where(own, every_number[box], free_number[box]) > CELL**2 / 2) & (r < reach)
        values = np.where(own, every[box], free[box]) - halos[box]
        halos[box] += radial_profile(r, values, used, reach)
    return halos


def radial_profile(r, values, used, reach):
    """Ring medians of `values`, made to fall outwards to zero, as an image at all `r` < `reach`."""
    ring = np.digitize(r, np.geomspace(1, reach, RINGS))
    order = np.lexsort((values[used], ring[used]))
    members, values = ring[used][order], values[used][order]
    edges = np.searchsorted(members, np.arange(RINGS + 1))
    rings = [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b - a > 5]
    if len(rings) < 4:
        return np.zeros_like(r)
    radius = [r[used][order][a:b].mean() for a, b in rings]
    medians = np.array([np.median(values[a:b]) for a, b in rings])
    profile = non_increasing(medians, np.array([b - a for a, b in rings]))
    return np.where(r < reach, np.interp(r, radius, np.maximum(profile, 0), right=0), 0)


def non_increasing(values, weights):
    """Least-squares fit of a sequence that never increases (min-max formula of isotonic regression)."""
    sums, total = np.append(0, np.cumsum(values * weights)), np.append(0, np.cumsum(weights))
    n = len(values)
    start, stop = np.arange(n)[:, None], np.arange(n) + 1
    means = (sums[stop] - sums[start]) / np.maximum(total[stop] - total[start], 1)
    means = np.where(stop > start, means, -np.inf)
    best = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]       # over all stops behind an element
    return np.array([best[:i + 1, i].min() for i in range(n)])


def smooth_light(means, number):
    """Light that is significant on large scales, from coarse to fine; nothing elsewhere.

    Returns
    -------
    light : (ny/8, nx/8) float array
    zone : (ny/8, nx/8) bool array
        True = not zero.
    """
    from skimage.filters import apply_hysteresis_threshold

    light, zone = np.zeros(means.shape), np.zeros(means.shape, bool)
    low, high = LIGHT_SIGMA
    for scale in LIGHT_SCALES:
        smooth = _smoothed(means - light, number, scale / CELL)
        noise = mad_std(smooth[~zone & (number > 0)])
        found = apply_hysteresis_threshold(np.abs(smooth), low * noise, high * noise)
        light += np.where(found, smooth, 0)
        zone |= found
    return light, zone


def _smoothed(means, number, sigma):
    """Gaussian mean of cells weighted by `number` of pixels; 0 where less than 5 % of the weight is left."""
    from scipy import ndimage

    weight = ndimage.gaussian_filter(number.astype(float), sigma, mode='constant')
    total = ndimage.gaussian_filter(means * number.astype(float), sigma, mode='constant')
    return np.where(weight > 0.05 * CELL**2, total / np.maximum(weight, 1e-3), 0)


# -- stripes

def measure_rows(residual, mask, noise, amps):
    """Posterior mean of the amp-row pattern under a Gaussian prior taken from the image itself.

    The data are means over segments of `SEGMENT` pixels of all amplifiers, of a row and its two neighbours.
    Their covariance, less the pixel noise, is the prior: it holds what amplifiers have in common and how
    far the noise drifts along a row and from row to row, so how much a free segment says about a masked one.

    Returns
    -------
    rows : (ny, len(amps)) float array
        DN/s; their mean over the amplifiers has no slow part.
    shrinkage : (len(amps),) float array
        Mean over rows of (posterior / prior variance).
    rms : float
        Prior rms of an amp-row, DN/s.
    """
    means, number = segment_means(residual, mask, amps)
    data, number = _with_neighbours(means), _with_neighbours(number)
    prior = prior_covariance(data, number, noise)
    segments = means.shape[1]
    target = np.zeros((data.shape[1], len(amps)))                # means over the segments of the row itself
    for k in range(len(amps)):
        own = segments + k * (segments // len(amps))
        target[own:own + segments // len(amps), k] = len(amps) / segments
    cross = prior @ target
    variance = np.maximum(np.sum(target * cross, axis=0), 1e-30)
    rows, known = np.empty((len(data), len(amps))), np.empty((len(data), len(amps)))
    for chunk in (slice(i, i + 256) for i in range(0, len(data), 256)):    # 256 rows: 40 MB of matrices
        weight = np.sqrt(number[chunk]) / noise                            # 0 where all is masked
        matrix = weight[:, :, None] * prior * weight[:, None, :] + np.eye(data.shape[1])
        filters = np.linalg.solve(matrix, weight[:, :, None] * cross)
        rows[chunk] = np.einsum('rsa,rs->ra', filters, weight * data[chunk])
        known[chunk] = np.einsum('rsa,rs,sa->ra', filters, weight, cross) / variance
    return rows - slow(rows.mean(axis=1))[:, None], 1 - known.mean(axis=0), float(np.sqrt(variance.mean()))


def segment_means(residual, mask, amps):
    """Means over the unmasked pixels of equal segments of each amp-row, and their number, (ny, segments)."""
    values, means, number = np.where(mask, np.float32(0), residual), [], []
    for amp in amps:
        count = max(round((amp.stop - amp.start) / SEGMENT), 1)
        edges = np.linspace(0, amp.stop - amp.start, count + 1).astype(int)[:-1]
        number.append(np.add.reduceat(~mask[:, amp], edges, axis=1, dtype=float))
        means.append(np.add.reduceat(values[:, amp], edges, axis=1, dtype=float) / np.maximum(number[-1], 1))
    return np.concatenate(means, axis=1), np.concatenate(number, axis=1)


def prior_covariance(data, number, noise):
    """Covariance of segment means less that of the pixel noise, (n, n), from segments at least half free."""
    good = number > 0.5 * np.median(number[number > 0])
    good &= np.abs(data) <= 5 * mad_std(data[good])
    values, pairs = np.where(good, data, 0), good.astype(float)
    covariance = values.T @ values / np.maximum(pairs.T @ pairs, 1)
    noise_variance = np.sum(np.where(good, noise**2 / np.maximum(number, 1), 0), axis=0)
    covariance -= np.diag(noise_variance / np.maximum(pairs.sum(axis=0), 1))
    power, modes = np.linalg.eigh(covariance)
    return modes * np.maximum(power, 0) @ modes.T               # nothing below no stripes at all


def slow(pattern):
    """The part of a pattern, (n,), that belongs to the sky: its polynomial of degree `SLOW`."""
    x = np.linspace(-1, 1, len(pattern))
    return np.polynomial.legendre.Legendre.fit(x, pattern, SLOW)(x)


def _with_neighbours(values):
    """Append to each row those below and above it: (ny, n) -> (ny, 3 n), zeros beyond the edge."""
    padded = np.pad(values, ((1, 1), (0, 0)))
    return np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def measure_columns(residual, mask, noise, amps):
    """Column means shrunk by how well each is measured against their own scatter; and the prior rms, DN/s."""
    number = np.count_nonzero(~mask, axis=0)
    inside = np.zeros(number.shape, bool)
    for amp in amps:
        inside[amp] = True
    used = inside & (number >= LEAST_PIXELS)
    columns = np.where(mask, 0, residual).sum(axis=0, dtype=float) / np.maximum(number, 1)
    error = noise**2 / np.maximum(number, 1)
    prior = max(mad_std(columns[used])**2 - np.median(error[used]), 0.)
    columns = np.where(used, (columns - columns[used].mean()) * prior / (prior + error), 0)
    columns[used] -= slow(columns[used])
    return columns, float(np.sqrt(prior))
