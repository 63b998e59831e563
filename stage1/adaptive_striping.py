"""The adaptive method for 1/f striping: light and stripes of a rate image estimated in turn.

Arrays in, new arrays out; images are (ny, nx), rates in DN/s, masks are True where a pixel is to be ignored.
`adaptive` is the verb.  In each of the rounds the light is modelled (light_model.py), what the model may miss
is estimated from its brightness, from the structure along rows and from how far it bends down them (`strips`), and
the stripes are measured where that leaves something to measure (within_rows.py).  What is not understood is left
alone: stripes are the same everywhere in the image, and not the same along rows as along columns, so how large they
can be is learnt from the calm part of the image, less what the columns hold there too (`calm_blocks`); what a
rehearsal with stripes as large does not have is light (`credible`).
"""
import itertools
import warnings

from stage1.amp_offsets import amp_levels, amp_offsets
from stage1.light_model import SQUARE, cell_means, model_light, robust_spread, source_finder
from stage1.masks import block_sums, blown_up, polynomial, sums_along_rows
from stage1.within_rows import Readout, WithoutLight, conjugate_gradients, rehearsal, spectrum, triangles, wiener

import numpy as np
from scipy import ndimage
from scipy.fft import dctn, idctn

SOURCE_SIGMA = 4.               # threshold for sources
CAUTION = 7., 1., 0.            # rounds of light and stripes in turn, and by how much thresholds are raised in each, in
#                                 units of the share of 1/f noise: what is left of stripes is no source and no light
LIGHT_CAUTION = 1.              # at least, for light; in the last round sources are masked, or they would lose light
SOURCE_ROWS = 1., 16.           # rows, Gaussian sigma from, to: what one cell alone shows may be a small source
TOLERANCE = 1.5                 # how much more power than a rehearsal has is believed
SHORTEST = 3                    # octaves, the shortest waves: hardly any light has them
BESIDE = 2                      # octaves along the rows that tell whether whole rows of amplifiers may hold light
CLIP = 4.                       # sigma; single pixels further off take no part
APART = 24                      # cells of a column so far apart, or a quarter of a small image, tell how large they are
COLUMN_DRAWS = 4                # random columns that tell how much of them is seen
SLOW = 3                        # degree of the polynomial along columns, and rows, that belongs to the sky
OFFSET = 3e-4                   # DN/s, rms of what is left of offsets of amplifiers where there are some

# light that the model may miss
FINEST = 75.                    # pixels, scale of structure that is as bright as the light itself
FLOOR = 2e-8                    # DN/s; second difference of the emptiest sky, from row to row
SKY_LEVEL, SKY_TOLERANCE = 3e-4, 0.02       # DN/s, of the sky in a strip; and part of the sky that no plane explains
BRIGHT_FLOOR = 5e-4             # DN/s, what of the modelled light may be noise
STRUCTURE_SIZES = (16, 64)      # pixels, blocks along rows whose second differences show structure
STRUCTURE_SIGMA = 4.            # significance of structure
LEVEL_BY_STRUCTURE = 12.        # rms of the light in units of that structure: more, as slow light has little of it
LEVEL_BY_REST = 6.              # and at most, in units of what is left of light and stripes around
AROUND = 1, 3, 33               # amplifiers, cells and rows, where such things are measured
BENDS = 0.7                     # second differences of means over n rows have so much more variance than from row to
#                                 row, in units of n^3: 0.55 in an integrated random walk; more is less freedom
BENDING_ROWS, BENDING_AROUND = (8, 16, 32), (1, 3, 3)   # such n; amplifiers, cells and means, where it is measured
OUTLYING, OUTLYING_ROWS = 8., (4., 16.)     # degrees of freedom of cells that stand out, on rows from, to (sigma)
NOISE_BLOCK = 32                # pixels, side of the blocks in which the noise is measured
PINK_IN_CELL = 1.7              # variance of 1/f noise within a cell in the same units as `pink_variance`
LEFT = 1.4                      # structure that stripes leave in means over n rows, in units of `pink_variance` / n
SMOOTH_FRACTION = 0.3           # of the image; where less has smooth light only, stripes make less of the structure
PINK = 3.3                      # variance of neighbours' differences / 2, in units of f x power of the stripes

# the calm part of the image
CALM_BLOCK = 128                # pixels, side
CALM_FREEDOM = 1e-5             # DN/s, second difference of light from row to row, at most
CALM_LEAST = 4                  # blocks (a quarter of a small image); else the calmest
CALM_SCALES = (1, 4, 16, 64)    # rows, over which rows are compared with columns
LONGEST = 256                   # rows, over which the last two of these comparisons go on alike
LASTS = 0.05                    # part of the variance of stripes over some rows, that four times as many have at least
UNTESTED = 0.3                  # and at most where fewer than 8 differences can be compared
DOUBT = 5.                      # factor on the variance of light, from columns, that is taken off that of rows


def adaptive(image, unusable, amps, directions=None, within=True):
    """Measure 1/f noise and column pattern of a rate image while modelling its light.

    What is constant along a row cannot be told from sky that varies with y alone.  The choice: all that
    varies slowly, as a cubic over the whole image, is sky, so the patterns have no mean and no trend.

    Parameters
    ----------
    image : (ny, nx) float array
        Flat-fielded rate image, DN/s.
    unusable : (ny, nx) bool array
        True = ignore: DO_NOT_USE, HOT, undefined.  What is not finite is ignored as well.
    amps : sequence of slice
        Columns of each amplifier, left to right.
    directions : sequence of int, optional
        1 = the amplifier is read from left to right, -1 = from right to left; they alternate, from 1, unless given.
    within : bool
        False = no noise within rows: one offset per row of an amplifier.

    Returns
    -------
    rows : (ny, len(amps)) float array
        DN/s; their mean over the amplifiers has no slow part.
    columns : (nx,) float array
        DN/s, no slow part; 0 outside the amplifiers.
    mask : (ny, nx) bool array
        True = took no part in the last measurement.
    light : (ny, nx) float32 array
        Sky and sources as modelled, DN/s: what the stripes were measured on is `image` less this.
    numbers : dict
        'pedestal' sky level [DN/s], 'within_rms' [DN/s], 'shrinkage' per amplifier: variance of an amp-row that
        stays undetermined over its prior variance, from stripes drawn from the prior (0 = measured, 1 = nothing
        known).
    inside : (ny, nx) float32 array
        Noise within rows, DN/s; its mean over every row of an amplifier is 0.

    Raises
    ------
    ValueError
        Shapes do not fit, or hardly any usable pixel.
    """
    if image.shape != unusable.shape or image.ndim != 2:
        raise ValueError(f'image {image.shape}, mask {unusable.shape}: need two equal shapes (ny, nx)')
    unusable = unusable | ~np.isfinite(image)
    if unusable.mean() > 0.9:
        raise ValueError(f'{unusable.mean():.0%} of the pixels are unusable')
    (ny, nx), rng = image.shape, np.random.default_rng(0)
    start = np.float32(np.median(image[~unusable]))
    image = np.where(unusable, np.float32(0), image - start).astype(np.float32)
    along = Readout(nx, amps, directions or [1 - 2 * (k % 2) for k in range(len(amps))])
    across = Readout(ny, [slice(0, ny)], [1])                   # of the turned image
    outside = np.ones(nx, bool)
    for amp in amps:
        outside[amp] = False
    borders = [first for first, _, _ in along.parts[1:]]
    offsets = amp_offsets(image, unusable, borders)
    image = np.where(unusable, np.float32(0), image - offsets)
    rows, columns = first_patterns(image, unusable, amps)
    columns = np.where(outside, 0, columns)
    pattern, find_sources = expand(rows, columns, amps), source_finder(unusable)
    guess, share = first_pink(image - columns.astype(np.float32), unusable)
    pink, smooth, light, halos, mask = 0., 1., np.zeros_like(image), 0., unusable
    for round_, caution in enumerate(CAUTION):
        if round_ and borders and not offsets.any():        # offsets that light and columns hid
            levels, doubt = amp_levels(pattern, amps)
            offsets = amp_offsets(image - light - pattern + levels, mask, borders, doubt)
            if offsets.any():
                image = np.where(unusable, np.float32(0), image - offsets)
                pattern = pattern - levels
        mask = find_sources(image - pattern - light, SOURCE_SIGMA * (1 + caution * share))
        sky, halos, light, extended = model_light(image - pattern, mask, unusable, halos,
                                                  borders if offsets.any() else (),
                                                  1 + max(caution, LIGHT_CAUTION) * share)
        residual = image - light
        noise = noise_map(image, mask, pink)
        mask |= np.abs(residual - pattern) > CLIP * np.sqrt(noise**2 + np.float32(PINK_IN_CELL * pink))
        if round_ == 0 and extended.mean() < 0.8:       # stripes not yet known are in the light: measure beside it
            mask |= extended
        mask[:, outside] = True
        bright = brightness(light, sky, abs(start))
        # what stripes may leave is not taken for light, unless the image is full of it
        allowed = (pink if round_ else guess) * min(smooth / SMOOTH_FRACTION, 1)
        stripes = residual - columns.astype(np.float32)
        clean = residual - pattern
        measured, weight, freedom, level = strips(along, stripes, clean, mask, noise, bright, allowed, round_ > 0)
        candidates = along.image(freedom) < CALM_FREEDOM**2
        calm, shares = calm_blocks(stripes, mask, noise, candidates, borders)
        smooth = candidates.mean()
        quiet = WithoutLight(np.where(along.means(calm) > 0.5, weight, 0), freedom, level)
        powers = [power * calm_share(shares, along, power.size) for power in spectrum(measured, quiet, along, rng)]
        pink = pink_variance(powers)
        if offsets.any():                       # what is left of them is measured with the stripes
            powers[1][0] += OFFSET**2 * along.length(ny)        # at frequency 0
        believed = WithoutLight(weight, freedom, level)
        series = wiener(measured, believed, along, *powers)
        truth, scatter, found = rehearsal(believed, along, powers, rng)
        kept = credible(series, truth, found)
        kept -= polynomial(kept.mean(axis=(0, 1)), SLOW)
        pattern = along.image(kept)
        clean = (residual - pattern - columns.astype(np.float32)).T
        data, weight, freedom, level = strips(across, (residual - pattern).T, clean, mask.T, noise.T, bright.T,
                                              allowed, round_ > 0)
        quiet = WithoutLight(np.where(across.means(calm.T) > 0.5, weight, 0), freedom, level)
        columns, _ = measure_columns(data, quiet, WithoutLight(weight, freedom, level), rng)
        columns = np.where(outside, 0, columns)
        pattern += columns.astype(np.float32)
        pattern[:, outside] = 0
    kept -= own_part(measured - series, believed, truth, scatter, found)
    inside = along.image(kept) + offsets
    inside[:, outside] = 0
    rows = np.stack([inside[:, amp].mean(axis=1, dtype=float) for amp in amps], axis=1)
    inside = inside - expand(rows, 0 * columns, amps) if within else np.zeros_like(inside)
    return rows, columns, mask, light + start, {
        'pedestal': float(start + sky.mean()),
        'within_rms': float(inside.std()), 'shrinkage': undetermined(truth, found)}, inside


def expand(rows, columns, amps):
    """Return the pattern of rows and columns as a float32 image; 0 outside the amplifiers."""
    pattern = np.zeros((len(rows), len(columns)), np.float32)
    for k, amp in enumerate(amps):
        pattern[:, amp] = rows[:, k, None] + columns[amp]
    return pattern


def first_patterns(image, unusable, amps):
    """Medians of amp-rows, and then of columns, beside coarse light: so that stripes are not taken for sources."""
    coarse = ndimage.median_filter(image[::4, ::4], 9)
    coarse = ndimage.zoom(coarse, 4, order=1, grid_mode=True, mode='nearest')[:image.shape[0], :image.shape[1]]
    values = np.where(unusable, np.nan, image - coarse)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)         # where all is masked
        rows = np.stack([np.nan_to_num(np.nanmedian(values[:, amp], axis=1)) for amp in amps], axis=1)
        columns = np.nan_to_num(np.nanmedian(values - expand(rows, np.zeros(image.shape[1]), amps), axis=0))
    return rows, columns


def measure_columns(data, quiet, believed, rng):
    """Posterior mean of the columns, (nx,), DN/s, and their prior rms, which comes from the `quiet` strips.

    `data` are means over cells along the columns, (1, cells, nx). The prior is the mean product of cells of a column,
    whatever their noise, that are far apart (`APART`): light that is as narrow as a column is not as long.
    """
    def weighted(weights, columns):
        """The weights applied to columns that are alike in all cells, (cells, nx)."""
        return weights(np.broadcast_to(columns, data.shape))[0]

    def products(cells):
        """Sums over all pairs of cells of a column that are far apart."""
        return np.sum(cells[apart:] * np.cumsum(cells, axis=0)[:-apart], axis=0)

    apart = max(min(APART, data.shape[1] // 4), 2)
    found = quiet(data)[0]
    column = found.sum(axis=0)
    found *= np.minimum(1, 5 * robust_spread(column[column != 0]) / np.maximum(np.abs(column), 1e-30))
    common = products(found)
    response = np.mean([products(weighted(quiet, draw)).sum()
                        for draw in rng.choice([-1., 1.], (COLUMN_DRAWS, data.shape[2]))])
    rms = np.sqrt(max(common.sum() - np.linalg.norm(common), 0) / max(response, 1e-30))     # less one sigma of chance
    draw = rms * rng.choice([-1., 1.], data.shape[2])
    columns, found = (rms * conjugate_gradients(lambda x: x + rms * weighted(believed, rms * x).sum(axis=0), rms * seen)
                      for seen in (believed(data)[0].sum(axis=0), weighted(believed, draw).sum(axis=0)))
    columns = credible(*(part[None, None] for part in (columns, draw, found)))[0, 0]
    return columns - polynomial(columns, SLOW), float(rms)


def undetermined(truth, found):
    """Part of the variance of amp-rows, per amplifier, that is not found in a `rehearsal`."""
    variance = np.mean(truth.mean(axis=1)**2, axis=1)
    left = np.mean((found - truth).mean(axis=1)**2, axis=1)
    return np.where(variance > 0, np.minimum(left / np.maximum(variance, 1e-30), 1), 1)


def own_part(left, believed, truth, noise, found):
    """The part of the stripes that no cell but their own shows, as far as it may be the light of a small source.

    A source too faint to be masked looks like noise within rows, and would lose up to a third of its flux. A stripe
    that is foretold from all cells but its own is less by the weighted deviation of that cell, times the variance of
    the forecast. This is alike for all cells; in a `rehearsal` it is what leaves no trace of a cell's own noise. What
    changes from each row to the next, or lasts longer down the rows than small sources, is no such light.

    Parameters
    ----------
    left : (amplifiers, cells, rows) float array
        Data less stripes, DN/s.
    believed : WithoutLight
    truth, noise, found : (amplifiers, cells, rows) float arrays
        Of the `rehearsal`.

    Returns
    -------
    (amplifiers, cells, rows) float array
        DN/s, to be taken off the stripes; its mean over each row of an amplifier is 0.
    """
    trace, seen = believed.weight * noise, believed.weight > 0
    variance = np.vdot(trace, found) / max(np.vdot(trace, believed(truth + noise - found)), 1e-30)
    own = bumps(variance * believed(left), seen, *SOURCE_ROWS)
    return own - seen * own.sum(axis=1, keepdims=True) / np.maximum(seen.sum(axis=1, keepdims=True), 1)


def credible(stripes, truth, found):
    """Stripes less what is far larger than a rehearsal has it: light that was taken for stripes.

    Light is smooth, so it is in few of the waves (cosines) that stripes are in. In bands of an octave along the rows
    and down them, stripes with more power than the `TOLERANCE` allows are reduced as a Wiener filter would for that
    power. How much power is expected, the shortest waves down the rows tell. Whole rows of amplifiers are reduced no
    more than the noise within them: only that tells of light. All this for what the amplifiers have in common, and
    for the rest.

    Parameters
    ----------
    stripes, truth, found : (amplifiers, cells, rows) float arrays
        Stripes found in the image, put into the rehearsal, and found there, DN/s. Columns are rows of one cell.

    Returns
    -------
    (amplifiers, cells, rows) float array
    """
    waves = [dctn(part, axes=(1, 2), norm='ortho') for part in (stripes, truth, found)]
    common = [part.mean(axis=0, keepdims=True) for part in waves]
    along, down = octaves(stripes.shape[1], -1), octaves(stripes.shape[2], 2)
    rest = [part - mean for part, mean in zip(waves, common, strict=True)]
    beside, kept = slice(1, 1 + BESIDE), 0
    for series, parts in ((1, common), (len(stripes) - 1, rest)):
        power, expected = (along @ part.sum(axis=0) @ down.T for part in (parts[0]**2, parts[1] * parts[2]))
        shortest = [part[:, -SHORTEST:].sum(axis=1, keepdims=True) for part in (expected, power)]
        expected = np.maximum(expected, 0) / np.clip(shortest[0] / np.maximum(shortest[1], 1e-30), 1e-9, 1)
        number = series * np.outer(along.sum(axis=1), down.sum(axis=1))
        least = power * np.maximum(1 - np.sqrt(2 / np.maximum(number, 2)), 0)       # the rest may be chance
        share = np.clip(TOLERANCE * expected / np.maximum(least, 1e-30), 0, 1)
        if len(along) > 1:
            share[0] = np.maximum(share[0], np.average(share[beside], axis=0, weights=along[beside].sum(axis=1)))
        kept = kept + parts[0] * (along.T @ share @ down)
    return idctn(kept, axes=(1, 2), norm='ortho')


def octaves(number, first):
    """Overlapping bands of the waves 0 to `number` - 1, (bands, number): octaves from 2**`first` on."""
    place = np.maximum(np.log2(np.maximum(np.arange(number), 0.5)), first) - first
    return triangles(place, np.ceil(place.max()) + 1)


# -- what can be believed

def strips(readout, values, clean, mask, noise, bright, pink, known):
    """Data of one direction, and how much of them is believed.

    Parameters
    ----------
    readout : Readout
    values, clean, mask, noise, bright : (n, m) arrays
        What to measure on, the same without all patterns, mask, noise of a pixel and modelled light: the image,
        or all of it turned for columns.
    pink : float
        `pink_variance` of the stripes: what they leave in the image is not structure of light.
    known : bool
        Whether `clean` is free of stripes, so that its scatter tells of light.

    Returns
    -------
    data, weight, freedom, level : (parts, cells, n) float arrays
        Means over cells, 1 / variance of their noise; variance of the second differences from row to row and rms of
        the light that is left in them.
    """
    good = (~mask).astype(np.float32)
    number = readout.sums(good)
    some = np.maximum(number, 1)
    data, variance = readout.sums(values * good) / some, readout.sums(noise**2 * good) / some**2
    fine, wide = (readout.means(structure(clean, good, noise, size, pink)) for size in STRUCTURE_SIZES)
    missed, bends = LEVEL_BY_STRUCTURE**2 * (fine + wide), fine / (BENDS * STRUCTURE_SIZES[0]**3)
    if known:
        rest = readout.sums(clean * good) / some
        missed = np.minimum(missed, LEVEL_BY_REST**2 * mean_square(rest, variance, number))
        variance = variance * outlying(rest, variance + pink / PINK, number > 0)
    weight = np.where(number > 0, 1 / np.maximum(variance, 1e-20), 0)
    if known:
        bends = np.minimum(bends, bending(rest, weight))
    bright = readout.means(bright)
    freedom = (bright / FINEST**2 + FLOOR)**2 + bends
    return data, weight, freedom, np.sqrt(SKY_LEVEL**2 + bright**2 + missed)


def brightness(light, sky, level):
    """Modelled light that is not sky, DN/s (ny, nx) float32: the largest around, as its model may be shifted."""
    means, _ = cell_means(light, np.zeros(light.shape, bool))
    bright = np.maximum(np.abs(means - sky), np.abs(means) - SKY_TOLERANCE * level)
    bright = ndimage.maximum_filter(ndimage.uniform_filter(bright, 3), 5)
    return blown_up(np.maximum(bright - BRIGHT_FLOOR, 0), SQUARE)[:len(light), :light.shape[1]]


def structure(clean, good, noise, size, pink):
    """Variance of second differences along rows of means over blocks, beyond the noise, as an image.

    Stripes hardly enter: they are almost the same in neighbouring blocks, and what 1/f noise with `pink` leaves
    there counts as noise.  0 where not significant; where too little is seen, the largest around.
    """
    number = block_sums(good, size)
    some = np.maximum(number, 1)
    means, variance = block_sums(clean * good, size) / some, block_sums(noise**2 * good, size) / some**2
    square, expected, seen = second_differences(means.T, variance.T, number.T > size**2 / 8)
    square, expected, seen = (ndimage.uniform_filter(part.T, 5) for part in (square, expected, seen))
    seen = np.maximum(seen, 0.04)
    enough = seen > 0.15
    excess = (square - expected) / seen
    left = LEFT * pink / size
    excess, error = excess - left, (left + expected / seen) * np.sqrt(2 / 25 / seen)
    excess = np.where((excess > STRUCTURE_SIGMA * error) & enough, excess - error, 0)
    excess = np.where(enough, excess, ndimage.maximum_filter(excess, 9))
    return blown_up(ndimage.maximum_filter(excess, 3), size)[:len(clean), :clean.shape[1]]


def mean_square(means, variance, number):
    """Mean square of cells beyond the noise, of those around that are seen; infinite where none is."""
    square, seen = (ndimage.uniform_filter(part, AROUND) for part in (number * (means**2 - variance), number))
    return np.where(seen > 0.5, np.maximum(square / np.maximum(seen, 0.5), 0), np.inf)


def outlying(means, variance, some):
    """Factors for the variance of cells, which with the rows above and below stand out from their strip: 1 or more.

    As if the noise had Student's distribution: light that no mask covers is rare, and not Gaussian.
    """
    square = bumps(np.where(some, means, 0), some, *OUTLYING_ROWS)**2 / np.maximum(variance, 1e-20)
    square *= 2 * np.sqrt(np.pi) * OUTLYING_ROWS[0]     # a mean over rows has less noise
    return np.maximum((OUTLYING + square) / (OUTLYING + 1), 1)


def bumps(strips, seen, short, long):
    """What is longer than `short` and shorter than `long` rows (Gaussian sigma) in strips, of cells that are `seen`."""
    seen = seen.astype(float)
    means = [ndimage.gaussian_filter1d(strips, rows) / np.maximum(ndimage.gaussian_filter1d(seen, rows), 0.05)
             for rows in (short, long)]
    return seen * (means[0] - means[1])


def bending(means, weight):
    """Variance of second differences from row to row that light in the cells has at most; infinite where few are seen.

    Of means over more rows, light has more, and noise less: so means over several rows show it around each cell.
    """
    most = np.full(means.shape, np.inf)
    for rows in BENDING_ROWS:
        down = np.arange(0, means.shape[2], rows)
        total, values = (np.add.reduceat(part, down, axis=2) for part in (weight, weight * means))
        variance, enough = 1 / np.maximum(total, 1e-20), np.add.reduceat(weight > 0, down, axis=2, dtype=int) > rows / 4
        parts = second_differences(*(np.moveaxis(part, 2, 0) for part in (values * variance, variance, enough)))
        square, expected, seen = (ndimage.uniform_filter(np.moveaxis(part, 0, 2), BENDING_AROUND) for part in parts)
        number = np.prod(BENDING_AROUND) * seen
        error = np.maximum(square, expected) * np.sqrt(2 / np.maximum(number, 1))
        found = np.where(number > 3, (np.maximum(square - expected, 0) + error) / np.maximum(seen, 1e-3), np.inf)
        most = np.minimum(most, np.repeat(found / (BENDS * rows**3), rows, axis=2)[:, :, :means.shape[2]])
    return most


def second_differences(means, variance, some):
    """Squares of second differences along the first axis, what noise makes of them, and 1 where there is one."""
    seen = some[2:] & some[1:-1] & some[:-2]
    parts = ((means[2:] - 2 * means[1:-1] + means[:-2])**2, variance[2:] + 4 * variance[1:-1] + variance[:-2],
             np.ones(seen.shape))
    margin = [(1, 1)] + [(0, 0)] * (means.ndim - 1)
    if len(means) < 3:
        return [np.zeros(means.shape)] * 3
    return [np.pad(np.where(seen, part, 0), margin) for part in parts]


def noise_map(image, mask, pink):
    """Noise of a pixel, DN/s (ny, nx) float32, from the differences of neighbours along rows in blocks.

    `pink` is the variance that the stripes add to them.
    """
    size, (ny, nx) = NOISE_BLOCK, image.shape
    differences = np.full((-(-ny // size) * size, -(-nx // size) * size), np.nan, np.float32)
    differences[:ny, :nx - 1] = np.where(mask[:, 1:] | mask[:, :-1], np.nan, np.abs(np.diff(image, axis=1)))
    blocks = differences.reshape(-1, size, differences.shape[1] // size, size)[:, ::2].swapaxes(1, 2)
    blocks = np.sort(blocks.reshape(*blocks.shape[:2], -1), axis=2)
    number = np.isfinite(blocks).sum(axis=2)
    medians = np.take_along_axis(blocks, number[:, :, None] // 2, axis=2)[:, :, 0]
    enough = (number > 50) & (medians > 0)
    if not enough.any():
        return np.full(image.shape, max(robust_spread(image[~mask]), 1e-9), np.float32)
    variance = (1.4826 * medians)**2 / 2
    variance = np.where(enough, np.maximum(variance - pink, variance / 4), 0)
    weight = ndimage.uniform_filter(enough.astype(float), 5)
    typical = np.median(variance[enough])
    variance = np.where(weight > 0.03, ndimage.uniform_filter(variance, 5) / np.maximum(weight, 0.03), typical)
    return blown_up(np.sqrt(np.maximum(variance, typical / 4)), size)[:ny, :nx]


def first_pink(image, unusable):
    """A first guess of `pink_variance`, and its share of a pixel's variance.

    Light and other noise differ as much along columns as along rows, stripes do not.
    """
    variances = []
    for plane, bad in ((image.T, unusable.T), (image, unusable)):
        differences = np.diff(plane[::3], axis=1)[~(bad[::3, 1:] | bad[::3, :-1])]
        variances.append((1.4826 * np.median(np.abs(differences)))**2 / 2 if differences.size else 0.)
    # from one row to the next, 1/f noise differs by all its power at less than the time of a row
    pink = PINK / (2 * np.log(512)) * max(variances[0] - variances[1], 0)
    return pink, pink / max(variances[1], 1e-20)


def pink_variance(powers):
    """Variance that stripes add to half the squared difference of neighbours: they go on as 1/f within a cell."""
    power = np.sum(powers, axis=0)
    frequency = np.linspace(0, 0.5, power.size)
    return PINK * float(np.median((power * frequency)[frequency > 0.03]))


# -- what is calm

def calm_blocks(image, mask, noise, candidates, borders=()):
    """Find the calm part of an image with rows, and how much of its rows cannot be light.

    Light has no preferred direction.  So the variance from row to row, of means along rows, is compared with that
    from column to column, of means along columns, less what whole columns have in common.

    Parameters
    ----------
    image, mask, noise : (ny, nx) arrays
        Without columns and modelled light, DN/s; True = ignore; noise of a pixel, DN/s.
    candidates : (ny, nx) bool array
        True = light that may be left is smooth.
    borders : sequence of int, optional
        First columns of amplifiers: what changes there is no light.

    Returns
    -------
    calm : (ny, nx) float32 array
        1 = calm.
    shares : (len(CALM_SCALES) + 1,) float array
        Part of the variance of rows that no light explains, at these scales and the `LONGEST`.
    """
    good = (~mask).astype(np.float32)
    planes = good, image * good, noise**2 * good
    lines = [sums_along_rows(plane, CALM_BLOCK) for plane in planes]
    turned = [sums_along_rows(plane.T, CALM_BLOCK) for plane in planes]
    candidates = block_sums(candidates.astype(np.float32), CALM_BLOCK) > CALM_BLOCK**2 / 2
    square, _, seen = line_variance(lines, 1)
    enough = seen > CALM_BLOCK / 8
    square = square / np.maximum(seen, 1)
    pool = candidates & enough
    few = pool.sum() < min(CALM_LEAST, enough.sum() / 4)
    if few:
        pool = enough
    if not pool.any():
        return np.zeros(image.shape, np.float32), np.zeros(len(CALM_SCALES) + 1)
    calm = pool & (square <= 1.5 * np.quantile(square[pool], 0.1 if few else 0.2))
    shares, stripes = [], 0.
    for scale in CALM_SCALES:
        square, expected, seen = (part[calm].sum() for part in line_variance(lines, scale))
        rows = max(square - expected, 0) / max(seen, 1)
        square, expected, compared = (part.T[calm].sum() for part in line_variance(turned, scale, calm.T, borders))
        light = max(square - expected * (1 + 2 * np.sqrt(2 / max(compared, 1))), 0) / max(compared, 1)
        if min(seen, compared) >= 8:
            stripes = max(rows - DOUBT * light, min(LASTS * stripes, rows))
        else:                   # too few to compare: rows by themselves are believed
            stripes = min(UNTESTED * stripes, rows) if shares else rows
        shares.append(stripes / max(rows, 1e-30))
    shares.append(shares[-1]**2 / max(shares[-2], 1e-30))           # light goes on to grow
    calm = blown_up(calm.astype(np.float32), CALM_BLOCK)[:len(image), :image.shape[1]]
    return calm, np.minimum.accumulate(shares)


def line_variance(lines, scale, common=None, borders=()):
    """Sums over blocks of `second_differences` from row to row, of means over a block's width and `scale` rows.

    `lines` are three arrays, (ny, blocks): number of pixels in each row of a block, and sums of their values and of
    their variances. What the blocks of `common`, (ny / CALM_BLOCK, blocks) bool, True, have in common in each row is
    taken off. Across the rows `borders` nothing is compared, where four means or more fit between them.
    """
    ny, down = len(lines[0]), np.arange(0, len(lines[0]), scale)
    number, means, variance = (np.add.reduceat(part, down, axis=0, dtype=float) for part in lines)
    some = np.maximum(number, 1)
    means, variance = means / some, variance / some**2
    seen = number > CALM_BLOCK * scale / 8
    edges = np.arange(0, ny, CALM_BLOCK) // scale
    if common is not None:
        seen &= np.repeat(common, np.diff(np.append(edges, len(down))), axis=0)
        count = seen.sum(axis=1)[:, None]
        weights = np.where(seen, number, 0)
        mean = (weights * means).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        means, seen = (means - mean[:, None]) * np.sqrt(count / np.maximum(count - 1, 1)), seen & (count > 1)
    parts = second_differences(means, variance, seen)
    apart = borders if 4 * scale * (len(borders) + 1) <= ny else ()
    for part, border in itertools.product(parts, apart):
        part[border // scale - 1:border // scale + 1] = 0
    return [np.add.reduceat(part, edges, axis=0) for part in parts]


def calm_share(shares, readout, size):
    """The shares of `calm_blocks` for a spectrum of `size`: means over n rows show periods of 2.5 n rows."""
    frequency = np.maximum(np.linspace(0, 0.5, size), 1e-9)
    places = 0.4 / np.array([LONGEST, *CALM_SCALES[::-1]]) / readout.period
    return np.interp(np.log(frequency), np.log(places), shares[::-1])


