"""What all pieces share: the full frame and how it is read, and random numbers."""

import zlib

import numpy as np

NY = NX = 2048
BORDER = 4                                       # reference pixels on every side
# amplifiers A-D without reference pixels
AMPS = (slice(4, 512), slice(512, 1024), slice(1024, 1536), slice(1536, 2044))

TFRAME = 10.73677                                # seconds
# averaged frames and skipped frames of a group
READOUTS = {'RAPID': (1, 0), 'BRIGHT1': (1, 1), 'BRIGHT2': (2, 0), 'SHALLOW4': (4, 1), 'MEDIUM8': (8, 2),
            'DEEP8': (8, 12)}
NFRAMES, GROUPGAP = READOUTS['MEDIUM8']
PERIOD = NFRAMES + GROUPGAP
TGROUP = TFRAME * PERIOD

# pixels on a side; four amplifiers read the first two, one the others
SUBARRAYS = {'FULL': 2048, 'FULLP': 2048, 'SUB640': 640, 'SUB320': 320, 'SUB160': 160,
             'SUB400P': 400, 'SUB160P': 160, 'SUB64P': 64}
# the corner with the short-wavelength ones: (high columns, high rows)
CORNERS = {'NRCA1': (True, True), 'NRCA2': (True, False), 'NRCA3': (False, True), 'NRCA4': (False, False),
           'NRCB1': (False, False), 'NRCB2': (False, True), 'NRCB3': (True, False), 'NRCB4': (True, True)}
MIDDLES = {'NRCALONG': (1024, 1024), 'NRCBLONG': (1012, 1020)}       # of the others: column, row
IDLE = 12                                        # idle pixel times at the end of an amplifier's row


def subarray_place(detector, subarray):
    """Rows and columns of a subarray on its detector, two slices (of the P ones, where they vary, an example)."""
    side = SUBARRAYS[subarray]
    if side == NX or detector in CORNERS:
        starts = [(NX - side) * high for high in CORNERS.get(detector, (0, 0))]
    else:
        starts = [middle - side // 2 for middle in MIDDLES[detector]]
    return tuple(slice(start, start + side) for start in reversed(starts))


def outputs(subarray):
    """Number of amplifiers that read a subarray, NOUTPUTS."""
    return 4 if SUBARRAYS[subarray] == NX else 1


def frame_time(subarray):
    """Seconds to read a frame, at 10 us a pixel."""
    side = SUBARRAYS[subarray]
    return TFRAME if side == NX else 1e-5 * (side + IDLE) * (side + 2)


def frames(groups, readout):
    """Frame times of an integration: nothing is skipped after its last group."""
    nframes, gap = READOUTS[readout]
    return groups * (nframes + gap) - gap


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
