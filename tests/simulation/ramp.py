"""Raw ramps of averaged frames with cosmic rays and snowballs."""

import math
from dataclasses import dataclass

import numpy as np

from .detector import FULL_WELL, READ_NOISE, gain, less_reference_pixels, measured_noise, row_means, superbias
from .frame import BORDER, NX, NY, READOUTS, frames, normal, reference_pixels, stream
from .truth import Truth

SNOWBALL_HALO = 900.                             # DN, at the edge of the core

SNOWBALL = [('integration', 'i4'), ('group', 'i4'), ('frame', 'i4'),
            *((name, 'f8') for name in ('x', 'y', 'core', 'halo'))]
COSMIC_RAY = [('integration', 'i4'), ('group', 'i4'), ('x', 'f8'), ('y', 'f8'), ('dn', 'f8')]
JUMP = [('integration', 'i4'), ('group', 'i4'), ('y', 'i4'), ('x', 'i4'), ('dn', 'f4')]


@dataclass
class Exposure(Truth):
    """What was put into a raw exposure; the images of `Truth` describe the rate image to be found from it."""

    groups: int = 0
    ints: int = 0
    sigma: float = 0.                               # noise of a group difference on blank sky, DN
    # tables; `group` is the first that shows an event, counted from 0; `frame` counts skipped ones too
    snowballs: np.ndarray = None         # integration, group, frame, x, y, core and halo radius in pixels
    cosmic_rays: np.ndarray = None       # integration, group, x, y, dn
    jumps: np.ndarray = None             # integration, group, y, x, dn: steps above 0.1 sigma


def exposure(detector='NRCA3', filter_='F200W', seed=1, groups=5, ints=1, snowballs=20, cosmic_rays=6.,
             readout='MEDIUM8', **options):
    """Simulate a raw exposure; returns DN, (ints, groups, 2048, 2048) uint16, and the `Exposure`.

    The stripes rise in proportion to time, so that the rate image holds exactly `Exposure.true_stripes`;
    stripes drawn anew for each group would leave a truth that depends on how a pipeline weights the groups. Measured
    noise is drawn anew: its truth weights the groups as a fit to all of them does, with noise-free reference pixels.

    Parameters
    ----------
    detector, filter_, seed, **options
        As for `Truth.draw`, and so the same sky, flat, wisp, stripes and bad pixels as those of `rate_scene`.
    groups, ints : int
        Groups of an integration, and integrations.
    snowballs : int
        Number in each integration.
    cosmic_rays : float
        Number in a second.
    readout : str
        One of `READOUTS`.

    Returns
    -------
    data : (ints, groups, ny, nx) uint16
        DN.
    truth : Exposure
    """
    measured = options.get('noise') == 'measured'
    truth = Exposure.draw(detector, filter_, seed, **options | ({'noise': 0.} if measured else {}))
    truth.groups, truth.ints, truth.readout, place = groups, ints, readout, truth.place
    photons = truth.sky.mean() * truth.tgroup / gain(detector)
    truth.sigma = math.sqrt(2 * READ_NOISE[detector]**2 / READOUTS[readout][0] + photons)
    pattern = truth.pattern      # before measured noise adds to it
    data = np.empty((ints, groups, *truth.sky[place].shape), np.uint16)
    tables = []
    for integration in range(ints):
        key = detector, filter_, seed, integration
        rays, ray_charge = draw_cosmic_rays(stream('cosmic rays', *key), groups, cosmic_rays, readout, truth.tframe)
        balls, ball_charge = draw_snowballs(stream('snowballs', *key), groups, snowballs, truth.sigma, readout,
                                            place)
        charges = *ray_charge, *ball_charge
        noise = stream('noise', *key) if measured and options.get('stripes', True) else None
        _fill_ramp(data[integration], truth, charges, pattern, stream('ramp', *key), noise)
        steps = np.stack([hit_step(group, charges, readout) for group in range(groups)])
        tables.append((balls, rays, _jump_table(steps, 0.1 * truth.sigma)))
        for table in tables[-1]:
            table['integration'] = integration
    truth.snowballs, truth.cosmic_rays, truth.jumps = (np.concatenate(t) for t in zip(*tables, strict=True))
    truth.row_pattern = row_means(truth.true_stripes, place, truth.subarray)
    return data, truth.cut()


def _fill_ramp(data, truth, charges, pattern, rng, noise):
    """Fill one integration, (groups, ny, nx) uint16 `data`, in place; `charges` are the hits as in `hit_step`,
    `pattern` the stripes that rise with time.

    A group is the mean of frames, each cut at the full well: what saturates in the later of them stays below any
    threshold in the mean. With a generator `noise` also 1/f noise as measured, of which the truth notes what is left in
    the slope.
    """
    (nframes, gap), count = READOUTS[truth.readout], len(data)
    reference = reference_pixels()
    rate = truth.light + truth.hot
    rate[truth.bad] *= rng.choice(np.float32([0, 0.3, 3]), np.count_nonzero(truth.bad))
    rate[reference] = 0
    slope, photons = rate + pattern, np.maximum(rate, 0) / np.float32(gain(truth.detector))
    read_noise = np.full((NY, NX), READ_NOISE[truth.detector] / math.sqrt(nframes), np.float32)
    # quiet reference pixels: what the pipeline derives from them must not become stripes without truth
    read_noise[reference] = 0.3
    reset = 15 * normal(rng)                                                 # DN; kTC noise
    reset[reference] = 0
    charge = superbias(truth.detector) + reset
    hits = {}
    for frame, index, dn in charges:
        hits.setdefault(frame, []).append((index, dn))
    per_frame = slope * np.float32(truth.tframe)
    for group in range(count):
        first = group * (nframes + gap)
        seconds = np.float32(truth.tgroup if group else (nframes + 1) / 2 * truth.tframe)   # between their middles
        charge += np.sqrt(photons * seconds) * normal(rng)
        counts = read_noise * normal(rng)
        for frame in range(max(first - gap, 0), first + nframes):
            charge += per_frame
            for index, dn in hits.get(frame, ()):
                np.add.at(charge.reshape(-1), index, dn)
            if frame >= first:
                counts += np.minimum(charge, np.float32(FULL_WELL)) / np.float32(nframes)
        if noise:                                # the mean of independent frames
            striped = measured_noise(noise, truth.detector, truth.subarray) / np.float32(math.sqrt(nframes))
            counts += striped
            left = less_reference_pixels(striped, truth.detector, truth.subarray)
            weight = 12 * (group - (count - 1) / 2) / (max(count**3 - count, 1) * truth.tgroup * truth.ints)
            truth.true_stripes += np.where(reference, 0, np.float32(weight) * left)
        data[group] = np.clip(np.rint(counts), 0, FULL_WELL)[truth.place]


def draw_cosmic_rays(rng, groups, per_second, readout, tframe):
    """Draw cosmic rays, log-normal about 300 DN on tracks of a few pixels.

    Returns their table, and (frame, flat pixel indices, DN) of all hits of a frame time together.
    """
    end = frames(groups, readout)
    number = rng.poisson(per_second * end * tframe)
    table, frame = np.zeros(number, COSMIC_RAY), np.sort(rng.integers(0, end, number))
    table['x'], table['y'] = rng.uniform(BORDER, NX - BORDER, (2, number))
    table['dn'], table['group'] = 300 * np.exp(rng.standard_normal(number)), first_group(frame, readout)
    points = 16                                                # a track is so many bits of charge, diffused
    angle, length = rng.uniform(0, np.pi, number), rng.exponential(3, number)
    along = length[:, None] * np.linspace(-0.5, 0.5, points)
    x = table['x'][:, None] + along * np.cos(angle)[:, None] + rng.normal(0, 0.35, (number, points))
    y = table['y'][:, None] + along * np.sin(angle)[:, None] + rng.normal(0, 0.35, (number, points))
    x, y = (np.clip(np.rint(v), BORDER, NX - BORDER - 1).astype(int) for v in (x, y))
    charge = np.broadcast_to((table['dn'] / points).astype(np.float32)[:, None], x.shape)
    edges = np.searchsorted(frame, np.arange(end + 1))
    return table, [(f, (y * NX + x)[a:b].ravel(), charge[a:b].ravel())
                   for f, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)) if b > a]


def draw_snowballs(rng, groups, number, sigma, readout, place):
    """Draw snowballs in a place: a core of 2-16 pixels, saturated above 3.5, in a halo that fades to `sigma` DN.

    They land in any frame but the first, also between groups, or within the first group, where no jump can be seen.
    Returns their table, and (frame, flat pixel indices, DN) of each.
    """
    table, charges = np.zeros(number, SNOWBALL), []
    end = frames(groups, readout)
    low, high = np.clip([(side.start, side.stop) for side in reversed(place)], BORDER, NX - BORDER).T
    for row in table:
        row['frame'] = frame = rng.integers(min(1, end - 1), end)
        row['group'] = first_group(frame, readout)
        row['x'], row['y'] = rng.uniform(low, high)
        row['core'] = np.exp(rng.uniform(np.log(2), np.log(16)))
        row['halo'] = rng.uniform(1.8, 3.2) * row['core'] + 4
        y, x, charge = _snowball(*(row[name] for name in ('x', 'y', 'core', 'halo')), sigma,
                                 rng.uniform(0.8, 1), *rng.uniform(0, 2 * np.pi, 2))
        charges.append((frame, y * NX + x, charge))
    return table, charges


def _snowball(x, y, core, halo, sigma, q, tilt, lobes):
    """Pixels of a snowball: y, x and DN; axis ratio `q`, and three lobes of 6 % turned by `lobes`."""
    fade = (halo - core) / math.log(SNOWBALL_HALO / sigma)
    reach = math.ceil(1.1 * (core + fade * math.log(SNOWBALL_HALO / (0.05 * sigma))))
    rows, columns = np.mgrid[max(round(y) - reach, BORDER):min(round(y) + reach + 1, NY - BORDER),
                             max(round(x) - reach, BORDER):min(round(x) + reach + 1, NX - BORDER)]
    angle = np.arctan2(rows - y, columns - x)
    r = np.hypot(rows - y, columns - x) * (1 + 0.06 * np.cos(3 * angle + lobes))
    r = r * np.sqrt(1 + (1 / q**2 - 1) * np.sin(angle - tilt)**2) * math.sqrt(q)
    inside = (2 * FULL_WELL if core > 3.5 else 2500 * core) / (1 + np.exp(np.minimum((r - core) / 0.35, 50)))
    charge = inside + SNOWBALL_HALO * np.exp(-np.maximum(r - core, 0) / fade)
    seen = charge > 0.05 * sigma
    return rows[seen], columns[seen], charge[seen].astype(np.float32)


def first_group(frame, readout):
    """The first group that shows a hit after `frame` frames; those between groups are not read."""
    nframes, gap = READOUTS[readout]
    return frame // (nframes + gap) + (frame % (nframes + gap) >= nframes)


def share_of(group, frame, readout):
    """Share of a hit after `frame` frames by which `group` rises over the group before it."""
    nframes, gap = READOUTS[readout]
    frames_after = [min(max(g * (nframes + gap) + nframes - frame, 0), nframes) for g in (group - 1, group)]
    return (frames_after[1] - frames_after[0]) / nframes


def hit_step(group, charges, readout):
    """Sum what hits add to `group` over the group before it, DN, float32 (2048, 2048).

    A group is the mean of its frames: a hit between two of them shows in part, in full one group later.
    `charges` are tuples of its time in frames, flat pixel indices and DN.
    """
    image = np.zeros(NY * NX, np.float32)
    for frame, index, charge in charges:
        share = share_of(group, frame, readout)
        if share:
            np.add.at(image, index, charge * np.float32(share))
    return image.reshape(NY, NX)


def _jump_table(steps, faintest):
    """List the pixels in which hits raise a group by more than `faintest` DN over the one before it."""
    found = np.nonzero(steps[1:] > faintest)
    table = np.zeros(found[0].size, JUMP)
    table['group'], table['y'], table['x'], table['dn'] = found[0] + 1, *found[1:], steps[1:][found]
    return table
