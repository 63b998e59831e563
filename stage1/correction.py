"""A rate image corrected once: what HISTORY says decides, and the untouched input is kept."""

import contextlib
import logging
import shutil
from pathlib import Path

from stage1.exposure import DO_NOT_USE, ExposureError, find_input, open_exposure, primary_header
from stage1.files import clear, keep, publish, workspace
from stage1.pipeline import describe, flat_field, provenance

# In the order in which they are made: HISTORY entries that other people's tools match, the script that writes each,
# the keyword beside it, and the suffix of the untouched input.
WISPS, STRIPING = 'Wisps: subtracted', 'Removed horizontal,vertical striping'
CORRECTIONS = {WISPS: ('wispsub.py', 'WISPMETH', 'prewisp'), STRIPING: ('remstriping.py', 'STRPMETH', 'pre1f')}

log = logging.getLogger('nircam')


class RateImage:
    """One rate image while it is being corrected.

    Attributes
    ----------
    source, target, untouched : Path
        The file to start from, the corrected one, and the copy of the input that is kept.
    work : Path
        Where products are written until all are complete.
    header : Header
        Primary header.
    sci, err : ndarray, shape (ny, nx)
        DN/s, not flat-fielded. Not to be changed in place.
    dq : ndarray of uint32, shape (ny, nx)
    flags : ndarray of uint32, shape (ny, nx)
        The same, after `flat_field` with the flags of the flat: what measurements leave out.
    """

    def __init__(self, source, target, untouched, work):
        self.source, self.target, self.untouched, self.work = source, target, untouched, work
        try:
            self.hdul = open_exposure(source, 'rate')
        except ExposureError as error:
            raise ExposureError(f'{source} {error}') from None
        self.header = self.hdul[0].header
        self.sci, self.err, self.dq = (self.hdul[name].data for name in ('SCI', 'ERR', 'DQ'))
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
        sci, err, dq, self.flat_name, self.context = flat_field(self.source, flagged)
        self.flags = self.dq | dq
        log.info('%s: flat-fielded with %s (%s)', self.name, self.flat_name, self.context)
        return sci, err

    def save(self, sci, entry, line, settings, dq=None, cards=()):
        """Put the corrected image, the drafts and the copy of the input in their place.

        Parameters
        ----------
        sci : ndarray, shape (ny, nx)
            Corrected image, DN/s.
        entry : str
            Key of `CORRECTIONS`.
        line : str
            The HISTORY line that begins with it.
        settings : dict
            What else the correction depended on; goes to HISTORY.
        dq : ndarray of uint32, optional
        cards : iterable of (keyword, value, comment)
            For the primary header.
        """
        import numpy as np
        script = CORRECTIONS[entry][0]
        self.hdul['SCI'].data = sci.astype(np.float32)
        if dq is not None:
            self.hdul['DQ'].data = dq
        self.header.update({key: (value, comment) for key, value, comment in cards})
        settings = settings | {'flat': self.flat_name}
        for text in (line, provenance(script, self.context), describe(script, settings)):
            self.header.add_history(text)
        draft = self.work / self.target.name
        self.hdul.writeto(draft)
        shutil.copymode(self.source, draft)
        if self.source != self.untouched:
            keep(self.source, self.work / self.untouched.name, self.target)
        before = primary_header(self.target) if self.target.exists() else {}
        publish(self.work, self.target.parent, self.target.name)
        for other, (other_script, *_) in CORRECTIONS.items():
            if corrected(before, other) and not corrected(self.header, other):
                log.warning('%s: was made again from %s, so %s must be run again',
                            self.name, self.source.name, other_script)


@contextlib.contextmanager
def correcting(name, entry, options):
    """Open a rate image for one correction; None when it has been corrected already.

    Parameters
    ----------
    name : str or Path
        Path of the image, `<dataset>_rate.fits`, or its name in `options.input_dir`.
    entry : str
        Key of `CORRECTIONS`. The untouched input is kept as `<dataset>_rate_<suffix>.fits`.
    options : argparse.Namespace
        `input_dir`; `output_dir`, where the products go, made when it does not exist; `redo`, to start again
        from the untouched copy if there is one, else to correct what is there.

    Yields
    ------
    RateImage or None

    Raises
    ------
    ExposureError
    """
    path = find_input(name, options.input_dir)
    if not path.name.endswith('_rate.fits'):
        raise ExposureError('is not named <dataset>_rate.fits')
    target, dataset = Path(options.output_dir) / path.name, path.name.removesuffix('_rate.fits')
    if find_source(path, target, entry, options.redo) is None:  # said before anything is made
        clear(target.parent, dataset)
        yield None
        return
    with workspace(target.parent, dataset) as work:
        source = find_source(path, target, entry, options.redo)  # another process may have been faster
        if source is None:
            yield None
            return
        image = RateImage(source, target, copy_of(target, entry), work)
        with image.hdul:
            yield image


def find_source(path, target, entry, redo):
    """The file to start a correction from; None when the image has been corrected already.

    That is `path`, unless it has been corrected and is to be again: the untouched copy is out of date when
    the image was made anew since, from the raw exposure or by another correction.
    """
    untouched = copy_of(target, entry)
    fresh = not corrected(primary_header(path), entry)
    done = not fresh or target.exists() and corrected(primary_header(target), entry)
    if done and not redo:
        log.info('%s: %s is in its HISTORY already: left alone (--redo starts again from %s)',
                 path.name, entry, untouched.name)
        return None
    if not done and target.exists() and not target.parent.samefile(path.parent):
        raise ExposureError(f'{target} is another image and would be replaced: correct that one, or move it away')
    if fresh:
        return before_later(path, entry) if redo else path
    if not untouched.exists():
        raise ExposureError(f'has been corrected, and {untouched}, from which --redo starts, is not there: '
                            'make the rate image again')
    if corrected(primary_header(untouched), entry):
        raise ExposureError(f'--redo starts from {untouched}, but that one has been corrected itself: '
                            'make the rate image again')
    return untouched


def before_later(path, entry):
    """The image `path` as it was before the first of the corrections that come after `entry`."""
    header, entries = primary_header(path), list(CORRECTIONS)
    for later in entries[entries.index(entry) + 1:]:
        if corrected(header, later):
            copy = copy_of(path, later)
            if not copy.exists() or corrected(primary_header(copy), later):
                raise ExposureError(f'{CORRECTIONS[later][0]} was run before {CORRECTIONS[entry][0]}, and {copy.name}, '
                                    'to start from, is not there: make the rate image again')
            return copy
    return path


def copy_of(rate, entry):
    """Path of the untouched copy beside the rate image that is kept for a correction."""
    return rate.with_name(f'{rate.stem}_{CORRECTIONS[entry][2]}.fits')


def corrected(header, entry):
    """True when HISTORY, or the keyword that goes with it, says that a correction was made."""
    return CORRECTIONS[entry][1] in header or any(entry in str(card) for card in header.get('HISTORY', ()))
