"""The detector: gain, noise, flat, lost pixels, bias and stripes."""

import math

import numpy as np

from .frame import AMPS, BORDER, NX, NY, normal, reference_pixels, stream, uniform

IDLE = 12                                        # idle pixel times at the end of an amplifier's row
STRIPE_RMS = 0.004                               # DN/s, rms of the mean over an amp-row
COMMON_STRIPES = 0.7                             # share of that rms that the four amplifiers have in common
LONGEST_STRIPE = 300                             # rows, longest period in the 1/f noise
COLUMN_RMS = 0.0012                              # DN/s
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


def fast_axis(detector):
    """Return (FASTAXIS, SLOWAXIS)."""
    return (-1, 2) if detector in ('NRCA1', 'NRCA3', 'NRCALONG', 'NRCB2', 'NRCB4') else (1, -2)


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


def stripe_pattern(rng, present=True):
    """Draw the 1/f noise (2048, 2048), its mean over each amp-row (2048, 4), and the column pattern (2048,), DN/s.

    Each amplifier sees a series with power 1/f in readout order, 512 pixels and 12 idle ones a row; amplifiers B and D
    are read from right to left. A part is common to all four. All is float32, and 0 in the reference pixels.
    """
    stripes = np.zeros((NY, NX), np.float32)
    columns = np.zeros(NX, np.float32)
    if present:
        common = COMMON_STRIPES * one_over_f(rng)
        for amp in range(4):
            series = common + math.sqrt(1 - COMMON_STRIPES**2) * one_over_f(rng)
            stripes[:, 512 * amp:512 * (amp + 1)] = STRIPE_RMS * (series[:, ::-1] if amp % 2 else series)
        shape = rng.standard_normal(NX) + 0.5 * rng.choice([-1, 1], NX)
        columns[:] = COLUMN_RMS * shape / shape.std()
        stripes[reference_pixels()] = 0
        columns[:BORDER] = columns[-BORDER:] = 0
    rows = np.stack([stripes[:, amp].mean(axis=1) for amp in AMPS], axis=1)
    return stripes, rows, columns


def one_over_f(rng):
    """Noise of power 1/f in readout order, scaled to row means of unit rms, float32 (2048, 512)."""
    length = NY * (512 + IDLE)
    frequency = np.fft.rfftfreq(length)
    seen = frequency >= 1 / (LONGEST_STRIPE * (512 + IDLE))
    spectrum = rng.standard_normal(frequency.size) + 1j * rng.standard_normal(frequency.size)
    spectrum[seen] /= np.sqrt(frequency[seen])
    spectrum[~seen] = 0
    series = np.fft.irfft(spectrum, length).reshape(NY, 512 + IDLE)[:, :512]
    return (series / series.mean(axis=1).std()).astype(np.float32)
