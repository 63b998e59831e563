"""Find, open and check one exposure; what is wrong with it is said in one line (`ExposureError`)."""

import os
import warnings
from pathlib import Path

# Elements of the wheels with which an exposure is not an image of the sky as it is
NO_IMAGING = ('GRISM', 'MASK', 'WLP', 'WLM', 'GDHS')
DETECTORS = ('NRCA1', 'NRCA2', 'NRCA3', 'NRCA4', 'NRCALONG', 'NRCB1', 'NRCB2', 'NRCB3', 'NRCB4', 'NRCBLONG')
DETECTOR_SIDE = 2048                # pixels
# Columns of each amplifier where four read the detector, without the reference columns
AMPLIFIERS = {'A': slice(4, 512), 'B': slice(512, 1024), 'C': slice(1024, 1536), 'D': slice(1536, 2044)}

# Flags of DQ and GROUPDQ
DO_NOT_USE, SATURATED, JUMP_DET, HOT, REFERENCE_PIXEL = 1, 2, 4, 2048, 2**31
UNUSABLE = DO_NOT_USE | HOT | REFERENCE_PIXEL       # what the adaptive methods and the warning of harm leave out


class ExposureError(Exception):
    """What is wrong with one exposure and what to do about it, in one line."""


class DamagedError(ExposureError):
    """The same of a file that is not whole, or is not FITS: nothing in it is worth keeping."""


# --- finding and opening -----------------------------------------------------------------------------

def find_input(name, directory):
    """Path of the file `name`: as it is when it exists, else looked for in `directory`; ExposureError if in neither."""
    if not str(name):
        raise ExposureError('the name of a file is empty')
    for path in (Path(name), Path(directory) / name):
        if path.is_file():
            return path
        if path.exists():
            raise ExposureError('is a directory, not a FITS file' if path.is_dir() else 'is not a regular file')
    raise ExposureError(f'no such file, neither here nor in {directory}')


def open_exposure(path, kind, pixels=True):
    """Open a NIRCam imaging exposure, full frame or subarray, after checking that it is one.

    Parameters
    ----------
    path : Path
    kind : {'rate', 'rateints', 'uncal'}
        The product that is wanted. Of an uncal file the last group is read.
    pixels : bool
        False: look at headers and extensions only.

    Returns
    -------
    HDUList
        To be closed by the caller.

    Raises
    ------
    ExposureError
        When the file is something else, damaged, or holds nothing to work on.
    """
    if kind == 'uncal':
        check_name(path.name)
    hdul = open_fits(path)
    try:
        check_complete(path, hdul)
        check_mode(hdul[0].header)
        check_kind(hdul, kind)
        if pixels and kind == 'uncal':
            check_counts(hdul)
        elif pixels:
            hdul.verify('exception')  # a header that could not be saved again
            check_pixels(hdul)
    except Exception as error:
        hdul.close()
        if isinstance(error, ExposureError | MemoryError):
            raise
        raise DamagedError(f'is damaged ({one_line(error)})') from None
    return hdul


def open_fits(path, whole=True):
    """Open a FITS file, not a compressed one, and find all its extensions if `whole`; no array is read yet."""
    from astropy.io import fits
    try:
        with open(path, 'rb') as file:
            start = file.read(9)
        if start == b'SIMPLE  =':
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # damage is judged by check_complete, in our words
                return fits.open(path, memmap=False, lazy_load_hdus=not whole)
    except PermissionError:
        raise ExposureError('cannot be read: permission denied') from None
    except Exception as error:
        raise DamagedError(f'is not a readable FITS file ({one_line(error)})') from None
    raise DamagedError('is not a FITS file' if start else 'is empty')


def primary_header(path):
    """Primary header of a FITS file; ExposureError, which names it, when none can be read."""
    try:
        with open_fits(path, whole=False) as hdul:
            return hdul[0].header
    except ExposureError as error:
        raise ExposureError(f'{path} {error}') from None


def exposure_header(path, kind):
    """Primary header of an exposure, after the checks of `open_exposure` but for those of the pixels."""
    with open_exposure(path, kind, pixels=False) as hdul:
        return hdul[0].header


def check_whole(path):
    """Raise ExposureError, which names the file, when it is damaged."""
    try:
        with open_fits(path) as hdul:
            check_complete(path, hdul)
    except DamagedError as error:
        raise DamagedError(f'{path} {error}') from None


# --- checking ----------------------------------------------------------------------------------------

def check_complete(path, hdul):
    """Raise ExposureError unless the file ends where its last extension does."""
    last = hdul[-1].fileinfo()
    missing = last['datLoc'] + last['datSpan'] - path.stat().st_size
    if missing > 0:
        raise DamagedError('is truncated: fetch or make it again')
    if missing < 0:  # saving it would lose them
        raise DamagedError(f'is damaged: {-missing} bytes follow its last extension')


def check_name(name):
    """Raise ExposureError where the pipeline could not write its products for a raw exposure of this name."""
    place_of_drafts = name.replace('_uncal.fits', '.')
    if name == '_uncal.fits':
        raise ExposureError('is not named <dataset>_uncal.fits')
    if not name.isascii():
        raise ExposureError('has a name that FITS headers cannot hold: rename it in plain ASCII')
    if os.path.expandvars(place_of_drafts) != place_of_drafts:
        raise ExposureError('has a name with a $, which the pipeline would take for a variable: rename it')


def check_mode(header):
    """Raise ExposureError unless the primary header is that of NIRCam imaging."""
    keywords = 'INSTRUME', 'EXP_TYPE', 'DETECTOR', 'FILTER', 'PUPIL'
    instrument, exp_type, detector, filter_, pupil = (str(header.get(key, '')).strip() or 'unknown' for key in keywords)
    if instrument != 'NIRCAM':
        raise ExposureError(f'is not a NIRCam exposure (INSTRUME {instrument})')
    if exp_type != 'NRC_IMAGE' or filter_.startswith(NO_IMAGING) or pupil.startswith(NO_IMAGING):
        raise ExposureError(f'EXP_TYPE {exp_type}, FILTER {filter_}, PUPIL {pupil}: only NIRCam imaging is supported, '
                            'not grism, coronagraphic, weak-lens or time-series exposures')
    if detector not in DETECTORS:
        raise ExposureError(f'DETECTOR {detector} is not a NIRCam detector')
    for key in ('NINTS', 'NGROUPS'):
        whole_number(header, key, 1)


def check_kind(hdul, kind):
    """Raise ExposureError unless the extensions are those of a `kind` of product."""
    shape = image_shape(hdul, 'SCI')
    found = {2: 'rate', 3: 'rateints', 4: 'ramp' if 'GROUPDQ' in hdul else 'uncal'}.get(len(shape), 'unknown')
    header = hdul[0].header
    if found in ('rate', 'rateints') and 'COMPLETE' in (header.get('S_FLAT'), header.get('S_PHOTOM')):
        found = found.replace('rate', 'cal')
    if found != kind:
        this, wanted = (f"a{'n' * (word[0] == 'u')} {word} product" for word in (found, kind))
        raise ExposureError(f'is {this} (SCI has {len(shape)} axes), not {wanted}')
    rows, columns = place(header, shape[-2:])
    if min(rows.start, columns.start) < 0 or max(rows.stop, columns.stop) > DETECTOR_SIDE:
        raise ExposureError('is damaged: by SUBSTRT1 and SUBSTRT2 in its header it is not inside the detector')
    if (rows.stop - rows.start, columns.stop - columns.start) != shape[-2:]:
        raise ExposureError(f'SCI is {shape[-1]} x {shape[-2]} pixels, but SUBARRAY {header.get("SUBARRAY")} is '
                            f'{columns.stop - columns.start} x {rows.stop - rows.start}')
    if kind != 'uncal':
        for name in ('ERR', 'DQ', 'VAR_POISSON', 'VAR_RNOISE'):
            if image_shape(hdul, name) != shape:
                raise ExposureError(f'the shapes of {name} and SCI differ')


def place(header, shape=(DETECTOR_SIDE, DETECTOR_SIDE)):
    """Rows and columns of the detector that an image holds, two slices; `shape` where the header does not tell."""
    full = str(header.get('SUBARRAY')).strip() == 'FULL'
    start = [1 if full else whole_number(header, f'SUBSTRT{axis}', 1) for axis in (2, 1)]
    size = [DETECTOR_SIDE if full else whole_number(header, f'SUBSIZE{axis}', length)
            for axis, length in zip((2, 1), shape, strict=True)]
    return tuple(slice(first - 1, first - 1 + length) for first, length in zip(start, size, strict=True))


def whole_number(header, key, default):
    """A keyword as an int, `default` where it is missing; ExposureError when it is something else."""
    try:
        return int(header.get(key, default))
    except (TypeError, ValueError):
        raise ExposureError(f'is damaged: {key} in its header is {header[key]!r}') from None


def amplifiers(header, dq):
    """Columns of each amplifier without the reference columns, {name: slice}.

    NOUTPUTS in the header is 4 in FULL and FULLP; in other subarrays one amplifier reads all columns. `dq`, (ny, nx) or
    (nints, ny, nx), has REFERENCE_PIXEL. ExposureError when a keyword is damaged.
    """
    import numpy as np
    width = dq.shape[-1]
    if width == DETECTOR_SIDE and whole_number(header, 'NOUTPUTS', 4) == 4:
        return AMPLIFIERS
    inside = np.flatnonzero(~((dq & REFERENCE_PIXEL) > 0).reshape(-1, width).all(axis=0))
    return {'A': slice(int(inside[0]), int(inside[-1]) + 1)} if inside.size else {'A': slice(0, width)}


def reading_directions(header, number):
    """Directions in which the `number` amplifiers read their rows, if rows are read upwards: 1 = from left to right.

    Four alternate, the first from left to right; FASTAXIS is that of a single one. Where SLOWAXIS is negative, rows are
    read downwards, which is the same as upwards with all directions reversed.
    """
    fast, slow = whole_number(header, 'FASTAXIS', 1), whole_number(header, 'SLOWAXIS', 2)
    for key, axis, size in ('FASTAXIS', fast, 1), ('SLOWAXIS', slow, 2):
        if abs(axis) != size:
            raise ExposureError(f'is damaged: {key} in its header is {axis}')
    first = (1 if number > 1 else fast) * slow // 2
    return [first * (-1)**amp for amp in range(number)]


def image_shape(hdul, name):
    """Shape of the image in the extension `name`; ExposureError when there is none."""
    if name not in hdul:
        raise ExposureError(f'has no {name} extension')
    if not hasattr(hdul[name], 'shape'):
        raise ExposureError(f'is damaged: its {name} extension is not an image')
    return hdul[name].shape


def check_pixels(hdul):
    """Raise ExposureError when no pixel of a rate image holds a measurement."""
    import numpy as np
    sci, dq = hdul['SCI'].data, hdul['DQ'].data
    if sci.dtype.kind != 'f' or dq.dtype.kind not in 'iu':
        raise ExposureError(f'SCI is {sci.dtype.name} and DQ {dq.dtype.name}, not floating point and integer')
    finite = np.isfinite(sci)
    if not finite.any():
        raise ExposureError('SCI is NaN everywhere')
    usable = sci[finite & (dq == 0)]
    if not usable.size:
        raise ExposureError('every pixel is NaN or flagged in DQ')
    if usable.min() == usable.max():
        raise ExposureError(f'SCI is {usable[0]:g} everywhere')


def check_counts(hdul):
    """Raise ExposureError when a raw exposure holds no counts."""
    image = hdul['SCI']
    if 0 in image.shape:
        raise ExposureError(f'has {image.shape[0]} integrations of {image.shape[1]} groups')
    if image.header['BITPIX'] not in (16, 32, -32):
        raise ExposureError(f"SCI has BITPIX {image.header['BITPIX']}: these are not raw counts")
    last = image.section[-1, -1]  # one group, without reading the others
    if not last.min() < last.max():  # also NaN
        raise ExposureError(f'SCI is {last[0, 0]:g} everywhere in its last group')


def undefined(sci):
    """Pixels without a measurement (True), bool, of the shape of `sci`: 0 in images of older pipelines, NaN in today's.

    `sci` is the image as the pipeline left it, not the flat-fielded one, whose flat step adds NaN.
    """
    import numpy as np
    return (sci == 0) | np.isnan(sci)


# --- words -------------------------------------------------------------------------------------------

def one_line(error):
    """An exception as one short line of printable ASCII, for messages and headers."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    if 'requested and' in text:  # numpy's words for a full disk
        text = f'No space left for the file ({text})'
    return printable(text)[:300]


def printable(text):
    """Text in printable ASCII, which FITS headers ask for; anything else is written as an escape."""
    return str(text).encode('unicode_escape').decode('ascii')
