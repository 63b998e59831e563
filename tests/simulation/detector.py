"""The detector: gain, noise, flat, lost pixels, bias and stripes."""

import math

import numpy as np

from .frame import BORDER, IDLE, NFRAMES, NX, NY, normal, outputs, reference_pixels, stream, subarray_place, uniform

STRIPE_RMS = 0.004                               # DN/s, rms of the mean over an amp-row
COLUMN_RMS = 0.3 * STRIPE_RMS                    # DN/s, of the column pattern
COMMON_STRIPES = 0.7                             # share of that rms that the four amplifiers have in common
LONGEST_STRIPE = 300                             # rows, longest period in the 1/f noise
# power of the 1/f noise of a pair of frames in readout order at 100 kHz, DN^2, measured on darks: common to the
# amplifiers, first / f below 1 Hz and second / f above 10 Hz, and of each by itself, third / f
SPECTRA = {'NRCA3': (1e5, 3e4, 6.5e3), 'NRCB3': (2e5, 1e5, 8.5e3), 'NRCB1': (4.5e5, 6e4, 9e3),
           'NRCBLONG': (3.6e5, 7e4, 1e4)}
ALIKE = {'NRCALONG': 'NRCBLONG', **{f'NRCA{n}': 'NRCA3' for n in (1, 2, 4)}, **{f'NRCB{n}': 'NRCB3' for n in (2, 4)}}
FLAT_ERROR = 0.001
SATURATION = 56000.                              # DN, the saturation reference
FULL_WELL = 62000.                               # DN, where the raw counts end
# DN, of one frame
READ_NOISE = {'NRCA1': 5.19, 'NRCA2': 5.70, 'NRCA3': 4.55, 'NRCA4': 4.99, 'NRCALONG': 4.78,
              'NRCB1': 5.62, 'NRCB2': 5.04, 'NRCB3': 5.60, 'NRCB4': 4.86, 'NRCBLONG': 4.90}


def is_long(detector):
    """Tell whether a detector belongs to the long-wavelength channel."""
    return detector.endswith('LONG')


def gain(detector):
    """Gain, e-/DN."""
    return 1.82 if is_long(detector) else 2.05


def reading_axes(detector):
    """How a detector is read, {keyword: value}: from the right and upwards, or from the left and downwards."""
    right = detector in ('NRCA1', 'NRCA3', 'NRCALONG', 'NRCB2', 'NRCB4')
    return {'FASTAXIS': -1, 'SLOWAXIS': 2} if right else {'FASTAXIS': 1, 'SLOWAXIS': -2}


def make_flat(detector, filter_):
    """Flat field, float32 (2048, 2048): 3 % smooth structure, 0.4 % blobs, 0.6 % pixel to pixel; border 1."""
    rng = stream('flat', detector, filter_)
    flat = 1 + 0.03 * _waves(rng, 1, 4) + 0.004 * _waves(rng, 20, 70)
    flat += np.float32(0.006) * normal(rng)
    flat[reference_pixels()] = 1
    return flat


def _waves(rng, low, high):
    """Random waves of `low` to `high` half periods an axis, zero mean and unit rms, float32 (2048, 2048)."""
    basis = np.cos(np.pi * np.outer((np.arange(NX) + 0.5) / NX, np.arange(high))).astype(np.float32)
    weights = rng.standard_normal((high, high), dtype=np.float32)
    weights[:low, :low] = 0
    image = basis @ weights @ basis.T
    return (image - image.mean()) / image.std()


def bad_pixels(detector):
    """Draw the pixels that a detector has lost, and the excess of its hot ones, DN/s; images (2048, 2048).

    Lost, True = DO_NOT_USE, are 0.4 %, 25 clusters, 700 pixels of a row, one column, and the reference pixels; hot are
    0.1 % of the others, exponential with a mean of 3.
    """
    rng = stream('pixels', detector)
    bad = uniform(rng) < 0.004
    for x, y, r in zip(*rng.integers(20, NX - 20, (2, 25)), rng.uniform(2, 6, 25), strict=True):
        dy, dx = np.ogrid[-8:9, -8:9]
        bad[y - 8:y + 9, x - 8:x + 9] |= dy**2 + dx**2 <= r**2
    row, start, column = rng.integers(100, 1200, 3)
    bad[row, start:start + 700] = True
    bad[:, column] = True
    hot = np.zeros((NY, NX), np.float32)
    warm = (uniform(rng) < 0.001) & ~bad & ~reference_pixels()
    hot[warm] = rng.exponential(3, np.count_nonzero(warm)) + 0.05
    return bad | reference_pixels(), hot


def superbias(detector):
    """Bias, DN, float32 (2048, 2048): 11000 with structure, offsets of amplifiers and odd columns."""
    rng = stream('superbias', detector)
    bias = 11000 + 150 * _waves(rng, 1, 8) + 60 * normal(rng)
    bias += np.repeat(rng.normal(0, 200, 4), 512).astype(np.float32)
    bias[:, ::2] += np.float32(rng.normal(0, 30))
    return bias


def stripe_pattern(rng, present=True, detector='NRCA3', subarray='FULL', noise=STRIPE_RMS, columns=COLUMN_RMS, groups=9,
                   tgroup=1., strength=1.):
    """Draw the 1/f noise and the column pattern of a rate image.

    Part of the 1/f noise is common to all amplifiers.

    Parameters
    ----------
    rng : Generator
    present : bool
        False: all 0.
    detector, subarray : str
    noise : float or 'measured'
        Rms of the mean over an amp-row, DN/s, of power 1/f; or as measured on darks, see `SPECTRA`.
    columns : float
        Rms of the column pattern, DN/s.
    groups, tgroup : int, float
        Groups, and seconds between them, of the ramp behind the measured noise.
    strength : float
        By how much the measured noise is stronger than in such a ramp.

    Returns
    -------
    stripes : (2048, 2048) float32
        DN/s; 0 in the reference pixels and outside the subarray.
    row_pattern : (2048, 4) or (2048, 1) float32
        Mean of each amp-row.
    column_pattern : (2048,) float32
        0 in the reference pixels.
    """
    place = subarray_place(detector, subarray)
    stripes = np.zeros((NY, NX), np.float32)
    column_pattern = np.zeros(NX, np.float32)
    if present:
        if noise == 'measured':
            # the slope through independent noise is one such noise with the rms of the slope
            scale = strength * math.sqrt(12 / (NFRAMES * (groups**3 - groups))) / tgroup
            frame = measured_noise(rng, detector, subarray)
            stripes += np.float32(scale) * less_reference_pixels(frame, detector, subarray)
        else:
            parts = COMMON_STRIPES, math.sqrt(1 - COMMON_STRIPES**2)
            stripes += noise * read_out(lambda kind, *shape: parts[kind] * one_over_f(rng, *shape), detector, subarray)
        shape = rng.standard_normal(NX) + 0.5 * rng.choice([-1, 1], NX)
        column_pattern[:] = columns * shape / shape.std()
        stripes[reference_pixels()] = 0
        column_pattern[:BORDER] = column_pattern[-BORDER:] = 0
    return stripes, row_means(stripes, place, subarray), column_pattern


def row_means(stripes, place, subarray):
    """Mean of each amplifier's row without reference pixels, (2048, 4) or (2048, 1)."""
    left, right = place[1].start, place[1].stop
    step = (right - left) // outputs(subarray)
    return np.stack([stripes[:, max(start, BORDER):min(start + step, NX - BORDER)].mean(axis=1)
                     for start in range(left, right, step)], axis=1)


def read_out(draw, detector, subarray):
    """One frame of noise in readout order, float32 (2048, 2048), 0 outside the subarray.

    Each amplifier reads its columns and some idle pixel times a row; of four, B and D read from right to left, and one
    as FASTAXIS says. SLOWAXIS tells which row is the first. `draw(kind, rows, columns)` gives the noise that all share,
    kind 0, and that of each, kind 1.
    """
    fast, slow = reading_axes(detector).values()
    rows, columns = subarray_place(detector, subarray)
    width = (columns.stop - columns.start) // outputs(subarray)
    frame = np.zeros((NY, NX), np.float32)
    common = draw(0, rows.stop - rows.start, width)
    for amp in range(outputs(subarray)):
        series = common + draw(1, rows.stop - rows.start, width)
        start = columns.start + width * amp
        direction = (-1)**amp if outputs(subarray) > 1 else fast
        frame[rows, start:start + width] = series[::slow // 2, ::direction]
    return frame


def one_over_f(rng, rows, columns, longest=LONGEST_STRIPE):
    """Noise of power 1/f in readout order, periods to `longest` rows, scaled to row means of unit rms; float32."""
    length = rows * (columns + IDLE)
    frequency = np.fft.rfftfreq(length)
    seen = frequency >= 1 / (longest * (columns + IDLE))
    spectrum = rng.standard_normal(frequency.size) + 1j * rng.standard_normal(frequency.size)
    spectrum[seen] /= np.sqrt(frequency[seen])
    spectrum[~seen] = 0
    series = np.fft.irfft(spectrum, length).reshape(rows, columns + IDLE)[:, :columns]
    return (series / series.mean(axis=1).std()).astype(np.float32)


def measured_noise(rng, detector, subarray='FULL'):
    """1/f noise of one frame as measured on darks, DN, float32 (2048, 2048), reference pixels included.

    Frames are independent of each other: what drifts from frame to frame is left to the reference pixels.
    """
    slow, quick, own = SPECTRA[ALIKE.get(detector, detector)]

    def draw(kind, rows, columns):
        length = rows * (columns + IDLE)
        hertz = np.fft.rfftfreq(length, 1e-5)[1:]
        power = own / hertz if kind else np.exp(np.interp(np.log10(hertz), (0, 1), np.log((slow, quick)))) / hertz
        spectrum = np.fft.rfft(rng.standard_normal(length))
        series = np.fft.irfft(spectrum * np.sqrt(np.append(0, power / 2)), length)
        return series.reshape(rows, columns + IDLE)[:, :columns].astype(np.float32)

    return read_out(draw, detector, subarray)


def less_reference_pixels(noise, detector, subarray):
    """Noise, (2048, 2048), less what the pipeline's reference-pixel step takes off, with its defaults."""
    result, (rows, columns) = noise.copy(), subarray_place(detector, subarray)
    if outputs(subarray) == 1:                   # odd and even columns, means
        inside, reference = result[rows, columns], reference_pixels()[rows, columns]
        for first in (0, 1) if reference.any() else ():
            inside[:, first::2] -= inside[:, first::2][reference[:, first::2]].mean()
        return result
    edge = np.r_[:BORDER, -BORDER:0]
    for first in (start + odd for start in range(0, NX, 512) for odd in (0, 1)):
        part = np.s_[:, first:first + 511:2]
        result[part] -= noise[edge][part].mean()
    sides = [np.pad(result[:, side], ((5, 5), (0, 0)), 'reflect') for side in (np.s_[:BORDER], np.s_[-BORDER:])]
    windows = [np.lib.stride_tricks.sliding_window_view(side, 11, axis=0) for side in sides]
    return result - np.mean([np.median(window, axis=(1, 2)) for window in windows], axis=0)[:, None].astype(np.float32)
