"""Whole files only, from one process at a time.

Products are made in a hidden directory beside their place, which one process at a time holds (`workspace`),
and are renamed when all are complete (`publish`): a kill at any moment leaves the old file or the new one.
"""

import contextlib
import errno
import logging
import os
import shutil

from stage1.exposure import ExposureError

# What file systems answer that have no locks, as some of clusters
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)

log = logging.getLogger('nircam')


@contextlib.contextmanager
def workspace(output, dataset):
    """Hold a hidden directory for the products of one dataset; other processes that want it wait.

    Parameters
    ----------
    output : Path
        Directory that the products go to; made when it does not exist.
    dataset : str

    Yields
    ------
    Path
        `output/.<dataset>.tmp`, empty: what a killed process left there is gone. Nothing of it, nor of its lock
        `.<dataset>.lock`, remains afterwards. The lock ends with its process, so a killed one stops nobody.

    Raises
    ------
    ExposureError
        When nothing can be written in `output`.
    """
    from filelock import FileLock, Timeout
    work, lock_file = hidden(output, dataset)
    lock = FileLock(lock_file, fallback_to_soft=False)  # a soft one outlives a process killed on another machine
    try:
        output.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info('%s: waiting for another process that works on it', dataset)
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ExposureError(f'cannot write in {output}: {error.strerror}') from None
        log.warning('%s: no file locks here (%s): do not run two processes on one image', output, error.strerror)
    try:
        try:
            remove(work)
            work.mkdir()
        except OSError as error:
            raise ExposureError(f'cannot write in {output}: {error.strerror}') from None
        yield work
    finally:
        with contextlib.suppress(OSError):
            remove(work)
        with contextlib.suppress(OSError):
            lock_file.unlink()  # while we hold it: who waits makes a new one
        lock.release()


def hidden(output, dataset):
    """Paths of the directory that `workspace` makes for a dataset, and of its lock."""
    return output / f'.{dataset}.tmp', output / f'.{dataset}.lock'


def remove(work):
    """Remove a directory of drafts if there is one; a link is not followed."""
    with contextlib.suppress(FileNotFoundError):
        work.unlink() if work.is_symlink() else shutil.rmtree(work)


def left_behind(output, dataset):
    """True when a process left something of a dataset that `workspace` clears away, or is at work on it."""
    return any(os.path.lexists(path) for path in hidden(output, dataset))


def publish(work, output, last, stale=()):
    """Move the products in a workspace to their place, whole.

    Parameters
    ----------
    work, output : Path
        Directories from and to.
    last : sequence of str
        File names of the products that come last, in this order: when the last is there, all are.
    stale : iterable of Path
        Products of earlier runs, to be removed where this one has none of that name.

    Raises
    ------
    ExposureError
        When a directory is in the place of a product.
    """
    products = [*sorted(path for path in work.iterdir() if path.name not in last), *(work / name for name in last)]
    for path in products:
        if (output / path.name).is_dir():  # a rename would find it out with others in place already
            raise ExposureError(f'{output / path.name} is a directory: move it away, a product goes there')
        sync(path)
    for path in stale:
        if not (work / path.name).exists():
            path.unlink(missing_ok=True)
    for path in products:
        path.replace(output / path.name)
    sync(output)
    endings = ', '.join(path.name.removeprefix(work.name[1:-len('.tmp')]) for path in products[:-1])
    log.info('%s: written%s', output / last[-1], f', with {endings}' if endings else '')


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


def keep(start, copy, target):
    """Keep the file `start`, from which a correction began, as `copy`, before the corrected image comes to `target`.

    In the directory of `target` a second name for the file is enough, and costs nothing. Of a symbolic link a true
    copy is kept: the link gives way to the corrected image, what it points to stays.
    """
    if start.parent.samefile(target.parent) and not start.is_symlink():
        with contextlib.suppress(OSError):  # file systems that cannot
            return os.link(start, copy)
    return shutil.copy2(start, copy)


def write_map(path, array, cards=(), history=()):
    """Write one array as a FITS file that `astropy.io.fits.getdata(path)` reads.

    A mask is compressed without loss, anything else is stored as float32. `cards` are (keyword, value, comment),
    `history` lines for HISTORY.
    """
    import numpy as np
    from astropy.io import fits
    if array.dtype == bool:
        image = fits.CompImageHDU(array.astype(np.uint8), compression_type='RICE_1')
    else:
        image = fits.PrimaryHDU(array.astype(np.float32))
    image.header.extend(cards)
    for line in history:
        image.header.add_history(line)
    image.writeto(path)
