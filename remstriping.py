"""Remove 1/f striping (correlated read noise) from NIRCam full-frame rate images.

Reads   INPUTDIR/<dataset>_rate.fits, and <dataset>_rate_1fmask.fits when there is one.
Writes  to OUTPUTDIR:
        <dataset>_rate.fits         the corrected image
        <dataset>_rate_pre1f.fits   the untouched input
        <dataset>_rate_1fmask.fits  source mask, 1 = ignored; edit it and run with --redo to use your own
        <dataset>_rate_horiz.fits, <dataset>_rate_vert.fits
                                    what was subtracted, with --save_patterns

Examples
--------
    python remstriping.py jw01345001001_10201_00001_nrca3_rate.fits
    python remstriping.py calibrated/*_nrca3_rate.fits --thresh 0.15 --save_patterns

Sources are masked, the sky level is taken off, and the sigma-clipped median of every row of each amplifier,
then of every column, is subtracted: Bagley et al. 2023, ApJL 946 L12, section 3.1.3.
"""
import argparse
import hashlib
import logging
import math
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import product

import numpy as np

from nircam_io import (
    DO_NOT_USE,
    UNUSABLE,
    ExposureError,
    add_redo,
    correcting,
    expanded,
    find_input,
    number_in,
    one_line,
    run_each,
    undefined,
    write_map,
)

# Settings; each is also an option.
INPUTDIR = 'calibrated'         # where a bare file name is looked for
OUTPUTDIR = 'calibrated'        # where everything is written
MASKTHRESH = 0.8                # 0 to 1: an amplifier's row that is masked more than this gets the full row's median
METHOD = 'dr05'                 # how the pattern is measured: one of METHODS, see below

ENTRY = 'Removed horizontal,vertical striping'
AMPLIFIERS = {'A': slice(4, 512), 'B': slice(512, 1024), 'C': slice(1024, 1536), 'D': slice(1536, 2044)}
# Source detection: sigma of the smoothing, least number of connected pixels, side of the square that they grow
# by, side of the square that they grow by once more in the mask (1: no more); all in pixels.
TIERS = ((25, 15, 11, 11),
         (15, 15, 11, 1),
         (5, 5, 11, 1),
         (2, 3, 3, 1))
RING_RADIUS, RING_WIDTH = 40, 3                 # pixels; the median over this ring is taken off before detection
KERNEL_REACH = 4                                # sigmas, where the smoothing kernels are cut
LEAST_WEIGHT = 1e-8                             # of valid pixels under a smoothing kernel, above what rounding leaves
DETECT_SIGMA, DETECT_ITERATIONS = 3, 10         # threshold over the sky; also the clipping that measures the sky
LINE_SIGMA, LINE_ITERATIONS = 2, 5              # clipping in a row or column
SKY_RANGE, SKY_BIN = (-1, 1.5), 0.001           # DN/s, histogram of the pedestal fit

KEYWORDS = {
    'STRPMETH': 'method of 1/f striping removal',
    'STRPTHR': 'amp-rows masked more than this: full-row median',
    'STRPPED': '[DN/s] sky level under the striping',
    'STRPMASK': 'fraction of the image in the source mask',
    'STRPROW0': '[DN/s] rms of amp-rows, sky pixels, before',
    'STRPROW1': '[DN/s] rms of amp-rows, sky pixels, after',
    'STRPCOL0': '[DN/s] rms of columns, sky pixels, before',
    'STRPCOL1': '[DN/s] rms of columns, sky pixels, after',
    **{f'STRPFR_{amplifier}': f'rows of amplifier {amplifier} with full-row median' for amplifier in AMPLIFIERS},
    **{f'STRPSH_{amplifier}': f'mean shrinkage of amplifier {amplifier}: 0 measured' for amplifier in AMPLIFIERS},
    'STRPWARN': 'what to look at',
}

log = logging.getLogger('nircam')


@dataclass
class Striping:
    """What a method measures.

    Attributes
    ----------
    horizontal : ndarray of float64, shape (ny, nx)
        Row pattern, DN/s; NaN where none could be measured, 0 in the reference columns.
    vertical : ndarray of float64, shape (nx,)
        Column pattern, DN/s; NaN where none could be measured.
    mask : ndarray of bool, shape (ny, nx)
        True = source, ignored.
    numbers : dict
        Values of `KEYWORDS`.
    """

    horizontal: np.ndarray
    vertical: np.ndarray
    mask: np.ndarray
    numbers: dict


def process(name, input_dir, output_dir, thresh, method, save_patterns, redo):
    """Remove the striping of one rate image; ExposureError says what is wrong with it."""
    with correcting(find_input(name, input_dir), output_dir, ENTRY, redo) as image:
        if image is None:
            return
        flat, _ = image.flat_field()
        maker = f'{method} {checksum(image.sci)}'
        mask = saved_mask(image, maker if method == 'dr05' else None)
        striping = METHODS[method](image.sci, image.hdul['ERR'].data, image.flags, flat, thresh, mask)
        sci, dq = subtract_striping(image.sci, image.dq, striping.horizontal, striping.vertical)
        report(image.name, striping.numbers, np.count_nonzero(dq != image.dq))
        if mask is None:
            save_mask(image, striping.mask, maker)
        if save_patterns:
            write_map(image.draft('_rate_horiz.fits'), striping.horizontal)
            write_map(image.draft('_rate_vert.fits'), np.broadcast_to(striping.vertical, sci.shape))
        image.save(sci, 'remstriping.py', f'{ENTRY}; remstriping.py {datetime.now():%Y-%m-%d %H:%M:%S}',
                   {'method': method, 'thresh': thresh}, dq, cards(striping.numbers))


def dr05(sci, err, dq, flat, thresh, sources=None):
    """Measure the striping as the CEERS DR0.5 reduction did.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (ny, nx)
        Rate that is not flat-fielded and its error, DN/s; NaN = no measurement.
    dq : ndarray of int, shape (ny, nx)
        Any flag leaves the pixel out.
    flat : ndarray of float32, shape (ny, nx)
        Flat-fielded rate, DN/s, on which the patterns are measured.
    thresh : float
        Amp-rows with a greater masked fraction get the median of the full row.
    sources : ndarray of bool, shape (ny, nx), optional
        True = ignore; found in `sci` unless given.

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
    mask = sources | (dq != 0) | ~np.isfinite(flat)
    pedestal = fit_pedestal(flat[~mask])
    image = flat - np.float32(pedestal)             # in float32, as DR0.5 did
    horizontal, counts = row_pattern(image, mask, thresh)
    vertical = column_pattern(image - horizontal, mask)
    numbers = {'STRPMETH': 'dr05', 'STRPTHR': thresh, 'STRPPED': pedestal, 'STRPMASK': sources.mean()}
    numbers |= {f'STRPFR_{amplifier}': count for amplifier, count in counts.items()}
    return Striping(horizontal, vertical, sources, numbers | striping_rms(image, mask, horizontal, vertical))


def adaptive(sci, _err, dq, flat, _thresh, sources=None):
    """Measure the striping with a model of the light along, and nothing to tune; see adaptive_striping.py.

    Arguments, result and errors are those of `dr05`, but only pixels flagged `UNUSABLE` are left out, there is
    no threshold, and `sources` come on top of what is found.
    """
    from adaptive_striping import adaptive, expand
    unusable = ((dq & UNUSABLE) > 0) | undefined(sci) | ~np.isfinite(flat)
    if sources is not None:
        unusable |= sources
    try:
        rows, columns, mask, light, found = adaptive(flat, unusable, tuple(AMPLIFIERS.values()))
    except ValueError as error:
        raise ExposureError(f'no striping can be measured: {error}') from None
    horizontal = expand(rows, 0 * columns, tuple(AMPLIFIERS.values()))
    numbers = {'STRPMETH': 'adaptive', 'STRPPED': found['pedestal'], 'STRPMASK': float((mask & ~unusable).mean())}
    numbers |= {f'STRPSH_{name}': float(value) for name, value in zip(AMPLIFIERS, found['shrinkage'], strict=True)}
    numbers |= striping_rms(flat - light, mask, horizontal, columns)
    return Striping(horizontal, columns, mask & ~unusable, numbers)


METHODS = {'dr05': dr05, 'adaptive': adaptive}


# --- source mask ----------------------------------------------------------------------------------------

def source_mask(sci, err, tiers=TIERS):
    """Find the pixels with light of sources in a rate image.

    The median over a ring around each pixel is taken off, which leaves what is smaller than the ring, and the
    rest is searched at several smoothing scales, the widest first.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (ny, nx)
        Rate that is not flat-fielded and its error, DN/s; NaN = no measurement.
    tiers : sequence of (sigma, npixels, grow, grow_more)
        As `TIERS`.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True = ignore.
    """
    return np.logical_or.reduce([grown(tier, more) for tier, (*_, more)
                                 in zip(source_tiers(sci, err, tiers), tiers, strict=True)])


def source_tiers(sci, err, tiers=TIERS):
    """Find sources tier by tier.

    Pixels that earlier tiers found are left out of a tier's sky statistics, not out of its detection.

    Parameters
    ----------
    sci, err, tiers
        As for `source_mask`.

    Yields
    ------
    ndarray of bool, shape (ny, nx)
        True = source in this tier.
    """
    sci = np.where(np.isfinite(sci), sci, np.nan)
    small_scale = sci - ring_median(sci)
    ignore, known = np.isnan(err), np.zeros(sci.shape, bool)
    smoothings = gaussian_smoothings(small_scale, [sigma for sigma, *_ in tiers])
    for smooth, (_, npixels, grow, more) in zip(smoothings, tiers, strict=True):
        found = detect(smooth, ignore, npixels, grow)
        yield found
        known |= grown(found, more)
        ignore = known


def ring_median(image, radius=RING_RADIUS, width=RING_WIDTH):
    """Take the median over a ring around every pixel.

    The same numbers as `scipy.ndimage.median_filter(image, footprint=ring_footprint(radius, width))` where
    nothing is NaN: the upper of the two middle values, edge pixels repeated outside (`reflect`). NaN are left
    out of the medians instead of spoiling them.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
    radius, width : int
        The ring holds the pixels with radius <= r <= radius + width.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        NaN where the whole ring is.
    """
    ring = ring_footprint(radius, width)
    reach, tile = radius + width, 128
    padded = np.pad(image.astype(np.float32), reach, mode='symmetric')
    result = np.empty(image.shape, np.float32)
    compiled_slide_ring()                           # before there are threads, which would each compile it

    def fill(corner):
        y, x = corner
        part = result[y:y + tile, x:x + tile]
        part[:] = ring_median_inside(padded[y:y + tile + 2 * reach, x:x + tile + 2 * reach], ring, part.shape)

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(fill, product(*(range(0, side, tile) for side in image.shape))))
    return result


def threads():
    """Number of threads to use: that of OMP_NUM_THREADS, else of the processors that we may use."""
    try:
        return max(int(os.environ['OMP_NUM_THREADS']), 1)
    except (KeyError, ValueError):
        return len(os.sched_getaffinity(0))


def ring_median_inside(padded, ring, shape):
    """Median over a ring around each of the `shape` pixels in the middle of `padded`; see `ring_median`."""
    # Ranks are all different and small enough for a set of bits, unlike values. NaN get the last words of it.
    order = ascending(padded.ravel())
    number = padded.size - np.count_nonzero(np.isnan(padded))
    words = -(-number // 64)
    ranks = np.empty(order.size, np.uint32)
    ranks[order] = np.arange(order.size, dtype=np.uint32)
    ranks[order[number:]] += np.uint32(words * 64 - number)
    middle = compiled_slide_ring()(ranks, words, *shape, padded.shape[1], *ring_edges(ring, padded.shape[1]))
    return np.where(middle < 0, np.nan, padded.ravel()[order[middle]])


def ascending(values):
    """Indices that sort float32 `values`, NaN last: `np.argsort`, six times faster.

    The bits of a float sort like an integer (turned around when negative). With the index behind them in one
    64-bit integer, a plain sort does, for which numpy has vector code.
    """
    bits = np.where(np.isnan(values), np.float32(np.nan), values).view(np.int32)    # no NaN with a sign
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return np.sort(key.astype(np.int64) << 32 | np.arange(key.size)) & 0xFFFFFFFF


def ring_footprint(radius, width):
    """Pixels with radius <= r <= radius + width, (2 (radius + width) + 1)^2 bool; 776 for DR0.5's (40, 3)."""
    axis = np.arange(-radius - width, radius + width + 1)
    square = axis**2 + axis[:, None]**2
    return (square >= radius**2) & (square <= (radius + width)**2)


def ring_edges(ring, row_length):
    """Flat offsets of ring pixels in an image with rows of `row_length`.

    Returns
    -------
    ring, entered, left : ndarray of uint64
        All; those that a step to the right takes in, as seen from the new place; those that it leaves behind, as
        seen from the old place.
    """
    wide = np.pad(ring, ((0, 0), (1, 1)))
    entered, left = ring & ~wide[:, 2:], ring & ~wide[:, :-2]
    return [(y * row_length + x).astype(np.uint64) for y, x in map(np.nonzero, (ring, entered, left))]


@lru_cache
def compiled_slide_ring():
    """Compile `slide_ring`, or load what an earlier run compiled and kept."""
    from numba import njit
    flat, length = 'uint64[::1]', 'int64'
    signature = f'int64[:, ::1](uint32[::1], {length}, {length}, {length}, {length}, {flat}, {flat}, {flat})'
    try:
        return njit(signature, nogil=True, cache=True)(slide_ring)
    except Exception as error:      # nowhere to write, disk full, damaged cache: numba has an exception for each
        log.warning('numba cannot keep its compiled code (%s): compiling for this run only, which costs seconds; '
                    'NUMBA_CACHE_DIR can name a directory for it', ' '.join(str(error).split()))
        return njit(signature, nogil=True)(slide_ring)


def slide_ring(ranks, words, ny, nx, row_length, ring, entered, left):
    """Find the upper median of the ranks in a ring around ny x nx pixels; compiled with numba.

    The ring's ranks are a set of bits. `word` is the 64-bit word that holds the median, `below` the number of
    bits in the words before it; both follow as the ring slides along a row. All indices are unsigned because
    numba's test for negative ones would take most of the time.

    Parameters
    ----------
    ranks : ndarray of uint32
        All different; a flat image with rows of `row_length`, whose corner the first pixel's ring begins at.
    words : int
        Ranks from 64 `words` on are NaN.
    ny, nx, row_length : int
    ring, entered, left : ndarray of uint64
        See `ring_edges`.

    Returns
    -------
    ndarray of int64, shape (ny, nx)
        -1 where the ring holds NaN only.
    """
    one, six, low = np.uint64(1), np.uint64(6), np.uint64(63)

    def count_bits(rest):                                   # becomes one instruction
        count = 0
        while rest:
            rest &= rest - one
            count += 1
        return count

    result = np.empty((ny, nx), np.int64)
    bits = np.empty(ranks.size // 64 + 2, np.uint64)        # NaN begin a word of their own
    for y in range(ny):
        bits[:] = 0
        word, below = np.uint64(0), 0
        for x in range(nx):
            place = np.uint64(y * row_length + x)
            if x == 0:
                for offset in ring:
                    rank = np.uint64(ranks[place + offset])
                    bits[rank >> six] |= one << (rank & low)
            else:
                for k in range(entered.size):
                    new, old = np.uint64(ranks[place + entered[k]]), np.uint64(ranks[place - one + left[k]])
                    bits[new >> six] ^= one << (new & low)
                    bits[old >> six] ^= one << (old & low)
                    below += np.int64(new >> six < word) - np.int64(old >> six < word)
            inside = ring.size
            for k in range(words, bits.size):
                inside -= count_bits(bits[np.uint64(k)])
            wanted = inside // 2                            # counted from 0: the upper of two middle ones
            if inside == 0:
                result[y, x] = -1
                continue
            while below > wanted:
                word -= one
                below -= count_bits(bits[word])
            here = count_bits(bits[word])
            while below + here <= wanted:
                below += here
                word += one
                here = count_bits(bits[word])
            rest = bits[word]
            for _ in range(wanted - below):
                rest &= rest - one                          # drops the lowest bit
            result[y, x] = np.int64(word) * 64 + math.frexp(float(rest & (~rest + one)))[1] - 1
    return result


def gaussian_smoothings(image, sigmas):
    """Smooth an image with Gaussians of several widths, all from one Fourier transform.

    The same numbers as `astropy.convolution.convolve_fft` with `Gaussian2DKernel(sigma, x_size=8 * sigma + 1)`:
    zeros outside the image, NaN interpolated (weighted by the part of the kernel on valid pixels). In double
    precision because single precision moves pixels across the detection threshold.

    Parameters
    ----------
    image : ndarray of float, shape (ny, nx)
    sigmas : list of int
        Pixels.

    Yields
    ------
    ndarray of float64, shape (ny, nx)
        One for each sigma; 0 where no valid pixel is within reach.
    """
    from scipy.fft import fft, ifft, irfft, next_fast_len, rfft
    holes = ~np.isfinite(image)
    (ny, nx), workers = image.shape, threads()
    height, width = (next_fast_len(side + KERNEL_REACH * max(sigmas), real=True) for side in image.shape)

    # One axis at a time is twice as fast as rfft2 and irfft2, which fill large arrays of their own in between.
    def transformed(plane):
        return fft(rfft(plane, width, axis=1, workers=workers), height, axis=0, overwrite_x=True, workers=workers)

    def convolved(spectrum, down, across):
        product = spectrum * down[:, None]
        product *= across
        columns = ifft(product, axis=0, overwrite_x=True, workers=workers)
        return irfft(columns[:ny], width, axis=1, workers=workers)[:, :nx]

    light = transformed(np.where(holes, 0, image).astype(float))
    missing = transformed(holes.astype(float)) if holes.any() else None
    for sigma in sigmas:
        kernel = gaussian_transfer(sigma, height), gaussian_transfer(sigma, width)[:width // 2 + 1]
        smooth = convolved(light, *kernel)
        if missing is not None:
            weight = 1 - convolved(missing, *kernel)
            reached = weight > LEAST_WEIGHT
            np.divide(smooth, weight, out=smooth, where=reached)
            smooth[~reached] = 0
        yield smooth


def gaussian_transfer(sigma, length):
    """Fourier transform of a normalised Gaussian on `length` pixels around the first, cut at KERNEL_REACH sigmas."""
    from scipy.fft import fft
    distance = np.abs(np.fft.fftfreq(length, 1 / length))
    kernel = np.where(distance <= KERNEL_REACH * sigma, np.exp(-0.5 * (distance / sigma)**2), 0)
    return fft(kernel / kernel.sum()).real          # real because the kernel is symmetric


def detect(image, ignore, npixels, grow):
    """Find groups of `npixels` connected pixels above the sky and grow them by a square of side `grow`.

    `ignore`, (ny, nx) bool, True = left out of the sky statistics, but searched. True in the result = source.
    """
    from scipy.ndimage import label
    level, spread = sky_statistics(image[~ignore])
    labels, _ = label(image > level + DETECT_SIGMA * spread, np.ones((3, 3)))
    large = np.bincount(labels.ravel()) >= npixels
    large[0] = False                                # what is not labelled
    return grown(large[labels], grow)


def sky_statistics(values):
    """Mean and standard deviation of finite `values` after clipping around the median; NaN when there are none.

    The same as astropy's `SigmaClip(3, maxiters=10)`. Sorted once, what is kept is a slice, and medians are looked up.
    """
    if values.size == 0:
        return math.nan, math.nan
    values = np.sort(values)
    offset = values[values.size // 2]
    values -= offset                                # so that squares lose no digits
    for iteration in range(DETECT_ITERATIONS + 1):
        number = values.size
        median = (values[(number - 1) // 2] + values[number // 2]) / 2
        mean = values.mean()
        spread = math.sqrt(max(values @ values / number - mean**2, 0))
        if iteration == DETECT_ITERATIONS:
            break
        reach = DETECT_SIGMA * spread
        values = values[np.searchsorted(values, median - reach):np.searchsorted(values, median + reach, 'right')]
        if values.size == number:
            break
    return mean + offset, spread


def grown(mask, side):
    """Grow the True pixels of `mask` by a square of odd `side` pixels."""
    mask = np.pad(mask, side // 2)
    for axis in (0, 1):
        lines = np.swapaxes(mask, 0, axis)
        covered = 1                                 # lines[i] stands for lines i to i + covered - 1
        while covered < side:
            step = min(covered, side - covered)
            lines = lines[:-step] | lines[step:]
            covered += step
        mask = np.swapaxes(lines, 0, axis)
    return mask


# --- patterns -------------------------------------------------------------------------------------------

def fit_pedestal(values):
    """Fit a Gaussian to the histogram of sky pixels.

    Parameters
    ----------
    values : ndarray of float32, shape (n,)
        Unmasked pixels, DN/s, finite.

    Returns
    -------
    float
        Centre of the Gaussian, DN/s; the median of `values` when the fit fails.

    Raises
    ------
    ExposureError
        When there are no values, or only one.
    """
    from scipy.optimize import curve_fit
    if values.size == 0:
        raise ExposureError('every pixel is masked, by DQ or the source mask: no sky to measure on')
    lowest, median, highest = np.percentile(values, (1, 50, 99))
    if values.min() == values.max():
        raise ExposureError(f'unmasked pixels are all {median:g} DN/s: no striping to measure')
    edges = np.arange(*SKY_RANGE, SKY_BIN)
    if not SKY_RANGE[0] + 0.25 < median < SKY_RANGE[1] - 0.25:
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


def row_pattern(image, mask, thresh):
    """Measure every amplifier's row.

    Parameters
    ----------
    image : ndarray of float, shape (ny, nx)
        DN/s, flat-fielded, sky level 0.
    mask : ndarray of bool, shape (ny, nx)
        True = ignore.
    thresh : float
        Where the masked fraction of an amp-row is greater, or 1, the median of the full row is taken.

    Returns
    -------
    pattern : ndarray of float64, shape (ny, nx)
        DN/s; NaN in rows without an unmasked pixel, 0 outside `AMPLIFIERS` (reference columns).
    counts : dict
        Number of rows with the full-row median for each amplifier.
    """
    amp_rows = {name: mask[:, columns].mean(axis=1) for name, columns in AMPLIFIERS.items()}
    crowded = {name: (fraction > thresh) | (fraction == 1) for name, fraction in amp_rows.items()}
    needed = np.logical_or.reduce(list(crowded.values()))
    full = np.full(len(image), np.nan)
    full[needed] = clipped_median(image[needed], mask[needed], axis=1)
    pattern = np.zeros(image.shape)
    for name, columns in AMPLIFIERS.items():
        own = clipped_median(image[:, columns], mask[:, columns], axis=1)
        pattern[:, columns] = np.where(crowded[name], full, own)[:, None]
    return pattern, {name: int(rows.sum()) for name, rows in crowded.items()}


def column_pattern(image, mask):
    """Measure every column, after the rows: (nx,) float64, DN/s; arguments as for `row_pattern`."""
    return clipped_median(image, mask, axis=0)


def clipped_median(image, mask, axis):
    """Median along an axis after clipping at 2 sigma around the median.

    Parameters
    ----------
    image : ndarray of float, shape (ny, nx)
    mask : ndarray of bool, shape (ny, nx)
        True = ignore.
    axis : int
        1 for rows, 0 for columns.

    Returns
    -------
    ndarray of float64
        NaN where everything is masked.
    """
    from astropy.stats import SigmaClip
    clip = SigmaClip(LINE_SIGMA, maxiters=LINE_ITERATIONS, cenfunc='median', stdfunc='std')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')             # NaN is how the mask is told, and lines may be all NaN
        kept = clip(np.where(mask, np.nan, image.astype(float)), axis=axis, masked=False)
    kept = np.sort(kept, axis=axis)                 # NaN last; quicker than nanmedian
    number = np.isfinite(kept).sum(axis=axis, keepdims=True)
    middle = np.concatenate(((number - 1) // 2, number // 2), axis)     # -1, a NaN, where there is nothing
    return np.take_along_axis(kept, middle, axis).mean(axis=axis)


def subtract_striping(sci, dq, horizontal, vertical):
    """Subtract the patterns from a rate image.

    Parameters
    ----------
    sci : ndarray of float32, shape (ny, nx)
        DN/s, not flat-fielded. Undefined pixels, 0 or NaN, stay what they are.
    dq : ndarray of int, shape (ny, nx)
    horizontal, vertical : ndarray of float64, shapes (ny, nx) and (nx,)
        DN/s, NaN where no pattern could be measured: such pixels become 0 and DO_NOT_USE.

    Returns
    -------
    sci, dq : ndarray
        New arrays.
    """
    result = sci - horizontal - vertical
    unmeasured = np.isnan(horizontal + vertical)
    result[((sci == 0) | unmeasured) & ~np.isnan(sci)] = 0
    return result.astype(np.float32), np.where(unmeasured, dq | DO_NOT_USE, dq)


# --- score and report -----------------------------------------------------------------------------------

def striping_rms(image, mask, horizontal, vertical):
    """Score the correction on the image it was measured on.

    Sky pixels are unmasked and within 5 sigma (1.4826 x median absolute deviation) of the sky level. The rms of
    amp-rows is the standard deviation, over all rows of all amplifiers, of the mean of a row's sky pixels; the
    rms of columns that of the columns' means. Rows and columns with less than a tenth of sky pixels are left
    out. Both hold the noise of a mean, about 0.0006 DN/s in a rate with 0.012 DN/s a pixel and 400 sky pixels.

    Parameters
    ----------
    image, mask, horizontal, vertical
        As for `row_pattern` and as it returns.

    Returns
    -------
    dict
        STRPROW0, STRPROW1, STRPCOL0, STRPCOL1: before and after, DN/s; NaN where there is too little sky.
    """
    deviation = np.abs(image[~mask])
    sky = ~mask & (np.abs(image) < 5 * 1.4826 * np.median(deviation))
    numbers = {}
    for when, result in ((0, image), (1, image - horizontal - vertical)):
        result = np.where(sky, result, 0)
        rows = np.concatenate([means(result[:, columns], sky[:, columns], 1) for columns in AMPLIFIERS.values()])
        numbers[f'STRPROW{when}'] = rows.std() if rows.size else math.nan
        columns = means(result, sky, 0)
        numbers[f'STRPCOL{when}'] = columns.std() if columns.size else math.nan
    return numbers


def means(image, sky, axis):
    """Mean along an axis of an image that is 0 outside `sky`, of lines with at least a tenth of sky."""
    number = sky.sum(axis=axis)
    enough = number > 0.1 * sky.shape[axis]
    return image.sum(axis=axis, dtype=float)[enough] / number[enough]


def report(name, numbers, lost):
    """Log what was measured; adds a warning to `numbers` when `lost` pixels without a pattern were given up."""
    log.info('%s: %.1f %% in the source mask, sky %.5f DN/s', name, 100 * numbers['STRPMASK'], numbers['STRPPED'])
    what = 'rows with full-row median' if numbers['STRPMETH'] == 'dr05' else 'mean shrinkage of rows'
    log.info('%s: %s: %s', name, what, ', '.join(f'{key[-1]} {round(value, 3):g}' for key, value in numbers.items()
                                                 if key.startswith(('STRPFR_', 'STRPSH_'))))
    log.info('%s: amp-rows %.5f -> %.5f DN/s rms, columns %.5f -> %.5f', name,
             *(numbers[key] for key in ('STRPROW0', 'STRPROW1', 'STRPCOL0', 'STRPCOL1')))
    if lost:
        numbers['STRPWARN'] = f'{lost} pixels lost: no unmasked pixel in their row or column'
        log.warning('%s: %s', name, numbers['STRPWARN'])


def cards(numbers):
    """Header cards of the numbers; FITS has none for NaN."""
    return [(key, round(float(value), 7) if isinstance(value, float) else value, KEYWORDS[key])
            for key, value in numbers.items() if value == value]


# --- the mask on disk -----------------------------------------------------------------------------------

def saved_mask(image, maker):
    """Read the source mask of an exposure.

    Parameters
    ----------
    image : RateImage
    maker : str or None
        What MASKSRC holds when this image and method made the mask; None to take no mask of our own.

    Returns
    -------
    ndarray of bool, shape (ny, nx), or None
        True = ignore. None when there is none, or only our own, made from another image or by another method
        and not edited since (MASKSUM).
    """
    from astropy.io import fits
    path = image.product('_rate_1fmask.fits')
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            pixels, header = fits.getdata(path, header=True)
    except Exception as error:
        raise ExposureError(f'source mask {path} is unreadable ({one_line(error)}): remove or replace it') from None
    if pixels.shape != image.sci.shape or pixels.dtype.kind not in 'biuf':
        raise ExposureError(f'source mask {path} is {pixels.dtype.name} of shape {pixels.shape}, not numbers of shape '
                            f'{image.sci.shape}: remove or replace it')
    mask = pixels != 0
    if header.get('MASKSUM') == checksum(mask):
        if header.get('MASKSRC') != maker:
            log.info('%s: %s is our own of another run: made again', image.name, path.name)
            return None
        log.info('%s: %s of an earlier run reused', image.name, path.name)
    else:
        log.info('%s: %s, supplied or edited, is used', image.name, path.name)
    return mask


def save_mask(image, mask, maker):
    """Write the source mask, 1 = ignore, with what tells later whether it was edited."""
    write_map(image.draft('_rate_1fmask.fits'), mask,
              [('MASKSRC', maker, 'method, checksum of its SCI'),
               ('MASKSUM', checksum(mask), 'checksum of these pixels as made')])


def checksum(array):
    """First 16 hexadecimal digits of the SHA-1 of an array's bytes."""
    return hashlib.sha1(np.ascontiguousarray(array), usedforsecurity=False).hexdigest()[:16]


# --- the command line -----------------------------------------------------------------------------------

def build_parser():
    """Command-line parser; the defaults are the settings at the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='rate image: a path, or a name in the input directory')
    add('--input_dir', type=expanded, default=INPUTDIR, metavar='DIR', help='default: %(default)s')
    add('--output_dir', type=expanded, default=OUTPUTDIR, metavar='DIR', help='default: %(default)s')
    # as text, so that an edited MASKTHRESH is checked like the option
    add('--thresh', type=number_in(0, 1), default=str(MASKTHRESH), metavar='T',
        help='masked fraction of an amp-row, 0 to 1, above which the full row is used; default: %(default)s')
    add('--method', choices=list(METHODS), default=METHOD, help='default: %(default)s')
    add('--save_patterns', action='store_true', help='write the patterns that were subtracted')
    add_redo(add, 'start again from the untouched copy of a corrected image')
    return parser


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    if options['method'] not in METHODS:
        parser.error(f"METHOD {options['method']!r} is none of {', '.join(METHODS)}")
    return run_each(options.pop('images'), lambda name: process(name, **options))


if __name__ == '__main__':
    sys.exit(main())
