"""1/f noise as what it is, a series in readout order: its spectrum from the image, and a Wiener filter with masks.

The image is taken in strips of `CELL` pixels a row: (amplifiers, cells of a row in readout order, rows).  The light
of a strip is whatever is smooth down the rows, as far as its `freedom` says (`WithoutLight`); it is marginalised
exactly, so where light can be anything, the data say nothing about the stripes.  Stripes are Gaussian, one series
common to the amplifiers and one of each amplifier's own; `spectrum` finds their powers, `wiener` the series.
Rates are in DN/s; a weight is 1 / variance, 0 = masked.
"""
from stage1.masks import sums_along_rows

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.optimize import least_squares

CELL = 16                       # pixels of a row that are averaged
IDLE = 12                       # pixel times between two rows
PADDING = 1 / 8                 # of the series, so that its end does not follow its beginning
NODES = 0.8                     # of a spectrum, an octave
STEP, MISFIT = 0.7, 0.1         # one sigma: step of ln(f x power) from node to node; part of a power, besides its noise
ACCURACY, ITERATIONS = 3e-4, 300    # conjugate gradients: residual, in units of that at the start; most steps


class Readout:
    """How the pixels of a row follow each other in time.

    Parameters
    ----------
    nx : int
    amps : sequence of slice
        Columns of each amplifier, left to right; what lies between or beside them is read as well.
    directions : sequence of int
        1 = read from left to right, -1 = from right to left.
    """

    def __init__(self, nx, amps, directions):
        edges = [0, *((left.stop + right.start) // 2 for left, right in zip(amps[:-1], amps[1:], strict=True)), nx]
        self.nx, self.parts = nx, list(zip(edges[:-1], edges[1:], directions, strict=True))
        self.cells = max(-(-(stop - start) // CELL) for start, stop, _ in self.parts)
        self.period = self.cells + max(round(IDLE / CELL), 1)           # cells from one row to the next

    def sums(self, image):
        """Sums over the cells of an image, (amplifiers, cells, ny)."""
        strips = np.zeros((len(self.parts), self.cells, len(image)))
        for strip, (start, stop, direction) in zip(strips, self.parts, strict=True):
            part = sums_along_rows(image[:, start:stop][:, ::direction], CELL)
            strip[:part.shape[1]] = part.T
        return strips

    def means(self, image):
        """Means over the cells of an image, (amplifiers, cells, ny)."""
        return self.sums(image) / np.maximum(self.sums(np.ones_like(image)), 1)

    def image(self, strips):
        """The image, (ny, nx) float32, whose cells have these values."""
        image = np.zeros((strips.shape[2], self.nx), np.float32)
        for strip, (start, stop, direction) in zip(strips, self.parts, strict=True):
            image[:, start:stop] = np.repeat(strip.T.astype(np.float32), CELL, axis=1)[:, :stop - start][:, ::direction]
        return image

    def length(self, rows):
        """Length of the series of so many rows, with its padding."""
        return next_fast_len(int(rows * self.period * (1 + PADDING)), real=True)

    def series(self, strips):
        """Strips in readout order, (amplifiers, length): 0 between the rows and behind the last."""
        amplifiers, cells, rows = strips.shape
        series = np.zeros((amplifiers, self.length(rows)))
        series[:, :rows * self.period].reshape(amplifiers, rows, self.period)[:, :, :cells] = strips.transpose(0, 2, 1)
        return series

    def strips(self, series, rows):
        """The inverse of `series`."""
        parts = series[:, :rows * self.period].reshape(len(series), rows, self.period)
        return parts[:, :, :self.cells].transpose(0, 2, 1)


class WithoutLight:
    """Apply the weights of the data with the light marginalised: (noise + light covariance)^-1.

    The light of a strip is an integrated random walk along the last axis, drawn to 0.

    Parameters
    ----------
    weight : (..., n) float array
    freedom : (..., n) float array
        Variance of the second differences of the light, (DN/s)^2.
    level : (..., n) float array
        Rms of the light itself, DN/s.
    """

    def __init__(self, weight, freedom, level):
        self.weight, n = weight, weight.shape[-1]
        bend = 1 / freedom.reshape(-1, n)[:, 1:-1]
        bands = np.zeros((3, len(bend), n))
        # so strong a pull to 0 leaves such a walk the rms `level`: its variance is freedom^(1/4) pull^(-3/4) / 2.83
        bands[0] = weight.reshape(-1, n) + (2.83 * level**2 / freedom**0.25).reshape(-1, n)**(-4 / 3)
        for part, factor in ((np.s_[0, :, :-2], 1), (np.s_[0, :, 1:-1], 4), (np.s_[0, :, 2:], 1),
                             (np.s_[1, :, :-2], -2), (np.s_[1, :, 1:-1], -2), (np.s_[2, :, :-2], 1)):
            bands[part] += factor * bend
        bands[0] *= 1 + 1e-14       # else rounding may leave a strip that is all masked without a solution
        # all strips are one banded matrix without coupling
        self.factor = cholesky_banded(bands.reshape(3, -1), overwrite_ab=True, lower=True, check_finite=False)

    def __call__(self, data):
        right = (self.weight * data).ravel()
        light = cho_solve_banded((self.factor, True), right, overwrite_b=True, check_finite=False)
        return self.weight * (data - light.reshape(data.shape))


def conjugate_gradients(apply, right):
    """Solve apply(x) = right for a symmetric positive operator."""
    x, left, step = np.zeros_like(right), right.copy(), right.copy()
    square = np.vdot(left, left)
    goal = ACCURACY**2 * square
    for _ in range(ITERATIONS):
        if square <= goal:
            break
        applied = apply(step)
        length = square / np.vdot(step, applied)
        x += length * step
        left -= length * applied
        square, before = np.vdot(left, left), square
        step = left + square / before * step
    return x


# -- the spectrum

def spectrum(data, believed, readout, rng):
    """Measure the powers of the common series and of the amplifiers' own ones.

    The power of the believed data at each frequency, summed over bands, is compared with that of random series put
    through the same weights: their response to each band of the spectrum, and that to the noise alone.

    Parameters
    ----------
    data : (amplifiers, cells, rows) float array
    believed : WithoutLight
        With weights in the quiet part of the image only.
    readout : Readout
    rng : numpy Generator

    Returns
    -------
    common, own : (length/2 + 1,) float array
        Power, (DN/s)^2: eigenvalues of the covariance of a series of cells.
    """
    (amplifiers, _, rows), length = data.shape, readout.length(data.shape[2])
    bands = frequency_bands(readout, rows)
    if not believed.weight.any():
        return 0 * bands[0], 0 * bands[0]
    number, shared = len(bands), amplifiers > 1
    count = np.full(bands.shape[1], 2.)                                 # real and imaginary part
    count[0] = 1

    def powers(strips):
        waves = rfft(readout.series(strips), axis=1, norm='ortho')
        total = bands @ (count * np.abs(waves.sum(axis=0))**2) / amplifiers
        every = bands @ (count * np.sum(np.abs(waves)**2, axis=0))
        return np.concatenate([total, every - total]) if shared else every      # sum and differences of amplifiers

    response, noise = [], []
    for component in range(2 * number if shared else number):
        draw = rng.standard_normal((1 if shared and component < number else amplifiers, length))
        series = irfft(np.sqrt(bands[component % number]) * rfft(draw, axis=1), length, axis=1)
        strips = readout.strips(np.broadcast_to(series, (amplifiers, length)), rows)
        answer = believed(strips)
        response.append(powers(answer))
        noise.append(np.vdot(strips, answer))       # the trace of believed x band: power of noise and light
    response, noise = np.array(response).T, np.array(noise)
    if shared:
        noise[:number] /= amplifiers
        noise[number:] -= noise[:number]
    found = powers(believed(data))
    modes = (bands @ count)**2 / np.maximum(bands**2 @ count, 1e-300)
    modes *= rows * readout.cells / length * np.mean(believed.weight > 0)
    modes = np.concatenate([modes, modes * (amplifiers - 1)]) if shared else modes * amplifiers
    fitted = fit_powers(found - noise, np.maximum(found, noise) * np.sqrt(2 / np.maximum(modes, 1)), response, number)
    return (fitted[:number] @ bands if shared else 0 * bands[0]), fitted[-number:] @ bands


def frequency_bands(readout, rows):
    """Overlapping bands of a 1/f spectrum, triangles in log f, (bands, frequencies); their sum is lowest / f."""
    frequency = np.fft.rfftfreq(readout.length(rows))
    lowest = 1 / (rows * readout.period)
    number = max(round(np.log2(0.5 / lowest) * NODES), 3)
    frequency = np.maximum(frequency, lowest)
    place = np.log(frequency / lowest) / np.log(0.5 / lowest) * (number - 1)
    return triangles(place, number) * lowest / frequency


def triangles(place, number):
    """Overlapping bands, (number, n): what is at a `place` belongs to the whole numbers beside it, to 1 in sum."""
    return np.maximum(1 - np.abs(place - np.arange(number)[:, None]), 0)


def fit_powers(found, error, response, number):
    """Fit f x power at the nodes: positive, smooth in log f, and without regard to bands that stick out."""
    groups = response.shape[1] // number
    scale = np.maximum(found, 0).sum() / response.sum() + 1e-30

    def residuals(logarithms):
        powers = response @ (scale * np.exp(np.clip(logarithms, -30, 30)))
        misfit = (found - powers) / np.sqrt(error**2 + MISFIT**2 * (found**2 + powers**2) / 2 + 1e-30)
        steps = np.diff(logarithms.reshape(groups, number), axis=1) / STEP
        return np.concatenate([misfit, steps.ravel(), logarithms / (6 * np.sqrt(number))])

    grid = np.stack(np.meshgrid(*[np.arange(-14, 3.)] * groups)).reshape(groups, -1).T
    start = min((np.repeat(levels, number) for levels in grid),
                key=lambda levels: np.sum(np.sqrt(1 + residuals(levels)**2)))
    return scale * np.exp(np.clip(least_squares(residuals, start, loss='soft_l1', max_nfev=30).x, -30, 30))


# -- the series

def wiener(data, believed, readout, common, own):
    """Posterior mean of the stripes, (amplifiers, cells, rows), DN/s; arguments as for and from `spectrum`."""
    (amplifiers, _, rows), length = data.shape, readout.length(data.shape[2])
    if not believed.weight.any():
        return np.zeros_like(data)
    weight = believed.weight[believed.weight > 0].mean()
    # the unknown is white: stripes = root x unknown; the damping is what a mean weight everywhere would leave
    powers = own, own + amplifiers * common
    damping = [1 / (1 + weight * power) for power in powers]
    root = [np.sqrt(power * damp) for power, damp in zip(powers, damping, strict=True)]

    def mixed(waves, factors):
        """Factors for the differences of the amplifiers, and for their mean."""
        return factors[0] * waves + (factors[1] - factors[0]) * waves.mean(axis=0)

    def stripes(waves):
        return readout.strips(irfft(mixed(waves, root), length, axis=1), rows)

    def from_strips(strips):
        return mixed(rfft(readout.series(strips), axis=1), root)

    def apply(unknown):
        waves = rfft(unknown, axis=1)
        return irfft(mixed(waves, damping) + from_strips(believed(stripes(waves))), length, axis=1)

    right = irfft(from_strips(believed(data)), length, axis=1)
    return stripes(rfft(conjugate_gradients(apply, right), axis=1))


def rehearsal(believed, readout, powers, rng):
    """Stripes drawn from the spectra, noise drawn for the data, and the stripes found in their sum: like the data."""
    amplifiers, _, rows = believed.weight.shape
    length = readout.length(rows)
    common, own = (irfft(np.sqrt(power) * rfft(rng.standard_normal((number, length)), axis=1), length, axis=1)
                   for power, number in zip(powers, (1, amplifiers), strict=True))
    truth = readout.strips(common + own, rows)
    noise = rng.standard_normal(truth.shape) / np.sqrt(np.maximum(believed.weight, 1e-12))
    found = wiener(np.where(believed.weight > 0, truth + noise, 0), believed, readout, *powers)
    return truth, noise, found
