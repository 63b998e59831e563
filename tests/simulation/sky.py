"""The sky: its level, galaxies, stars, and the probes: equal small galaxies whose flux is measured."""

import math

import numpy as np

from .detector import is_long
from .frame import BORDER, NX, NY

PROBE_FLUX, PROBE_RADIUS = 1., 2.                # DN/s, pixels

GALAXY = [(name, 'f8') for name in ('x', 'y', 'flux', 'radius', 'sersic', 'q', 'pa')]
STAR = [('x', 'f8'), ('y', 'f8'), ('flux', 'f8')]
PROBE = [('x', 'f8'), ('y', 'f8'), ('flux', 'f8'), ('host', 'i4')]


def sky_level(detector):
    """Sky, DN/s, float32 (2048, 2048): 0.2 or (LW) 0.35, with a gradient of 1 % in x and 0.8 % in y."""
    y, x = np.ogrid[:NY, :NX]
    level = 0.35 if is_long(detector) else 0.2
    return (level * (1 + 0.01 * (x / NX - 0.5) + 0.008 * (y / NY - 0.5))).astype(np.float32)


def catalogue(rng, crowd, big):
    """Draw the tables of a field: ordinary galaxies, extended galaxies, stars and probes.

    Positions are in pixels from 0, fluxes in DN/s, radii effective (half-light), in pixels along the major axis.
    """
    streams = [np.random.default_rng(key) for key in rng.integers(2**32, size=4)]
    extended = _extended_galaxies(streams[0], big)
    probes = _probe_galaxies(streams[1], extended)
    stars = np.zeros(6, STAR)
    stars['x'], stars['y'] = streams[2].uniform(30, NX - 30, (2, 6))
    stars['flux'] = np.exp(streams[2].uniform(np.log(30), np.log(6000), 6))
    return _field_galaxies(streams[3], round(700 * crowd)), extended, stars, probes


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


def sersic_area(radius, n, q):
    """Flux of a Sersic profile in units of its surface brightness at the effective radius, pixels^2."""
    b = 2 * n - 1 / 3 + 0.009876 / n
    return 2 * np.pi * q * radius**2 * n * math.exp(b) * b**(-2 * n) * math.gamma(2 * n)


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
