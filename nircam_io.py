"""What the three scripts share: finding, checking, locking and saving one exposure, safely.

The corrections themselves are in snowball_wrapper.py, wispsub.py and remstriping.py; a script that is
copied elsewhere takes this file along. The rules kept here:

- a file is checked before it is used, and what is wrong is said in one line (`ExposureError`);
- products are made in a hidden directory beside their place, which one process at a time holds
  (`workspace`), and appear complete or not at all (`publish`);
- the untouched input is kept, and no image is corrected twice (`correcting`).
"""

import contextlib
import errno
import fcntl
import io
import logging
import os
import shutil
import stat
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VERSION = '1.0.0'

# In the order in which they are made: HISTORY entries that other people's tools match, the script that writes each,
# the keyword beside it, and the suffix of the untouched input.
CORRECTIONS = {
    'Wisps: subtracted': ('wispsub.py', 'WISPMETH', 'prewisp'),
    'Removed horizontal,vertical striping': ('remstriping.py', 'STRPMETH', 'pre1f'),
}
DETECTORS = ('NRCA1', 'NRCA2', 'NRCA3', 'NRCA4', 'NRCALONG', 'NRCB1', 'NRCB2', 'NRCB3', 'NRCB4', 'NRCBLONG')
FULL_FRAME = (2048, 2048)
DO_NOT_USE = 1
UNUSABLE = DO_NOT_USE | 2048 | 2**31     # with HOT and REFERENCE_PIXEL: what the adaptive methods leave out

log = logging.getLogger('nircam')


class ExposureError(Exception):
    """What is wrong with one exposure and what to do about it, in one line."""


# --- finding and checking ----------------------------------------------------------------------------

def find_input(name, directory):
    """Path of the file `name`: as it is when it exists, else looked for in `directory`."""
    for path in (Path(name), Path(directory) / name):
        if path.is_file():
            return path
        if path.exists():
            raise ExposureError('is a directory, not a FITS file' if path.is_dir() else 'is no regular file')
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
    hdul = open_fits(path)
    try:
        check_complete(path, hdul)
        check_mode(hdul[0].header)
        check_kind(hdul, kind)
        if kind == 'rate':
            hdul.verify('exception')  # a header that could not be saved again
            check_pixels(hdul)
        else:
            check_counts(hdul)
    except ExposureError:
        hdul.close()
        raise
    except Exception as error:
        hdul.close()
        raise ExposureError(f'is damaged ({one_line(error)})') from None
    return hdul


def open_fits(path, whole=True):
    """Open a FITS file, not a compressed one, and find all its extensions if `whole`; no array is read yet."""
    from astropy.io import fits
    try:
        with open(path, 'rb') as file:
            start = file.read(9)
        if start != b'SIMPLE  =':
            raise ExposureError('is no FITS file' if start else 'is empty')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # damage is judged by check_complete, in our words
            return fits.open(path, memmap=False, lazy_load_hdus=not whole)
    except PermissionError:
        raise ExposureError('cannot be read: permission denied') from None
    except ExposureError:
        raise
    except Exception as error:
        raise ExposureError(f'is no readable FITS file ({one_line(error)})') from None


def check_complete(path, hdul):
    """Raise ExposureError unless the file ends where its last extension does."""
    last = hdul[-1].fileinfo()
    missing = last['datLoc'] + last['datSpan'] - path.stat().st_size
    if missing > 0:
        raise ExposureError('is truncated: fetch or make it again')
    if missing < 0:  # saving it would lose them
        raise ExposureError(f'is damaged: its last {-missing} bytes are no extension')


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
    shape = image_shape(hdul, 'SCI')
    found = {2: 'rate', 3: 'rateints', 4: 'ramp' if 'GROUPDQ' in hdul else 'uncal'}.get(len(shape), 'unknown')
    header = hdul[0].header
    if found == 'rate' and 'COMPLETE' in (header.get('S_FLAT'), header.get('S_PHOTOM')):
        found = 'cal'
    if found != kind:
        raise ExposureError(f'is a {found} product (SCI has {len(shape)} axes), not a {kind} image')
    if shape[-2:] != FULL_FRAME:
        raise ExposureError(f'SCI is {shape[-1]} x {shape[-2]} pixels: only full frames (2048 x 2048) are supported')
    if kind == 'rate':
        for name in ('ERR', 'DQ', 'VAR_POISSON', 'VAR_RNOISE'):
            if image_shape(hdul, name) != FULL_FRAME:
                raise ExposureError(f'{name} has another shape than SCI')


def image_shape(hdul, name):
    """Shape of the image in the extension `name`; ExposureError when there is none."""
    if name not in hdul:
        raise ExposureError(f'has no {name} extension')
    if not hasattr(hdul[name], 'shape'):
        raise ExposureError(f'is damaged: its {name} extension is no image')
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
        raise ExposureError(f"SCI has BITPIX {image.header['BITPIX']}: no raw counts")
    last = image.section[-1, -1]  # one group, without reading the others
    if not last.min() < last.max():  # also NaN
        raise ExposureError(f'SCI is {last[0, 0]:g} everywhere in its last group')


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


# --- whole files only, from one process at a time ------------------------------------------------------

@contextlib.contextmanager
def workspace(output, dataset):
    """Hold a hidden directory for the products of one dataset; other processes that want it wait.

    Parameters
    ----------
    output : str or Path
        Directory that the products go to; made when it does not exist.
    dataset : str

    Yields
    ------
    Path
        `output/.<dataset>.tmp`, empty but for its lock; what a killed process left there is gone.
        Nothing of it remains afterwards.
    """
    output = Path(output)
    directory = output / f'.{dataset}.tmp'
    made = [path for path in (output, *output.parents) if not path.exists()]
    try:
        try:
            handle = hold(directory / 'lock')
        except OSError as error:
            raise ExposureError(f'cannot write in {output}: {error.strerror}') from None
        try:
            clear(directory)
            yield directory
        finally:
            clear(directory)
            (directory / 'lock').unlink()
            handle.close()
    finally:
        with contextlib.suppress(OSError):  # another process waits for it, or something was written
            for path in (directory, *made):
                path.rmdir()


def hold(lock):
    """Open and lock the file `lock`, in a directory made for it; waits for the process that has it.

    The lock (`flock`) ends with its process, so a killed one does not stop others. Who has it removes the
    file at the end, and the directory; who waited for it makes them again.
    """
    while True:
        make_directory(lock.parent)
        if lock.parent.is_symlink():  # what is in there is not ours
            raise OSError(errno.ELOOP, f'{lock.parent} is a link')
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            handle = stack.enter_context(open(lock, 'a', opener=open_plain))
            share(handle, lock.parent)
            lock_file(handle, lock.parent)
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(lock)):
                stack.pop_all()
                return handle


def open_plain(path, flags):
    """Opener for `open` that does not follow a symbolic link, which somebody else may have put there."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def make_directory(path, times=100):
    """Make a directory, and those above it, which other processes may be removing at the same time.

    `Path.mkdir` with `exist_ok` raises FileExistsError when what it found is gone a moment later, and
    FileNotFoundError when what it made first is; both also mean that there can be no directory.
    """
    for _ in range(times):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            return path.mkdir(parents=True, exist_ok=True)
    return path.mkdir(parents=True, exist_ok=True)


def share(handle, work):
    """Open a workspace and the lock in it to all who may write beside it, as in the directory of a group.

    With the sticky bit they may not touch each other's files there, so nothing is shared.
    """
    with contextlib.suppress(OSError):  # somebody else's, who shared it
        mode = stat.S_IMODE(work.parent.stat().st_mode) | stat.S_IRWXU
        if not mode & stat.S_ISVTX:
            work.chmod(mode)
            os.chmod(handle.fileno(), mode & 0o666)


def lock_file(handle, directory):
    """Wait for an exclusive lock on the open file `handle`; warn where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info('%s: waiting for another process that works on it', directory.name[1:].removesuffix('.tmp'))
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        log.warning('%s: no file locks here (%s): do not run two processes on one image', directory, error.strerror)


def drafts(work):
    """Files in a workspace, but its lock and what NFS shows of an older one that others still wait for."""
    return [path for path in work.iterdir() if path.name != 'lock' and not path.name.startswith('.nfs')]


def clear(work):
    """Remove the drafts in a workspace."""
    for path in drafts(work):
        path.unlink()


def identity(path):
    """What is another when the file `path` is replaced or written to; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_same(seen):
    """Raise ExposureError when a file is not what it was: `seen` holds the `identity` of each by path."""
    for path, before in seen.items():
        if identity(path) != before:
            raise ExposureError(f'{path} was changed by another program meanwhile: look at it, and start again')


def publish(work, output, last, seen=None):
    """Move the products in a workspace to their place, whole.

    Parameters
    ----------
    work, output : Path
        Directories from and to.
    last : str
        File name of the product that comes last: when it is there, all are.
    seen : dict, optional
        `identity` of files, by path, that nobody else may have changed.
    """
    products = sorted(drafts(work), key=lambda path: (path.name == last, path.name))
    for path in products:
        check_place(output / path.name)
        sync(path)
    check_same(seen or {})
    for path in products:
        path.replace(output / path.name)
    sync(output)
    endings = ', '.join(path.name.removeprefix(work.name[1:-len('.tmp')]) for path in products[:-1])
    log.info('%s: written%s', last, f', with {endings}' if endings else '')


def check_place(path):
    """Raise ExposureError where a product cannot be put; a rename would find it out with others in place already."""
    try:
        there, directory = path.lstat(), path.parent.stat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(there.st_mode):
        raise ExposureError(f'{path} is a directory: move it away, a product goes there')
    if directory.st_mode & stat.S_ISVTX and os.geteuid() not in (0, there.st_uid, directory.st_uid):
        raise ExposureError(f'{path} cannot be replaced: it is another user\'s, in a directory with the sticky bit')


def write_whole(path, write):
    """Make a file of no dataset whole: `write` is called with the path to write to."""
    with workspace(path.parent, path.name) as work:
        write(work / path.name)
        publish(work, path.parent, path.name)


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
        image = fits.CompImageHDU(small, compression_type='RICE_1')
        hdul = fits.HDUList([fits.PrimaryHDU(), image])
    else:
        image = fits.PrimaryHDU(array.astype(np.float32))
        hdul = fits.HDUList([image])
    image.header.extend(cards)
    hdul.writeto(path)


# --- correcting a rate image, once, with the untouched one kept --------------------------------------

class RateImage:
    """One rate image while it is being corrected.

    Attributes
    ----------
    source, target, untouched : Path
        The file to start from, the corrected one, and the copy of the input that is kept.
    input : Path
        What is read: that copy, made before anything is measured, for `source` is other programs' as well.
    work : Path
        Where products are written until all are complete.
    seen : dict
        `identity` of what is at `target`, which nobody else may change meanwhile.
    header : Header
        Primary header.
    sci : ndarray, shape (ny, nx)
        DN/s, not flat-fielded. Not to be changed in place.
    dq : ndarray of uint32, shape (ny, nx)
    flags : ndarray of uint32, shape (ny, nx)
        The same, after `flat_field` with the flags of the flat: what measurements leave out.
    """

    def __init__(self, source, target, untouched, work, seen):
        self.source, self.target, self.untouched, self.work = source, target, untouched, work
        self.input = source if source == untouched else work / untouched.name
        self.seen = {target: seen[target]}
        try:
            self.hdul = open_exposure(source, 'rate')
        except ExposureError as error:
            raise ExposureError(f'{source} {error}') from None
        if self.input != source:
            keep(source, self.input, target)
        check_same(seen)
        self.header = self.hdul[0].header
        self.sci, self.dq = self.hdul['SCI'].data, self.hdul['DQ'].data
        self.flags = self.dq
        self.flat_name, self.context = 'none', 'none'

    @property
    def name(self):
        """File name, for messages."""
        return self.target.name

    def product(self, ending):
        """Path of the product whose name ends so instead of `_rate.fits`, beside the corrected image."""
        return self.target.with_name(self.target.name.removesuffix('_rate.fits') + ending)

    def draft(self, ending):
        """Path to write that product to; `save` moves it to its place."""
        return self.work / self.product(ending).name

    def flat_field(self):
        """Science and error image after the pipeline's flat-field step, float32 (ny, nx), DN/s."""
        import numpy as np
        # Images of older pipelines have values in flagged pixels, which today's flat step would blank.
        flagged = bool(np.isfinite(self.sci[(self.dq & DO_NOT_USE) > 0]).any())
        sci, err, dq, self.flat_name, self.context = flat_field(self.input, flagged)
        self.flags = self.dq | dq
        log.info('%s: flat-fielded with %s (%s)', self.name, self.flat_name, self.context)
        return sci, err

    def save(self, sci, script, entry, settings, dq=None, cards=()):
        """Put the corrected image, the drafts and the copy of the input in their place.

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
        draft = self.work / self.target.name
        self.hdul.writeto(draft)
        shutil.copymode(self.input, draft)
        before = primary_header(self.target) if self.target.exists() else {}
        publish(self.work, self.target.parent, self.target.name, self.seen)
        for other, (other_script, *_) in CORRECTIONS.items():
            if corrected(before, other) and not corrected(self.header, other):
                log.warning('%s: was made again from %s, so %s must be run again',
                            self.name, self.source.name, other_script)


@contextlib.contextmanager
def correcting(path, output_dir, entry, redo):
    """Open a rate image for one correction; None when it has been corrected already.

    Parameters
    ----------
    path : Path
        The image, `<dataset>_rate.fits`.
    output_dir : str or Path
        Where the products go; made when it does not exist.
    entry : str
        Key of `CORRECTIONS`. The untouched input is kept as `<dataset>_rate_<suffix>.fits`.
    redo : bool or 'done'
        Start again from that copy; 'done': where there was something done, see `find_source`.

    Yields
    ------
    RateImage or None

    Raises
    ------
    ExposureError
    """
    if not path.name.endswith('_rate.fits'):
        raise ExposureError('is not named <dataset>_rate.fits')
    target = Path(output_dir) / path.name
    untouched = copy_of(target, entry)
    if find_source(path, target, untouched, entry, redo) is None:
        yield None
        return
    with workspace(output_dir, path.name.removesuffix('_rate.fits')) as work:
        seen = {file: identity(file) for file in (path, target)}
        source = find_source(path, target, untouched, entry, redo)  # another process may have been faster
        if source is None:
            yield None
            return
        image = RateImage(source, target, untouched, work, seen)
        with image.hdul:
            yield image


def find_source(path, target, untouched, entry, redo):
    """The file to start a correction from; None when the image has been corrected already.

    That is `path`, unless it has been corrected and is to be again: the untouched copy is out of date when
    the image was made anew since, from the raw exposure or by another correction. With `redo` 'done', an image
    that has not been corrected is; from the copy that it had before a later correction, if there was one.
    """
    if redo is True and not untouched.exists():
        raise ExposureError(f'--redo starts from {untouched}, which is not there')
    fresh = not corrected(primary_header(path), entry)
    done = not fresh or target.exists() and corrected(primary_header(target), entry)
    if redo == 'done' and not fresh and not untouched.exists():
        raise ExposureError(f'was corrected otherwise, and {untouched}, to start again from, is not there')
    if done and not redo:
        log.info('%s: %s is in its HISTORY already: left alone (--redo starts again from %s)',
                 path.name, entry, untouched.name)
        return None
    if not done and target.exists() and not target.parent.samefile(path.parent):
        raise ExposureError(f'{target} is another image and would be replaced: correct that one, or move it away')
    if not fresh and corrected(primary_header(untouched), entry):
        raise ExposureError(f'--redo starts from {untouched}, but that one has been corrected itself')
    if redo == 'done' and not done:
        return before_later(path, entry)
    return path if fresh else untouched


def before_later(path, entry):
    """The image `path` as it was before the first of the corrections that come after `entry`."""
    header, entries = primary_header(path), list(CORRECTIONS)
    for later in entries[entries.index(entry) + 1:]:
        if corrected(header, later):
            copy = copy_of(path, later)
            if not copy.exists() or corrected(primary_header(copy), later):
                raise ExposureError(f'{CORRECTIONS[later][0]} came before {CORRECTIONS[entry][0]}, and there is no '
                                    f'{copy.name} to start from: make the rate image again')
            return copy
    return path


def copy_of(rate, entry):
    """Path of the untouched copy beside the rate image that is kept for a correction."""
    return rate.with_name(f'{rate.stem}_{CORRECTIONS[entry][2]}.fits')


def primary_header(path):
    """Primary header of a FITS file."""
    try:
        with open_fits(path, whole=False) as hdul:
            return hdul[0].header
    except ExposureError as error:
        raise ExposureError(f'{path} {error}') from None


def corrected(header, entry):
    """True when HISTORY, or the keyword that goes with it, says that a correction was made."""
    return CORRECTIONS[entry][1] in header or any(entry in str(card) for card in header.get('HISTORY', ()))


def keep(source, copy, target):
    """Keep the file `source` as `copy`, before the corrected image comes to `target`.

    When that takes the name of `source`, a second name for the file is enough, and costs nothing. Of a
    symbolic link a true copy is kept: the link gives way to the corrected image, what it points to stays.
    """
    if source.parent.samefile(target.parent) and not source.is_symlink():
        with contextlib.suppress(OSError):  # file systems that cannot
            return os.link(source, copy)
    return shutil.copy2(source, copy)


# --- the pipeline ------------------------------------------------------------------------------------

def flat_field(path, flagged=False):
    """Flat-field a rate image with the pipeline's own step, in the current CRDS context.

    Parameters
    ----------
    path : Path
    flagged : bool
        Keep the values of pixels that are flagged DO_NOT_USE, as jwst 1.7.2 does.

    Returns
    -------
    sci, err : ndarray of float32, shape (ny, nx)
        DN/s.
    dq : ndarray of uint32, shape (ny, nx)
        With the flags of the flat.
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
            result = FlatFieldStep().run(without_flags(path) if flagged else str(path))
    except (Exception, SystemExit) as error:
        if isinstance(error, KeyError) and error.args == ('ASDF',):
            raise ExposureError('has no ASDF extension: save it once with jwst.datamodels') from None
        raise ExposureError(f'no flat field for {wanted}: {reason(error, said.getvalue())} ({where})') from None
    with result:
        if result.meta.cal_step.flat_field != 'COMPLETE':
            raise ExposureError(f'no flat field for {wanted}: CRDS has none ({where})')
        name, context = Path(result.meta.ref_file.flat.name).name, result.meta.ref_file.crds.context_used
        arrays = result.data.astype(np.float32), result.err.astype(np.float32), result.dq.astype(np.uint32)
        return *arrays, name.removeprefix('crds://'), context


def without_flags(path):
    """The rate image as a datamodel with no pixel flagged."""
    from jwst import datamodels
    model = datamodels.open(str(path))
    model.dq[...] = 0
    return model


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
    return printable(f"{script} settings: {', '.join(f'{key}={value}' for key, value in settings.items())}")


# --- the command line --------------------------------------------------------------------------------

def one_line(error):
    """An exception as one short line of printable ASCII, for messages and headers."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    if 'requested and' in text:  # numpy's words for a full disk
        text = f'No space left for the file ({text})'
    return printable(text)[:300]


def printable(text):
    """Text in printable ASCII, which FITS headers ask for; anything else is written as an escape."""
    return str(text).encode('unicode_escape').decode('ascii')


class LineFormatter(logging.Formatter):
    """One line for each message: names and headers may hold line breaks and terminal escapes."""

    def format(self, record):
        return ''.join(c if c.isprintable() else '?' for c in super().format(record))


def start_log():
    """Send our log lines to standard error, and only there: the pipeline fills the root logger."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter('%(asctime)s %(levelname)s %(message)s', '%H:%M:%S'))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
    warnings.simplefilter('ignore')  # of packages, about code and odd headers; the log says what matters


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
            except (Exception, SystemExit) as error:
                log.error('%s: %s', name, explanation(error, name))
                failed.append(name)
    if failed and len(names) > 1:
        log.error('%d of %d files failed: %s', len(failed), len(names), ' '.join(map(str, failed)))
    return 1 if failed else 0


def explanation(error, name):
    """What to tell the user when the file `name` failed with `error`."""
    if isinstance(error, ExposureError):
        return str(error).removeprefix(f'{name} ')
    return one_line(error) if isinstance(error, OSError) else f'stopped unexpectedly ({one_line(error)})'


def expanded(text):
    """Argument type for `argparse`: a path in which ~ and $NAME stand for what they do in a shell.

    Left alone they would be a directory's name to us, but not to astropy and jwst, which write there.
    """
    return Path(os.path.expandvars(os.path.expanduser(text)))


def add_redo(add, help_text):
    """Add the options of all scripts that start a correction again, by the parser's method `add`."""
    add('--redo', action='store_true', help=help_text)
    add('--redo_done', dest='redo', action='store_const', const='done',
        help='the same where there is something to start again from, else as without: for batches')


def number_in(low, high):
    """Argument type for `argparse`: a finite number from `low` to `high`."""
    def number(text):
        value = float(text)
        if not low <= value <= high:  # also NaN
            raise ValueError
        return value
    number.__name__ = f'number (from {low:g} to {high:g})'
    return number
