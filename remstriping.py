#!/usr/bin/env python
"""Remove 1/f striping (correlated read noise) from NIRCam rate images.

Sources are masked, the sky level is taken off, and the sigma-clipped median of every row of each amplifier,
then of every column, is subtracted (Bagley et al. 2023, ApJL 946 L12, section 3.1.3).

Reads   <dataset>_rate.fits, the flat from CRDS, and <dataset>_rate_1fmask.fits in OUTPUTDIR if there is one
Writes  <dataset>_rate.fits         the corrected image
        <dataset>_rate_pre1f.fits   the input, untouched
        <dataset>_rate_1fmask.fits  source mask, 1 = ignored; edit it and run with --redo to use your own
        <dataset>_rate_horiz.fits, <dataset>_rate_vert.fits
                                    what was subtracted (--save_patterns)

    python remstriping.py jw01345001001_10201_00001_nrca3_rate.fits
    python remstriping.py --thresh 0.15 --save_patterns calibrated/*_nrca3_rate.fits

Images that were corrected before are left alone.
"""

import hashlib
import logging
import math
import os
import sys
import warnings
from dataclasses import dataclass, replace

from stage1.command import SWITCH, add_setting, add_shared, choice, new_parser, number_in, run_each
from stage1.correction import STRIPING as ENTRY
from stage1.correction import correcting
from stage1.exposure import (
    AMPLIFIERS,
    DO_NOT_USE,
    REFERENCE_PIXEL,
    UNUSABLE,
    ExposureError,
    one_line,
    reading_directions,
    undefined,
)
from stage1.filters import KERNEL_REACH, gaussian_smoothings, ring_median
from stage1.masks import clipped_mean_and_spread, grow, keep_groups
from stage1.striping_score import raised, striping_rms

import numpy as np

# --- settings, each of them also an option -----------------------------------------------------------

INPUTDIR = 'calibrated'         # where bare file names are looked for
OUTPUTDIR = 'calibrated'        # for the products; made when it does not exist
MASKTHRESH = 0.8                # 0 to 1: an amplifier's row that is masked more than this gets the full row's median
METHOD = 'dr05'                 # how the pattern is measured: 'dr05' or 'adaptive'
WITHIN_ROWS = True              # adaptive: remove noise within rows too; False: one offset for each row of an amplifier

# --- the recipe, no options --------------------------------------------------------------------------

# Source detection: sigma of the smoothing, least number of connected pixels, side of the square that they grow by;
# all in pixels. DR0.5 grew the first tier by 11 twice, which is 21 once.
TIERS = ((25, 15, 21),
         (15, 15, 11),
         (5, 5, 11),
         (2, 3, 3))
RING_RADIUS, RING_WIDTH = 40, 3                 # pixels; the median over this ring is taken off before detection
DETECT_SIGMA, DETECT_ITERATIONS = 3, 10         # threshold over the sky; also the clipping that measures the sky
LINE_SIGMA, LINE_ITERATIONS = 2, 5              # clipping in a row or column
SKY_RANGE, SKY_BIN = (-1, 1.5), 0.001           # DN/s, histogram of the pedestal fit

log = logging.getLogger('nircam')


# --- one image ---------------------------------------------------------------------------------------

def process(name, options):
    """Remove the striping of one rate image; arguments as `run_each` says."""
    with correcting(name, ENTRY, options, asked(options)) as image:
        if image is None:
            return
        flat_fielded, _ = image.flat_field()
        supplied, amps = supplied_mask(image), image.amps
        say_idle(options, image.name)
        more = {} if options.method == 'dr05' else {'within': options.within_rows,
                                                    'directions': reading_directions(image.header, len(amps))}

        def measure(sci, err, dq, flat_fielded, var_rnoise):
            striping = METHODS[options.method](sci, err, dq, flat_fielded, options.thresh, supplied, amps, **more)
            return warn_of_harm(striping, flat_fielded, dq, amps, var_rnoise)

        correct = correct_image if image.rateints is None else correct_integrations
        striping, sci, dq, integrations = correct(image, flat_fielded, measure)
        lost = number_lost(image, dq), number_lost(image.rateints, integrations[1]) if integrations else 0
        cleaned = image.header.get('S_CLNFNS') == 'COMPLETE'
        numbers = report(image.name, striping.numbers, lost, cleaned)
        image.record(ENTRY, settings_of(options, supplied))
        if supplied is None:
            image.write_map('_rate_1fmask.fits', striping.mask,
                            [('MASKSUM', checksum(striping.mask, image.name), 'checksum of pixels and name as made')])
        if options.save_patterns:
            image.write_map('_rate_horiz.fits', striping.horizontal)
            image.write_map('_rate_vert.fits', np.broadcast_to(striping.vertical, striping.horizontal.shape))
        image.save(sci, dq, cards(numbers), integrations=integrations)


# --- DR0.5 -------------------------------------------------------------------------------------------

def dr05(sci, err, dq, flat_fielded, thresh, sources=None, amps=AMPLIFIERS):
    """Measure the striping as the CEERS DR0.5 reduction did.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (ny, nx)
        Rate that is not flat-fielded and its error, DN/s; NaN = no measurement.
    dq : ndarray of int, shape (ny, nx)
        Any flag leaves the pixel out.
    flat_fielded : ndarray of float32, shape (ny, nx)
        DN/s; on this the patterns are measured.
    thresh : float
        Amp-rows with a greater masked fraction get the median of the full row.
    sources : ndarray of bool, shape (ny, nx), optional
        True = ignore; found in `sci` unless given.
    amps : dict of slice
        Columns of each amplifier.

    Returns
    -------
    Striping

    Raises
    ------
    ExposureError
        When there is no sky to measure on.
    """
    if sources is None:
        sources = source_mask(sci, err)
    mask = sources | (dq != 0) | ~np.isfinite(flat_fielded)
    pedestal = fit_pedestal(flat_fielded[~mask])
    image = flat_fielded - np.float32(pedestal)             # in float32, as DR0.5 did
    horizontal, counts = row_pattern(image, mask, thresh, amps)
    vertical = clipped_median(image - horizontal, mask, axis=0)
    numbers = {'STRPMETH': 'dr05', 'STRPTHR': thresh, 'STRPPED': pedestal, 'STRPMASK': sources.mean()}
    numbers |= {f'STRPFR_{amplifier}': count for amplifier, count in counts.items()}
    return Striping(horizontal, vertical, sources, numbers | striping_rms(image, mask, horizontal, vertical, amps))


def source_mask(sci, err):
    """Find the pixels with light of sources in a rate image, (ny, nx) bool, True = ignore.

    `sci`, not flat-fielded, and its error are (ny, nx) float32, DN/s; NaN = no measurement. The median over a ring
    around each pixel is taken off, which leaves what is smaller than the ring, and the rest is searched at several
    smoothing scales, the widest first. Pixels that earlier tiers found, and those without any measurement within reach
    of the smoothing, are left out of a tier's sky statistics, not out of its detection.
    """
    sci = np.where(np.isfinite(sci), sci, np.nan)
    small_scale = sci - ring_median(sci, RING_RADIUS, RING_WIDTH)
    mask, ignore, measured = np.zeros(sci.shape, bool), np.isnan(err), ~np.isnan(small_scale)
    smoothings = gaussian_smoothings(small_scale, [sigma for sigma, *_ in TIERS])
    for smooth, (sigma, npixels, side) in zip(smoothings, TIERS, strict=True):
        reached = grow(measured, 2 * KERNEL_REACH * sigma + 1)
        mask |= detect(smooth, ignore | ~reached, npixels, side)
        ignore = mask
    return mask


def detect(image, ignore, npixels, side):
    """Find groups of `npixels` connected pixels above the sky and grow them by a square of `side` pixels.

    `ignore`, (ny, nx) bool, True = left out of the sky statistics, but searched. True in the result = source.
    """
    level, spread = clipped_mean_and_spread(image[~ignore], DETECT_SIGMA, DETECT_ITERATIONS)
    return grow(keep_groups(image > level + DETECT_SIGMA * spread, npixels), side)


def fit_pedestal(values):
    """Level of the sky, DN/s: centre of a Gaussian fit to the histogram of `values`.

    Their median where the fit fails, or its centre is outside the middle 98 % of them. `values` are the unmasked
    pixels, (n,) float32, DN/s, finite. ExposureError when there are none, or all are equal.
    """
    from scipy.optimize import curve_fit
    if values.size == 0:
        raise ExposureError('every pixel is masked, by DQ or the source mask: no sky to measure on')
    lowest, median, highest = np.percentile(values, (1, 50, 99))
    if values.min() == values.max():
        raise ExposureError(f'unmasked pixels are all {median:g} DN/s: no striping to measure')
    edges = np.arange(*SKY_RANGE, SKY_BIN)
    if not SKY_RANGE[0] + 0.25 < median < SKY_RANGE[1] - 0.25:          # DN/s, from an end
        edges += round(median - np.mean(SKY_RANGE), 3)      # by whole bins; DR0.5's stayed and missed the sky
    heights, _ = np.histogram(values, edges)
    centres = (edges[1:] + edges[:-1]) / 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')                 # no covariance; only the centre matters
            (_, centre, _), _ = curve_fit(gaussian, centres, heights, p0=(10, centres[heights.argmax()], 0.01))
    except RuntimeError:
        return float(median)
    return float(centre if lowest <= centre <= highest else median)


def gaussian(x, amplitude, centre, sigma):
    """Gaussian function of `x`."""
    return amplitude * np.exp(-(x - centre)**2 / (2 * sigma**2))


def row_pattern(image, mask, thresh, amps=AMPLIFIERS):
    """Measure every amplifier's row; the columns are measured after it.

    `image` is (ny, nx), DN/s, flat-fielded, sky level 0; `mask`, (ny, nx) bool, True = ignore; `amps` the columns of
    each amplifier. Where the masked fraction of an amp-row is greater than `thresh`, or 1, the median of the full row
    is taken.

    Returns the pattern, (ny, nx) float64, DN/s, NaN in rows without an unmasked pixel and 0 in the reference columns;
    and how many rows of each amplifier have the full-row median, a dict.
    """
    amp_rows = {name: mask[:, columns].mean(axis=1) for name, columns in amps.items()}
    crowded = {name: (fraction > thresh) | (fraction == 1) for name, fraction in amp_rows.items()}
    needed = np.logical_or.reduce(list(crowded.values()))
    full = np.full(len(image), np.nan)
    full[needed] = clipped_median(image[needed], mask[needed], axis=1)
    pattern = np.zeros(image.shape)
    for name, columns in amps.items():
        own = clipped_median(image[:, columns], mask[:, columns], axis=1)
        pattern[:, columns] = np.where(crowded[name], full, own)[:, None]
    return pattern, {name: int(rows.sum()) for name, rows in crowded.items()}


def clipped_median(image, mask, axis):
    """Median of each row (`axis` 1) or column (0) after clipping at 2 sigma around the median.

    Image and mask are (ny, nx), True = ignore. The result is float64, NaN where everything is masked.
    """
    from astropy.stats import SigmaClip
    clip = SigmaClip(LINE_SIGMA, maxiters=LINE_ITERATIONS, cenfunc='median', stdfunc='std')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')             # NaN is how the mask is told, and lines may be all NaN
        kept = clip(np.where(mask, np.nan, image.astype(float)), axis=axis, masked=False)
        return np.nanmedian(kept, axis=axis)


def subtract_striping(sci, dq, horizontal, vertical):
    """Subtract the patterns from a rate image, or from those of several integrations; returns new `sci` and `dq`.

    `sci`, float32, DN/s and not flat-fielded, and `dq` are (ny, nx) or (nints, ny, nx); so is `horizontal`; `vertical`
    is (nx,) or (nints, 1, nx), DN/s. Undefined pixels, 0 or NaN, stay what they are. Where a pattern is NaN
    none could be measured: such pixels become 0 (NaN stays) and DO_NOT_USE.
    """
    result = sci - horizontal - vertical
    unmeasured = np.isnan(horizontal + vertical)
    result[((sci == 0) | unmeasured) & ~np.isnan(sci)] = 0
    return result.astype(np.float32), np.where(unmeasured, dq | DO_NOT_USE, dq)


def correct_image(image, flat_fielded, measure):
    """Correct a rate image alone; see `correct_integrations`."""
    striping = measure(image.sci, image.err, image.flags, flat_fielded, image.hdul['VAR_RNOISE'].data)
    return striping, *subtract_striping(image.sci, image.dq, striping.horizontal, striping.vertical), None


def correct_integrations(image, flat_fielded, measure):
    """Correct every integration of an exposure, and their mean as the pipeline takes it.

    Parameters
    ----------
    image : RateImage
        With `rateints`.
    flat_fielded : ndarray, shape (ny, nx)
        DN/s.
    measure : callable
        Called with image, error, flags, flat-fielded image and VAR_RNOISE of an integration; returns a `Striping`.

    Returns
    -------
    striping : Striping
        Patterns of all integrations, (nints, ny, nx) and (nints, 1, nx); the pixels that all masks have; mean numbers.
    sci, dq : ndarray, shape (ny, nx)
    integrations : (sci, dq), shape (nints, ny, nx)
    """
    ints, flat_flags = image.rateints, image.flags & ~image.dq
    with np.errstate(divide='ignore', invalid='ignore'):
        inverse_flat = np.where(undefined(image.sci), np.nan, flat_fielded / image.sci)
    variances = ints.hdul['VAR_RNOISE'].data
    stripings = []
    for sci, err, dq, variance in zip(ints.sci, ints.err, ints.dq, variances, strict=True):
        try:
            stripings.append(measure(sci, err, dq | flat_flags, sci * inverse_flat, variance))
        except ExposureError as error:
            raise ExposureError(f'integration {len(stripings) + 1}: {error}') from None
    horizontal = np.stack([found.horizontal for found in stripings])
    vertical = np.stack([found.vertical for found in stripings])[:, None]
    sci, dq = subtract_striping(ints.sci, ints.dq, horizontal, vertical)
    # The pipeline weights integrations by their read noise; what is not measured has no weight. In (DN/s)^2: the least
    # variance, so that the weights are finite, and one for where there is none, far beyond any other.
    lost = np.isnan(horizontal + vertical)
    variances = np.nan_to_num(np.maximum(variances, 1e-12), nan=1e6, posinf=1e6)
    weight = np.where(lost | undefined(ints.sci), 0, 1 / variances)
    total = np.maximum(weight.sum(axis=0), 1e-12)
    removed = (weight * np.nan_to_num(ints.sci - sci)).sum(axis=0) / total
    some = lost.any(axis=0)             # there the mean is of those that were measured
    removed[some] = image.sci[some] - ((weight * np.nan_to_num(sci)).sum(axis=0) / total)[some]
    removed[some & ~weight.any(axis=0) & ~undefined(image.sci)] = np.nan
    numbers = {key: value if isinstance(value, str | bool) else float(np.mean([s.numbers[key] for s in stripings]))
               for key, value in stripings[0].numbers.items() if key != 'STRPWARN'}
    doubts = [f"integration {number}: {found.numbers['STRPWARN']}" for number, found in enumerate(stripings, 1)
              if 'STRPWARN' in found.numbers]
    more = [f'{len(doubts)} of {len(stripings)} integrations in all'] * (len(doubts) > 3)
    numbers |= {'STRPWARN': '; '.join(doubts[:3] + more)} if doubts else {}
    striping = Striping(horizontal, vertical, np.logical_and.reduce([found.mask for found in stripings]), numbers)
    return striping, *subtract_striping(image.sci, image.dq, removed, 0.), (sci, dq)


# --- the adaptive method -----------------------------------------------------------------------------

def adaptive(sci, _err, dq, flat_fielded, _thresh, sources=None, amps=AMPLIFIERS, within=True, directions=None):
    """Measure the striping with a model of the light along, and nothing to tune; see stage1/adaptive_striping.py.

    Arguments, result and errors are those of `dr05`, but only pixels flagged `UNUSABLE` are left out, there is
    no threshold, and `sources` come on top of what is found. `within`: noise within rows is removed too. `directions`:
    those of `reading_directions`; if not given, four that read upwards and alternate.
    """
    from stage1 import adaptive_striping
    bad = ((dq & UNUSABLE) > 0) | undefined(sci) | ~np.isfinite(flat_fielded)
    unusable = bad if sources is None else bad | sources
    columns_of = tuple(amps.values())
    try:
        rows, columns, mask, light, found, inside = adaptive_striping.adaptive(flat_fielded, unusable, columns_of,
                                                                               directions, within)
    except ValueError as error:
        raise ExposureError(f'no striping can be measured: {error}') from None
    horizontal = adaptive_striping.expand(rows, 0 * columns, columns_of) + inside
    mask &= ~bad
    numbers = {'STRPMETH': 'adaptive', 'STRPPED': found['pedestal'], 'STRPMASK': float(mask.mean())}
    numbers |= {f'STRPSH_{name}': float(value) for name, value in zip(amps, found['shrinkage'], strict=True)}
    numbers['STRPINNR'] = within
    if within:
        numbers['STRPWITH'] = found['within_rms']
    numbers |= striping_rms(flat_fielded - light, mask | bad, horizontal, columns, amps, pieces=within)
    return Striping(horizontal, columns, mask, numbers)


METHODS = {'dr05': dr05, 'adaptive': adaptive}


@dataclass
class Striping:
    """What a method measures. Patterns are in DN/s, NaN where none could be measured."""

    horizontal: np.ndarray      # (ny, nx) of the rows, 0 in the reference columns
    vertical: np.ndarray        # (nx,) of the columns
    mask: np.ndarray            # (ny, nx) bool, True = source, ignored
    numbers: dict               # values of `KEYWORDS`


# --- score and report --------------------------------------------------------------------------------

KEYWORDS = {
    'STRPMETH': 'method of 1/f striping removal',
    'STRPTHR': 'amp-rows masked more than this: full-row median',
    'STRPPED': '[DN/s] sky level under the striping',
    'STRPMASK': 'fraction of the image in the source mask',
    'STRPINNR': 'noise within rows is removed too',
    'STRPWITH': '[DN/s] rms of the noise within rows that is removed',
    'STRPPCE0': '[DN/s] pieces of rows beyond those of columns, before',
    'STRPPCE1': '[DN/s] pieces of rows beyond those of columns, after',
    'STRPROW0': '[DN/s] rms of amp-rows, sky pixels, before',
    'STRPROW1': '[DN/s] rms of amp-rows, sky pixels, after',
    'STRPCOL0': '[DN/s] rms of columns, sky pixels, before',
    'STRPCOL1': '[DN/s] rms of columns, sky pixels, after',
    **{f'STRPFR_{amplifier}': f'rows of amplifier {amplifier} with full-row median' for amplifier in AMPLIFIERS},
    **{f'STRPSH_{amplifier}': f'mean shrinkage of amplifier {amplifier}: 0 measured' for amplifier in AMPLIFIERS},
    'STRPWARN': 'what to look at',
}


def report(name, numbers, lost, cleaned):
    """Log what was measured; returns the numbers, with a warning when pixels without a pattern were given up.

    `lost` is their number in the image, and in its integrations. There is a warning too when the pipeline had
    `cleaned` the image of 1/f noise.
    """
    log.info('%s: %.1f %% in the source mask, sky %.5f DN/s', name, 100 * numbers['STRPMASK'], numbers['STRPPED'])
    what = 'rows with full-row median' if numbers['STRPMETH'] == 'dr05' else 'mean shrinkage of rows'
    log.info('%s: %s: %s', name, what, ', '.join(f'{key[-1]} {round(value, 3):g}' for key, value in numbers.items()
                                                 if key.startswith(('STRPFR_', 'STRPSH_'))))
    log.info('%s: amp-rows %.5f -> %.5f DN/s rms, columns %.5f -> %.5f', name,
             *(numbers[key] for key in ('STRPROW0', 'STRPROW1', 'STRPCOL0', 'STRPCOL1')))
    doubts = [numbers['STRPWARN']] if 'STRPWARN' in numbers else []
    doubts += [f'{number} pixels{where} lost: no unmasked pixel in their row or column'
               for number, where in zip(lost, ('', ' of single integrations'), strict=True) if number]
    if cleaned:
        doubts.append('the pipeline had removed 1/f noise already (clean_flicker_noise): leave that step out')
    for doubt in doubts:
        log.warning('%s: %s', name, doubt)
    return numbers | ({'STRPWARN': '; '.join(doubts)} if doubts else {})


def number_lost(image, dq):
    """Number of pixels that `dq` newly flags in a `RateImage`, of those that see the sky and had a measurement."""
    return np.count_nonzero((dq != image.dq) & (image.dq & REFERENCE_PIXEL == 0) & ~undefined(image.sci))


def warn_of_harm(striping, flat_fielded, dq, amps, var_rnoise):
    """The same striping, with a warning in its numbers where it took light for stripes; see stage1/striping_harm.py."""
    from stage1.striping_harm import harm
    unusable = ((dq & UNUSABLE) > 0) | ~np.isfinite(flat_fielded)
    known = var_rnoise[(var_rnoise > 0) & np.isfinite(var_rnoise)]
    read_noise = math.sqrt(np.median(known)) if known.size else math.inf
    warning = harm(striping.horizontal + striping.vertical, flat_fielded, striping.mask | unusable,
                   tuple(amps.values()), read_noise) or raised(striping.numbers)
    return replace(striping, numbers=striping.numbers | {'STRPWARN': warning}) if warning else striping


def cards(numbers):
    """Header cards of the numbers; FITS has none for NaN."""
    return [(key, round(float(value), 7) if isinstance(value, float) else value, KEYWORDS[key])
            for key, value in numbers.items() if value == value]


def asked(options):
    """What the header of an image corrected with these options has, {keyword: value}."""
    if options.method == 'dr05':
        return {'STRPMETH': 'dr05', 'STRPTHR': options.thresh}
    return {'STRPMETH': options.method, 'STRPINNR': options.within_rows}


def settings_of(options, supplied):
    """What a correction depends on besides the image, for HISTORY; `supplied` is a user's source mask or None."""
    words = {'STRPMETH': 'method', 'STRPTHR': 'thresh', 'STRPINNR': 'within_rows'}
    settings = {words[key]: value for key, value in asked(options).items()}
    if supplied is not None:
        settings['mask'] = f'supplied or edited, {supplied.mean():.4f} masked, checksum {checksum(supplied)}'
    return settings


def say_idle(options, name):
    """Warn of options that do nothing with this method."""
    rows_only = '--within_rows' if options.within_rows else '--no-within_rows'
    for option, given, method in ((rows_only, options.within_rows != WITHIN_ROWS, 'adaptive'),
                                  ('--thresh', options.thresh != float(MASKTHRESH), 'dr05')):
        if given and options.method != method:
            log.warning('%s: %s is for --method %s, and does nothing here', name, option, method)


# --- the mask on disk --------------------------------------------------------------------------------

def supplied_mask(image):
    """Source mask that a user supplied or edited for a `RateImage`, (ny, nx) bool, True = ignore.

    None when there is none, or only one that a run made of this image and nobody edited since (MASKSUM).
    """
    from astropy.io import fits
    path = image.product('_rate_1fmask.fits')
    beside = image.start.with_name(path.name)
    if not os.path.lexists(path):       # a link to nowhere cannot be read
        if beside.exists():
            log.warning('%s: the mask %s is not used: put it into %s if it is yours', image.name, beside, path.parent)
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            pixels, header = fits.getdata(path, header=True)
    except Exception as error:
        raise ExposureError(f'source mask {path} cannot be read ({one_line(error)}): remove or replace it') from None
    if pixels.shape != image.sci.shape or pixels.dtype.kind not in 'biuf':
        raise ExposureError(f'source mask {path} is {pixels.dtype.name} of shape {pixels.shape}, not numbers of shape '
                            f'{image.sci.shape}: remove or replace it')
    mask = pixels != 0
    if header.get('MASKSUM') in (checksum(mask, image.name), checksum(mask)):      # at first it was without the name
        return None
    log.info('%s: %s was supplied or edited, and is used', image.name, path.name)
    return mask


def checksum(mask, name=''):
    """First 16 hexadecimal digits of the SHA-1 of the bytes of a mask, and of the name of its image."""
    return hashlib.sha1(mask.tobytes() + name.encode(errors='replace'), usedforsecurity=False).hexdigest()[:16]


# --- the command line --------------------------------------------------------------------------------

def build_parser():
    """The command line; its defaults are the settings at the top."""
    parser = new_parser(__doc__, 'images', 'rate image')
    add_setting(parser, '--thresh', 'MASKTHRESH', MASKTHRESH, number_in(0, 1),
                'dr05: where more than this fraction of an amp-row is masked, the median of the full row is used')
    add_setting(parser, '--method', 'METHOD', METHOD, choice(*METHODS), 'how the pattern is measured')
    add_shared(parser, 'INPUTDIR', INPUTDIR, OUTPUTDIR,
               'start again from the untouched copy, *_rate_pre1f.fits, if there is one')
    add_setting(parser, '--within_rows', 'WITHIN_ROWS', WITHIN_ROWS, SWITCH, 'adaptive: remove noise within rows too')
    parser.add_argument('--save_patterns', action='store_true', help='write the patterns that were subtracted')
    return parser


def main(argv=None):
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    return run_each(options.images, process, options)


if __name__ == '__main__':
    sys.exit(main())
