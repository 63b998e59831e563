"""Simulate full-frame NIRCam exposures whose truth is known.

A seed gives a sky (gradient, galaxies, stars), a detector (flat, bad and hot pixels, reference pixels), a
wisp and 1/f stripes; `rate_scene` returns them as a rate image as Detector1 leaves it, `exposure` as a raw
MEDIUM8 ramp with cosmic rays and snowballs.  Whatever was put in is returned too.  `write_crds_cache` writes
the CRDS cache that the pipeline needs for them, so nothing here wants a network.

The command writes one exposure and all that its reduction needs: OUTDIR/uncals/<name>_uncal.fits (or
OUTDIR/calibrated/<name>_rate.fits), OUTDIR/wisps/wisps_2022_08_26/, OUTDIR/crds_cache/ and the truth,
OUTDIR/truth.npz (`load_truth` reads it).  Cache and templates grow when OUTDIR is used again; truth.npz is
that of the exposure written last, unless --truth names another file.

Examples
--------
    python tests/simulate.py demo --detector NRCA3 --filter F200W --wisp 0.6
    python tests/simulate.py demo --rate_only --detector NRCALONG --filter F444W --seed 2

Images are (ny, nx) = (2048, 2048), rates in DN/s; masks are True where something is.
"""
import argparse
import hashlib
import importlib.util
import math
import re
import sys
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

NY = NX = 2048
BORDER = 4                                       # reference pixels on every side
# amplifiers A-D without reference pixels
AMPS = (slice(4, 512), slice(512, 1024), slice(1024, 1536), slice(1536, 2044))
IDLE = 12                                        # idle pixel times at the end of an amplifier's row
DO_NOT_USE, SATURATED, JUMP_DET, HOT, REFERENCE_PIXEL = 1, 2, 4, 2048, 2**31        # pipeline flags

# wisps: detector -> fit window (y1, y2, x1, x2)
WISP_WINDOWS = {'NRCA3': (1100, 2046, 300, 1300), 'NRCA4': (0, 600, 450, 1450),
                'NRCB3': (0, 800, 700, 1450), 'NRCB4': (850, 2046, 900, 1600)}
WISP_PEAK = 0.06                                 # DN/s at scale 1
TEMPLATE_NOISE = 0.0008                          # DN/s, in the distributed template

# MEDIUM8: seconds, averaged frames and skipped frames of a group
TFRAME, NFRAMES, GROUPGAP = 10.73677, 8, 2
TGROUP = TFRAME * (NFRAMES + GROUPGAP)
RATE_GROUPS = 9                                  # the ramp behind a directly simulated rate image
RATE_READ_NOISE = 11.                            # e-, of one frame of it
SATURATION = 56000.                              # DN, the saturation reference
FULL_WELL = 62000.                               # DN, where the raw counts end
SNOWBALL_HALO = 900.                             # DN, at the edge of the core

STRIPE_RMS = 0.004                               # DN/s, rms of the mean over an amp-row
COMMON_STRIPES = 0.7                             # share of that rms that the four amplifiers have in common
LONGEST_STRIPE = 300                             # rows, longest period in the 1/f noise
COLUMN_RMS = 0.0012                              # DN/s
FLAT_ERROR = 0.001
# DN, of one frame
READ_NOISE = {'NRCA1': 5.19, 'NRCA2': 5.70, 'NRCA3': 4.55, 'NRCA4': 4.99, 'NRCALONG': 4.78,
              'NRCB1': 5.62, 'NRCB2': 5.04, 'NRCB3': 5.60, 'NRCB4': 4.86, 'NRCBLONG': 4.90}
PROBE_FLUX, PROBE_RADIUS = 1., 2.                # DN/s, pixels

GALAXY = [(name, 'f8') for name in ('x', 'y', 'flux', 'radius', 'sersic', 'q', 'pa')]
STAR = [('x', 'f8'), ('y', 'f8'), ('flux', 'f8')]
PROBE = [('x', 'f8'), ('y', 'f8'), ('flux', 'f8'), ('host', 'i4')]
SNOWBALL = [('integration', 'i4'), ('group', 'i4'), ('x', 'f8'), ('y', 'f8'), ('core', 'f8'), ('halo', 'f8')]
COSMIC_RAY = [('integration', 'i4'), ('group', 'i4'), ('x', 'f8'), ('y', 'f8'), ('dn', 'f8')]
JUMP = [('integration', 'i4'), ('group', 'i4'), ('y', 'i4'), ('x', 'i4'), ('dn', 'f4')]


# -- what is returned

@dataclass
class Truth:
    """What was put into an exposure; images are float32 (2048, 2048), DN/s, and 0 in the reference pixels."""

    detector: str
    filter_: str
    seed: int
    sky: np.ndarray                 # sky level with its gradient (not 0 in the reference pixels)
    source: np.ndarray              # light of galaxies, stars and probes, before the flat
    galaxies: np.ndarray            # table x, y, flux, radius, sersic, q, pa: the ordinary galaxies
    extended: np.ndarray            # same columns: the bright extended galaxies (`--big` is the first)
    stars: np.ndarray               # table x, y, flux
    probes: np.ndarray              # table x, y, flux, host (row of `extended`, -1: far from all)
    flat: np.ndarray                # 1 in the reference pixels
    flat_err: np.ndarray
    wisp_unit: np.ndarray           # wisp light at scale 1, before the flat
    wisp_scale: float
    template: np.ndarray            # what is distributed: wisp_unit with noise, NaN in places
    true_stripes: np.ndarray        # 1/f noise of every pixel in the rate image
    row_pattern: np.ndarray         # (2048, 4): mean of true_stripes over each of `AMPS`
    column_pattern: np.ndarray      # (2048,)
    bad: np.ndarray                 # bool, True = DO_NOT_USE; the reference pixels are among them
    hot: np.ndarray                 # excess of the hot pixels, 0 elsewhere

    @property
    def pattern(self):
        """All that destriping should take out of the rate image, DN/s (2048, 2048)."""
        return self.true_stripes + self.column_pattern

    @property
    def wisp_light(self):
        """The wisp in the rate image, DN/s (2048, 2048): scale x wisp x flat."""
        return self.wisp_scale * self.wisp_unit * self.flat

    @property
    def light(self):
        """Noise-free rate image without stripes, DN/s (2048, 2048)."""
        return self.flat * (self.sky + self.source + self.wisp_scale * self.wisp_unit)

    @property
    def blank(self):
        """True = sky without a source (below 0.003 DN/s), (2048, 2048) bool."""
        return self.source < 0.003

    @property
    def near(self):
        """True = 1.5 to 4 effective radii from a bright extended galaxy, (2048, 2048) bool."""
        y, x = np.ogrid[:NY, :NX]
        near = np.zeros((NY, NX), bool)
        for galaxy in self.extended:
            r2 = ((x - galaxy['x'])**2 + (y - galaxy['y'])**2) / galaxy['radius']**2
            near |= (r2 >= 1.5**2) & (r2 <= 4**2)
        return near


@dataclass
class Scene(Truth):
    """A rate image as Detector1 leaves it, and its truth; arrays (2048, 2048), DN/s and (DN/s)^2."""

    sci: np.ndarray = field(default=None)
    err: np.ndarray = field(default=None)
    var_poisson: np.ndarray = field(default=None)
    var_rnoise: np.ndarray = field(default=None)
    dq: np.ndarray = field(default=None)            # uint32 pipeline flags
    undefined: str = 'nan'

    @property
    def good(self):
        """True = pixel to keep: neither DO_NOT_USE nor reference pixel, (2048, 2048) bool."""
        return self.dq & (DO_NOT_USE | REFERENCE_PIXEL) == 0


@dataclass
class Exposure(Truth):
    """What was put into a raw exposure; the images of `Truth` describe the rate image to be found from it."""

    groups: int = 0
    ints: int = 0
    sigma: float = 0.                               # noise of a group difference on blank sky, DN
    # tables; `group` is the first that shows an event, counted from 0
    snowballs: np.ndarray = field(default=None)     # integration, group, x, y, core and halo radius in pixels
    cosmic_rays: np.ndarray = field(default=None)   # integration, group, x, y, dn
    jumps: np.ndarray = field(default=None)         # integration, group, y, x, dn: steps above 0.1 sigma


# -- rate images

def rate_scene(detector='NRCA3', filter_='F200W', seed=1, crowd=1.0, big=False, wisp=0.0, stripes=True,
               undefined='nan', template=None):
    """Simulate the rate image of a 9-group MEDIUM8 exposure.

    Parameters
    ----------
    detector, filter_ : str
        The flat, the wisp and the bad pixels depend on these alone.
    seed : int
        Sky, noise, jumps and stripes.  Each has its own random stream, so that an option changes nothing
        but what it names.
    crowd : float
        Number of galaxies in units of 700.
    big : bool
        Add a galaxy with an effective radius of 130 pixels near the middle.
    wisp : float
        Scale of the wisp.
    stripes : bool
        False leaves the row and column patterns out.
    undefined : {'nan', 'finite'}
        How unusable pixels look: NaN with ERR = VAR = 0 (jwst 3.0), or finite or 0 (jwst 1.7.2).
    template : (2048, 2048) array, optional
        Unit wisp to use instead of the built-in one, DN/s; NaN counts as 0.

    Returns
    -------
    Scene
    """
    if undefined not in ('nan', 'finite'):
        raise ValueError(f"undefined must be 'nan' or 'finite', not {undefined!r}")
    scene = Scene(**_truth(detector, filter_, seed, crowd, big, wisp, stripes, template), undefined=undefined)
    rng = _stream('rate', detector, filter_, seed)
    rate = scene.light + scene.hot
    groups = np.full((NY, NX), RATE_GROUPS, np.float32)
    jump = rng.random((NY, NX), dtype=np.float32) < 0.04
    groups[jump] = rng.integers(4, RATE_GROUPS - 1, np.count_nonzero(jump))
    scene.var_poisson, scene.var_rnoise = _rate_variance(rate, groups, gain(detector))
    scene.err = np.sqrt(scene.var_poisson + scene.var_rnoise)
    scene.sci = rate + scene.err * rng.standard_normal((NY, NX), dtype=np.float32) + scene.pattern
    scene.dq = _rate_flags(scene, rate, jump)
    _fill_undefined(scene, rng)
    return scene


def _truth(detector, filter_, seed, crowd, big, wisp, stripes, template):
    """Return the fields of `Truth` as a dictionary."""
    galaxies, extended, stars, probes = catalogue(_stream('sky', detector, filter_, seed), crowd, big)
    flat = make_flat(detector, filter_)
    unit = wisp_shape(detector, filter_) if template is None else np.nan_to_num(np.asarray(template))
    unit = np.where(reference_pixels(), 0, unit).astype(np.float32)
    pattern = stripe_pattern(_stream('stripes', detector, filter_, seed), stripes)
    bad, hot = bad_pixels(detector)
    source = draw_sources(galaxies, extended, stars, probes)
    source[reference_pixels()] = 0
    return dict(detector=detector, filter_=filter_, seed=seed, sky=sky_level(detector), source=source,
                galaxies=galaxies, extended=extended, stars=stars, probes=probes,
                flat=flat, flat_err=np.full((NY, NX), FLAT_ERROR, np.float32),
                wisp_unit=unit, wisp_scale=float(wisp) if unit.any() else 0.,
                template=distributed_template(unit, detector, filter_),
                true_stripes=pattern[0], row_pattern=pattern[1], column_pattern=pattern[2], bad=bad, hot=hot)


def _rate_variance(rate, groups, gain_):
    """Return Poisson and read-noise variance, (DN/s)^2, of slopes through `groups` groups of MEDIUM8."""
    poisson = 1.2 * np.maximum(rate, 0.01) / (gain_ * (groups - 1) * np.float32(TGROUP))
    group_noise = RATE_READ_NOISE / gain_ / math.sqrt(NFRAMES)
    rnoise = 12 * group_noise**2 / ((groups**3 - groups) * np.float32(TGROUP**2))
    return poisson.astype(np.float32), rnoise.astype(np.float32)


def _rate_flags(scene, rate, jump):
    """Return the DQ plane, uint32 (2048, 2048), of a directly simulated rate image."""
    dq = np.zeros((NY, NX), np.uint32)
    dq[jump] |= JUMP_DET
    dq[scene.hot > 0] |= HOT
    dq[rate * (RATE_GROUPS * TGROUP) > SATURATION] |= SATURATED
    dq[(rate * TGROUP > SATURATION) | scene.bad] |= DO_NOT_USE       # saturated in the first group: no slope
    dq[reference_pixels()] = DO_NOT_USE | REFERENCE_PIXEL
    return dq


def _fill_undefined(scene, rng):
    """Give the DO_NOT_USE pixels of a scene, in place, the values that the pipeline gives them."""
    undefined = scene.dq & DO_NOT_USE > 0
    planes = (scene.err, scene.var_poisson, scene.var_rnoise)
    if scene.undefined == 'nan':
        scene.sci[undefined] = np.nan
        for plane in planes:
            plane[undefined] = 0
        return
    reference = reference_pixels()
    scene.sci[reference] = 0.003 * rng.standard_normal(np.count_nonzero(reference), dtype=np.float32)
    scene.err[reference] = 0.003
    scene.var_poisson[reference] = scene.var_rnoise[reference] = 0
    scene.sci[scene.bad & ~reference] *= rng.exponential(1, np.count_nonzero(scene.bad & ~reference))
    zero = scene.bad & ~reference & (rng.random((NY, NX), dtype=np.float32) < 0.15)
    saturated = undefined & ~scene.bad & ~reference
    for plane in (scene.sci, *planes):
        plane[zero | saturated] = 0


# -- ramps

def exposure(detector='NRCA3', filter_='F200W', seed=1, groups=5, ints=1, snowballs=20, cosmic_rays=6.,
             crowd=1.0, big=False, wisp=0.0, stripes=True, template=None):
    """Simulate a raw MEDIUM8 exposure.

    The stripes rise in proportion to time, so that the rate image holds exactly `Exposure.true_stripes`;
    stripes drawn anew for each group would leave a truth that depends on how a pipeline weights the groups.

    Parameters
    ----------
    detector, filter_, seed, crowd, big, wisp, stripes, template
        As for `rate_scene`: the same sky, flat, wisp, stripes and bad pixels.
    groups, ints : int
        Groups of an integration, and integrations.
    snowballs : int
        Number in each integration.
    cosmic_rays : float
        Number in a second.

    Returns
    -------
    data : (ints, groups, 2048, 2048) uint16
        DN.
    truth : Exposure
    """
    truth = Exposure(**_truth(detector, filter_, seed, crowd, big, wisp, stripes, template),
                     groups=groups, ints=ints)
    photons = truth.sky.mean() * TGROUP / gain(detector)
    truth.sigma = math.sqrt(2 * READ_NOISE[detector]**2 / NFRAMES + photons)
    data = np.empty((ints, groups, NY, NX), np.uint16)
    tables = []
    for integration in range(ints):
        key = detector, filter_, seed, integration
        rays, ray_charge = draw_cosmic_rays(_stream('cosmic rays', *key), groups, cosmic_rays)
        balls, ball_charge = draw_snowballs(_stream('snowballs', *key), groups, snowballs, truth.sigma)
        steps = [_step(group, (*ray_charge, *ball_charge)) for group in range(groups)]
        _fill_ramp(data[integration], truth, steps, _stream('ramp', *key))
        jumps = [_jump_table(group, step, 0.1 * truth.sigma) for group, step in enumerate(steps) if group]
        tables.append((balls, rays, np.concatenate(jumps) if jumps else np.empty(0, JUMP)))
        for table in tables[-1]:
            table['integration'] = integration
    truth.snowballs, truth.cosmic_rays, truth.jumps = (np.concatenate(t) for t in zip(*tables, strict=True))
    return data, truth


def _fill_ramp(data, truth, steps, rng):
    """Fill one integration, (groups, 2048, 2048) uint16 `data`, in place; `steps` are the hits by group."""
    def normal():
        return rng.standard_normal((NY, NX), dtype=np.float32)

    reference = reference_pixels()
    rate = truth.light + truth.hot
    rate[truth.bad] *= rng.choice(np.float32([0, 0.3, 3]), np.count_nonzero(truth.bad))
    rate[reference] = 0
    slope, photons = rate + truth.pattern, np.maximum(rate, 0) / np.float32(gain(truth.detector))
    read_noise = np.full((NY, NX), READ_NOISE[truth.detector] / math.sqrt(NFRAMES), np.float32)
    # quiet reference pixels: what the pipeline derives from them must not become stripes without truth
    read_noise[reference] = 0.3
    charge = superbias(truth.detector) + 15 * normal()                       # DN; kTC noise of the reset
    for group, step in enumerate(steps):
        seconds = np.float32(TGROUP if group else (NFRAMES + 1) / 2 * TFRAME)    # a group is a mean of frames
        charge += slope * seconds + np.sqrt(photons * seconds) * normal() + step
        data[group] = np.clip(np.rint(charge + read_noise * normal()), 0, FULL_WELL)


def _step(group, charges):
    """Sum what hits add to `group` over the group before it, DN, float32 (2048, 2048).

    A group is the mean of `NFRAMES` frames: a hit between two of them shows in part, in full one group later.
    `charges` are tuples of its time in frames, flat pixel indices and DN.
    """
    period = NFRAMES + GROUPGAP
    image = np.zeros(NY * NX, np.float32)
    for frame, index, charge in charges:
        frames_after = [min(max(g * period + NFRAMES - frame, 0), NFRAMES) for g in (group - 1, group)]
        share = (frames_after[1] - frames_after[0]) / NFRAMES
        if share:
            np.add.at(image, index, charge * np.float32(share))
    return image.reshape(NY, NX)


def _jump_table(group, step, faintest):
    """List the pixels in which hits raise a group by more than `faintest` DN over the one before it."""
    y, x = np.nonzero(step > faintest)
    table = np.zeros(y.size, JUMP)
    table['group'], table['y'], table['x'], table['dn'] = group, y, x, step[y, x]
    return table


def first_group(frame):
    """The first group that shows a hit after `frame` frames; those between groups are not read."""
    group = frame // (NFRAMES + GROUPGAP)
    return group + (frame % (NFRAMES + GROUPGAP) >= NFRAMES)


def draw_cosmic_rays(rng, groups, per_second):
    """Draw cosmic rays: log-normal about 300 DN, on tracks of a few pixels.

    Returns
    -------
    table : structured array
    charges : list of (frame, flat pixel indices, DN)
        All hits of one frame time together.
    """
    frames = groups * (NFRAMES + GROUPGAP) - GROUPGAP
    number = rng.poisson(per_second * frames * TFRAME)
    table, frame = np.zeros(number, COSMIC_RAY), np.sort(rng.integers(0, frames, number))
    table['x'], table['y'] = rng.uniform(BORDER, NX - BORDER, (2, number))
    table['dn'], table['group'] = 300 * np.exp(rng.standard_normal(number)), first_group(frame)
    points = 16                                                # a track is so many bits of charge, diffused
    angle, length = rng.uniform(0, np.pi, number), rng.exponential(3, number)
    along = length[:, None] * np.linspace(-0.5, 0.5, points)
    x = table['x'][:, None] + along * np.cos(angle)[:, None] + rng.normal(0, 0.35, (number, points))
    y = table['y'][:, None] + along * np.sin(angle)[:, None] + rng.normal(0, 0.35, (number, points))
    x, y = (np.clip(np.rint(v), BORDER, NX - BORDER - 1).astype(int) for v in (x, y))
    charge = np.broadcast_to((table['dn'] / points).astype(np.float32)[:, None], x.shape)
    edges = np.searchsorted(frame, np.arange(frames + 1))
    return table, [(f, (y * NX + x)[a:b].ravel(), charge[a:b].ravel())
                   for f, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)) if b > a]


def draw_snowballs(rng, groups, number, sigma):
    """Draw snowballs: a core of 2-16 pixels, saturated above 3.5, in a halo that fades to `sigma` DN.

    Returns
    -------
    table : structured array
    charges : list of (frame, flat pixel indices, DN)
    """
    table, charges = np.zeros(number, SNOWBALL), []
    frames = groups * (NFRAMES + GROUPGAP) - GROUPGAP
    for row in table:
        frame = rng.integers(min(NFRAMES, frames - 1), frames)           # later than the first group
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


# -- sky

def sky_level(detector):
    """Sky, DN/s, float32 (2048, 2048): 0.2 or (LW) 0.35, with a gradient of 1 % in x and 0.8 % in y."""
    y, x = np.ogrid[:NY, :NX]
    level = 0.35 if is_long(detector) else 0.2
    return (level * (1 + 0.01 * (x / NX - 0.5) + 0.008 * (y / NY - 0.5))).astype(np.float32)


def catalogue(rng, crowd=1.0, big=False):
    """Draw the sources of a field.

    Returns
    -------
    galaxies, extended, stars, probes : structured arrays
        Positions in pixels from 0, fluxes in DN/s, effective (half-light) radii in pixels, major axis.
    """
    streams = [np.random.default_rng(key) for key in rng.integers(2**32, size=4)]
    extended = _extended_galaxies(streams[0], big)
    probes = _probe_galaxies(streams[1], extended)
    stars = np.zeros(6, STAR)
    stars['x'], stars['y'] = streams[2].uniform(30, NX - 30, (2, 6))
    stars['flux'] = np.exp(streams[2].uniform(np.log(30), np.log(6000), 6))
    return _field_galaxies(streams[3], round(700 * crowd)), extended, stars, probes


def _field_galaxies(rng, number):
    """Ordinary galaxies: counts of cumulative slope -0.7, and larger the brighter they are."""
    galaxies = np.zeros(number, GALAXY)
    galaxies['x'], galaxies['y'] = rng.uniform(BORDER, NX - BORDER, (2, number))
    faint, bright, slope = 0.15, 300., -0.7
    chance = rng.uniform(size=number)
    galaxies['flux'] = (bright**slope + chance * (faint**slope - bright**slope))**(1 / slope)
    radius = 3 * (galaxies['flux'] / 2)**0.25 * np.exp(0.35 * rng.standard_normal(number))
    galaxies['radius'] = np.clip(radius, 1, 25)
    galaxies['sersic'] = rng.choice([1, 1, 1, 1.5, 2, 3, 4], number)
    galaxies['q'] = rng.uniform(0.3, 1, number)
    galaxies['pa'] = rng.uniform(0, np.pi, number)
    return galaxies


def _extended_galaxies(rng, big):
    """Three bright extended galaxies; with `big` the first of them is huge and near the middle."""
    extended = np.zeros(3, GALAXY)
    while True:                                  # apart from each other: every surrounding is its own
        x, y = rng.uniform(200, NX - 200, (2, 3))
        if big:
            x[0], y[0] = rng.uniform(NX / 2 - 150, NX / 2 + 150, 2)
        if min(math.hypot(x[i] - x[j], y[i] - y[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 450:
            break
    extended['x'], extended['y'], extended['radius'] = x, y, rng.uniform(20, 42, 3)
    extended['sersic'] = rng.choice([1, 1.5, 2, 3, 4], 3)
    extended['q'], extended['pa'] = rng.uniform(0.55, 0.95, 3), rng.uniform(0, np.pi, 3)
    brightness = np.exp(rng.uniform(np.log(0.04), np.log(0.25), 3))
    if big:
        extended['radius'][0], extended['sersic'][0], brightness[0] = 130, 2, 0.5
    for galaxy, level in zip(extended, brightness, strict=True):     # a row of a structured array is a view
        galaxy['flux'] = level * sersic_area(galaxy['radius'], galaxy['sersic'], galaxy['q'])
    return extended


def _probe_galaxies(rng, extended, near=12, far=150):
    """Equal small galaxies: `near` around each extended one at 1.5-4.5 radii, `far` beyond 6 radii of all."""
    rows = []
    for host, galaxy in enumerate(extended):
        for step in range(near):
            angle, r = 2 * np.pi * (step + rng.uniform()) / near, galaxy['radius'] * rng.uniform(1.5, 4.5)
            x, y = galaxy['x'] + r * np.cos(angle), galaxy['y'] + r * np.sin(angle)
            if 12 < x < NX - 12 and 12 < y < NY - 12:
                rows.append((x, y, PROBE_FLUX, host))
    wanted = len(rows) + far
    while len(rows) < wanted:
        x, y = rng.uniform(12, NX - 12, 2)
        if np.all(np.hypot(extended['x'] - x, extended['y'] - y) > 6 * extended['radius']):
            rows.append((x, y, PROBE_FLUX, -1))
    return np.array(rows, PROBE)


def draw_sources(galaxies, extended, stars, probes):
    """Return the noise-free light of all sources, DN/s, float32 (2048, 2048)."""
    image = np.zeros((NY, NX), np.float32)
    for galaxy in (*galaxies, *extended):
        _add_galaxy(image, *galaxy)
    for x, y, flux, _ in probes:
        _add_galaxy(image, x, y, flux, PROBE_RADIUS, 1., 1., 0.)
    for star in stars:
        _add_star(image, *star)
    return image


def sersic_area(radius, n, q):
    """Flux of a Sersic profile in units of its surface brightness at the effective radius, pixels^2."""
    b = 2 * n - 1 / 3 + 0.009876 / n
    return 2 * np.pi * q * radius**2 * n * math.exp(b) * b**(-2 * n) * math.gamma(2 * n)


def _add_galaxy(image, x, y, flux, radius, n, q, pa, faintest=1e-4):
    """Add a Sersic profile to `image`, in place, out to where it falls to `faintest` DN/s."""
    b = 2 * n - 1 / 3 + 0.009876 / n
    level = flux / sersic_area(radius, n, q)
    reach = radius * max(3., (1 + math.log(max(level / faintest, 1)) / b)**n)
    stamp, dy, dx = _stamp(image, x, y, reach)
    along, across = dx * math.cos(pa) + dy * math.sin(pa), (dy * math.cos(pa) - dx * math.sin(pa)) / q
    # 0.6 pixels of softening stand for the PSF: the cusp of a steep profile has no finite pixel
    r = np.sqrt(along**2 + across**2 + np.float32(0.36)) / np.float32(radius)
    profile = np.exp(-b * (r**np.float32(1 / n) - 1))
    if radius < 20 and stamp.size == (2 * math.ceil(reach) + 1)**2:      # whole stamp: the flux is exact
        profile *= flux / level / profile.sum(dtype=float)
    stamp += level * profile


def _add_star(image, x, y, flux):
    """Add a star to `image`, in place: a core, wings and six diffraction spikes."""
    stamp, dy, dx = _stamp(image, x, y, min(900, 60 * flux**0.3))
    r2 = dx**2 + dy**2
    core = np.exp(-r2 / (2 * 0.95**2)) / (2 * np.pi * 0.95**2)
    wings = (1 + r2 / 9)**np.float32(-1.4) * (0.4 / (9 * np.pi))
    spikes = 0
    for angle in np.radians([30, 90, 150]):
        along = dx * math.cos(angle) + dy * math.sin(angle)
        across = dy * math.cos(angle) - dx * math.sin(angle)
        spikes = spikes + np.exp(-across**2 / (2 * 1.3**2)) * (1 + along**2 / 36)**np.float32(-0.9) / 57
    stamp += np.float32(flux) * (0.55 * core + 0.3 * wings + 0.05 * spikes)


def _stamp(image, x, y, reach):
    """Return a view of `image` within `reach` of (x, y), and the float32 offsets dy (h, 1) and dx (1, w)."""
    reach, column, row = math.ceil(reach), round(x), round(y)
    y1, x1 = max(row - reach, 0), max(column - reach, 0)
    stamp = image[y1:row + reach + 1, x1:column + reach + 1]
    dy, dx = np.ogrid[y1:y1 + stamp.shape[0], x1:x1 + stamp.shape[1]]
    return stamp, (dy - y).astype(np.float32), (dx - x).astype(np.float32)


# -- detector

def is_long(detector):
    """Tell whether a detector belongs to the long-wavelength channel."""
    return detector.endswith('LONG')


def gain(detector):
    """Gain, e-/DN."""
    return 1.82 if is_long(detector) else 2.05


def reference_pixels():
    """True = reference pixel, (2048, 2048) bool."""
    reference = np.ones((NY, NX), bool)
    reference[BORDER:-BORDER, BORDER:-BORDER] = False
    return reference


def make_flat(detector, filter_):
    """Flat field, float32 (2048, 2048): 3 % smooth structure, 0.4 % blobs, 0.6 % pixel to pixel; border 1."""
    rng = _stream('flat', detector, filter_)
    flat = 1 + 0.03 * _waves(rng, 1, 4) + 0.004 * _waves(rng, 20, 70)
    flat += np.float32(0.006) * rng.standard_normal((NY, NX), dtype=np.float32)
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
    """Draw the pixels that a detector has lost.

    Returns
    -------
    bad : (2048, 2048) bool
        True = DO_NOT_USE: 0.4 %, 25 clusters, 700 pixels of a row, one column, and the reference pixels.
    hot : (2048, 2048) float32
        Excess of hot pixels, DN/s: 0.1 % of the pixels, exponential with a mean of 3; they are not `bad`.
    """
    rng = _stream('pixels', detector)
    bad = rng.random((NY, NX), dtype=np.float32) < 0.004
    for x, y, r in zip(*rng.integers(20, NX - 20, (2, 25)), rng.uniform(2, 6, 25), strict=True):
        dy, dx = np.ogrid[-8:9, -8:9]
        bad[y - 8:y + 9, x - 8:x + 9] |= dy**2 + dx**2 <= r**2
    row, start, column = rng.integers(100, 1200, 3)
    bad[row, start:start + 700] = True
    bad[:, column] = True
    hot = np.zeros((NY, NX), np.float32)
    warm = (rng.random((NY, NX), dtype=np.float32) < 0.001) & ~bad & ~reference_pixels()
    hot[warm] = rng.exponential(3, np.count_nonzero(warm)) + 0.05
    return bad | reference_pixels(), hot


def superbias(detector):
    """Bias, DN, float32 (2048, 2048): 11000 with structure, offsets of amplifiers and odd columns."""
    rng = _stream('superbias', detector)
    bias = 11000 + 150 * _waves(rng, 1, 8) + 60 * rng.standard_normal((NY, NX), dtype=np.float32)
    bias += np.repeat(rng.normal(0, 200, 4), 512).astype(np.float32)
    bias[:, ::2] += np.float32(rng.normal(0, 30))
    return bias


def stripe_pattern(rng, present=True):
    """Draw the 1/f noise and the column pattern of a rate image.

    Each amplifier sees a series with power 1/f in readout order, 512 pixels and 12 idle ones a row;
    amplifiers B and D are read from right to left.  Part of the series is common to all four.

    Returns
    -------
    stripes : (2048, 2048) float32
        DN/s; the mean over an amp-row has an rms of 0.004; 0 in the reference pixels.
    row_pattern : (2048, 4) float32
        Mean of each amp-row.
    column_pattern : (2048,) float32
        Rms 0.0012 DN/s; 0 in the reference pixels.
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


# -- wisps

def wisp_shape(detector, filter_):
    """Unit wisp, DN/s, float32 (2048, 2048): curved filaments and a glow in the fit window, 0 outside."""
    image = np.zeros((NY, NX), np.float32)
    if detector not in WISP_WINDOWS:
        return image
    y1, y2, x1, x2 = WISP_WINDOWS[detector]
    rng = _stream('wisp', detector, filter_)
    y, x = np.ogrid[-1:1:(y2 - y1) * 1j, -1:1:(x2 - x1) * 1j]
    x, y = x.astype(np.float32), y.astype(np.float32)
    half = (y2 - y1) / 2                                                     # pixels in a unit of y
    tilt, bend = rng.uniform(-0.3, 0.3), rng.uniform(0.15, 0.4) * rng.choice([-1, 1])
    ridge = tilt * x + bend * (x**2 - 0.3) + 0.06 * np.sin(3 * x + rng.uniform(0, 6))
    shape = 0.25 * np.exp(-((y - ridge) / 0.4)**2 - (x / 0.6)**2)
    for _ in range(7):
        offset, lean, phase = rng.normal(0, 0.22), rng.normal(0, 0.15), rng.uniform(0, 6)
        line = ridge + offset + lean * x + 0.04 * np.sin(5 * x + phase)
        width = rng.uniform(9, 28) / 2.355 / half                           # FWHM in pixels -> sigma
        middle, length = rng.normal(0, 0.25), rng.uniform(0.25, 0.5)
        along = np.exp(-((x - middle) / length)**2) * (1 + 0.3 * np.sin(7 * x + phase))
        shape = shape + rng.uniform(0.3, 1) * along * np.exp(-0.5 * ((y - line) / width)**2)
    edge = np.clip((1 - np.abs(x)) / 0.15, 0, 1) * np.clip((1 - np.abs(y)) / 0.15, 0, 1)
    shape = shape * edge**2 * (3 - 2 * edge)
    image[y1:y2, x1:x2] = WISP_PEAK * shape / shape.max()
    return image


def wisp_components(filter_, detector='NRCB4'):
    """Wisp components measured on flight data, as the package nmfwisp ships them (the test extra).

    Parameters
    ----------
    filter_ : str
        One of those of NRCB4, which alone comes at full resolution.

    Returns
    -------
    path : Path
        The file, a wisp template of several planes.
    components : ndarray of float32, shape (n, 2048, 2048)
        DN/s, not negative.

    Raises
    ------
    ModuleNotFoundError
        Without the package; it is found, not imported.
    """
    from astropy.io import fits
    spec = importlib.util.find_spec('nmfwisp')
    if spec is None:
        raise ModuleNotFoundError('nmfwisp is not installed (requirements-dev.txt)')
    name = detector.lower()
    path = Path(spec.origin).parent / 'templates' / f'{name}_org' / f'{name}_{filter_.lower()}_wisp.fits.gz'
    with fits.open(path) as hdul:
        return path, np.stack([hdu.data for hdu in hdul if hdu.name.startswith('WISP_')]).astype(np.float32)


def varied_wisp(components, seed, detector='NRCB4'):
    """A unit wisp, DN/s, float32 (ny, nx): components with random weights, at `WISP_PEAK` in the window."""
    y1, y2, x1, x2 = WISP_WINDOWS[detector]
    weights = _stream('weights', seed).exponential(1, len(components)).astype(np.float32)
    unit = np.tensordot(weights, np.nan_to_num(components), 1)
    return unit * np.float32(WISP_PEAK / np.percentile(unit[y1:y2, x1:x2], 99.9))


def distributed_template(unit, detector, filter_):
    """The template that users get: the unit wisp, noise of 0.0008 DN/s, NaN in the border and some pixels."""
    rng = _stream('template', detector, filter_)
    template = unit + np.float32(TEMPLATE_NOISE) * rng.standard_normal((NY, NX), dtype=np.float32)
    template[reference_pixels() | (rng.random((NY, NX), dtype=np.float32) < 0.0005)] = np.nan
    return template


def _stream(*key):
    """Return a random generator of its own for every combination of names and integers."""
    key = tuple(item if isinstance(item, str) else int(item) for item in key)
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


# -- files

NAME = 'jw01345001001_10201_00001_{}'           # <dataset>, the detector follows
DATE, TIME = '2022-12-21', '10:00:00.000'


def write_rate(scene, path, date=DATE):
    """Write a scene as `*_rate.fits`, through the data model so that every jwst version can open it."""
    from jwst.datamodels import ImageModel

    with ImageModel() as model:
        model.data, model.err, model.dq = scene.sci, scene.err, scene.dq
        model.var_poisson, model.var_rnoise = scene.var_poisson, scene.var_rnoise
        model.meta.bunit_data = model.meta.bunit_err = 'DN/s'
        return _save(model, scene, RATE_GROUPS, 1, path, date)


def write_uncal(data, truth, path, date=DATE):
    """Write a raw exposure, (ints, groups, 2048, 2048) uint16, as `*_uncal.fits`, through the data model."""
    from jwst.datamodels import Level1bModel

    with Level1bModel(data) as model:
        return _save(model, truth, data.shape[1], data.shape[0], path, date)


def _save(model, truth, groups, ints, path, date):
    """Fill the metadata that Detector1, the flat-field step and CRDS look at, and write a data model."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, value in (_instrument_meta(truth.detector, truth.filter_) | _wcs_meta(truth.detector)
                        | _exposure_meta(groups, ints, date) | _observation_meta(path.name, date)).items():
        model[f'meta.{name}'] = value
    model.save(str(path))
    return path


def _observation_meta(filename, date):
    """Telescope and observation metadata; the numbers come from a MAST file name."""
    number = re.match(r'jw(\d{5})(\d{3})(\d{3})_(\d{2})(\d)(\d{2})_(\d{5})_', filename)
    number = number or re.match(r'jw(\d{5})(\d{3})(\d{3})_(\d{2})(\d)(\d{2})_(\d{5})_', NAME)
    names = ('program_number', 'observation_number', 'visit_number', 'visit_group', 'sequence_id',
             'activity_id', 'exposure_number')
    return ({f'observation.{name}': value for name, value in zip(names, number.groups(), strict=True)}
            | {'observation.visit_id': ''.join(number.groups()[:3]), 'observation.date': date,
               'observation.time': TIME, 'filename': filename, 'telescope': 'JWST',
               'target.catalog_name': 'SIMULATED'})


def save_truth(truth, path):
    """Write the truth of a scene or an exposure as .npz; of a scene without its rate image."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    kind = Exposure if isinstance(truth, Exposure) else Truth
    np.savez(path, **{item.name: getattr(truth, item.name) for item in fields(kind)})
    return Path(path)


def load_truth(path):
    """Read what `save_truth` wrote: an `Exposure`, or a `Truth` if it was a rate image."""
    with np.load(path) as archive:
        values = {name: archive[name] if archive[name].ndim else archive[name].item() for name in archive}
    return (Exposure if 'snowballs' in values else Truth)(**values)


def fast_axis(detector):
    """Return (FASTAXIS, SLOWAXIS)."""
    return (-1, 2) if detector in ('NRCA1', 'NRCA3', 'NRCALONG', 'NRCB2', 'NRCB4') else (1, -2)


def _instrument_meta(detector, filter_):
    """Instrument and subarray metadata."""
    fast, slow = fast_axis(detector)
    return {'instrument.name': 'NIRCAM', 'instrument.detector': detector, 'instrument.module': detector[3],
            'instrument.channel': 'LONG' if is_long(detector) else 'SHORT', 'instrument.filter': filter_,
            'instrument.pupil': 'CLEAR', 'exposure.type': 'NRC_IMAGE', 'subarray.name': 'FULL',
            'subarray.xstart': 1, 'subarray.ystart': 1, 'subarray.xsize': NX, 'subarray.ysize': NY,
            'subarray.fastaxis': fast, 'subarray.slowaxis': slow}


def _wcs_meta(detector, ra=214.9, dec=52.9):
    """A TAN projection with the pixel scale of the channel."""
    scale = (0.063 if is_long(detector) else 0.031) / 3600
    return {f'wcsinfo.{name}': value for name, value in {
        'wcsaxes': 2, 'crpix1': 1024.5, 'crpix2': 1024.5, 'crval1': ra, 'crval2': dec,
        'ctype1': 'RA---TAN', 'ctype2': 'DEC--TAN', 'cunit1': 'deg', 'cunit2': 'deg',
        'cdelt1': scale, 'cdelt2': scale, 'pc1_1': -1., 'pc1_2': 0., 'pc2_1': 0., 'pc2_2': 1.,
        'v2_ref': 0., 'v3_ref': 0., 'vparity': -1, 'v3yangle': 0.,
        'ra_ref': ra, 'dec_ref': dec, 'roll_ref': 0.}.items()}


def _exposure_meta(groups, ints, date):
    """Exposure metadata of a MEDIUM8 exposure; times in seconds and MJD."""
    from astropy.time import Time

    frames = groups * (NFRAMES + GROUPGAP) - GROUPGAP
    exposure_time, duration = ints * frames * TFRAME, ints * (frames + 1) * TFRAME
    start = float(Time(f'{date}T{TIME}', scale='utc').mjd)
    return {f'exposure.{name}': value for name, value in {
        'readpatt': 'MEDIUM8', 'nints': ints, 'ngroups': groups, 'nframes': NFRAMES, 'groupgap': GROUPGAP,
        'frame_time': TFRAME, 'group_time': TGROUP, 'integration_time': exposure_time / ints,
        'exposure_time': exposure_time, 'measurement_time': exposure_time, 'duration': duration,
        'start_time': start, 'mid_time': start + duration / 2 / 86400, 'end_time': start + duration / 86400,
        'integration_start': 1, 'integration_end': ints, 'noutputs': 4, 'nresets_at_start': 1,
        'nresets_between_ints': 1, 'zero_frame': False, 'nsamples': 1, 'sample_time': 10.}.items()}


# -- CRDS cache

CONTEXT = 'jwst_0001.pmap'
DETECTOR_KEY = ('META.INSTRUMENT.DETECTOR',)
FLAT_KEY = ('META.INSTRUMENT.DETECTOR', 'META.INSTRUMENT.FILTER', 'META.INSTRUMENT.PUPIL')
RAMP_TYPES = ('mask', 'saturation', 'superbias', 'linearity', 'dark', 'gain', 'readnoise')
UNUSED_TYPES = '''
    trapdensity trappars persat ipc sirskernel rscd reset lastframe refpix area photom distortion filteroffset
    drizpars abvegaoffset apcorr amplifier regions specwcs wfssbkg wavelengthrange extract1d bkg tsophot
    psfmask pictureframe emicorr pastasoss fflat sflat dflat'''.split()
PARAMETER_TYPES = [f'pars-{name}' for name in '''
    detector1pipeline groupscalestep dqinitstep emicorrstep saturationstep ipcstep superbiasstep refpixstep
    rscdstep firstframestep lastframestep linearitystep darkcurrentstep resetstep persistencestep
    chargemigrationstep jumpstep pictureframestep cleanflickernoisestep rampfitstep gainscalestep darkpipeline
    image2pipeline flatfieldstep'''.split()]
# bit, value in the reference file, pipeline name
FLAG_NAMES = ((0, 1, 'DO_NOT_USE'), (3, 8, 'HOT'), (4, 16, 'DEAD'), (5, 32, 'REFERENCE_PIXEL'))


def crds_environment(cache):
    """Environment variables with which jwst and crds use a local cache; set them before importing either."""
    return {'CRDS_PATH': str(cache), 'CRDS_CONTEXT': CONTEXT,
            'CRDS_SERVER_URL': 'https://jwst-serverless.stsci.edu'}


def write_crds_cache(directory, detectors=('NRCA3',), filters=('F200W',), groups=None, flats=None):
    """Write, or add to, a CRDS cache without a server that serves all jwst versions.

    Parameters
    ----------
    directory : path
        The cache.  What it holds already is kept, and stays in the mappings.
    detectors, filters : sequence of str
        A flat is written for every combination.
    groups : int, optional
        Also write what Detector1 needs for exposures of up to so many groups, 0.3 GB a detector.
        None: flats only.
    flats : {(detector, filter): (2048, 2048) array}, optional
        Flats to write, also in place of those that are there, instead of the detectors' own.

    Returns
    -------
    pathlib.Path
        The cache, for `crds_environment`.
    """
    directory, flats = Path(directory), flats or {}
    references = directory / 'references' / 'jwst' / 'nircam'
    references.mkdir(parents=True, exist_ok=True)
    for key in dict.fromkeys([*((d, f) for d in detectors for f in filters), *flats]):
        path = references / f'jwst_nircam_flat_{key[0]}_{key[1]}_0001.fits'.lower()
        if key in flats or not path.exists():
            _write_flat(path, *key, flats.get(key))
    for detector in detectors if groups else ():
        _write_ramp_references(references, detector, groups)
    _write_mappings(directory)
    return directory


def _write_flat(path, detector, filter_, flat=None):
    """Write a flat reference file; `flat` (2048, 2048), None = `make_flat`."""
    flat = make_flat(detector, filter_) if flat is None else np.asarray(flat, np.float32)
    error = np.full((NY, NX), FLAT_ERROR, np.float32)
    arrays = {'SCI': flat, 'ERR': error, 'DQ': np.zeros((NY, NX), np.uint32)}
    _write_reference(path, 'FLAT', detector, arrays, {'FILTER': filter_, 'PUPIL': 'CLEAR'})


def _write_ramp_references(references, detector, groups):
    """Write the reference files of Detector1 that are missing; a dark with too few groups is replaced."""
    from astropy.io import fits

    for kind in RAMP_TYPES:
        path = references / f'jwst_nircam_{kind}_{detector}_0001.fits'.lower()
        if path.exists() and (kind != 'dark' or fits.getval(path, 'NGROUPS') >= groups):
            continue
        arrays, keywords = _ramp_reference(kind, detector, groups)
        _write_reference(path, kind.upper(), detector, arrays, keywords)


def _ramp_reference(kind, detector, groups):
    """Return the arrays {extension: array} and the extra keywords of one of the `RAMP_TYPES`."""
    good, plane = np.zeros((NY, NX), np.uint32), np.ones((NY, NX), np.float32)
    readout = {'READPATT': 'MEDIUM8'}
    if kind == 'mask':
        bad, hot = bad_pixels(detector)
        dead = bad & ~reference_pixels()
        return {'DQ': 1 * bad + 8 * (hot > 0) + 16 * dead + 32 * reference_pixels()}, {}
    if kind == 'saturation':
        return {'SCI': SATURATION * plane, 'DQ': good}, {}
    if kind == 'superbias':
        return {'SCI': superbias(detector), 'ERR': plane, 'DQ': good}, readout
    if kind == 'linearity':
        return {'COEFFS': np.stack([0 * plane, plane, 0 * plane]), 'DQ': good}, {}
    if kind == 'dark':
        readout |= {'NGROUPS': groups, 'NFRAMES': NFRAMES, 'GROUPGAP': GROUPGAP, 'NINTS': 1,
                    'TFRAME': TFRAME, 'TGROUP': TGROUP}
        return {'SCI': np.zeros((groups, NY, NX), np.float32), 'DQ': good}, readout
    if kind == 'gain':
        return {'SCI': gain(detector) * plane}, {}
    return {'SCI': math.sqrt(2) * READ_NOISE[detector] * plane}, readout          # of a pair of frames


def _write_reference(path, kind, detector, arrays, keywords):
    """Write one reference file, plain FITS."""
    from astropy.io import fits

    fast, slow = fast_axis(detector)
    header = fits.Header()
    header.update({
        'TELESCOP': 'JWST', 'INSTRUME': 'NIRCAM', 'DETECTOR': detector, 'MODULE': detector[3],
        'CHANNEL': 'LONG' if is_long(detector) else 'SHORT', 'REFTYPE': kind, 'PEDIGREE': 'DUMMY',
        'AUTHOR': 'tests/simulate.py', 'DESCRIP': 'simulated', 'HISTORY': 'simulated',
        'USEAFTER': '2014-01-01T00:00:00', 'EXP_TYPE': 'NRC_IMAGE', 'SUBARRAY': 'FULL',
        'SUBSTRT1': 1, 'SUBSTRT2': 1, 'SUBSIZE1': NX, 'SUBSIZE2': NY,
        'FASTAXIS': fast, 'SLOWAXIS': slow} | keywords)
    hdus = [fits.PrimaryHDU(header=header)]
    for name, array in arrays.items():
        hdus.append(fits.ImageHDU(array.astype(np.uint32 if name == 'DQ' else np.float32), name=name))
    if 'DQ' in arrays:
        bits, values, names = zip(*FLAG_NAMES, strict=True)
        hdus.append(fits.BinTableHDU.from_columns([
            fits.Column('BIT', 'J', array=np.array(bits)),
            fits.Column('VALUE', 'J', bzero=2**31, array=np.array(values, np.uint32)),
            fits.Column('NAME', '40A', array=np.array(names)),
            fits.Column('DESCRIPTION', '80A', array=np.array(names))], name='DQ_DEF'))
    part = path.with_suffix('.part')                     # a file that exists is complete
    fits.HDUList(hdus).writeto(part, overwrite=True)
    part.replace(path)


def _write_mappings(directory):
    """Write the server configuration, and mappings of all the reference files that are in a cache."""
    config, mappings = directory / 'config' / 'jwst', directory / 'mappings' / 'jwst'
    config.mkdir(parents=True, exist_ok=True)
    mappings.mkdir(parents=True, exist_ok=True)
    (config / 'server_config').write_text(repr({
        'observatory': 'jwst', 'operational_context': CONTEXT, 'bad_files_list': [],
        'last_synced': '2024-01-01 00:00:00'}) + '\n')
    kinds = dict.fromkeys([*RAMP_TYPES, 'flat', *UNUSED_TYPES, *PARAMETER_TYPES], 'N/A')
    for kind in (*RAMP_TYPES, 'flat'):
        paths = sorted((directory / 'references/jwst/nircam').glob(f'jwst_nircam_{kind}_*.fits'))
        if paths:
            kinds[kind] = f'jwst_nircam_{kind}_0001.rmap'
            _write_rmap(mappings / kinds[kind], kind, paths)
    selector = ''.join(f'    {kind!r} : {rmap!r},\n' for kind, rmap in kinds.items())
    _write_mapping(mappings / 'jwst_nircam_0001.imap', f'{{\n{selector}}}', mapping='INSTRUMENT',
                   parkey=('REFTYPE',), instrument='NIRCAM')
    _write_mapping(mappings / CONTEXT, "{\n    'NIRCAM' : 'jwst_nircam_0001.imap',\n}", mapping='PIPELINE',
                   parkey=('META.INSTRUMENT.NAME',))


def _write_rmap(path, kind, references):
    """Write the mapping of one reference type; detector and filter are read from the file names."""
    key = FLAT_KEY if kind == 'flat' else DETECTOR_KEY
    selector = ''
    for reference in references:
        row = tuple(reference.stem.upper().split('_')[3:-1]) + (('CLEAR',) if kind == 'flat' else ())
        useafter = f"        '2014-01-01 00:00:00' : {reference.name!r},\n"
        selector += f'    {row!r} : UseAfter({{\n{useafter}    }}),\n'
    _write_mapping(path, f'Match({{\n{selector}}})', mapping='REFERENCE', instrument='NIRCAM',
                   parkey=(key, ('META.OBSERVATION.DATE', 'META.OBSERVATION.TIME')),
                   filekind=kind.upper(), filetype=kind.upper(), file_ext='.fits',
                   classes=('Match', 'UseAfter'), suffix=kind, text_descr=kind)


def _write_mapping(path, selector, **header):
    """Write a CRDS mapping with its checksum: SHA-1 of the text without the checksum's own line."""
    header |= {'derived_from': 'generated', 'name': path.name, 'observatory': 'JWST'}
    lines = ''.join(f'    {key!r} : {header[key]!r},\n' for key in sorted(header))
    start, end = f'header = {{\n{lines}', f'}}\n\nselector = {selector}\n'
    digest = hashlib.sha1((start + end).encode()).hexdigest()
    path.write_text(f"{start}    'sha1sum' : '{digest}',\n{end}")


# -- wisp templates

def write_templates(wispdir, detectors=('NRCA3',), filters=('F200W',), scheme='2022', extensions=('SCI',),
                    templates=None):
    """Write wisp templates as the releases do.

    Parameters
    ----------
    wispdir : path
    detectors, filters : sequence of str
        One file for every combination.
    scheme : {'2022', '2022-lower', 'later'}
        `wisps_nrca3_F200W.fits`, `wisps_nrca3_f200w.fits` (image in the primary HDU) or
        `WISP_NRCA3_F200W_CLEAR.fits` (empty primary HDU, an image extension for each of `extensions`).
    extensions : sequence of str
    templates : {(detector, filter): array}, optional
        Images (2048, 2048), or planes (n, 2048, 2048), DN/s, instead of the built-in templates.

    Returns
    -------
    list of pathlib.Path
    """
    from astropy.io import fits

    name = {'2022': 'wisps_{0}_{2}.fits', '2022-lower': 'wisps_{0}_{3}.fits',
            'later': 'WISP_{1}_{2}_CLEAR.fits'}[scheme]
    Path(wispdir).mkdir(parents=True, exist_ok=True)
    paths = []
    for key in [(d, f) for d in detectors for f in filters]:
        image = (templates or {}).get(key)
        if image is None:
            image = distributed_template(wisp_shape(*key), *key)
        hdus = [fits.PrimaryHDU(image)]
        if scheme == 'later':
            hdus = [fits.PrimaryHDU()] + [fits.ImageHDU(image, name=extension) for extension in extensions]
        detector, filter_ = key
        paths.append(Path(wispdir) / name.format(detector.lower(), detector, filter_, filter_.lower()))
        fits.HDUList(hdus).writeto(paths[-1], overwrite=True)
    return paths


# -- command

def write_exposure(outdir, detector='NRCA3', filter_='F200W', seed=1, groups=5, ints=1, rate_only=False,
                   name=None, date=DATE, truth=None, **options):
    """Write one exposure and all that its reduction needs.

    Parameters
    ----------
    outdir : path
    detector, filter_, seed, groups, ints, **options
        As for `exposure`; with `rate_only` those of `rate_scene`.
    rate_only : bool
        Write a rate image and a cache of flats only.
    name : str, optional
        Dataset name; default jw01345001001_10201_00001_<detector>.
    date : str
        YYYY-MM-DD.
    truth : path, optional
        Default `outdir`/truth.npz.

    Returns
    -------
    dict
        Paths: 'exposure', 'template' (None where there are no wisps), 'cache' and 'truth'.
    """
    outdir, name = Path(outdir), name or NAME.format(detector.lower())
    if rate_only:
        told = rate_scene(detector, filter_, seed, **options)
        path = write_rate(told, outdir / 'calibrated' / f'{name}_rate.fits', date)
    else:
        data, told = exposure(detector, filter_, seed, groups, ints, **options)
        path = write_uncal(data, told, outdir / 'uncals' / f'{name}_uncal.fits', date)
    template = None
    if told.wisp_unit.any():
        template, = write_templates(outdir / 'wisps' / 'wisps_2022_08_26', [detector], [filter_],
                                    templates={(detector, filter_): told.template})
    cache = write_crds_cache(outdir / 'crds_cache', [detector], [filter_], None if rate_only else groups)
    truth = save_truth(told, truth or outdir / 'truth.npz')
    return {'exposure': path, 'template': template, 'cache': cache, 'truth': truth}


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('outdir', metavar='OUTDIR', type=Path)
    add('--detector', default='NRCA3', choices=sorted(READ_NOISE), metavar='DET', help='NRCA1 ... NRCBLONG')
    add('--filter', dest='filter_', default='F200W', metavar='FILTER')
    add('--seed', type=int, default=1)
    add('--groups', type=int, default=5, help='groups in an integration (%(default)s)')
    add('--ints', type=int, default=1, help='integrations (%(default)s)')
    add('--wisp', type=float, default=0.6, help='scale of the wisp, where the detector has one (%(default)s)')
    add('--snowballs', type=int, default=20, help='in each integration (%(default)s)')
    add('--cosmic_rays', type=float, default=6., help='in a second (%(default)s)')
    add('--crowd', type=float, default=1., help='number of galaxies, in units of 700')
    add('--big', action='store_true', help='add a galaxy with an effective radius of 130 pixels')
    add('--no_stripes', dest='stripes', action='store_false', help='leave the row and column patterns out')
    add('--rate_only', action='store_true', help='a rate image instead of a raw exposure')
    add('--undefined', choices=('nan', 'finite'), default='nan', help='with --rate_only: unusable pixels')
    add('--name', help='dataset name, jw01345001001_10201_00001_<detector> unless given')
    add('--date', default=DATE, help='of the observation (%(default)s)')
    add('--truth', type=Path, help='file for the truth, OUTDIR/truth.npz unless given')
    return parser


def main(argv=None):
    """Run the command; returns the exit code."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    if options['groups'] < 1 or options['ints'] < 1:
        parser.error('--groups and --ints must be at least 1')
    for name in ('snowballs', 'cosmic_rays') if options['rate_only'] else ('undefined',):
        del options[name]
    paths = write_exposure(**options)
    for what, path in paths.items():
        sys.stdout.write(f'{what:10} {path}\n')
    for variable, value in crds_environment(paths['cache'].resolve()).items():
        sys.stdout.write(f'export {variable}={value}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
