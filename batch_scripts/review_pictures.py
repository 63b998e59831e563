"""The pictures of the review page: all of an exposure on one stretch, small and in full resolution."""

import base64
import math
from io import BytesIO

from stage1.masks import block_sums

import numpy as np

VIEW_SIZE = 690                 # pixels: most of the large view
THUMB = 4                       # so many of its pixels, in x and in y, make one of the picture in the table
EXPOSURE_KB = 120               # kB of pictures per exposure; base64 adds a third (690 exposures: < 115 MB)
QUALITIES = (60, 50, 42, 35, 28, 20, 10)        # WebP, the first that keeps to EXPOSURE_KB
FULL_QUALITY = 50               # JPEG, of the pictures in full resolution: about 1 MB each
STRETCH = (-4, 20, 0.25)        # black and white in units of the clipped sky rms, softening of the asinh
PANELS = ('before', 'after wisps', 'after striping', 'removed')


def draw(exposure, images, ignore, mask, exposure_kb, store):
    """Draw the images on one common stretch, and set `pictures`, `full` and `limits` of the exposure, in place.

    Parameters
    ----------
    exposure : dict
    images : list of ndarray or None, shape (ny, nx), DN/s
        As `PANELS`.
    ignore, mask : ndarray of bool, shape (ny, nx)
        True = left out; True = drawn in colour, for the picture that lies over the others; may be None.
    exposure_kb : float
        Upper limit of the pictures on the page.
    store : Path or None
        Where the pictures in full resolution go; None = nowhere.
    """
    shape = ignore.shape
    factor = math.ceil(max(shape) / VIEW_SIZE)
    views = [None if image is None else block_mean(image, ignore, factor) for image in images]
    thumbs = [None if image is None else block_mean(image, np.isnan(image), THUMB) for image in views]
    sky, rms = sky_level(next(image for image in views if image is not None))
    levels = [*(sky if image is None else sky_level(image)[0] for image in views[:3]), 0]
    exposure |= {'limits': (STRETCH[0] * rms, STRETCH[1] * rms), 'shape': shape}

    def grey(drawn):
        return [None if image is None else
                np.nan_to_num(255 * stretch(image - level, *exposure['limits'])).astype(np.uint8)[::-1]
                for image, level in zip(drawn, levels, strict=True)]

    over = b'' if mask is None else overlay(block_mean(mask, ignore, factor)[::-1] >= 0.5)
    thumbs = [compressed(picture, 'WEBP', 70) for picture in grey(thumbs)]
    views = [*fit_budget(grey(views), 1000 * exposure_kb - sum(map(len, thumbs)) - len(over)), over]
    exposure['pictures'] = {name: [base64.b64encode(picture).decode() for picture in group]
                            for name, group in (('thumbs', thumbs), ('views', views))}
    if store is not None:
        exposure['full'] = [f"{exposure['key']}_{panel}.jpg" if image is not None else ''
                            for panel, image in enumerate(images)]
        for name, picture in zip(exposure['full'], grey(images), strict=True):
            if name:
                (store / name).write_bytes(compressed(picture, 'JPEG', FULL_QUALITY))


def block_mean(image, ignore, factor):
    """Mean of each block of factor x factor pixels, also of the smaller ones at the upper and right edge.

    `image`, float32 or bool, and `ignore` are (ny, nx); ignored pixels (True) and NaN are left out. NaN where nothing
    is left.
    """
    ignore = ignore | np.isnan(image)
    number = block_sums((~ignore).astype(np.float32), factor)
    return np.where(number > 0, block_sums(np.where(ignore, 0, image), factor) / np.maximum(number, 1), np.nan)


def sky_level(image):
    """Median and rms of the finite pixels of an image, sources clipped."""
    from astropy.stats import sigma_clipped_stats
    _, middle, rms = sigma_clipped_stats(image[np.isfinite(image)], sigma_upper=2, sigma_lower=3, maxiters=10)
    return float(middle), float(rms) or 1e-3


def stretch(image, low, high):
    """DN/s above the sky to 0 ... 1: asinh between two limits."""
    from astropy.visualization import AsinhStretch, ManualInterval
    return AsinhStretch(STRETCH[2])(ManualInterval(low, high)(image))


def fit_budget(pictures, budget):
    """Compress the pictures with the best of `QUALITIES` at which they take at most `budget` bytes."""
    for quality in QUALITIES:
        # what was removed is smooth: cheap, and its faint pattern the first to go
        encoded = [compressed(picture, 'WEBP', min(quality + 20 * (panel == 'removed'), 70))
                   for panel, picture in zip(PANELS, pictures, strict=True)]
        if sum(map(len, encoded)) <= budget:
            break
    return encoded


def compressed(picture, kind, quality):
    """WEBP or JPEG file of a grey picture, uint8 (ny, nx); b'' for None."""
    from PIL import Image
    if picture is None:
        return b''
    file = BytesIO()
    Image.fromarray(picture).save(file, kind, quality=quality, method=2)
    return file.getvalue()


def overlay(mask):
    """PNG file in which the True pixels of a mask, bool (ny, nx), are amber and the others transparent."""
    from PIL import Image
    picture = Image.fromarray(mask.astype('uint8'), 'P')
    picture.putpalette([0, 0, 0, 255, 176, 32])
    file = BytesIO()
    picture.save(file, 'PNG', bits=1, transparency=0, optimize=True)
    return file.getvalue()
