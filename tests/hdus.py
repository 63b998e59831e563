"""The extensions of rate images and raw exposures, made of noise and counts."""

from functools import lru_cache

import numpy as np
from astropy.io import fits

CARDS = {'TELESCOP': 'JWST', 'INSTRUME': 'NIRCAM', 'EXP_TYPE': 'NRC_IMAGE', 'DETECTOR': 'NRCA3', 'FILTER': 'F200W',
         'PUPIL': 'CLEAR', 'SUBARRAY': 'FULL', 'READPATT': 'MEDIUM8', 'NINTS': 1, 'NGROUPS': 5,
         'DATE-OBS': '2022-12-21', 'TIME-OBS': '10:00:00'}


@lru_cache(maxsize=2)
def rate_arrays(shape):
    """What `rate_hdus` holds, by extension."""
    sci = np.random.default_rng(1).normal(0.2, 0.01, shape).astype(np.float32)
    dq = np.zeros(shape, np.uint32)
    dq[:4] = 1
    return {'SCI': sci, 'ERR': np.full(shape, 0.01, np.float32), 'DQ': dq,
            'VAR_POISSON': np.full(shape, 1e-4, np.float32), 'VAR_RNOISE': np.full(shape, 1e-4, np.float32)}


def primary(history, cards):
    """A primary HDU with `CARDS`, other `cards` and lines of `history`."""
    header = fits.Header(CARDS | cards)
    for line in history:
        header.add_history(line)
    return fits.PrimaryHDU(header=header)


def rate_hdus(shape=(2048, 2048), history=(), **cards):
    """The extensions of a rate image, of noise; `cards` go to its primary header. Its arrays are not to be changed."""
    return fits.HDUList([primary(history, cards),
                         *(fits.ImageHDU(array, name=name) for name, array in rate_arrays(shape).items())])


def uncal_hdus(shape=(1, 3, 2048, 2048), **cards):
    """The extensions of a raw exposure."""
    counts = np.arange(np.prod(shape), dtype=np.uint32).astype(np.uint16).reshape(shape)
    return fits.HDUList([primary((), cards), fits.ImageHDU(counts, name='SCI')])
