"""Scenes full of light: photographs of galaxies, clusters and nebulae laid over the simulated rate image.

The photographs are those that Debian's package stellarium-data puts into its folder `stellarium/nebulae/default`
of shared data; `hubble_scene` needs none: its galaxies are those of the Hubble Deep Field that comes with
scikit-image; nor does `random_scene`.  A photograph gives a shape only: its sky is taken off, its stretch undone, its
edges are tapered.  `SCENES` names what is laid where.

Images are (ny, nx) = (2048, 2048), rates in DN/s.
"""
import zlib
from dataclasses import replace
from pathlib import Path

import simulation
from simulation import NX, NY
from simulation.detector import gain
from simulation.frame import TGROUP
from simulation.rate import RATE_GROUPS

import numpy as np
from scipy import ndimage

TAPER = 0.12                    # of the side of a photograph, on each side
STRETCH = 3.                    # photographs are taken to be shown as log(1 + STRETCH x)

# name -> pieces; a piece is (photograph, side in pixels, centre x, centre y, DN/s at its half-light radius,
# 'rows' to turn its long axis along the rows, or degrees)
SCENES = {
    'spirals of 300 px': [(name, 300, *place, level, angle) for name, place, level, angle in (
        ('m83', (400, 500), 0.25, 0), ('m33', (1500, 350), 0.12, 40), ('n1300', (1000, 1100), 0.3, 0),
        ('n253', (450, 1600), 0.2, 0), ('n2207', (1600, 1500), 0.4, 70), ('m83', (1250, 1750), 0.1, 130))],
    'a spiral of 1000 px': [('m33', 1000, 1050, 980, 0.3, 0)],
    'a cluster of galaxies': [('leo_cluster', 2040, 1024, 1024, 0.06, 0)],
    'edge-on along rows': [('n891', 1500, 1000, 1030, 0.25, 'rows')],
    'tidal arms': [('n2207', 1100, 1000, 1050, 0.2, 0)],
    'nebula': [('m42', 2400, 1000, 1060, 0.5, 0)],
    'globular': [('n104', 5000, 1030, 1010, 0.5, 0)],
    'disc beyond the frame': [('n253', 4200, 1000, 1040, 0.4, 0)]}


def photograph_scene(directory, pieces, seed=1, **options):
    """Simulate a rate image with photographs laid over it.

    Parameters
    ----------
    directory : path
        Where the photographs are, as <name>.png.
    pieces : list of tuple
        As in `SCENES`.
    seed, **options
        As for `simulation.rate_scene`.

    Returns
    -------
    simulation.Scene
    """
    light = np.zeros((NY, NX), np.float32)
    for name, *piece in pieces:
        light += placed(shape_of(grey(Path(directory) / f'{name}.png')), *piece)
    return add_light(simulation.rate_scene(seed=seed, **options), light)


def hubble_scene(seed=1, level=0.1, enlarged=2.36, **options):
    """Simulate a rate image with the galaxies of the Hubble Deep Field; `level` is its 99th percentile, DN/s."""
    from skimage import data
    shape = shape_of(data.hubble_deep_field().mean(axis=2))
    light = ndimage.zoom(shape, enlarged, order=1)
    rng = np.random.default_rng(seed)
    light = np.rot90(light, rng.integers(4))[::rng.choice([-1, 1])]
    light = np.pad(light, [(0, max(n - m, 0)) for n, m in zip((NY, NX), light.shape, strict=True)])[:NY, :NX]
    return add_light(simulation.rate_scene(seed=seed, **options), light * np.float32(level / np.percentile(light, 99)))


def random_scene(level, scale=40, seed=1, **options):
    """Simulate a rate image behind random light, alike everywhere: rms `level`, DN/s, smooth over `scale` pixels."""
    light = np.random.default_rng(seed).standard_normal((NY // 8, NX // 8))
    light = ndimage.zoom(ndimage.gaussian_filter(light, scale / 8), 8, order=1)
    light *= level / light.std()
    scene = simulation.rate_scene(seed=seed, **options)
    return replace(add_light(scene, light), source=scene.source, sky=scene.sky + light)         # counts as sky


def add_light(scene, light):
    """Return the scene with `light`, DN/s (2048, 2048), added to its sources, and the photon noise of it."""
    light = np.where(simulation.reference_pixels(), 0, light).astype(np.float32)
    electrons, seconds = gain(scene.detector), (RATE_GROUPS - 1) * np.float32(TGROUP)
    added = 1.2 * np.maximum(light * scene.flat, 0) / (electrons * seconds)
    rng = np.random.default_rng(zlib.crc32(light.tobytes()[::997]))
    sci = scene.sci + light * scene.flat + np.sqrt(added) * rng.standard_normal(light.shape, dtype=np.float32)
    defined = scene.err > 0
    variance = np.where(defined, scene.var_poisson + added, scene.var_poisson).astype(np.float32)
    return replace(scene, source=scene.source + light, sci=sci.astype(np.float32), var_poisson=variance,
                   err=np.where(defined, np.sqrt(variance + scene.var_rnoise), scene.err).astype(np.float32))


# -- photographs

def grey(path):
    """Grey level of an image file, float32 (ny, nx)."""
    from PIL import Image
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'), np.float32).mean(axis=2)


def shape_of(image):
    """Grey level less its sky, stretched back, smoothed by a pixel, tapered to 0 at the edge; largest value 1."""
    border = np.concatenate([image[:3].ravel(), image[-3:].ravel(), image[:, :3].ravel(), image[:, -3:].ravel()])
    image = np.maximum(image - np.percentile(border, 40), 0)
    image = ndimage.gaussian_filter(np.expm1(STRETCH * image / image.max()), 1)
    ramps = [np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / (TAPER * n), 0, 1) for n in image.shape]
    image *= np.outer(*(np.sin(np.pi / 2 * ramp)**2 for ramp in ramps))
    return (image / image.max()).astype(np.float32)


def placed(shape, side, x, y, level, angle):
    """Return `shape` scaled to `side` pixels around (x, y), `level` DN/s at its half-light radius, in a frame."""
    if angle:
        angle = long_axis(shape) if angle == 'rows' else angle
        shape = np.maximum(ndimage.rotate(shape, angle, order=1, reshape=False), 0)
    yc, xc = ndimage.center_of_mass(shape)
    r = np.hypot(*(axis - c for axis, c in zip(np.indices(shape.shape), (yc, xc), strict=True)))
    order = np.argsort(r, axis=None)
    total = np.cumsum(shape.ravel()[order])
    half = r.ravel()[order][np.searchsorted(total, total[-1] / 2)]
    ring = np.abs(r - half) < max(half / 20, 1)
    zoom = side / max(shape.shape)
    rows, columns = (np.arange(NY) - y) / zoom + yc, (np.arange(NX) - x) / zoom + xc
    frame = ndimage.map_coordinates(shape, np.meshgrid(rows, columns, indexing='ij'), order=1, cval=0)
    return frame.astype(np.float32) * np.float32(level / np.mean(shape[ring]))


def long_axis(shape):
    """Degrees by which `ndimage.rotate` must turn an image so that its long axis lies along the rows."""
    y, x = np.indices(shape.shape)
    weight = np.where(shape > 0.05, shape, 0)
    weight /= weight.sum()
    y, x = y - (weight * y).sum(), x - (weight * x).sum()
    return np.degrees(0.5 * np.arctan2(2 * (weight * x * y).sum(), (weight * (x**2 - y**2)).sum()))
