"""What all pieces share: the full frame and how it is read, and random numbers."""

import zlib

import numpy as np

NY = NX = 2048
BORDER = 4                                       # reference pixels on every side
# amplifiers A-D without reference pixels
AMPS = (slice(4, 512), slice(512, 1024), slice(1024, 1536), slice(1536, 2044))

# MEDIUM8: seconds, averaged frames and skipped frames of a group
TFRAME, NFRAMES, GROUPGAP = 10.73677, 8, 2
PERIOD = NFRAMES + GROUPGAP
TGROUP = TFRAME * PERIOD


def frames(groups):
    """Frame times of an integration: nothing is skipped after its last group."""
    return groups * PERIOD - GROUPGAP


def reference_pixels():
    """True = reference pixel, (2048, 2048) bool."""
    reference = np.ones((NY, NX), bool)
    reference[BORDER:-BORDER, BORDER:-BORDER] = False
    return reference


def stream(*key):
    """Return a random generator of its own for every combination of names and integers."""
    key = tuple(item if isinstance(item, str) else int(item) for item in key)
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def normal(rng):
    """Noise of unit rms, float32 (2048, 2048)."""
    return rng.standard_normal((NY, NX), dtype=np.float32)


def uniform(rng):
    """Numbers from 0 to 1, float32 (2048, 2048)."""
    return rng.random((NY, NX), dtype=np.float32)
