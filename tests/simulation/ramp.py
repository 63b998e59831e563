"""Raw MEDIUM8 ramps with cosmic rays and snowballs."""

import math
from dataclasses import dataclass

import numpy as np

from .detector import FULL_WELL, READ_NOISE, gain, superbias
from .frame import BORDER, NFRAMES, NX, NY, PERIOD, TFRAME, TGROUP, frames, normal, reference_pixels, stream
from .truth import Truth

SNOWBALL_HALO = 900.                             # DN, at the edge of the core

SNOWBALL = [('integration', 'i4'), ('group', 'i4'), ('x', 'f8'), ('y', 'f8'), ('core', 'f8'), ('halo', 'f8')]
COSMIC_RAY = [('integration', 'i4'), ('group', 'i4'), ('x', 'f8'), ('y', 'f8'), ('dn', 'f8')]
JUMP = [('integration', 'i4'), ('group', 'i4'), ('y', 'i4'), ('x', 'i4'), ('dn', 'f4')]


@dataclass
class Exposure(Truth):
    """What was put into a raw exposure; the images of `Truth` describe the rate image to be found from it."""

    groups: int = 0
    ints: int = 0
    sigma: float = 0.                               # noise of a group difference on blank sky, DN
    # tables; `group` is the first that shows an event, counted from 0
    snowballs: np.ndarray = None         # integration, group, x, y, core and halo radius in pixels
    cosmic_rays: np.ndarray = None       # integration, group, x, y, dn
    jumps: np.ndarray = None             # integration, group, y, x, dn: steps above 0.1 sigma


def exposure(detector='NRCA3', filter_='F200W', seed=1, groups=5, ints=1, snowballs=20, cosmic_rays=6., **options):
    """Simulate a raw MEDIUM8 exposure; returns DN, (ints, groups, 2048, 2048) uint16, and the `Exposure`.

    The stripes rise in proportion to time, so that the rate image holds exactly `Exposure.true_stripes`;
    stripes drawn anew for each group would leave a truth that depends on how a pipeline weights the groups.

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
    """
    truth = Exposure.draw(detector, filter_, seed, **options)
    truth.groups, truth.ints = groups, ints
    photons = truth.sky.mean() * TGROUP / gain(detector)
    truth.sigma = math.sqrt(2 * READ_NOISE[detector]**2 / NFRAMES + photons)
    data = np.empty((ints, groups, NY, NX), np.uint16)
    tables = []
    for integration in range(ints):
        key = detector, filter_, seed, integration
        rays, ray_charge = draw_cosmic_rays(stream('cosmic rays', *key), groups, cosmic_rays)
        balls, ball_charge = draw_snowballs(stream('snowballs', *key), groups, snowballs, truth.sigma)
        steps = np.stack([hit_step(group, (*ray_charge, *ball_charge)) for group in range(groups)])
        _fill_ramp(data[integration], truth, steps, stream('ramp', *key))
        tables.append((balls, rays, _jump_table(steps, 0.1 * truth.sigma)))
        for table in tables[-1]:
            table['integration'] = integration
    truth.snowballs, truth.cosmic_rays, truth.jumps = (np.concatenate(t) for t in zip(*tables, strict=True))
    return data, truth


def _fill_ramp(data, truth, steps, rng):
    """Fill one integration, (groups, 2048, 2048) uint16 `data`, in place; `steps` are the hits by group."""
    reference = reference_pixels()
    rate = truth.light + truth.hot
    rate[truth.bad] *= rng.choice(np.float32([0, 0.3, 3]), np.count_nonzero(truth.bad))
    rate[reference] = 0
    slope, photons = rate + truth.pattern, np.maximum(rate, 0) / np.float32(gain(truth.detector))
    read_noise = np.full((NY, NX), READ_NOISE[truth.detector] / math.sqrt(NFRAMES), np.float32)
    # quiet reference pixels: what the pipeline derives from them must not become stripes without truth
    read_noise[reference] = 0.3
    charge = superbias(truth.detector) + 15 * normal(rng)                    # DN; kTC noise of the reset
    for group, step in enumerate(steps):
        seconds = np.float32(TGROUP if group else (NFRAMES + 1) / 2 * TFRAME)    # a group is a mean of frames
        charge += slope * seconds + np.sqrt(photons * seconds) * normal(rng) + step
        data[group] = np.clip(np.rint(charge + read_noise * normal(rng)), 0, FULL_WELL)


def draw_cosmic_rays(rng, groups, per_second):
    """Draw cosmic rays, log-normal about 300 DN on tracks of a few pixels.

    Returns their table, and (frame, flat pixel indices, DN) of all hits of a frame time together.
    """
    end = frames(groups)
    number = rng.poisson(per_second * end * TFRAME)
    table, frame = np.zeros(number, COSMIC_RAY), np.sort(rng.integers(0, end, number))
    table['x'], table['y'] = rng.uniform(BORDER, NX - BORDER, (2, number))
    table['dn'], table['group'] = 300 * np.exp(rng.standard_normal(number)), first_group(frame)
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


def draw_snowballs(rng, groups, number, sigma):
    """Draw snowballs: a core of 2-16 pixels, saturated above 3.5, in a halo that fades to `sigma` DN.

    Returns their table, and (frame, flat pixel indices, DN) of each.
    """
    table, charges = np.zeros(number, SNOWBALL), []
    end = frames(groups)
    for row in table:
        frame = rng.integers(min(NFRAMES, end - 1), end)           # later than the first group
        row['group'] = first_group(frame)
        row['x'], row['y'] = rng.uniform(BORDER, NX - BORDER, 2)
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


def first_group(frame):
    """The first group that shows a hit after `frame` frames; those between groups are not read."""
    return frame // PERIOD + (frame % PERIOD >= NFRAMES)


def hit_step(group, charges):
    """Sum what hits add to `group` over the group before it, DN, float32 (2048, 2048).

    A group is the mean of `NFRAMES` frames: a hit between two of them shows in part, in full one group later.
    `charges` are tuples of its time in frames, flat pixel indices and DN.
    """
    image = np.zeros(NY * NX, np.float32)
    for frame, index, charge in charges:
        frames_after = [min(max(g * PERIOD + NFRAMES - frame, 0), NFRAMES) for g in (group - 1, group)]
        share = (frames_after[1] - frames_after[0]) / NFRAMES
        if share:
            np.add.at(image, index, charge * np.float32(share))
    return image.reshape(NY, NX)


def _jump_table(steps, faintest):
    """List the pixels in which hits raise a group by more than `faintest` DN over the one before it."""
    found = np.nonzero(steps[1:] > faintest)
    table = np.zeros(found[0].size, JUMP)
    table['group'], table['y'], table['x'], table['dn'] = found[0] + 1, *found[1:], steps[1:][found]
    return table
