#!/usr/bin/env python
"""List, or remove, what an accepted set of images does not need: half or more of what the scripts leave on the disk.

These are the untouched copies, the interim products of Detector1, and the patterns of the striping; without them,
--redo has to start from the raw exposures. Rate images, masks, catalogues and plots stay. Nothing goes of an exposure
that the table of the review page flags, does not have as accepted, or asks to redo otherwise than it is; nor of one
that was corrected after the table was saved, whose images are damaged, or that still has its striping or its wisp.
Without a table all others are taken for accepted.

    python batch_scripts/finish.py calibrated --table ~/Downloads/review_2026-01-02_030405.csv
    python batch_scripts/finish.py calibrated --table ~/Downloads/review_2026-01-02_030405.csv --remove
"""

import argparse
import contextlib
import math
import re
import sys
from datetime import datetime

from make_batch import DEFAULT_WISPDIR, as_it_is, read_table, striping_line, wisp_line
from run_batch import in_words, read_line

# isort: split
import wispsub
from snowball_wrapper import interim_files
from stage1.command import EXISTING, FILE, new_parser, run_command, start_log
from stage1.correction import CORRECTIONS, STRIPING, WISPS, copy_of, corrected, made_at, side_products
from stage1.exposure import ExposureError, check_whole, exposure_header
from stage1.files import workspace


def check_accepted(header, row, saved=math.inf):
    """Raise ExposureError, which says why, when an exposure has to keep all its files.

    Parameters
    ----------
    header : Header
        Primary header of its rate image.
    row : dict or None
        Of the table; None when that does not name the exposure, {} when there is no table.
    saved : float
        When the table was saved, seconds since 1970.
    """
    if row is None:
        raise ExposureError('is not in the table: accept it on the review page first')
    if row.get('flag'):
        raise ExposureError(f"is flagged in the table: {row['flag']}")
    if row.get('accepted', '1').lower() not in ('1', 'y', 'yes', 'true'):
        raise ExposureError('is not accepted in the table: look at it on a new page')
    if any((made_at(header, entry) or 0) > saved for entry in CORRECTIONS):
        raise ExposureError('was corrected again since the table was saved: look at it on a new page')
    if not corrected(header, STRIPING):
        raise ExposureError('has its striping still')
    wisp = row.get('wisp_scale') or wispsub.to_be_corrected(header, wispsub.METHOD, DEFAULT_WISPDIR)
    if wisp and not corrected(header, WISPS):
        raise ExposureError('has its wisp still')
    plain, full, name = argparse.Namespace(method=None, no_patterns=True), as_it_is(row, header), 'x_rate.fits'
    wanted = [wisp_line(full, plain, name)] * bool(row.get('wisp_scale'))
    wanted += [striping_line(full, plain, name)] * bool(row.get('mask_threshold') or row.get('method'))
    for line in (read_line(text, 0) for text in wanted):
        if other := line.departures(header):
            raise ExposureError(f'is to be redone: corrected {other}')


def finish(rate, row, remove, saved=math.inf):
    """List, or remove, what can go of one exposure: how many bytes, and what to say."""
    dataset = rate.name.removesuffix('_rate.fits')
    whole = rate.with_name(f'{dataset}_rateints.fits')
    try:
        header = exposure_header(rate, 'rate')
        check_accepted(header, row, saved)
        integrations = header.get('NINTS', 2)   # where nothing is said there may be several, whose rates stay
        if integrations != 1 and whole.exists():
            check_whole(whole)
        elif integrations != 1 and any(copy_of(whole, entry).exists() for entry in CORRECTIONS):
            raise ExposureError(f'{whole.name} is not there, but an untouched copy of it is')
    except ExposureError as error:
        return 0, f'kept whole, {error}'
    paths = [*interim_files(rate.parent, dataset, integrations), *side_products(rate, STRIPING),
             *(copy_of(image, entry) for entry in CORRECTIONS for image in (rate, whole))]
    paths = [path for path in paths if path.exists()]
    if not paths:
        return 0, 'nothing to remove'
    size = sum(path.stat().st_size for path in paths)
    if remove:
        for path in paths:
            path.unlink()
    return size, f"{size / 1e6:.0f} MB: {' '.join(path.stem[len(dataset) + 1:] for path in paths)}"


def saved_at(table):
    """When a table was saved, seconds since 1970: as its name says, in UTC, or the file, if that is older."""
    times = [table.stat().st_mtime]
    for text in re.findall(r'\d{4}-\d\d-\d\d_\d{6}', table.name):
        with contextlib.suppress(ValueError):           # numbers, but no time
            times.append(datetime.strptime(f'{text}Z', '%Y-%m-%d_%H%M%S%z').timestamp())
    return min(times)


def build_parser():
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument('directory', metavar='CALIBRATED', type=EXISTING, help='where the rate images are')
    parser.add_argument('--table', type=FILE, help='the last one that the review page saved')
    parser.add_argument('--remove', action='store_true', help='remove the files; without this they are only listed')
    return parser


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    start_log()
    rates, total, status = sorted(options.directory.glob('*_rate.fits')), 0, 0
    try:
        table, saved = (read_table(options.table), saved_at(options.table)) if options.table else (None, math.inf)
    except (ExposureError, OSError) as error:
        parser.error(in_words(error))
    if not rates:
        parser.error(f'{options.directory} itself holds no *_rate.fits: give the directory of the corrected images')
    for rate in rates:
        dataset = rate.name.removesuffix('_rate.fits')
        row = {} if table is None else table.get(dataset)
        try:
            # nobody else's turn meanwhile
            with workspace(rate.parent, dataset) if options.remove else contextlib.nullcontext():
                size, text = finish(rate, row, options.remove, saved)
        except (ExposureError, OSError) as error:
            size, text, status = 0, in_words(error), 1
        sys.stdout.write(f'{dataset}: {text}\n')
        total += size
    sys.stdout.write(f"{total / 1e9:.2f} GB {'removed' if options.remove else 'can go (--remove)'}\n")
    return status


if __name__ == '__main__':
    run_command(main)
