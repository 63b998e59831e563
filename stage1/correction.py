"""A rate image corrected once: what HISTORY says decides, and the untouched input is kept."""

import contextlib
import logging
import math
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from stage1.exposure import (
    DETECTOR_SIDE,
    DO_NOT_USE,
    ExposureError,
    amplifiers,
    check_whole,
    find_input,
    open_exposure,
    place,
    primary_header,
    printable,
    whole_number,
)
from stage1.files import keep, left_behind, publish, workspace, write_map
from stage1.pipeline import flat_field, history_lines

# HISTORY entries that other people's tools match
WISPS, STRIPING = 'Wisps: subtracted', 'Removed horizontal,vertical striping'


class Correction(NamedTuple):
    """What tells that a correction was made, and what it leaves beside the image."""

    script: str
    keyword: str                # in the primary header, beside the entry in HISTORY
    suffix: str                 # of the untouched input
    products: tuple             # endings of those that each run makes anew or removes


# Of the file that a correction starts from; false after it
CHECKSUMS = 'CHECKSUM', 'DATASUM'

# In the order in which they are made
CORRECTIONS = {
    WISPS: Correction('wispsub.py', 'WISPMETH', 'prewisp', ('_segm_cold.fits', '_wisp.pdf')),
    STRIPING: Correction('remstriping.py', 'STRPMETH', 'pre1f', ('_rate_horiz.fits', '_rate_vert.fits')),
}

log = logging.getLogger('nircam')


class RateImage:
    """One rate image, or the rates of several integrations, while it is being corrected.

    Attributes
    ----------
    start, target, untouched : Path
        The file to start from, the corrected one, and the copy of the input that is kept.
    name : str
        That of `target`, for messages.
    work : Path
        Where products are written until all are complete.
    history : list of str
        What was done, for HISTORY of the image and of all products; see `record`.
    header : Header
        Primary header.
    hdul : HDUList
        The open file `start`, which `correcting` closes.
    sci, err : ndarray, shape (ny, nx)
        DN/s, not flat-fielded. Not to be changed in place.
    dq : ndarray of uint32, shape (ny, nx)
    rateints : RateImage or None
        The same of its integrations, with arrays of shape (nints, ny, nx), where these are corrected along.
    place : tuple of slice
        Rows and columns of the detector that the image holds.
    amps : dict of slice
        Columns of each amplifier.
    flags : ndarray of uint32, shape (ny, nx)
        `dq`, after `flat_field` with the flags of the flat too: what measurements leave out.
    """

    def __init__(self, start, target, entry, work, kind='rate'):
        self.start, self.target, self.untouched, self.work = start, target, copy_of(target, entry), work
        self.name, self.entry, self.rateints = target.name, entry, None
        self.version = version_of(start)
        try:
            self.hdul = open_exposure(start, kind)
        except ExposureError as error:
            raise ExposureError(f'{start} {error}') from None
        self.header = self.hdul[0].header
        self.sci, self.err = (self.hdul[name].data for name in ('SCI', 'ERR'))
        self.dq = self.hdul['DQ'].data.astype('uint32', copy=False)
        self.flags = self.dq
        self.place = place(self.header, self.sci.shape[-2:])
        say_corner(self.name, self.header, self.sci.shape)
        self.amps = amplifiers(self.header, self.dq)
        self.flat_name, self.context, self.history = 'none', 'none', []

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
        sci, err, dq, self.flat_name, self.context = flat_field(self.start, flagged)
        self.flags = self.dq | dq
        log.info('%s: flat-fielded with %s (%s)', self.name, self.flat_name, self.context)
        return sci, err

    def record(self, what, settings):
        """Note before anything is written what is done, which begins with the entry, and what it depended on."""
        self.history = history_lines(what, CORRECTIONS[self.entry].script, self.context,
                                     settings | {'flat': self.flat_name})

    def write_map(self, ending, array, cards=()):
        """Write an array as the product with that ending, and say in its header which run made it."""
        write_map(self.draft(ending), array, cards, self.history)

    def write(self, sci, dq, cards, history, keep_input):
        """Write the draft of the corrected file, and of the copy of its input."""
        import numpy as np
        self.hdul['SCI'].data = sci.astype(np.float32)
        if dq is not None:
            self.hdul['DQ'].data = dq
        del self.header[f'{CORRECTIONS[self.entry].keyword[:4]}*']      # of a run without a wisp, which keeps no copy
        for hdu in self.hdul:
            for key in CHECKSUMS:
                hdu.header.remove(key, ignore_missing=True)
        self.header.update({key: (value, comment) for key, value, comment in cards})
        for line in history:
            self.header.add_history(line)
        draft = self.work / self.target.name
        self.hdul.writeto(draft)
        shutil.copymode(self.start, draft)
        if version_of(self.start) != self.version:
            raise ExposureError(f'{self.start} was replaced by another process meanwhile: run this again')
        if keep_input and self.start != self.untouched:
            keep(self.start, self.work / self.untouched.name, self.target)

    def save(self, sci, dq=None, cards=(), keep_input=True, integrations=None):
        """Put the corrected image, the drafts and the copy of the input in their place.

        Parameters
        ----------
        sci : ndarray, shape (ny, nx)
            Corrected image, DN/s.
        dq : ndarray of uint32, optional
        cards : iterable of (keyword, value, comment)
            For the primary header.
        keep_input : bool
            False: nothing was subtracted, so no copy of the input is needed.
        integrations : (sci, dq), optional
            The same of `rateints`.
        """
        last = [self.target.name]
        if self.rateints is not None:
            self.rateints.write(*integrations, cards, self.history, keep_input)
            last.insert(0, self.rateints.target.name)
        self.write(sci, dq, cards, self.history, keep_input)
        stale = side_products(self.target, self.entry)
        if not keep_input:      # a copy that is there is of an image that was made before
            stale += [image.untouched for image in (self, self.rateints) if image and image.start != image.untouched]
        replace_rate(self.work, self.target, last, stale, self.header)


def version_of(path):
    """What changes when a file is replaced or written to."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def say_corner(name, header, shape):
    """Warn where the header of a subarray does not say which part of the detector it is; `shape` ends with (ny, nx)."""
    if shape[-2:] != (DETECTOR_SIDE,) * 2 and not {'SUBSTRT1', 'SUBSTRT2'} <= set(header):
        log.warning('%s: no SUBSTRT1 or SUBSTRT2 in its header: taken for the corner of the detector', name)


def side_products(rate, first=WISPS):
    """Paths of the products that belong to one run of the correction `first` and of those after it."""
    entries = list(CORRECTIONS)
    return [rate.with_name(rate.name.removesuffix('_rate.fits') + ending)
            for entry in entries[entries.index(first):] for ending in CORRECTIONS[entry].products]


def replace_rate(work, rate, last, stale, header):
    """Publish the products in `work`; a warning if `rate` was corrected and, by its new `header`, is so no longer."""
    before = header_of(rate)
    publish(work, rate.parent, last, stale)
    for entry, correction in CORRECTIONS.items():
        if corrected(before, entry) and not corrected(header, entry):
            log.warning('%s: %s', rate.name, undone(correction.script))


def undone(script):
    """Words for an image that was made again without what a later script did."""
    return f'was made again without what {script} did: run that again'


def find_rate(name, directory):
    """Path of a rate image, or of the rates of integrations; ExposureError when it is not there, or not so named."""
    path = find_input(name, directory)
    if path.name.endswith('_uncal.fits'):
        raise ExposureError('is a raw exposure: run snowball_wrapper.py on it, and give the _rate.fits that this makes')
    if not path.name.endswith(('_rate.fits', '_rateints.fits')):
        raise ExposureError('is not named <dataset>_rate.fits or <dataset>_rateints.fits')
    return path


@contextlib.contextmanager
def correcting(name, entry, options, asked):
    """Open a rate image for one correction; None when it has been corrected already.

    Parameters
    ----------
    name : str or Path
        Path of the image, `<dataset>_rate.fits`, or its name in `options.input_dir`. Given `<dataset>_rateints.fits`,
        all integrations are corrected along with the image beside them.
    entry : str
        Key of `CORRECTIONS`. The untouched input is kept as `<dataset>_rate_<suffix>.fits`.
    options : argparse.Namespace
        `input_dir`; `output_dir`, where the products go, made when it does not exist; `redo`, to start again
        from the untouched copy if there is one, else to correct what is there.
    asked : dict
        {keyword: value} that the header of an image corrected with these options would have.

    Yields
    ------
    RateImage or None

    Raises
    ------
    ExposureError
    """
    path = find_rate(name, options.input_dir)
    rateints = path if path.name.endswith('_rateints.fits') else None
    if rateints:
        path = path.with_name(path.name.replace('_rateints.fits', '_rate.fits'))
        if not path.exists():
            raise ExposureError(f'{path}, the mean of its integrations, is not there')
    target, dataset = Path(options.output_dir) / path.name, path.name.removesuffix('_rate.fits')
    start = find_start(path, target, entry, options.redo)     # what is wrong is said before anything is made
    with contextlib.ExitStack() as held:
        if start is not None:
            say_place(path, target.parent, options.input_dir)
        if start is not None or left_behind(target.parent, dataset):
            work = held.enter_context(workspace(target.parent, dataset))
            start = find_start(path, target, entry, options.redo)     # another process may have been faster
        if start is None:
            if rateints:
                whole = target.with_name(rateints.name)
                check_whole(whole if whole.exists() else rateints)
            say_left_alone(path, target, entry, asked, rateints)
            yield None
            return
        image = RateImage(start, target, entry, work)
        held.enter_context(image.hdul)
        if rateints:
            ints_target = target.with_name(rateints.name)
            ints_start = find_start(rateints, ints_target, entry, True)
            image.rateints = RateImage(ints_start, ints_target, entry, work, 'rateints')
            held.enter_context(image.rateints.hdul)
            count = whole_number(image.header, 'NINTS', len(image.rateints.sci))
            count = whole_number(image.header, 'INTEND', count) - whole_number(image.header, 'INTSTART', 1) + 1
            if image.rateints.sci.shape != (count, *image.sci.shape):
                raise ExposureError(f'{rateints.name} has the shape {image.rateints.sci.shape}, and does not belong to '
                                    f'{image.name}, {count} integrations of {image.sci.shape}')
            done = [one.name for one in (image, image.rateints) if corrected(one.header, WISPS)]
            alike = old_wisp(image.header) == old_wisp(image.rateints.header)
            if entry == STRIPING and (len(done) == 1 or not alike):
                log.warning('%s: wispsub.py was run on %s alone: run it on this one with --redo, and then '
                            'remstriping.py again', rateints.name, done[0])
        elif (count := whole_number(image.header, 'NINTS', 1)) > 1:
            whole = target.with_name(f'{dataset}_rateints.fits')
            if corrected(header_of(whole), entry):
                log.warning('%s: is corrected alone now, and %s stays as it was: give that one with --redo to correct '
                            'both', image.name, whole.name)
            else:
                log.info('%s: is the mean of %d integrations; give %s to correct each of them', image.name, count,
                         whole.name)
        yield image


def find_start(path, target, entry, redo):
    """The file to start a correction from; None when the image has been corrected already; ExposureError without one.

    That is `path` or, to correct again (`redo`), the untouched copy; but `path` where it was made anew since, from the
    raw exposure or by another correction, for then the copy is out of date.
    """
    untouched, header = copy_of(target, entry), primary_header(path)
    fresh = not corrected(header, entry)
    there = primary_header(target) if fresh and target.exists() else {}
    done = not fresh or corrected(there, entry)
    if there and not target.parent.samefile(path.parent) and not (done and made_of(header, there, entry)):
        raise ExposureError(f'would replace {target}, which is another image: give {target} instead if that is the '
                            'one to correct, else another --output_dir')
    if done and not redo:
        check_whole(target if target.exists() else path)        # what is damaged is not done
        return None
    no_copy = not untouched.exists()
    if fresh or (no_copy and not subtracted(header, entry)):    # nothing was subtracted, and no copy kept
        return before_stripes(path, header, redo) if entry == WISPS else path
    if no_copy and path.parent != target.parent and copy_of(path, entry).exists():
        raise ExposureError(f'has been corrected, and its untouched copy is {copy_of(path, entry)}: give --output_dir '
                            f'{path.parent} to start from that')
    if no_copy:
        raise ExposureError(f'has been corrected, and {untouched}, from which --redo starts, is not there: '
                            'make the rate image again (snowball_wrapper.py --redo)')
    if subtracted(primary_header(untouched), entry):
        raise ExposureError(f'--redo starts from {untouched}, but that one has been corrected itself: '
                            'make the rate image again (snowball_wrapper.py --redo)')
    return untouched


def made_of(before, after, entry):
    """True when an image with the primary header `after` was made of one with `before` by a correction, and later ones.

    These change none of its keywords but their own.
    """
    order = list(CORRECTIONS)
    own = tuple(CORRECTIONS[later].keyword[:4] for later in order[order.index(entry):])
    kept = all(after.get(key) == before.get(key) for key in set(before)         # of one that comes twice, the first
               if key not in ('HISTORY', 'COMMENT', '', *CHECKSUMS) and not key.startswith(own))
    return kept and all(corrected(before, other) == corrected(after, other) for other in order[:order.index(entry)])


def before_stripes(path, header, redo):
    """The image `path` as it was before its striping was removed, if it was: wisps come first."""
    if not corrected(header, STRIPING):
        return path
    copy = copy_of(path, STRIPING)
    if not copy.exists() or corrected(primary_header(copy), STRIPING):
        raise ExposureError(f'remstriping.py was run before wispsub.py, and {copy.name}, to start from, is not there: '
                            'make the rate image again (snowball_wrapper.py --redo)')
    if not redo:
        raise ExposureError('remstriping.py was run before wispsub.py, which has to come first: give --redo to start '
                            f'from {copy.name}, and then run remstriping.py again')
    return copy


def say_left_alone(path, target, entry, asked, rateints):
    """Log that an image has been corrected already; a warning if not as it is asked for now, `rateints` along."""
    header = next(header for header in map(primary_header, (path, target)) if corrected(header, entry))
    copy = copy_of(target, entry)
    how = f'left alone (--redo starts again from {copy.name})' if copy.exists() else 'left alone'
    other = departures(header, entry, asked, [rateints, target.with_name(rateints.name)] if rateints else [])
    if other:
        log.warning('%s: was corrected %s: %s', path.name, other, how)
    else:
        log.info('%s: %s is in its HISTORY already: %s', path.name, entry, how)


def departures(header, entry, asked, rateints=()):
    """How a corrected image differs from what is asked for: 'with scale 0.63, not 0.5 as asked for', '' if it does not.

    Arguments as for `differences`; `rateints` are the paths where the integrations may be, if they are to be corrected
    alike.
    """
    other = differences(header, asked)
    other = [f'with {other}'] if other else []
    if rateints:
        whole = next((copy for copy in map(header_of, rateints) if corrected(copy, entry)), None)
        if whole is None:
            other.append(f'without {rateints[0].name}')
        elif not other and (apart := differences(whole, asked)):
            other.append(f'with {apart} in {rateints[0].name}')
        elif made_at(whole, entry) != made_at(header, entry):
            other.append(f'apart from {rateints[0].name}')
    return ', '.join(other)


def differences(header, asked):
    """What a corrected image was not made as asked for: 'scale 0.63, not 0.5 as asked for'; '' when it was.

    `header` is its primary header, `asked` {keyword: value}; of 'parameters', those of Detector1, HISTORY tells.
    """
    wisp, used = old_wisp(header), re.search(r'settings: parameters=(.+?), [\w.]+=', history_of(header))
    known = ({'WISPSCAL': wisp[1]} if wisp else {}) | ({'parameters': used[1]} if used else {})
    known |= {key: header[key] for key in asked if key in header}
    words = {'WISPSCAL': 'scale', 'WISPMETH': 'method', 'STRPMETH': 'method', 'STRPTHR': 'threshold',
             'STRPINNR': 'noise within rows removed:', 'parameters': 'parameters'}
    return ', '.join(f'a given scale, not one fitted by {value} as asked for' if known[key] == 'fixed' else
                     f'{words[key]} {known[key]}, not {value} as asked for'
                     for key, value in asked.items() if key in known and not same(known[key], value))


def same(held, asked):
    """True when what a header holds is what was asked for: words as headers hold them, numbers as far as they do."""
    if isinstance(held, str) or isinstance(asked, str):
        return held == printable(asked)
    return isinstance(held, int | float) and math.isclose(held, asked, abs_tol=1e-6)


def say_place(path, output, input_dir):
    """Say before the work where the products of a file go that comes from elsewhere."""
    if path.parent.resolve() not in (Path(output).resolve(), Path(input_dir).resolve()):
        log.info('%s: products go to %s (--output_dir)', path, output)


def copy_of(rate, entry):
    """Path of the untouched copy beside the rate image that is kept for a correction."""
    return rate.with_name(f'{rate.stem}_{CORRECTIONS[entry].suffix}.fits')


# --- what a header says ------------------------------------------------------------------------------

def header_of(path):
    """Primary header of a file; {} when it is not there, or damaged."""
    try:
        return primary_header(path)
    except ExposureError:
        return {}


def corrected(header, entry):
    """True when HISTORY, or the keyword that goes with a correction, says that it was made."""
    return entry in history_of(header) or entry in CORRECTIONS and CORRECTIONS[entry].keyword in header


def made_at(header, entry):
    """When a correction was made last, by HISTORY, seconds since 1970; None where it does not say."""
    made = re.findall(rf'{re.escape(entry)}.*; \w+\.py (\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d)', history_of(header))
    return datetime.fromisoformat(f'{made[-1]}Z').timestamp() if made else None


def subtracted(header, entry):
    """True when a correction was made that changed the image: a wisp of scale 0 did not."""
    return corrected(header, entry) and not (entry == WISPS and header.get('WISPSCAL') == 0)


def old_wisp(header):
    """Template and scale as HISTORY has them last, all that a product of DR0.5 says of them; None without."""
    found = re.findall(re.escape(WISPS) + r' (.+?), scale=(\d+\.\d+);', history_of(header))
    return (found[-1][0], float(found[-1][1])) if found else None


def history_of(header):
    """HISTORY as text with one entry a line; in the header, long ones are cut into cards of 72 characters."""
    cards = map(str, header.get('HISTORY', ()))
    return ''.join(card.ljust(72) if len(card) > 70 else f'{card}\n' for card in cards)
