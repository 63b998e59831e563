"""What the three scripts share: finding, checking, locking and saving one exposure, safely.

The corrections themselves are in snowball_wrapper.py, wispsub.py and remstriping.py; a script that is
copied elsewhere takes this file along. The rules kept here:

- a file is checked before it is used, and what is wrong is said in one line (`ExposureError`);
- one process at a time works on an image (`locked`);
- a product appears under its name complete or not at all (`write_whole`);
- the untouched input is kept, and no image is corrected twice (`correcting`).
"""

import contextlib
import errno
import fcntl
import io
import logging
import os
import shutil
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VERSION = '1.0.0'

# HISTORY entries that other people's tools match, the script that writes each, and the keyword beside it.
CORRECTIONS = {
    'Wisps: subtracted': ('wispsub.py', 'WISPMETH'),
    'Removed horizontal,vertical striping': ('remstriping.py', 'STRPMETH'),
}
DETECTORS = ('NRCA1', 'NRCA2', 'NRCA3', 'NRCA4', 'NRCALONG', 'NRCB1', 'NRCB2', 'NRCB3', 'NRCB4', 'NRCBLONG')
FULL_FRAME = (2048, 2048)
DO_NOT_USE = 1

log = logging.getLogger('nircam')


class ExposureError(Exception):
    """What is wrong with one exposure and what to do about it, in one line."""


# --- finding and checking ----------------------------------------------------------------------------

def find_input(name, directory):
    """Path of the file `name`: as it is when it exists, else looked for in `directory`."""
    for path in (Path(name), Path(directory) / name):
        if path.exists():
            return path
    raise ExposureError(f'no such file, neither here nor in {directory}')


def open_exposure(path, kind):
    """Open a full-frame NIRCam imaging exposure after checking that it is one.

    Parameters
    ----------
    path : Path
    kind : {'rate', 'uncal'}
        The product that is wanted. Arrays of an uncal file are not read.

    Returns
    -------
    HDUList
        To be closed by the caller.

    Raises
    ------
    ExposureError
        When the file is something else, damaged, or holds nothing to work on.
    """
    from astropy.io import fits
    if path.is_dir():
        raise ExposureError('is a directory, not a FITS file')
    if path.stat().st_size == 0:
        raise ExposureError('is empty')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # truncation is judged below, in our words
            hdul = fits.open(path, memmap=False, lazy_load_hdus=False)
    except PermissionError:
        raise ExposureError('cannot be read: permission denied') from None
    except Exception as error:
        raise ExposureError(f'is not a readable FITS file ({one_line(error)})') from None
    try:
        check_complete(path, hdul)
        check_mode(hdul[0].header)
        check_kind(hdul, kind)
        if kind == 'rate':
            check_pixels(hdul)
    except ExposureError:
        hdul.close()
        raise
    except Exception as error:
        hdul.close()
        raise ExposureError(f'is damaged ({one_line(error)})') from None
    return hdul


def check_complete(path, hdul):
    """Raise ExposureError when the file ends before its last extension does."""
    last = hdul[-1].fileinfo()
    if path.stat().st_size < last['datLoc'] + last['datSpan']:
        raise ExposureError('is truncated: fetch or make it again')


def check_mode(header):
    """Raise ExposureError unless the primary header is that of full-frame NIRCam imaging."""
    instrument, exp_type, detector, pupil, subarray = (
        str(header.get(key, 'unknown')).strip() for key in ('INSTRUME', 'EXP_TYPE', 'DETECTOR', 'PUPIL', 'SUBARRAY'))
    if instrument != 'NIRCAM':
        raise ExposureError(f'is no NIRCam exposure (INSTRUME {instrument})')
    if exp_type != 'NRC_IMAGE' or pupil.startswith(('GRISM', 'MASK')):
        raise ExposureError(f'EXP_TYPE {exp_type}, PUPIL {pupil}: only NIRCam imaging is supported, '
                            'no grism, coronagraphic or time-series exposure')
    if detector not in DETECTORS:
        raise ExposureError(f'DETECTOR {detector} is no NIRCam detector')
    if subarray != 'FULL':
        raise ExposureError(f'is a subarray ({subarray}): only full frames (2048 x 2048) are supported')


def check_kind(hdul, kind):
    """Raise ExposureError unless the extensions are those of a `kind` ('rate' or 'uncal') product."""
    if 'SCI' not in hdul:
        raise ExposureError('has no SCI extension')
    shape = hdul['SCI'].shape
    found = {2: 'rate', 3: 'rateints', 4: 'ramp' if 'GROUPDQ' in hdul else 'uncal'}.get(len(shape), 'unknown')
    header = hdul[0].header
    if found == 'rate' and 'COMPLETE' in (header.get('S_FLAT'), header.get('S_PHOTOM')):
        found = 'cal'
    if found != kind:
        raise ExposureError(f'is a {found} product (SCI has {len(shape)} axes), not a {kind} image')
    if shape[-2:] != FULL_FRAME:
        raise ExposureError(f'SCI is {shape[-1]} x {shape[-2]} pixels: only full frames (2048 x 2048) are supported')
    if kind == 'uncal' and hdul['SCI'].header['BITPIX'] not in (16, 32, -32):
        raise ExposureError(f"SCI has BITPIX {hdul['SCI'].header['BITPIX']}: no raw counts")
    if kind == 'rate':
        for name in ('ERR', 'DQ', 'VAR_POISSON', 'VAR_RNOISE'):
            if name not in hdul:
                raise ExposureError(f'has no {name} extension')
            if hdul[name].shape != FULL_FRAME:
                raise ExposureError(f'{name} has another shape than SCI')


def check_pixels(hdul):
    """Raise ExposureError when no pixel of a rate image holds a measurement."""
    import numpy as np
    sci, dq = hdul['SCI'].data, hdul['DQ'].data
    if sci.dtype.kind != 'f' or dq.dtype.kind not in 'iu':
        raise ExposureError(f'SCI is {sci.dtype.name} and DQ {dq.dtype.name}, not floating point and integer')
    finite = np.isfinite(sci)
    if not finite.any():
        raise ExposureError('SCI is NaN everywhere')
    usable = sci[finite & (dq & DO_NOT_USE == 0)]
    if not usable.size:
        raise ExposureError('every pixel is flagged DO_NOT_USE or NaN')
    if usable.min() == usable.max():
        raise ExposureError(f'SCI is {usable[0]:g} everywhere')


def undefined(sci):
    """Pixels without a measurement: 0 in images of older pipelines, NaN in those of today.

    Parameters
    ----------
    sci : ndarray, shape (ny, nx)
        The image as the pipeline left it, not the flat-fielded one, whose flat step adds NaN.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True = undefined.
    """
    import numpy as np
    return (sci == 0) | np.isnan(sci)


# --- one process at a time ---------------------------------------------------------------------------

@contextlib.contextmanager
def locked(path):
    """Hold the image `path` for this process; others that want it wait.

    The lock (`flock`) is on the image itself, so a killed process leaves nothing behind. An image that
    was replaced while we waited is another file under the same name: take the new one.
    """
    while True:
        try:
            handle = open(path, 'rb')
        except OSError as error:
            raise ExposureError(f'cannot be read: {error.strerror}') from None
        with handle:
            lock_file(handle, path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle.fileno()), os.stat(path)):
                    yield
                    return


def lock_file(handle, path):
    """Wait for an exclusive lock on the open file `handle`; warn where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info('%s: waiting for another process that works on it', path.name)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        log.warning('%s: no file locks here (%s): do not run two processes on one image', path.name, error.strerror)


# --- whole files only --------------------------------------------------------------------------------

def write_whole(path, write):
    """Make the file `path` complete or not at all.

    Parameters
    ----------
    path : Path
    write : callable
        Called with the path of a temporary file beside `path`, which it is to write.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path):
    """Have the operating system put `path`, a file or a directory, on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)


def write_map(path, array, cards=()):
    """Write one array as a FITS file that `astropy.io.fits.getdata(path)` reads.

    Parameters
    ----------
    path : Path
    array : ndarray
        Boolean or unsigned maps are compressed without loss, anything else is stored as float32.
    cards : iterable of (keyword, value, comment)
    """
    import numpy as np
    from astropy.io import fits
    if array.dtype.kind in 'bu':
        small = array.astype(np.uint8 if array.dtype.kind == 'b' else array.dtype)
        image = fits.CompImageHDU(small, compression_type='GZIP_1', tile_shape=(64, *array.shape[1:]))
        hdul = fits.HDUList([fits.PrimaryHDU(), image])
    else:
        image = fits.PrimaryHDU(array.astype(np.float32))
        hdul = fits.HDUList([image])
    image.header.extend(cards)
    write_whole(path, hdul.writeto)


def make_directory(path):
    """Make the output directory `path` where it does not exist."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExposureError(f'output directory {path} cannot be made: {error.strerror}') from None


def remove_leftovers(directory, dataset):
    """Remove temporary files that a killed process left for `dataset` in `directory`."""
    for path in Path(directory).iterdir():
        if path.name.startswith(f'.{dataset}_') and path.name.endswith('.tmp') and path.is_file():
            path.unlink()


# --- correcting a rate image, once, with the untouched one kept --------------------------------------

class RateImage:
    """One rate image while it is being corrected.

    Attributes
    ----------
    source, target, untouched : Path
        The file that is read, the corrected one, and the copy of the input that is kept.
    header : Header
        Primary header.
    sci : ndarray, shape (ny, nx)
        DN/s, not flat-fielded. Not to be changed in place.
    dq : ndarray of uint32, shape (ny, nx)
    """

    def __init__(self, source, target, untouched):
        self.source, self.target, self.untouched = source, target, untouched
        self.hdul = open_exposure(source, 'rate')
        self.header = self.hdul[0].header
        self.sci, self.dq = self.hdul['SCI'].data, self.hdul['DQ'].data
        self.flat_name, self.context = 'none', 'none'

    @property
    def name(self):
        """File name, for messages."""
        return self.target.name

    def product(self, ending):
        """Path of the product beside the corrected image whose name ends so instead of `_rate.fits`."""
        return self.target.with_name(self.target.name.removesuffix('_rate.fits') + ending)

    def flat_field(self):
        """Science and error image after the pipeline's flat-field step, float32 (ny, nx), DN/s."""
        sci, err, self.flat_name, self.context = flat_field(self.source)
        log.info('%s: flat-fielded with %s (%s)', self.name, self.flat_name, self.context)
        return sci, err

    def save(self, sci, script, entry, settings, dq=None, cards=()):
        """Keep the untouched input, then write the corrected image under its name.

        Parameters
        ----------
        sci : ndarray, shape (ny, nx)
            Corrected image, DN/s.
        script, entry : str
            File name of the script and its HISTORY entry.
        settings : dict
            What else the correction depended on; goes to HISTORY.
        dq : ndarray of uint32, optional
        cards : iterable of (keyword, value, comment)
            For the primary header.
        """
        import numpy as np
        self.hdul['SCI'].data = sci.astype(np.float32)
        if dq is not None:
            self.hdul['DQ'].data = dq
        self.header.update({key: (value, comment) for key, value, comment in cards})
        settings = settings | {'flat': self.flat_name}
        for line in (entry, provenance(script, self.context), describe(script, settings)):
            self.header.add_history(line)
        if self.source != self.untouched:
            keep(self.source, self.untouched)
        write_whole(self.target, self.hdul.writeto)
        log.info('%s: written', self.name)


@contextlib.contextmanager
def correcting(path, output_dir, entry, suffix, redo):
    """Open a rate image for one correction; None when it has been corrected already.

    Parameters
    ----------
    path : Path
        The image, `<dataset>_rate.fits`.
    output_dir : str or Path
        Where the products go; made when it does not exist.
    entry : str
        Key of `CORRECTIONS`.
    suffix : str
        The untouched input is kept as `<dataset>_rate_<suffix>.fits`.
    redo : bool
        Start again from that copy.

    Yields
    ------
    RateImage or None

    Raises
    ------
    ExposureError
    """
    if not path.name.endswith('_rate.fits'):
        raise ExposureError('is not named <dataset>_rate.fits')
    make_directory(output_dir)
    target = Path(output_dir) / path.name
    untouched = target.with_name(f"{path.name.removesuffix('.fits')}_{suffix}.fits")
    with locked(path):
        remove_leftovers(output_dir, path.name.removesuffix('_rate.fits'))
        done = [file for file in {path, target} if file.exists() and corrected(primary_header(file), entry)]
        if done and not redo:
            log.info('%s: %s is in its HISTORY already: left alone (--redo starts again from %s)',
                     path.name, entry, untouched.name)
            yield None
            return
        image = RateImage(untouched_source(untouched, target, entry) if redo else path, target, untouched)
        with image.hdul:
            yield image


def untouched_source(untouched, target, entry):
    """The untouched copy, to start again from; says which later corrections this takes away."""
    if not untouched.exists():
        raise ExposureError(f'--redo starts from {untouched}, which is not there')
    header = primary_header(untouched)
    if corrected(header, entry):
        raise ExposureError(f'--redo starts from {untouched}, but that one has been corrected itself')
    for other, (script, _) in CORRECTIONS.items():
        if target.exists() and corrected(primary_header(target), other) and not corrected(header, other) \
                and other != entry:
            log.warning('%s: starts from %s, so %s must be run again', target.name, untouched.name, script)
    return untouched


def primary_header(path):
    """Primary header of a FITS file."""
    from astropy.io import fits
    try:
        return fits.getheader(path, 0)
    except Exception as error:
        raise ExposureError(f'{path} is not a readable FITS file ({one_line(error)})') from None


def corrected(header, entry):
    """True when HISTORY, or the keyword that goes with it, says that a correction was made."""
    return CORRECTIONS[entry][1] in header or any(entry in str(card) for card in header.get('HISTORY', ()))


def keep(source, untouched):
    """Keep `source` as `untouched`, whole.

    In the same directory both are names of one file until the corrected image takes the first, which
    costs nothing; elsewhere it is copied.
    """
    if untouched.exists() and untouched.samefile(source):
        return  # a run that was killed before the corrected image was written

    def link_or_copy(temporary):
        temporary.unlink(missing_ok=True)
        if source.parent.samefile(untouched.parent):
            with contextlib.suppress(OSError):
                return os.link(source, temporary)
        return shutil.copyfile(source, temporary)

    write_whole(untouched, link_or_copy)


# --- the pipeline ------------------------------------------------------------------------------------

def flat_field(path):
    """Flat-field a rate image with the pipeline's own step, in the current CRDS context.

    Parameters
    ----------
    path : Path

    Returns
    -------
    sci, err : ndarray of float32, shape (ny, nx)
        DN/s.
    flat, context : str
        Names of the flat and of the CRDS context.

    Raises
    ------
    ExposureError
        When there is no flat for this detector, filter and pupil, or CRDS cannot say.
    """
    import numpy as np
    header = primary_header(path)
    wanted = ' '.join(str(header.get(key)) for key in ('DETECTOR', 'FILTER', 'PUPIL', 'DATE-OBS'))
    where = ', '.join(f"{key}={os.environ.get(key, 'unset')}"
                      for key in ('CRDS_PATH', 'CRDS_SERVER_URL', 'CRDS_CONTEXT'))
    try:
        with quiet_pipeline() as said:
            from jwst.flatfield import FlatFieldStep
            result = FlatFieldStep().run(str(path))
    except KeyError as error:
        if error.args == ('ASDF',):
            raise ExposureError('has no ASDF extension: save it once with jwst.datamodels') from None
        raise
    except (Exception, SystemExit) as error:
        raise ExposureError(f'no flat for {wanted}: {reason(error, said.getvalue())} ({where})') from None
    with result:
        if result.meta.cal_step.flat_field != 'COMPLETE':
            raise ExposureError(f'no flat for {wanted}: CRDS has none ({where})')
        name, context = Path(result.meta.ref_file.flat.name).name, result.meta.ref_file.crds.context_used
        return result.data.astype(np.float32), result.err.astype(np.float32), name.removeprefix('crds://'), context


@contextlib.contextmanager
def quiet_pipeline():
    """Keep what jwst and crds print, log and warn off the terminal; yields the text, for error messages."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            warnings.simplefilter('ignore')
            yield said
    finally:
        logging.root.removeHandler(handler)
        logging.disable(disabled)


def reason(error, said):
    """Why a call into the pipeline failed, in one line; on some failures crds just ends the process."""
    if not isinstance(error, SystemExit):
        return one_line(error)
    fatal = [line for line in said.splitlines() if 'FAILED' in line]
    return fatal[-1].split('(FATAL)')[-1].strip() if fatal else 'CRDS gave up, neither server nor cache is there'


def provenance(script, context):
    """HISTORY line that says which versions made a product."""
    packages = []
    for package in ('jwst', 'photutils', 'astropy', 'numpy', 'scipy'):
        with contextlib.suppress(PackageNotFoundError):
            packages.append(f'{package} {version(package)}')
    return f"{script} {VERSION}; {', '.join(packages)}; CRDS {context}"


def describe(script, settings):
    """HISTORY line of settings."""
    return f"{script} settings: {', '.join(f'{key}={value}' for key, value in settings.items())}"


# --- the command line --------------------------------------------------------------------------------

def one_line(error):
    """An exception as one short line of printable ASCII, for messages and headers."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return ''.join(c if 32 <= ord(c) < 127 else '?' for c in text)[:300]


def start_log():
    """Send our log lines to standard error, and only there: the pipeline fills the root logger."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s', '%H:%M:%S'))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')


def run_each(names, function):
    """Call `function(name)` for every file; one that fails does not stop the others.

    Returns
    -------
    int
        Exit status: 0 when all were done or rightly left alone, 1 when any failed.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm
    start_log()
    failed = []
    show = len(names) > 1 and sys.stderr.isatty()
    with logging_redirect_tqdm([log]) if show else contextlib.nullcontext():
        for name in tqdm(names, unit='file', disable=not show):
            try:
                function(name)
            except KeyboardInterrupt:
                log.error('%s: interrupted', name)
                return 130
            except ExposureError as error:
                failed.append(name)
                log.error('%s: %s', name, error)
            except OSError as error:
                failed.append(name)
                log.error('%s: %s', name, one_line(error))
            except (Exception, SystemExit) as error:
                failed.append(name)
                log.error('%s: stopped unexpectedly (%s)', name, one_line(error))
                log.debug('traceback', exc_info=True)
    if failed and len(names) > 1:
        log.error('%d of %d files failed: %s', len(failed), len(names), ' '.join(map(str, failed)))
    return 1 if failed else 0


def number_in(low, high):
    """Argument type for `argparse`: a finite number from `low` to `high`."""
    def number(text):
        value = float(text)
        if not low <= value <= high:  # also NaN
            raise ValueError
        return value
    number.__name__ = f'number (from {low:g} to {high:g})'
    return number
