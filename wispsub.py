"""Subtract NIRCam wisps, scattered light on NRCA3, NRCA4, NRCB3 and NRCB4, from rate images.

Reads    <dataset>_rate.fits, a wisp template of its detector and filter, and the flat from CRDS.
Writes   <dataset>_rate.fits          the corrected image
         <dataset>_rate_prewisp.fits  the input, untouched
         <dataset>_segm_cold.fits     source map, 1 = source (--fit_scaling)
         <dataset>_wisp.pdf           the fit, to look at (--fit_scaling)
Images of other detectors and filters, and those corrected before, are left alone.

    python wispsub.py jw01345001001_10201_00001_nrca3_rate.fits --fit_scaling
    python wispsub.py calibrated/*nrcb4_rate.fits --scale 0.85 --redo

Method: Bagley et al. 2023, ApJL 946 L12, section 3.1.2.
"""

import argparse
import logging
import sys
import warnings
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np

from nircam_io import (
    UNUSABLE,
    ExposureError,
    add_redo,
    correcting,
    expanded,
    find_input,
    number_in,
    one_line,
    open_exposure,
    primary_header,
    printable,
    run_each,
    undefined,
    write_map,
)

# Settings; each is also an option.
INPUTDIR = 'calibrated'                # where a bare file name is looked for
OUTPUTDIR = 'calibrated'               # where the products go
WISPDIR = 'wisps/wisps_2022_08_26'     # the templates
METHOD = 'dr05'                        # how --fit_scaling finds the scale: 'dr05' or 'adaptive'

# What DR0.5 corrects, and where it fits: rows y1:y2, columns x1:x2.
FILTERS = ('F150W', 'F200W')
WINDOWS = {
    'NRCA3': (1100, 2046, 300, 1300),
    'NRCA4': (0, 600, 450, 1450),
    'NRCB3': (0, 800, 700, 1450),
    'NRCB4': (850, 2046, 900, 1600),
}
BOX = 256                              # pixels: side of a box of the background of the source detection
SCALES = np.arange(0.01, 1.2, 0.02)    # 60 trial scales, the last 1.19
TEMPLATE_NAMES = ('wisps_{detector}_{FILTER}.fits', 'wisps_{detector}_{filter}.fits',
                  'WISP_{DETECTOR}_{FILTER}_CLEAR.fits', '{detector}_{filter}_wisp.fits.gz')
WISP_LEVEL = 0.01                      # DN/s at scale 1: where the template is brighter is the wisp region

METHODS = ('dr05', 'adaptive')
SCRIPT = 'wispsub.py'
ENTRY = 'Wisps: subtracted'

log = logging.getLogger('nircam.wispsub')


@dataclass(frozen=True)
class Fit:
    """What a method found; only `method`, `template` and `scale` are needed to subtract.

    Attributes
    ----------
    method : str
    template : ndarray, shape (ny, nx)
        Light of the wisp at scale 1, DN/s, 0 where the image is undefined.
    scale : float
    sources : ndarray of bool, shape (ny, nx), optional
        True = pixel of a source, left out of the fit.
    scales, variances, curve : ndarray, shape (n,), optional
        Trial scales, the variance at each in (DN/s)^2, and the curve through them.
    warning : str
        What the user should know; empty when all is well.
    cards : tuple of (keyword, value, comment)
        More for the header of the corrected image.
    error : float, optional
        One-sigma error of the scale.
    flat_fielded : bool
        The template is that of the flat-fielded image.
    """

    method: str
    template: np.ndarray
    scale: float
    sources: np.ndarray | None = None
    scales: np.ndarray | None = None
    variances: np.ndarray | None = None
    curve: np.ndarray | None = None
    warning: str = ''
    cards: tuple = ()
    error: float | None = None
    flat_fielded: bool = False


def process(name, input_dir, output_dir, wisp_dir, method, scale, redo):
    """Subtract the wisp from one rate image; `scale` None = fit it by `method`."""
    path = find_input(name, input_dir)
    header = primary_header(path)
    detector, filter_ = (str(header.get(key, '')).strip() for key in ('DETECTOR', 'FILTER'))
    if not has_wisps(detector, filter_, method, wisp_dir):
        open_exposure(path, 'rate').close()  # what is wrong with it is said all the same
        log.info('%s: no wisp correction for %s %s: left alone', path.name, detector, filter_)
        return
    with correcting(path, output_dir, ENTRY, redo) as image:
        if image is None:
            return
        template_path = find_template(wisp_dir, detector, filter_)
        planes = read_template(template_path, image.sci.shape)
        correct(image, planes, template_path, method, scale, WINDOWS.get(detector) or bright_window(planes))


def correct(image, planes, template_path, method, scale, window):
    """Measure the wisp on the flat-fielded image, subtract it from the unflattened one, and write."""
    sci, err = image.flat_field()
    blank = undefined(image.sci)
    if scale is None and method == 'adaptive':
        fit = fit_adaptive(sci, image.flags, planes)
    else:
        template = defined_template(single(planes), blank)
        fit = Fit('fixed', template, scale) if scale is not None else fit_dr05(sci, err, image.flags, template, window)
    where = cutout(window)
    ignore = (image.flags[where] > 0) | ~np.isfinite(sci[where])
    if fit.sources is not None:
        ignore |= fit.sources[where]
    light = fit.template[where]
    rms = [wisp_rms(sci[where] - s * light, ignore, light) for s in (0, fit.scale)]
    report(image.name, template_path, fit, rms)
    if fit.sources is not None:
        write_map(image.draft('_segm_cold.fits'), fit.sources)
        title = f'{image.name}, {printable(template_path.name)}\n' \
                f'rms in the wisp {rms[0]:.4f} before, {rms[1]:.4f} DN/s after'
        plot_scaling(image.draft('_wisp.pdf'), fit, sci[where], ignore, window, title)
    template = fit.template * flat_of(image.sci, sci) if fit.flat_fielded else fit.template
    image.save(subtract_wisp(image.sci, np.where(blank, 0, template), fit.scale), SCRIPT,
               history(template_path, fit.scale), {'method': fit.method, 'template': printable(template_path)},
               cards=score_cards(template_path, fit, rms))


def has_wisps(detector, filter_, method=METHOD, wisp_dir=WISPDIR):
    """True where wisps are corrected: DR0.5's detectors and filters, or, when adaptive, any with a template."""
    if method != 'adaptive':
        return detector in WINDOWS and filter_ in FILTERS
    try:
        return find_template(wisp_dir, detector, filter_).is_file()
    except ExposureError:
        return False


# --- templates ---------------------------------------------------------------------------------------

def find_template(wisp_dir, detector, filter_):
    """Path of the template of a detector and filter, by the names of the two releases and of nmfwisp."""
    names = [name.format(detector=detector.lower(), DETECTOR=detector, filter=filter_.lower(), FILTER=filter_)
             for name in TEMPLATE_NAMES]
    for name in names:
        try:
            return find_input(name, wisp_dir)
        except ExposureError:
            continue
    raise ExposureError(f"no wisp template in {wisp_dir}: looked for {', '.join(names)}")


def read_template(path, shape):
    """Read a wisp template.

    The 2022 templates are the primary image. Later files hold image extensions named for the data level
    they fit; we correct rate images, so an extension named `*RATE*` comes first, then `SCI`, then the
    first image that is neither of another level (CAL, in MJy/sr) nor an error, weight or quality array.

    Parameters
    ----------
    path : Path
    shape : (ny, nx)
        Of the image to correct.

    Returns
    -------
    ndarray of float32, shape (n, ny, nx)
        DN/s at scale 1, with NaN; usually one plane. Several are a cube, or extensions that differ in a
        number at the end (`WISP_0`, `WISP_1` ...).

    Raises
    ------
    ExposureError
        When there is no such image, when it has another shape or holds nothing but NaN.
    """
    from astropy.io import fits
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of a truncated file; the data are looked at below
            with fits.open(path, memmap=False) as hdul:
                images = {hdu.name.upper(): hdu.data for hdu in hdul
                          if hdu.is_image and np.ndim(hdu.data) >= 2 and hdu.data.dtype.kind in 'fiu'}
    except Exception as error:
        raise ExposureError(f'wisp template {path} cannot be read ({one_line(error)})') from None
    name = rate_extension(list(images))
    if name is None:
        raise ExposureError(f"wisp template {path} has no image for rates, only {sorted(images)}")
    stem = name.rstrip('0123456789')
    names = [other for other in images if other.rstrip('0123456789') == stem] if stem.endswith('_') else [name]
    for other in names:
        if images[other].shape[-2:] != shape or images[other].ndim > 3:
            raise ExposureError(f'wisp template {path} has shape {images[other].shape}, the image {shape}')
    planes = np.concatenate([images[other].reshape(-1, *shape) for other in names]).astype(np.float32)
    if not np.isfinite(planes).any(axis=(1, 2)).all():
        raise ExposureError(f'wisp template {path} is NaN everywhere')
    return planes


def rate_extension(names):
    """Name of the image extension that fits rate images; None if there is none."""
    def order(name):
        return 0 if 'RATE' in name else 1 if name == 'SCI' else 2
    other = ('CAL', 'ERR', 'VAR', 'DQ', 'WHT', 'WEIGHT', 'MASK')
    usable = [name for name in names if not any(word in name for word in other)]
    return min(usable, key=order, default=None)


def single(planes):
    """The one plane of a template."""
    if len(planes) > 1:
        raise ExposureError(f'the template has {len(planes)} planes: use --fit_scaling --method adaptive')
    return planes[0]


def bright_window(planes):
    """Rows and columns (y1, y2, x1, x2) where the sum of the planes exceeds `WISP_LEVEL`."""
    total = np.nansum(planes, axis=0) > WISP_LEVEL
    if not total.any():
        raise ExposureError(f'the template is nowhere brighter than {WISP_LEVEL} DN/s')
    rows, columns = (np.flatnonzero(total.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def defined_template(template, ignore):
    """Copy of a template with 0 where it is not finite, and where the image is undefined (`ignore` True)."""
    return np.where(np.isfinite(template) & ~ignore, template, 0).astype(template.dtype)


# --- the fit of DR0.5 --------------------------------------------------------------------------------

def fit_dr05(sci, err, dq, template, window):
    """Find the scale at which image - scale x template varies least in the fit window.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (ny, nx)
        Flat-fielded image and its error, DN/s.
    dq : ndarray of uint32, shape (ny, nx)
        Any flag excludes a pixel.
    template : ndarray of float32, shape (ny, nx)
        DN/s at scale 1, 0 where undefined.
    window : (y1, y2, x1, x2)

    Returns
    -------
    Fit
    """
    sources = find_sources(sci, err)
    where = cutout(window)
    ignore = (dq[where] > 0) | sources[where] | ~np.isfinite(sci[where])
    if ignore.all():
        raise ExposureError('every pixel of the fit window is flagged or in a source: give --scale')
    if not template[where].any():
        raise ExposureError('the wisp template is 0 in the whole fit window')
    # Masked pixels become 0 while the template stays there: they take part in the statistic, as in DR0.5.
    image = np.where(ignore, 0, sci[where]).astype(np.float32)
    scale, variances, curve = fit_scale(image, smooth_template(template, window), SCALES)
    warning = fit_warning(scale, SCALES, ignore.mean())
    return Fit('dr05', template, scale, sources, SCALES, variances, curve, warning)


def fit_warning(scale, scales, masked):
    """Say what casts doubt on a scale, which was fitted with a fraction `masked` of the window left out."""
    found = []
    if scale in (scales[0], scales[-1]):
        found.append(f'best scale {scale:.2f} is at the end of the trial range')
    if masked > 0.5:
        found.append(f'{100 * masked:.0f} % of the fit window is masked')
    return '; '.join(found)


def find_sources(sci, err):
    """Mask the sources of an image: 15 connected pixels 5.5 ERR above the background, grown by 7 pixels.

    Parameters
    ----------
    sci, err : ndarray, shape (ny, nx)
        Flat-fielded image and its error, DN/s. NaN pixels are ignored.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True = source.
    """
    background = fit_background(sci, bright_sources(sci), np.isnan(err))
    with np.errstate(invalid='ignore', over='ignore'):
        detected = sci > background + 5.5 * np.where(np.isnan(err), np.float32(1e5), err)
    return grow(connected(detected, 15), 15)


def bright_sources(sci):
    """Mask bright sources, generously: what would spoil the background (True = source)."""
    from scipy import ndimage
    level, spread = clipped_statistics(sci)
    # Gaussian of FWHM 1 pixel, 3 x 3. Undefined pixels are taken at the level of the sky.
    profile = np.exp(-0.5 * (np.arange(-1, 2) * np.sqrt(8 * np.log(2)))**2)
    smooth = np.where(np.isfinite(sci), sci, level)
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, profile / profile.sum(), axis, output=float, mode='constant')
    return grow(connected(smooth > level + 5 * spread, 5), 11)


def clipped_statistics(sci):
    """Mean and standard deviation of the finite pixels after 3-sigma clipping about the median."""
    values = sci[np.isfinite(sci)]
    center = np.median(values)
    for _ in range(10):
        spread = values.std()
        kept = values[(values >= center - 3 * spread) & (values <= center + 3 * spread)]
        if kept.size == values.size:
            break
        values, center = kept, median(kept, center, spread / 20)
    return values.mean(), values.std()


def fit_background(sci, sources, uncovered):
    """Model the sky by a spline through the mesh of `background_mesh`; same arguments.

    Returns
    -------
    ndarray of float64, shape (ny, nx)
        DN/s, 0 where `uncovered`.
    """
    from scipy import ndimage
    mesh = background_mesh(sci, sources, uncovered)
    # A spline is linear in its nodes, so two small matrices do what `ndimage.zoom` does to the image.
    rows, columns = (
        np.array([ndimage.zoom(node, min(BOX, length), mode='reflect', grid_mode=True)[:length]
                  for node in np.eye(number)]).T
        for number, length in zip(mesh.shape, sci.shape, strict=True))
    sky = np.clip(rows @ mesh @ columns.T, mesh.min(), mesh.max())
    sky[uncovered] = 0
    return sky


def background_mesh(sci, sources, uncovered):
    """Modes of the sky in boxes of `BOX` x `BOX` pixels, after a 3 x 3 median filter.

    Parameters
    ----------
    sci : ndarray, shape (ny, nx)
        DN/s; NaN is ignored.
    sources, uncovered : ndarray of bool, shape (ny, nx)
        True = ignore.

    Returns
    -------
    ndarray of float64, shape (rows of boxes, columns of boxes)
    """
    from photutils.background import Background2D
    # Boxes of which more than a tenth is masked are filled from their neighbours. Where that leaves none,
    # every box with a pixel counts, and without any pixel the sky is one number.
    for percentile in (10, 100):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # about the NaN
                # float64, because photutils 3 computes in the type of the image where 1.5 always took float64
                return Background2D(sci.astype(np.float64), BOX, mask=sources, coverage_mask=uncovered,
                                    filter_size=3, exclude_percentile=percentile).background_mesh
        except ValueError:
            log.debug('no box has enough unmasked pixels (limit %d %%)', percentile)
    finite = sci[np.isfinite(sci)]
    return np.full([-(-length // BOX) for length in sci.shape], np.median(finite) if finite.size else 0.)


def cutout(window):
    """Index of the fit window (y1, y2, x1, x2)."""
    y1, y2, x1, x2 = window
    return slice(y1, y2), slice(x1, x2)


def connected(detected, npixels):
    """Keep the groups of at least `npixels` pixels that touch at sides or corners (True = detected)."""
    from scipy import ndimage
    labels, _ = ndimage.label(detected, np.ones((3, 3)))
    large = np.bincount(labels.ravel()) >= npixels
    large[0] = False
    return large[labels]


def grow(mask, size):
    """Grow a mask by a square of `size` x `size` pixels, `size` odd (True = masked)."""
    from scipy import ndimage
    return ndimage.maximum_filter(mask.view(np.uint8), size, mode='constant').view(bool)


def smooth_template(template, window):
    """Smooth a template by a Gaussian of sigma 2 pixels and cut out the fit window."""
    from scipy import ndimage
    y1, y2, x1, x2 = window
    reach = 7                                          # 3.5 sigma; further out nothing counts
    y0, x0 = max(y1 - reach, 0), max(x1 - reach, 0)
    smooth = ndimage.gaussian_filter(template[y0:y2 + reach, x0:x2 + reach], 2, mode='constant', truncate=3.5)
    return smooth[y1 - y0:y2 - y0, x1 - x0:x2 - x0].copy()


def fit_scale(image, template, scales):
    """Scale of a template: the trial value where a quadratic through the variances is lowest.

    Parameters
    ----------
    image, template : ndarray of float32, shape (ny, nx)
        Finite; DN/s.
    scales : ndarray, shape (n,)

    Returns
    -------
    scale : float
        One of `scales`.
    variances : ndarray, shape (n,)
        Square of the median absolute deviation of image - scale x template, (DN/s)^2.
    curve : ndarray, shape (n,)
        The quadratic.

    Raises
    ------
    ExposureError
        When the variances are not finite.
    """
    variances = mad(image, template, scales)**2
    if not np.isfinite(variances).all():
        raise ExposureError('the fit of the wisp scale fails: values beyond the range of float32')
    curve = np.polyval(np.polyfit(scales, variances, 2), scales)
    return float(scales[np.argmin(curve)]), variances, curve


def mad(image, template, scales):
    """Median absolute deviation of image - scale x template for each scale, float64 (n,).

    Medians change smoothly with the scale: each is looked for where the two before it point, which is
    ten times cheaper than sorting, and a miss only costs time.
    """
    residual = np.empty_like(image)
    centers, deviations = np.empty((2, len(scales)))
    for i, scale in enumerate(scales):
        np.multiply(template, residual.dtype.type(scale), out=residual)
        np.subtract(image, residual, out=residual)
        center = median(residual, *extrapolated(centers[:i], deviations[:i]))
        np.abs(np.subtract(residual, center, out=residual), out=residual)
        centers[i], deviations[i] = center, median(residual, *extrapolated(deviations[:i], deviations[:i]))
    return deviations


def extrapolated(values, deviations):
    """Where the last `values` point, and how far from there to look; nothing while there are none."""
    if len(values) < 2:
        return tuple(values) and (values[0], 0.05 * deviations[0])
    return 2 * values[-1] - values[-2], 0.01 * deviations[-1]


def median(values, guess=None, reach=None):
    """Median, the same as np.median's to the bit, quickly if it is within `reach` of `guess`.

    Parameters
    ----------
    values : ndarray
        Without NaN.
    guess, reach : float, optional
        Only values within `reach` of `guess` are sorted; the others are counted. When the median is not
        among them, all are sorted.
    """
    if guess is not None:
        low, high = values.dtype.type(guess - reach), values.dtype.type(guess + reach)
        below = values < low
        near = values[(values <= high) ^ below]
        number = np.count_nonzero(below)
        first, last = (values.size - 1) // 2 - number, values.size // 2 - number
        if 0 <= first and last < near.size:
            near.partition((first, last))
            return near[first:last + 1].mean()
    return np.median(values)


# --- the adaptive fit --------------------------------------------------------------------------------

def fit_adaptive(sci, dq, planes):
    """Fit the planes of a template along with stripes and background; see adaptive_wisps.py.

    Parameters
    ----------
    sci : ndarray of float32, shape (ny, nx)
        Flat-fielded image, DN/s.
    dq : ndarray of uint32, shape (ny, nx)
        Only pixels flagged `UNUSABLE` are ignored.
    planes : ndarray of float32, shape (n, ny, nx)
        DN/s at scale 1, with NaN.

    Returns
    -------
    Fit
        Its scale is the sum of those of the planes, 0 without a significant wisp.
    """
    import adaptive_wisps
    try:
        found = adaptive_wisps.fit_adaptive(sci, (dq & UNUSABLE) > 0, planes)
    except ValueError as error:
        raise ExposureError(f'the wisp cannot be fitted: {error}') from None
    template = found.model / np.float32(found.scale) if found.scale else 0 * found.model
    cards = [('WISPERR', found.error, 'one-sigma error of the scale'),
             ('WISPNULL', found.null, 'scale of the mirrored template, should be 0'),
             ('WISPNERR', found.null_error, 'one-sigma error of that')]
    if len(planes) > 1:
        cards += [(f'WISPSC{i}', scale, f'scale of plane {i} of the template') for i, scale in enumerate(found.scales)]
    return Fit('adaptive', template, found.scale, found.mask, warning='; '.join(found.warnings), error=found.error,
               cards=tuple((key, round(float(value), 6), comment) for key, value, comment in cards),
               flat_fielded=True)


def flat_of(sci, flat_fielded):
    """The flat that leads from one image to the other, (ny, nx); 1 where they do not tell."""
    with np.errstate(divide='ignore', invalid='ignore'):
        flat = sci / flat_fielded
    return np.where(np.isfinite(flat) & (flat_fielded != 0), flat, 1)


# --- subtraction, score, history ---------------------------------------------------------------------

def subtract_wisp(sci, template, scale):
    """Image minus scale x template, float32 (ny, nx), DN/s; NaN stays NaN, and 0 stays 0."""
    return sci.astype(np.float32) - np.float32(scale) * template.astype(np.float32)


def wisp_rms(image, ignore, template):
    """Robust rms of what is left of a wisp: 1.4826 x median |mean of 8 x 8 pixels - sky|.

    Means of blocks, because the noise of single pixels would hide it; the median, because faint sources
    are not masked.

    Parameters
    ----------
    image, template : ndarray, shape (ny, nx)
        Flat-fielded image and template at scale 1 in the fit window, DN/s.
    ignore : ndarray of bool, shape (ny, nx)
        True = ignore.

    Returns
    -------
    float
        DN/s, over the pixels whose template exceeds `WISP_LEVEL`; the sky is the median of the others.
        NaN when there are too few of either.
    """
    bright = template > WISP_LEVEL
    sky = image[~bright & ~ignore]
    blocks = block_means(image, ignore | ~bright, 8)
    blocks = blocks[np.isfinite(blocks)]
    if not sky.size or not blocks.size:
        return np.nan
    return float(1.4826 * np.median(np.abs(blocks - np.median(sky))))


def block_means(image, ignore, size):
    """Means over blocks of `size` x `size` pixels, NaN where half or more of a block is ignored (True)."""
    ny, nx = (n // size for n in image.shape)
    blocks = ny, size, nx, size
    good = ~ignore[:ny * size, :nx * size]
    number = good.reshape(blocks).sum(axis=(1, 3))
    total = np.where(good, image[:ny * size, :nx * size], 0).reshape(blocks).sum(axis=(1, 3))
    return np.where(2 * number > size**2, total / np.maximum(number, 1), np.nan)


def report(name, template_path, fit, rms):
    """Log the scale that is subtracted, and what it does to the wisp region."""
    error = '' if fit.error is None else f' +- {fit.error:.3f}'
    log.info('%s: %s, scale %.2f%s (%s), rms in the wisp %.4f -> %.4f DN/s',
             name, printable(template_path), fit.scale, error, fit.method, *rms)
    if fit.warning:
        log.warning('%s: %s', name, fit.warning)


def history(template_path, scale):
    """HISTORY entry of DR0.5, which other tools match."""
    now = datetime.now().strftime('%Y-%m-%d %H:%M:%S')
    return f'{ENTRY} {printable(template_path)}, scale={scale:.2f}; {SCRIPT} {now}'


def score_cards(template_path, fit, rms):
    """Header cards (keyword, value, comment) that say what was done, and how well."""
    cards = [('WISPMETH', fit.method, 'how the wisp scale was found'),
             ('WISPTMPL', printable(template_path.name), 'wisp template'),
             ('WISPSCAL', round(fit.scale, 6), 'scale of the wisp template'),
             *((key, round(value, 6), f'[DN/s] rms in the wisp region {when}')
               for key, value, when in zip(('WISPRMS0', 'WISPRMS1'), rms, ('before', 'after'), strict=True)
               if np.isfinite(value)),  # FITS headers have no NaN
             *fit.cards]
    return [*cards, ('WISPWARN', fit.warning, 'warning')] if fit.warning else cards


# --- the picture -------------------------------------------------------------------------------------

def plot_scaling(path, fit, image, ignore, window, title):
    """Draw the wisp before and after, and variance against scale with its curve, as a PDF.

    Parameters
    ----------
    path : Path
    fit : Fit
        With `scales`, `variances` and `curve`.
    image : ndarray, shape (ny, nx)
        Flat-fielded fit window, DN/s.
    ignore : ndarray of bool, shape (ny, nx)
        True = left out of the fit; left blank.
    window : (y1, y2, x1, x2)
    title : str
    """
    from matplotlib.backends.backend_pdf import FigureCanvasPdf  # no display is needed, unlike with pyplot
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 7.4))
    FigureCanvasPdf(figure)
    figure.suptitle(title.replace('$', r'\$'), fontsize='medium')  # file names are no formulas
    plot_pictures(figure, fit, image, ignore, window)
    if fit.scales is not None:
        plot_curves(figure, fit)
    else:
        lines = [f'{comment}: {value:.3f}' for _, value, comment in fit.cards]
        figure.text(0.07, 0.36, '\n'.join([f'scale: {fit.scale:.3f}', *lines]), va='top')
    figure.text(0.5, 0.015, fit.warning, ha='center', color='C3', weight='bold')
    figure.savefig(path, format='pdf', dpi=150)


def plot_pictures(figure, fit, image, ignore, window):
    """Draw the fit window before, the light that is removed, and the window after, on one stretch."""
    y1, y2, x1, x2 = window
    light = fit.scale * fit.template[cutout(window)]
    before, removed, after = (block_means(data, ignore, 4) for data in (image, light, image - light))
    seen = after[np.isfinite(after)]
    sky, low, high = np.percentile(seen, (50, 2, 98)) if seen.size else (0, 0, 1)
    pictures = {'before': before - sky, f'removed: {fit.scale:.2f} x template': removed, 'after': after - sky}
    grid = figure.add_gridspec(1, 3, left=0.07, right=0.9, bottom=0.46, top=0.87, wspace=0.05)
    for axis, (name, data) in zip(grid.subplots(sharey=True), pictures.items(), strict=True):
        drawn = axis.imshow(data, origin='lower', extent=(x1, x2, y1, y2), interpolation='nearest',
                            cmap='magma', vmin=low - sky, vmax=2.5 * (high - sky))
        axis.set(title=name, xlabel='x [pixel]', facecolor='0.75')
        axis.label_outer()
    figure.axes[0].set_ylabel('y [pixel]')
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.915, 0.47, 0.015, 0.39)), extend='both')
    bar.set_label('DN/s above the sky; grey = masked')


def plot_curves(figure, fit):
    """Draw variance against scale with the curve through it, and what the curve leaves."""
    grid = figure.add_gridspec(1, 2, left=0.07, right=0.97, bottom=0.1, top=0.37, wspace=0.2)
    names = 'MAD$^2$', 'MAD$^2$ - quadratic'
    for axis, curve, name in zip(grid.subplots(), (0, fit.curve), names, strict=True):
        axis.plot(fit.scales, 1e6 * (fit.variances - curve), 'o', ms=4, mfc='none')
        axis.plot(fit.scales, 1e6 * (fit.curve - curve), label='quadratic')
        axis.axvline(fit.scale, color='0.4', ls='--', label=f'scale {fit.scale:.2f}')
        axis.set(ylabel=f'{name}  [($10^{{-3}}$ DN/s)$^2$]', xlabel='scale')
    figure.axes[-2].legend(frameon=False)


# --- the command line --------------------------------------------------------------------------------

def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', metavar='IMAGE',
                        help='rate images, or names of rate images in the input directory')
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument('--fit_scaling', action='store_true', help='fit the scale of the template')
    how.add_argument('--scale', type=number_in(0, 10), metavar='S', help='use this scale, from 0 to 10')
    parser.add_argument('--method', choices=METHODS, default=METHOD,
                        help='how --fit_scaling finds the scale (default: %(default)s)')
    parser.add_argument('--input_dir', type=expanded, default=INPUTDIR,
                        help='where the images are (default: %(default)s)')
    parser.add_argument('--output_dir', type=expanded, default=OUTPUTDIR,
                        help='where the products go (default: %(default)s)')
    parser.add_argument('--wisp_dir', type=expanded, default=WISPDIR,
                        help='where the templates are (default: %(default)s)')
    add_redo(parser.add_argument, 'start again from the untouched copy, *_rate_prewisp.fits')
    return parser


def main(argv=None):
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    return run_each(args.images, partial(process, input_dir=args.input_dir, output_dir=args.output_dir,
                                         wisp_dir=args.wisp_dir, method=args.method, scale=args.scale,
                                         redo=args.redo))


if __name__ == '__main__':
    sys.exit(main())
