"""Find and read wisp templates."""

import warnings
from pathlib import Path

from stage1.exposure import DETECTOR_SIDE, ExposureError, one_line

import numpy as np

SHAPE = DETECTOR_SIDE, DETECTOR_SIDE

# Of later releases, of that of 2022 (both cases are met), and of the package nmfwisp. The last three do not name the
# pupil: they are templates of PUPIL CLEAR, but for those of F150W2, which are of F162M.
WITH_PUPIL = 'WISP_{DETECTOR}_{FILTER}_{PUPIL}.fits'
WITHOUT_PUPIL = ('wisps_{detector}_{FILTER}.fits', 'wisps_{detector}_{filter}.fits', '{detector}_{filter}_wisp.fits.gz')
# What the releases have, by detector and pass band; elsewhere no wisp is known that is worth a template.
KNOWN_DETECTORS = ('NRCA3', 'NRCA4', 'NRCB3', 'NRCB4')
KNOWN_FILTERS = ('F115W', 'F140M', 'F150W', 'F150W2', 'F162M', 'F182M', 'F200W', 'F210M')


def find_template(wisp_dir, detector, filter_, pupil='CLEAR'):
    """Path of the template of a detector, filter and pupil; ExposureError, which names what was looked for.

    Medium and narrow filters in the pupil wheel have their blocking filter as FILTER: F162M has F150W2.
    """
    names = template_names(detector, filter_, pupil)
    for name in names:
        if (path := Path(wisp_dir, name)).is_file():
            return path
    raise ExposureError(f"no wisp template in {wisp_dir}: looked for {', '.join(names)}")


def template_names(detector, filter_, pupil):
    """File names of the template of a detector, filter and pupil, the one to be preferred first."""
    names = [WITH_PUPIL]
    if pupil == ('F162M' if filter_ == 'F150W2' else 'CLEAR'):
        names += WITHOUT_PUPIL
    return [name.format(detector=detector.lower(), DETECTOR=detector, filter=filter_.lower(), FILTER=filter_,
                        PUPIL=pupil) for name in names]


def should_have_template(detector, filter_, pupil):
    """True for the detectors and pass bands of which the releases have templates."""
    return detector in KNOWN_DETECTORS and (filter_ if pupil == 'CLEAR' else pupil) in KNOWN_FILTERS


def read_template(path, place=np.s_[:, :]):
    """Read a wisp template, or the part of it that a subarray sees.

    The 2022 templates are the primary image. Later files hold image extensions named for the data level
    they fit; we correct rate images, so an extension named `*RATE*` comes first, then `SCI`, then the
    first image that is neither of another level (CAL, in MJy/sr) nor an error, weight or quality array.

    Parameters
    ----------
    path : Path
    place : tuple of slice
        Rows and columns of the detector that the image holds.

    Returns
    -------
    ndarray of float32, shape (n, ny, nx)
        DN/s at scale 1, with NaN; usually one plane. Several are a cube, or extensions that differ in a
        number at the end (`WISP_0`, `WISP_1` ...).

    Raises
    ------
    ExposureError
        When there is no such image, when it has another shape or holds nothing but NaN.
    """
    from astropy.io import fits
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of a truncated file; the data are looked at below
            with fits.open(path, memmap=False) as hdul:
                images = {}
                for hdu in hdul:
                    if hdu.is_image and np.ndim(hdu.data) >= 2 and hdu.data.dtype.kind in 'fiu':
                        images.setdefault(hdu.name.upper(), hdu.data)
    except Exception as error:
        raise ExposureError(f'wisp template {path} cannot be read ({one_line(error)})') from None
    name = rate_extension(list(images))
    if name is None:
        raise ExposureError(f"wisp template {path} has no image for rates, only {sorted(images)}")
    stem = name.rstrip('0123456789')
    names = [other for other in images if other.rstrip('0123456789') == stem] if stem.endswith('_') else [name]
    for other in names:
        if images[other].shape[-2:] != SHAPE or images[other].ndim > 3:
            raise ExposureError(f'wisp template {path} has shape {images[other].shape}, not {SHAPE} as a full frame')
    planes = np.concatenate([images[other].reshape(-1, *SHAPE) for other in names]).astype(np.float32)
    if not np.isfinite(planes).any(axis=(1, 2)).all():
        raise ExposureError(f'wisp template {path} is NaN everywhere')
    return planes[(slice(None), *place)]


def rate_extension(names):
    """Name of the image extension that fits rate images; None if there is none."""
    def order(name):
        return 0 if 'RATE' in name else 1 if name == 'SCI' else 2
    other = ('CAL', 'ERR', 'VAR', 'DQ', 'WHT', 'WEIGHT', 'MASK')
    usable = [name for name in names if not any(word in name for word in other)]
    return min(usable, key=order, default=None)


def bright_window(planes, level):
    """Rows and columns, two slices, where the sum of the planes exceeds `level`, DN/s; None if nowhere."""
    from scipy import ndimage
    bright = np.nansum(planes, axis=0) > level
    return ndimage.find_objects(bright.view(np.uint8))[0] if bright.any() else None
