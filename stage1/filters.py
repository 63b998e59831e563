"""Filters made fast. Each equals a plain call of scipy, astropy or numpy that its docstring names.

The slow forms are in the tests, which hold the two together.
"""

import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import product

import numpy as np

KERNEL_REACH = 4            # sigmas, where the smoothing kernels are cut
LEAST_WEIGHT = 1e-8         # of valid pixels under a smoothing kernel, above what rounding leaves

log = logging.getLogger('nircam')


# --- median over a ring ------------------------------------------------------------------------------

def ring_median(image, radius, width):
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
    """Number of threads to use: that of OMP_NUM_THREADS, else of the processors that numba finds for us."""
    from numba import config
    try:
        return max(int(os.environ['OMP_NUM_THREADS']), 1)
    except (KeyError, ValueError):
        return config.NUMBA_NUM_THREADS


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
    """Flat offsets of ring pixels in an image with rows of `row_length`, three arrays of uint64.

    All; those that a step to the right takes in, as seen from the new place; those that it leaves, as seen from the
    old.
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


# --- Gaussian smoothing -------------------------------------------------------------------------------

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


# --- discs -------------------------------------------------------------------------------------------

def disc_median(flags, radius):
    """Median filter of flags, (ny, nx) bool, over the disc x^2 + y^2 <= radius^2, `radius` in pixels.

    What `scipy.ndimage.median_filter` gives with that footprint and its border mode 'reflect': True where at least A -
    A // 2 of the A pixels of the disc are set.
    """
    half_widths = [math.isqrt(radius**2 - row**2) for row in range(-radius, radius + 1)]
    area = sum(2 * half + 1 for half in half_widths)        # the pixel in the middle of a row is in neither half
    padded = np.pad(flags, radius, mode='symmetric')
    # Sums from the left end of the row: the flags in a run are a difference of two, also when uint16 wraps.
    sums = np.pad(np.cumsum(padded, axis=1, dtype=np.uint16), ((0, 0), (1, 0)))
    (ny, nx), inside = flags.shape, np.zeros(flags.shape, np.uint16)        # inside: flags in the disc of each pixel
    for row, half in enumerate(half_widths):
        inside += sums[row:row + ny, radius + half + 1:][:, :nx]
        inside -= sums[row:row + ny, radius - half:][:, :nx]
    return inside >= area - area // 2


# --- medians -----------------------------------------------------------------------------------------

def mad(values):
    """Median absolute deviation of `values` without NaN: astropy's `median_absolute_deviation`, nine times faster."""
    return median(np.abs(values - median(values)))


def median(values):
    """Median of `values`, which hold no NaN, the same as np.median's to the bit.

    Ten times faster: numpy 2 has vector code (on x86) for a partition at one place, not for two as its median asks for.
    """
    values, middle = values.flatten(), values.size // 2
    values.partition(middle)
    return values[middle] if values.size % 2 else np.mean((values[:middle].max(), values[middle]))
