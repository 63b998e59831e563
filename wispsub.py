#!/usr/bin/env python
"""Subtract NIRCam wisps, scattered light on NRCA3, NRCA4, NRCB3 and NRCB4, from rate images.

A wisp has nearly the same shape in every exposure, but not the same brightness. With sources masked, a template is
scaled so that the flat-fielded image minus the template varies least, and is subtracted from the rate image
(Bagley et al. 2023, ApJL 946 L12, section 3.1.2).

Reads    <dataset>_rate.fits, a wisp template of its detector and filter, and the flat from CRDS
Writes   <dataset>_rate.fits          the corrected image
         <dataset>_rate_prewisp.fits  the input, untouched
         <dataset>_segm_cold.fits     source map, 1 = source (--fit_scaling)
         <dataset>_wisp.pdf           the fit, to look at (--fit_scaling)

    python wispsub.py --fit_scaling jw01345001001_10201_00001_nrca3_rate.fits
    python wispsub.py --scale 0.85 --redo calibrated/*nrcb4_rate.fits

Images that were corrected before are left alone; with the method dr05, also those of other detectors and filters.
"""

import functools
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from stage1.command import DIRECTORY, add_setting, add_shared, choice, new_parser, number_in, run_each
from stage1.correction import WISPS as ENTRY
from stage1.correction import corrected, correcting, find_rate, header_of, say_corner
from stage1.exposure import (
    AMPLIFIERS,
    UNUSABLE,
    ExposureError,
    open_exposure,
    place,
    primary_header,
    printable,
    undefined,
)
from stage1.filters import mad
from stage1.masks import block_means, clipped_mean_and_spread, grow, keep_groups, robust_rms
from stage1.wisp_picture import plot_wisp
from stage1.wisp_templates import bright_window, find_template, read_template, should_have_template, template_names

import numpy as np

# --- settings, each of them also an option -----------------------------------------------------------

INPUTDIR = 'calibrated'                # where bare file names are looked for
OUTPUTDIR = 'calibrated'               # for the products; made when it does not exist
WISPDIR = 'wisps/wisps_2022_08_26'     # the templates
METHOD = 'dr05'                        # 'dr05' or 'adaptive': how --fit_scaling finds the scale, and what is corrected

# --- the recipe, no options --------------------------------------------------------------------------

# What DR0.5 corrects, and where it fits: rows and columns
FILTERS = ('F150W', 'F200W')
WINDOWS = {
    'NRCA3': np.s_[1100:2046, 300:1300],
    'NRCA4': np.s_[0:600, 450:1450],
    'NRCB3': np.s_[0:800, 700:1450],
    'NRCB4': np.s_[850:2046, 900:1600],
}
# Source detection: threshold, least number of connected pixels, side of the square that they grow by, pixels. Above the
# background, in units of ERR; and above the sky, in sigma of it, for what would spoil the background.
SOURCES, BRIGHT_SOURCES = (5.5, 15, 15), (5, 5, 11)
BOX = 256                              # pixels: side of a box of the background of the source detection
SMOOTHING = 2                          # pixels, Gaussian sigma, of the template that is fitted
SCALES = np.arange(0.01, 1.2, 0.02)    # 60 trial scales, the last 1.19
WISP_LEVEL = 0.01                      # DN/s at scale 1: where the template is brighter is the wisp region
LEAST_PART, MOST_MASKED = 0.1, 0.5     # of the fit window; with less in a subarray, or more masked, there is a warning

log = logging.getLogger('nircam')


# --- one image ---------------------------------------------------------------------------------------

def process(name, options):
    """Subtract the wisp from one rate image; arguments as `run_each` says."""
    path = find_rate(name, options.input_dir)
    header = primary_header(path)
    mode = mode_of(header)
    if is_without_wisp(path, header, options):
        return
    with correcting(path, ENTRY, options, asked(options)) as image:
        if image is None:
            return
        template = find_template(options.wisp_dir, *mode)
        planes = read_template(template, image.place)
        window, part = visible_window(mode[0], planes, image.place)
        sci, err = image.flat_field()
        blank = undefined(image.sci)
        if options.scale is None:
            fit = METHODS[options.method](sci, err, image.flags, planes, blank, window, image.amps)
        else:
            used = planes if options.scale else planes[:1]      # to take a wisp off again, any will do
            fit = Fit('fixed', defined_template(used, blank), options.scale,
                      of_flat_fielded=options.method == 'adaptive')
        if part < LEAST_PART and options.scale != 0:
            fit.doubt(f'only {part:.0%} of the wisp is in this subarray')
        image.record(wisp_entry(template, fit.scale), {'method': fit.method, 'template': template})
        rms = draw_and_score(image, sci, fit, window, template)
        light = wisp_light(image.sci, sci, fit)
        integrations = (subtract_wisp(image.rateints.sci, light), None) if image.rateints else None
        image.save(subtract_wisp(image.sci, light), cards=score_cards(template, fit, rms),
                   keep_input=fit.method != 'adaptive' or fit.scale > 0, integrations=integrations)


# --- the fit of DR0.5 --------------------------------------------------------------------------------

def fit_dr05(sci, err, dq, planes, blank, window, _amps=AMPLIFIERS):
    """Find the scale at which image - scale x template varies least in the fit window.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (ny, nx)
        Flat-fielded image and its error, DN/s.
    dq : ndarray of uint32, shape (ny, nx)
        Any flag sets a pixel to 0, as in DR0.5.
    planes : ndarray of float32, shape (1, ny, nx)
        Template: DN/s at scale 1, with NaN.
    blank : ndarray of bool, shape (ny, nx)
        True = the image is undefined.
    window : tuple of slice
        Rows and columns of the fit window.
    _amps : dict of slice
        Columns of each amplifier, for the adaptive fit alone.

    Returns
    -------
    Fit

    Raises
    ------
    ExposureError
        When nothing is left to fit.
    """
    from scipy import ndimage
    template = defined_template(planes, blank)
    sources = find_sources(sci, err)
    ignore = (dq[window] > 0) | sources[window] | ~np.isfinite(sci[window])
    if ignore.all():
        raise ExposureError('every pixel of the fit window is flagged or in a source: give --scale')
    if not template[window].any():
        raise ExposureError('the wisp template is 0 in the whole fit window: is it that of this detector and filter?')
    # Masked pixels become 0 while the template stays there: they take part in the statistic, as in DR0.5.
    image = np.where(ignore, 0, sci[window]).astype(np.float32)
    smooth = ndimage.gaussian_filter(template, SMOOTHING, mode='constant', truncate=3.5)[window]
    scale, variances, curve = fit_scale(image, smooth, SCALES)
    doubts = []
    if scale in (SCALES[0], SCALES[-1]):
        doubts.append(f'best scale {scale:.2f} is at the end of the trial range')
    if ignore.mean() > MOST_MASKED:
        doubts.append(f'{100 * ignore.mean():.0f} % of the fit window is masked')
    return Fit('dr05', template, scale, sources, (SCALES, variances, curve), '; '.join(doubts))


def defined_template(planes, blank):
    """The one plane of a template, 0 where it is not finite or the image is undefined (`blank` True).

    ExposureError when it has several.
    """
    if len(planes) > 1:
        raise ExposureError(f'the template has {len(planes)} planes: use --fit_scaling --method adaptive')
    return np.where(np.isfinite(planes[0]) & ~blank, planes[0], 0).astype(planes.dtype)


def find_sources(sci, err):
    """Mask the sources of an image: what is far enough above the background and large enough, grown by a square.

    `sci`, flat-fielded, and its error are (ny, nx), DN/s; NaN pixels are ignored. (ny, nx) bool, True = source.
    """
    threshold, npixels, side = SOURCES
    background = fit_background(sci, bright_sources(sci), np.isnan(err))
    with np.errstate(invalid='ignore', over='ignore'):
        detected = sci > background + threshold * np.where(np.isnan(err), np.float32(1e5), err)
    return grow(keep_groups(detected, npixels), side)


def bright_sources(sci):
    """Mask bright sources, generously: what would spoil the background (True = source)."""
    from scipy import ndimage
    threshold, npixels, side = BRIGHT_SOURCES
    level, spread = clipped_mean_and_spread(sci[np.isfinite(sci)])
    # Gaussian of FWHM 1 pixel, 3 x 3. Undefined pixels are taken at the level of the sky.
    filled = np.where(np.isfinite(sci), sci, level)
    smooth = ndimage.gaussian_filter(filled, 1 / np.sqrt(8 * np.log(2)), output=float, mode='constant', truncate=3)
    return grow(keep_groups(smooth > level + threshold * spread, npixels), side)


def fit_background(sci, sources, uncovered):
    """Model the sky: a spline through SExtractor's estimate of its mode in boxes, after a 3 x 3 median filter of these.

    `sci` is (ny, nx), DN/s, NaN ignored; `sources` and `uncovered`, (ny, nx) bool, True = ignore. The result is (ny,
    nx) float64, DN/s, 0 where `uncovered`.
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
                                    filter_size=3, exclude_percentile=percentile).background
        except ValueError:
            log.debug('no box has enough unmasked pixels (limit %d %%)', percentile)
    finite = sci[np.isfinite(sci)]
    return np.where(uncovered, 0, np.median(finite) if finite.size else 0.)


def fit_scale(image, template, scales):
    """Scale of a template: the trial value, one of `scales`, where a quadratic through the variances is lowest.

    Image and template are (ny, nx) float32, finite, DN/s. Returns also the variances, which are squares of the median
    absolute deviation of image - scale x template, (n,) in (DN/s)^2, and the quadratic. ExposureError when not finite.
    """
    variances = np.array([mad(image - np.float32(scale) * template) for scale in scales], float)**2
    if not np.isfinite(variances).all():
        raise ExposureError('the fit of the wisp scale fails: values beyond the range of float32')
    curve = np.polyval(np.polyfit(scales, variances, 2), scales)
    return float(scales[np.argmin(curve)]), variances, curve


# --- what a fit is -----------------------------------------------------------------------------------

@dataclass
class Fit:
    """What a method found; only `method`, `template` and `scale` are needed to subtract."""

    method: str
    template: np.ndarray                    # (ny, nx) light of the wisp at scale 1, DN/s, 0 where undefined
    scale: float
    sources: np.ndarray | None = None       # (ny, nx) bool, True = source; dr05 sets it to 0, adaptive leaves it out
    trials: tuple | None = None             # trial scales, the variance at each in (DN/s)^2, the curve: (n,) arrays
    warning: str = ''                       # what the user should know
    cards: tuple = ()                       # of (keyword, value, comment), for the header of the corrected image
    error: float | None = None              # one sigma, of the scale
    details: object = None                  # `WispFit` of the adaptive fit, for the picture
    of_flat_fielded: bool = False           # the template is that of the flat-fielded image, as all of adaptive are

    def doubt(self, text):
        """Add to the warning."""
        self.warning = '; '.join(filter(None, (self.warning, text)))


# --- the adaptive fit --------------------------------------------------------------------------------

def fit_adaptive(sci, _err, dq, planes, _blank, _window, amps=AMPLIFIERS):
    """Fit the planes of a template along with stripes and background; see stage1/adaptive_wisps.py.

    Arguments, result and errors are those of `fit_dr05`, but only pixels flagged `UNUSABLE` are left out, `planes`
    may be several, and the region follows from them. The scale is the sum of those of the planes, 0 without a
    significant wisp.
    """
    from stage1 import adaptive_wisps
    try:
        if len(amps) == 1:          # a subarray may show nothing of a plane, whose scale would be anything
            planes = planes * adaptive_wisps.seen(planes)[:, None, None]
        width = adaptive_wisps.AMPLIFIER if len(amps) > 1 else sci.shape[1]
        found = adaptive_wisps.fit_adaptive(sci, (dq & UNUSABLE) > 0, planes, width)
    except ValueError as error:
        raise ExposureError(f'the wisp cannot be fitted: {error}') from None
    template = found.model / np.float32(found.scale) if found.scale else 0 * found.model
    cards = [('WISPERR', found.error, 'one-sigma error of the scale'),
             ('WISPNULL', found.null, 'scale of the mirrored template, should be 0'),
             ('WISPNERR', found.null_error, 'one-sigma error of that')]
    if len(planes) > 1:
        cards += [(f'WISPSC{i}', scale, f'scale of plane {i} of the template') for i, scale in enumerate(found.scales)]
    return Fit('adaptive', template, found.scale, found.sources, warning='; '.join(found.warnings), error=found.error,
               cards=tuple((key, round(float(value), 6), comment) for key, value, comment in cards), details=found)


METHODS = {'dr05': fit_dr05, 'adaptive': fit_adaptive}


def to_be_corrected(header, method, wisp_dir):
    """True when wisps are corrected in an image with this primary header; a subarray may see nothing of them."""
    mode, held = mode_of(header), place(header)
    if not has_wisps(*mode, method, wisp_dir):
        return False
    if mode[0] in WINDOWS and (part := visible_window(mode[0], None, held)[1]) in (0, 1):
        return part == 1                                # all or nothing of it is seen
    try:
        return shows_wisp(find_template(wisp_dir, *mode).resolve(), *((axis.start, axis.stop) for axis in held))
    except ExposureError:                               # which is said when the image is corrected
        return True


def starts_again(header, options):
    """True when a wisp that was subtracted, by any method, is to be taken off or subtracted with a given scale."""
    return options.redo and options.scale is not None and corrected(header, ENTRY)


@functools.cache
def shows_wisp(template, rows, columns):
    """True when a template is bright somewhere in these rows and columns of the detector, (first, last + 1) each."""
    return bright_window(read_template(template, (slice(*rows), slice(*columns))), WISP_LEVEL) is not None


def has_wisps(detector, filter_, pupil, method, wisp_dir):
    """True where wisps are corrected: DR0.5's detectors and filters, or, when adaptive, any with a template."""
    if method != 'adaptive':
        return detector in WINDOWS and filter_ in FILTERS and pupil == 'CLEAR'
    try:
        return bool(find_template(wisp_dir, detector, filter_, pupil))
    except ExposureError:
        return False


def is_without_wisp(path, header, options):
    """True, and said, when an image is left alone; a warning where a template is missing that the releases have."""
    made = Path(options.output_dir) / path.name
    if to_be_corrected(header, options.method, options.wisp_dir) or starts_again(header_of(made) or header, options):
        return False
    # what is wrong with it is said all the same
    with open_exposure(path, 'rateints' if path.name.endswith('_rateints.fits') else 'rate') as hdul:
        shape = hdul['SCI'].shape
    mode = mode_of(header)
    if not mode[1]:
        raise ExposureError('has no FILTER in its header, by which the template is chosen')
    if has_wisps(*mode, options.method, options.wisp_dir):
        say_corner(path.name, header, shape)
        log.info('%s: no wisp in what this image sees: left alone', path.name)
    elif options.method == 'adaptive' and should_have_template(*mode):
        log.warning('%s: no wisp template in %s, looked for %s: left alone', path.name, options.wisp_dir,
                    ', '.join(template_names(*mode)))
    else:
        log.info('%s: no wisp correction for %s: left alone', path.name, ' '.join(mode))
    return True


def visible_window(detector, planes, place):
    """The fit window in an image that holds the `place` (rows and columns, slices) of a detector.

    `planes`, (n, ny, nx), is the template there, DN/s at scale 1; not looked at where DR0.5 has a window.

    Returns rows and columns of the window, in pixels of the image: that of DR0.5, or around the brighter part of the
    template; and which fraction of the window, or of the wisp, is in the image, 0 if there is none.
    """
    if detector not in WINDOWS:
        window = bright_window(planes, WISP_LEVEL)
        return window or np.s_[:0, :0], float(window is not None)
    window, part = [], 1.
    for wanted, held in zip(WINDOWS[detector], place, strict=True):
        first, last = max(wanted.start, held.start), min(wanted.stop, held.stop)
        window.append(slice(first - held.start, max(first, last) - held.start))
        part *= max(last - first, 0) / (wanted.stop - wanted.start)
    return tuple(window), part


def asked(options):
    """What the header of an image corrected with these options has, {keyword: value}."""
    return {'WISPMETH': options.method} if options.scale is None else {'WISPSCAL': options.scale}


def mode_of(header):
    """DETECTOR, FILTER and PUPIL of a primary header."""
    return tuple(str(header.get(key) or default).strip()                # a card may be there and have no value
                 for key, default in (('DETECTOR', ''), ('FILTER', ''), ('PUPIL', 'CLEAR')))


# --- subtraction, score, history ---------------------------------------------------------------------

def wisp_light(sci, flat_fielded, fit):
    """Light of the wisp in an image `sci` that is not flat-fielded, scale x template, float32 (ny, nx), DN/s.

    `flat_fielded` is the image that the wisp was measured on.
    """
    light = fit.template
    if fit.of_flat_fielded or fit.method == 'adaptive':
        with np.errstate(divide='ignore', invalid='ignore'):
            flat = sci / flat_fielded
        light = light * np.where(np.isfinite(flat) & (flat_fielded != 0), flat, 1)      # 1 where they do not tell
    return np.float32(fit.scale) * light.astype(np.float32)


def subtract_wisp(sci, light):
    """Image, or several (nints, ny, nx), minus the wisp, float32, DN/s; NaN stays NaN, and 0 stays 0."""
    return sci.astype(np.float32) - np.where(undefined(sci), np.float32(0), light)


def draw_and_score(image, sci, fit, window, template_path):
    """Log the scale, write the source map and the picture of a fit; rms of the wisp region before and after, DN/s."""
    light, ignore = fit.template[window], (image.flags[window] > 0) | ~np.isfinite(sci[window])
    if fit.sources is not None:
        ignore |= fit.sources[window]
    rms = [wisp_rms(sci[window] - scale * light, ignore, light) for scale in (0, fit.scale)]
    if fit.scale and not np.isfinite(rms[0]):
        fit.doubt('too little of the wisp is seen to score what is left')
    scale = f'{fit.scale:.2f}' if fit.error is None else f'{fit.scale:.3f} +- {fit.error:.3f}'
    if fit.scale or fit.method != 'adaptive':
        found = f'scale {scale} ({fit.method})'
        if np.isfinite(rms[0]):
            found += f', rms in the wisp {rms[0]:.4f} -> {rms[1]:.4f} DN/s'
    else:
        found = f'no wisp above 3 sigma ({scale}): nothing subtracted'
    log.info('%s: %s, %s', image.name, printable(template_path), found)
    if fit.warning:
        log.warning('%s: %s', image.name, fit.warning)
    if fit.sources is not None:
        image.write_map('_segm_cold.fits', fit.sources)
        title = [f'{printable(image.name)}, {printable(template_path.name)}', found, *image.history]
        plot_wisp(image.draft('_wisp.pdf'), fit, sci[window], light, ignore, window, title)
    return rms


def wisp_rms(image, ignore, template):
    """Robust rms of what is left of a wisp, DN/s: 1.4826 x median |mean of 8 x 8 pixels - sky|.

    Means of blocks, because the noise of single pixels would hide it; the median, because faint sources are not
    masked. Over the pixels whose template exceeds `WISP_LEVEL`; the sky is the median of the others; NaN when there
    are too few of either. Flat-fielded image and template, (ny, nx), DN/s, are those of the fit window; `ignore`: True
    = ignore.
    """
    bright = template > WISP_LEVEL
    sky = image[~bright & ~ignore]
    blocks = block_means(image, ignore | ~bright, 8)
    blocks = blocks[np.isfinite(blocks)]
    if not sky.size or not blocks.size:
        return np.nan
    return float(robust_rms(blocks - np.median(sky)))


def wisp_entry(template_path, scale):
    """HISTORY entry of DR0.5, which other tools match; script and time follow."""
    return f'{ENTRY} {printable(template_path)}, scale={scale:.2f}'


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


# --- the command line --------------------------------------------------------------------------------

def build_parser():
    """The command line; its defaults are the settings at the top."""
    parser = new_parser(__doc__, 'images', 'rate image')
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument('--fit_scaling', action='store_true', help='fit the scale of the template')
    how.add_argument('--scale', type=number_in(0, 10), metavar='S', help='use this scale, from 0 to 10')
    add_setting(parser, '--method', 'METHOD', METHOD, choice(*METHODS),
                'how --fit_scaling finds the scale, and what is corrected: dr05 A3, A4, B3 and B4 in F150W and F200W, '
                'adaptive whatever has a template')
    add_shared(parser, 'INPUTDIR', INPUTDIR, OUTPUTDIR,
               'start again from the untouched copy, *_rate_prewisp.fits, if there is one')
    add_setting(parser, '--wisp_dir', 'WISPDIR', WISPDIR, DIRECTORY, 'where the templates are')
    return parser


def main(argv=None):
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    return run_each(options.images, process, options)


if __name__ == '__main__':
    sys.exit(main())
