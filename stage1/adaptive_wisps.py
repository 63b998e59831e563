"""Adaptive wisp scaling: the wisp is fitted together with everything that could be mistaken for it.

Images are (ny, nx), rates in DN/s; masks are True where a pixel is to be ignored.
"""
from dataclasses import dataclass

from stage1.masks import blown_up, grow, robust_rms

import numpy as np
from astropy.nddata import block_reduce
from astropy.stats import mad_std
from scipy import ndimage, stats
from scipy.interpolate import BSpline
from scipy.optimize import nnls

# -- settings of the adaptive fit; lengths in pixels of a full frame
AMPLIFIER = 512           # columns of an amplifier, where four read the detector: in each row they share an offset
BLOCK = 8                 # side of the blocks whose means are compared; also averages the template's noise
SUPPORT = 0.05            # a template counts where it, smoothed by a block, exceeds this share of its peak
FILL = 2.                 # Gaussian sigma of the means that replace undefined pixels of a template
MARGIN = 64               # rows above and below the template that are fitted along
KNOTS = 128               # between the knots of the background: wider than filaments
SWEEPS = 6                # through background, rows and columns; thirty change the scale error by nothing
# source mask: Gaussian sigma [pixels], side of the square that a detection grows by [2 x 2 pixels]
TIERS = ((1.5, 3), (4, 5), (10, 7))
DETECT = 3.               # sigma of the smoothed image that makes a source
# share of the fitted wisp that may remain without being taken for a source, in each round of mask and fit.
# Far too low a scale would have the brightest parts of the wisp masked, and so stay: hence `first_scales`.
TOLERANCES = (0.5, 0.2, 0.1, 0.1)
CLIP = 3.5                # sigma; blocks further off are left out
SHIFTS = 6                # positions of the displaced templates that measure the error
# measured on simulations, where the scale scatters more than the null fits do; the cause is not established
INFLATE = 1.15            # factor from the scatter of the null fits to the error of the scale
SIGNIFICANT = 3.          # sigma; nothing is subtracted below, and a mirrored template above is a warning
COVERED = 0.6             # share of the squared template under the mask; above is a warning


@dataclass(frozen=True)
class WispFit:
    """Result of `fit_adaptive`."""

    scales: np.ndarray       # (n,) scale of every plane, not negative; all 0 if there is no significant wisp
    scale: float             # sum of the scales
    error: float             # one-sigma error of the sum
    model: np.ndarray        # (ny, nx) float32, wisp in the flat-fielded image, DN/s
    null: float              # scale of the template mirrored in y, which should be 0
    null_error: float
    nulls: np.ndarray        # 1-D, scales of all displaced templates, which should be 0
    used: np.ndarray         # (my, mx) fraction of each block of the fit region that was used
    region: tuple            # of two slices: the rows and columns of that
    sources: np.ndarray      # (ny, nx) bool, True = source, or an outlier, and not used
    warnings: tuple          # of str


@dataclass(frozen=True)
class Equations:
    """What is left of image and templates when stripes and background are fitted away."""

    data: np.ndarray         # (my, mx) block means of the image, DN/s
    design: np.ndarray       # (n, my, mx) block means of the templates
    number: np.ndarray       # (my, mx) pixels in each block
    weight: np.ndarray       # (ny, mx) pixels in each cell
    trends: np.ndarray       # (1 + n, ny, mx) what was fitted away, in cells
    amplifier: int           # columns that share an offset


def fit_adaptive(image, unusable, templates, amplifier=AMPLIFIER):
    """Scale templates to the wisp in a rate image with stripes, background and sources.

    Parameters
    ----------
    image : (ny, nx) array
        Flat-fielded rate, DN/s, stripes included; NaN is ignored.
    unusable : (ny, nx) bool array
        True = pixel to ignore: DO_NOT_USE, hot and reference pixels.
    templates : (ny, nx) or (n, ny, nx) array
        Wisp at scale 1, DN/s; planes are combined with non-negative scales.  NaN is filled in.
    amplifier : int
        Columns that share an offset in each row: all of a subarray. Whole amplifiers and blocks are fitted.

    Returns
    -------
    WispFit

    Raises
    ------
    ValueError
        Without a wisp in the template, or usable pixels to fit it to.
    """
    planes = np.stack([fill_nan(plane) for plane in np.reshape(templates, (-1, *image.shape))])
    amplifier = amplifier // BLOCK * BLOCK
    support, region = wisp_support(planes[..., :image.shape[1] // amplifier * amplifier], amplifier)
    wisps, cut = planes[(slice(None), *region)], np.asarray(image[region], np.float32)
    unusable = unusable[region] | ~np.isfinite(cut)
    if np.mean(unusable[support[region]]) > 0.9:
        raise ValueError('less than a tenth of the wisp is on usable pixels')
    cut = np.where(unusable, 0, cut - np.median(cut[~unusable]))
    wisp, outliers = np.tensordot(first_scales(cut, wisps), wisps, 1), np.zeros_like(unusable)
    residual, noise = less_coarse_median(cut - wisp), template_noise(wisps, support[region])
    for tolerance in TOLERANCES:
        mask = unusable | outliers | find_sources(residual, tolerance * wisp, unusable)
        equations = eliminate(cut, wisps, mask, amplifier)
        scales = undiluted(non_negative(equations.data, equations.design, equations.number), equations, noise)
        outliers |= outlying(equations, scales)
        wisp = np.tensordot(scales, wisps, 1)
        trend = equations.trends[0] - np.tensordot(scales, equations.trends[1:], 1)
        residual = cut - wisp - np.repeat(trend, BLOCK, axis=1)
    sources = np.zeros(image.shape, bool)
    sources[region] = mask & ~unusable
    return summarise(equations, scales, planes, wisps, mask, sources, region)


def seen(planes):
    """Which planes, (n, ny, nx) and NaN where undefined, show light beside the brightest of them: (n,) bool."""
    peaks = np.array([ndimage.gaussian_filter(fill_nan(plane), BLOCK).max() for plane in planes])
    return peaks > SUPPORT * peaks.max()


def fill_nan(plane):
    """Replace NaN by the mean of the pixels around, weighted by a Gaussian of `FILL` pixels; 0 without any."""
    known = np.isfinite(plane)
    filled = np.where(known, plane, 0).astype(np.float32)
    if known.all():
        return filled
    weight = ndimage.gaussian_filter(known.astype(np.float32), FILL)
    mean = ndimage.gaussian_filter(filled, FILL) / np.maximum(weight, 0.01)
    return np.where(known, filled, mean)


def wisp_support(planes, amplifier=AMPLIFIER):
    """Where the templates are bright, (ny, nx) bool, and the region to fit, two slices; ValueError without a wisp.

    The region is their rows with a margin, and all columns of the amplifiers that they reach.
    """
    total = ndimage.gaussian_filter(planes.sum(axis=0), BLOCK)
    if total.max() <= 0:
        raise ValueError('the template holds no wisp')
    support = total > SUPPORT * total.max()
    rows, columns = (np.flatnonzero(support.any(axis=axis)) for axis in (1, 0))
    bottom, left = max(rows[0] - MARGIN, 0), columns[0] // amplifier * amplifier
    right = (columns[-1] // amplifier + 1) * amplifier
    return support, (slice(bottom, min(rows[-1] + 1 + MARGIN, len(support))), slice(left, right))


def first_scales(image, wisps):
    """First guess of the scales, (n,) and not negative, with no source masked.

    What stands out from coarse medians is compared in blocks by least absolute deviations (reweighted least
    squares), which sources in fewer than half of the blocks do not move far.
    """
    def blocks(plane):
        return block_reduce(less_coarse_median(plane).astype(float), BLOCK, np.mean)

    data, design = blocks(image), np.stack([blocks(wisp) for wisp in wisps])
    weight = np.ones(data.shape)
    for _ in range(10):
        scales = non_negative(data, design, weight)
        deviation = np.abs(data - np.tensordot(scales, design, 1))
        weight = 1 / np.maximum(deviation, np.median(deviation) + 1e-9)     # 0 only in made-up images
    return scales


def less_coarse_median(image):
    """Image less medians over squares of 4 x 4 blocks, smoothed and interpolated: what may be source or wisp."""
    side = 4 * BLOCK
    coarse = ndimage.median_filter(block_reduce(image, side, np.median), 3, mode='nearest')
    y, x = ((np.arange(size) + 0.5) / side - 0.5 for size in image.shape)
    return image - ndimage.map_coordinates(coarse, np.meshgrid(y, x, indexing='ij'), order=1, mode='nearest')


def find_sources(residual, allowed, unusable):
    """Mask what stands out from the fit, True = source.

    Detection is on 2 x 2 means, smoothed by each of the `TIERS` in turn.  Light up to `allowed`, DN/s
    (ny, nx), is no source: else what too low a scale leaves of the wisp would be masked, and stay.
    """
    def halve(a):
        return block_reduce(a.astype(np.float32), 2, np.mean)

    good = halve(~unusable)
    small = halve(np.where(unusable, 0, residual)) / np.maximum(good, 0.25)
    found = good == 0
    for sigma, side in TIERS:
        smooth = ndimage.gaussian_filter(small, sigma / 2)
        seen = smooth > np.median(smooth[~found]) + DETECT * mad_std(smooth[~found]) + halve(allowed)
        found |= grow(seen, side)
    mask = np.zeros(residual.shape, bool)
    mask[:2 * len(found)] = blown_up(found, 2) > 0
    return mask


def eliminate(image, wisps, mask, amplifier=AMPLIFIER):
    """Take stripes and background off image and templates alike, and average the rest in blocks."""
    good = ~mask
    weight = good.reshape(len(mask), -1, BLOCK).sum(axis=2).astype(np.float32)
    cells = np.stack([(plane * good).reshape(len(mask), -1, BLOCK).sum(axis=2) for plane in (image, *wisps)])
    cells /= np.maximum(weight, 1)
    trends = fit_trend(cells, weight, amplifier)
    blocks, number = to_blocks(cells - trends, weight)
    return Equations(blocks[0], blocks[1:], number, weight, trends, amplifier)


def to_blocks(cells, weight):
    """Weighted means over `BLOCK` rows of cells, (m, ny, mx) -> (m, my, mx), and the summed weights."""
    rows = np.arange(0, cells.shape[1], BLOCK)
    number = np.add.reduceat(weight, rows, axis=0)
    return np.add.reduceat(cells * weight, rows, axis=1) / np.maximum(number, 1), number


def fit_trend(cells, weight, amplifier=AMPLIFIER):
    """Fit background + an offset of each row of each amplifier + columns to each image, by backfitting.

    Whatever this linear operation leaves in place or takes away, it does so in image and templates alike:
    it costs precision, but cannot bias the scale.
    """
    background = background_fit(weight)
    amplifier //= BLOCK
    in_row = np.maximum(weight.reshape(len(weight), -1, amplifier).sum(axis=2), 1)
    in_column = np.maximum(weight.sum(axis=0), 1)
    trends = np.zeros_like(cells)
    for _ in range(SWEEPS):
        trends += background(cells - trends)
        left = ((cells - trends) * weight).reshape(*cells.shape[:2], -1, amplifier)
        trends += np.repeat(left.sum(axis=3) / in_row, amplifier, axis=2)
        trends += (((cells - trends) * weight).sum(axis=1) / in_column)[:, None]
    return trends


def background_fit(weight):
    """Return the function that fits a smooth background, cubic B-splines in y and x, to (m, ny, mx) cells."""
    y = cubic_splines(np.arange(len(weight)), KNOTS)
    x = cubic_splines(np.arange(weight.shape[1]) * BLOCK, KNOTS)
    yy, xx = ((basis[:, :, None] * basis[:, None]).reshape(len(basis), -1) for basis in (y, x))
    ky, kx = y.shape[1], x.shape[1]
    normal = (yy.T @ weight @ xx).reshape(ky, ky, kx, kx).swapaxes(1, 2).reshape(ky * kx, ky * kx)
    # a slight pull to 0 for splines that lie under a mask
    inverse = np.linalg.inv(normal + 1e-3 * np.trace(normal) / len(normal) * np.eye(len(normal)))

    def background(cells):
        right = y.T @ (cells * weight) @ x
        coefficients = (right.reshape(len(cells), -1) @ inverse).reshape(right.shape)
        return (y @ coefficients @ x.T).astype(np.float32)

    return background


def cubic_splines(x, step):
    """Uniform cubic B-splines about `step` apart, (len(x), number)."""
    pieces = max(round((x[-1] - x[0]) / step), 1)
    knots = x[0] + np.arange(-3, pieces + 4) * (x[-1] - x[0]) / pieces
    return BSpline.design_matrix(np.clip(x, knots[3], knots[-4]), knots, 3).toarray()


def non_negative(data, design, weight):
    """Scales (n,) of the templates in `design`, (n, my, mx), by weighted non-negative least squares."""
    root = np.sqrt(weight).ravel().astype(float)
    return nnls((design.reshape(-1, root.size) * root).T, data.ravel() * root)[0]


def template_noise(wisps, support):
    """Variance (n,) of the template noise in block means: how far blocks off the wisp are from those on either side."""
    blocks = np.stack([block_reduce(wisp.astype(float), BLOCK, np.mean) for wisp in wisps])
    off = ~block_reduce(support, BLOCK, np.any)[:, 1:-1]
    bends = (blocks[:, :, 1:-1] - (blocks[:, :, :-2] + blocks[:, :, 2:]) / 2)[:, off]
    return np.array([robust_rms(bend)**2 / 1.5 if bend.size else 0. for bend in bends])


def undiluted(scales, equations, noise):
    """Scales (n,) without the dilution by template noise, which adds to the normal matrix but not to the right side.

    With the normal matrix G and N, what noise adds to it: (G - N)^-1 b = (1 + D + D^2 + ...) G^-1 b, D = G^-1 N.
    """
    used = scales > 0
    added = np.where(used, noise, 0) * BLOCK**2 * np.count_nonzero(equations.number)
    _, inverse = weighted_least_squares(equations.data, equations.design * used[:, None, None], equations.number)
    dilution = inverse * added
    return np.maximum(scales + dilution @ (scales + dilution @ scales), 0)


def outlying(equations, scales):
    """Blocks that the fit misses by more than `CLIP` sigma, as pixels (ny, nx), True = outlier."""
    residual = equations.data - np.tensordot(scales, equations.design, 1)
    sigmas = np.abs(residual) * np.sqrt(equations.number)
    bad = sigmas > CLIP * robust_rms(sigmas[equations.number > 0])
    return blown_up(bad, BLOCK)[:len(equations.weight)] > 0


def weighted_least_squares(data, design, number):
    """Scales (n,) by plain weighted least squares, and the inverse (n, n) of the normal matrix."""
    flat = design.reshape(len(design), -1).astype(float)
    weighted = flat * number.ravel()
    inverse = np.linalg.pinv(weighted @ flat.T, 1e-9, hermitian=True)
    return inverse @ (weighted @ data.ravel()), inverse


def null_fits(equations, planes):
    """Fit the template where it does not belong, along with the wisp: scales, formal errors at unit noise.

    The first is mirrored in y; the others are mirrored in all ways and shifted along the columns.
    """
    plane = planes.sum(axis=0)
    cells = plane.reshape(len(plane), -1, BLOCK).mean(axis=2)
    images = (cells[::-1], cells, cells[:, ::-1], cells[::-1, ::-1])
    shifts = [len(cells) * i // SHIFTS for i in range(SHIFTS)]
    nulls = np.stack([np.roll(image, shift, axis=0) for shift in shifts for image in images])
    nulls = np.delete(nulls, 1, axis=0)                                  # the wisp itself
    nulls, number = to_blocks(nulls - fit_trend(nulls, equations.weight, equations.amplifier), equations.weight)
    fits = [weighted_least_squares(equations.data, np.stack([*equations.design, null]), number) for null in nulls]
    return np.array([(scales[-1], np.sqrt(inverse[-1, -1])) for scales, inverse in fits]).T


def summarise(equations, scales, planes, wisps, mask, sources, region):
    """Errors from the scatter of the null fits, the cut in significance, and the warnings."""
    nulls, formal = null_fits(equations, wisps)
    noise = np.sqrt(np.mean((nulls / formal)[1:]**2))                    # of a pixel, in effect
    _, inverse = weighted_least_squares(equations.data, equations.design, equations.number)
    covariance = inverse * (INFLATE * noise)**2
    # chi-squared against no wisp; n planes get the same false alarm rate as one
    chi2 = scales @ np.linalg.pinv(covariance, 1e-9, hermitian=True) @ scales
    if chi2 < stats.chi2.isf(2 * stats.norm.sf(SIGNIFICANT), len(scales)):
        scales = np.zeros_like(scales)
    null, null_error = float(nulls[0]), float(formal[0] * noise)
    warnings = []
    if abs(null) > SIGNIFICANT * null_error:
        warnings.append('contaminated: the mirrored template, which should fit with 0, fits with '
                        f'{null:.3f} +- {null_error:.3f}')
    bright = np.maximum(wisps.sum(axis=0), 0)**2
    if bright[mask].sum() > COVERED * bright.sum():
        warnings.append(f'sources or bad pixels cover more than {COVERED:.0%} of the wisp')
    return WispFit(scales, float(scales.sum()), float(np.sqrt(covariance.sum())),
                   np.tensordot(scales, planes, 1).astype(np.float32), null, null_error, nulls,
                   equations.number / BLOCK**2, region, sources, tuple(warnings))
