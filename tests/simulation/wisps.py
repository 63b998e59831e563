"""Wisps: their light, and the templates of it that are distributed."""

import importlib.util
from itertools import product
from pathlib import Path

import numpy as np

from .frame import NX, NY, normal, reference_pixels, stream, uniform

# detector -> fit window
WISP_WINDOWS = {'NRCA3': np.s_[1100:2046, 300:1300], 'NRCA4': np.s_[0:600, 450:1450],
                'NRCB3': np.s_[0:800, 700:1450], 'NRCB4': np.s_[850:2046, 900:1600]}
WISP_PEAK = 0.06                                 # DN/s at scale 1
TEMPLATE_NOISE = 0.0008                          # DN/s, in the distributed template


def wisp_shape(detector, filter_):
    """Unit wisp, DN/s, float32 (2048, 2048): curved filaments and a glow in the fit window, 0 outside."""
    image = np.zeros((NY, NX), np.float32)
    if detector not in WISP_WINDOWS:
        return image
    window = WISP_WINDOWS[detector]
    rng, (ny, nx) = stream('wisp', detector, filter_), image[window].shape
    y, x = np.ogrid[-1:1:ny * 1j, -1:1:nx * 1j]
    x, y = x.astype(np.float32), y.astype(np.float32)
    half = ny / 2                                                            # pixels in a unit of y
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
    image[window] = WISP_PEAK * shape / shape.max()
    return image


def wisp_components(filter_, detector='NRCB4'):
    """Wisp components measured on flight data, as the package nmfwisp ships them at full resolution for NRCB4.

    Returns the path of the file, a wisp template of several planes, and those, float32 (n, 2048, 2048), DN/s.
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
    weights = stream('weights', seed).exponential(1, len(components)).astype(np.float32)
    unit = np.tensordot(weights, np.nan_to_num(components), 1)
    return unit * np.float32(WISP_PEAK / np.percentile(unit[WISP_WINDOWS[detector]], 99.9))


def distributed_template(unit, detector, filter_):
    """The template that users get: the unit wisp, noise of 0.0008 DN/s, NaN in the border and some pixels."""
    rng = stream('template', detector, filter_)
    template = unit + np.float32(TEMPLATE_NOISE) * normal(rng)
    template[reference_pixels() | (uniform(rng) < 0.0005)] = np.nan
    return template


def write_templates(wispdir, detectors=('NRCA3',), filters=('F200W',), templates=None, pupil='CLEAR'):
    """Write a wisp template for every combination as the release of 2022 does, and return their paths.

    With a filter in the pupil wheel, as version 3: named for it, and in an extension RATE.

    `templates` are images (2048, 2048), or planes (n, 2048, 2048), DN/s, to write instead of the built-in ones:
    {(detector, filter): array}.
    """
    from astropy.io import fits

    Path(wispdir).mkdir(parents=True, exist_ok=True)
    paths = []
    for detector, filter_ in product(detectors, filters):
        image = (templates or {}).get((detector, filter_))
        if image is None:
            image = distributed_template(wisp_shape(detector, filter_), detector, filter_)
        if pupil == 'CLEAR':
            paths.append(Path(wispdir) / f'wisps_{detector.lower()}_{filter_}.fits')
            fits.writeto(paths[-1], image, overwrite=True)
        else:
            paths.append(Path(wispdir) / f'WISP_{detector}_{filter_}_{pupil}.fits')
            hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, name='RATE')])
            hdus.writeto(paths[-1], overwrite=True)
    return paths
