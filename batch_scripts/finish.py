#!/usr/bin/env python
"""List, or remove, what an accepted set of images does not need: it is most of what the scripts leave on the disk.

These are the untouched copies, the interim products of Detector1, and the patterns of the striping; without them,
--redo has to start from the raw exposures. Rate images, masks, catalogues and plots stay. Nothing goes of an exposure
that is flagged, or not corrected yet as it is to be, in the table that the review page saved; nor of one whose rate
image is damaged or still has its striping.

    python batch_scripts/finish.py calibrated --table review.csv
    python batch_scripts/finish.py calibrated --table review.csv --remove
"""

import argparse
import contextlib
import sys
from pathlib import Path

from make_batch import read_table, striping_line, wisp_line
from run_batch import find_difference, is_done, read_line

# isort: split
import wispsub
from snowball_wrapper import INTERIM
from stage1.correction import CORRECTIONS, STRIPING, WISPS, copy_of, corrected
from stage1.exposure import ExposureError, exposure_header
from stage1.files import workspace


def why_not(rate, row):
    """Why an exposure has to keep all its files; '' when it has not."""
    try:
        header = exposure_header(rate, 'rate')
    except ExposureError as error:
        return str(error)
    if not corrected(header, STRIPING):
        return 'has its striping still'
    if row.get('flag'):
        return f"is flagged in the table: {row['flag']}"
    plain = argparse.Namespace(method=None, no_patterns=True)
    lines = [wisp_line(row, plain, rate.name)] * bool(row.get('wisp_scale'))
    lines += [striping_line(row, plain, rate.name)] * bool(row.get('mask_threshold') or row.get('method'))
    if wispsub.has_wisps(*wispsub.mode_of(header)) and wispsub.sees_wisp(header) and not corrected(header, WISPS):
        return 'has its wisp still'
    for line in (read_line(text, 0) for text in lines):
        if not is_done(line, header):
            return f'is to be redone: {line.script} has not been run'
        difference = find_difference(line, header)
        if difference:
            return f'is to be redone: corrected with {difference}'
    return ''


def spare_files(rate):
    """The files of an exposure that can go."""
    dataset = rate.name.removesuffix('_rate.fits')
    integrations, patterns = exposure_header(rate, 'rate').get('NINTS', 1), CORRECTIONS[STRIPING][3]
    endings = [f'_{kind}.fits' for kind in INTERIM if kind != 'rateints' or integrations == 1]
    paths = [rate.with_name(dataset + ending) for ending in (*endings, *patterns)]
    return [path for path in (*paths, *(copy_of(rate, entry) for entry in CORRECTIONS)) if path.exists()]


def finish(rate, row, remove):
    """List, or remove, what can go of one exposure: how many bytes, and what to say."""
    dataset = rate.name.removesuffix('_rate.fits')
    problem = why_not(rate, row)
    if problem:
        return 0, f'{dataset}: kept whole, {problem}'
    paths = spare_files(rate)
    size = sum(path.stat().st_size for path in paths)
    if remove:
        for path in paths:
            path.unlink()
    return size, f"{dataset}: {size / 1e6:.0f} MB: {' '.join(path.stem[len(dataset) + 1:] for path in paths)}"


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('directory', metavar='CALIBRATED', type=Path, help='where the rate images are')
    parser.add_argument('--table', type=Path, help='the review.csv that the review page saved')
    parser.add_argument('--remove', action='store_true', help='remove the files; without this they are only listed')
    return parser


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        table = read_table(options.table) if options.table else {}
    except ExposureError as error:
        parser.error(str(error))
    rates, total, status = sorted(options.directory.glob('*_rate.fits')), 0, 0
    if not rates:
        parser.error(f'{options.directory} holds no *_rate.fits')
    for rate in rates:
        dataset = rate.name.removesuffix('_rate.fits')
        try:
            # nobody else's turn meanwhile
            with workspace(rate.parent, dataset) if options.remove else contextlib.nullcontext():
                size, text = finish(rate, table.get(dataset, {}), options.remove)
        except (ExposureError, OSError) as error:
            size, text, status = 0, f'{dataset}: {error}', 1
        sys.stdout.write(text + '\n')
        total += size
    sys.stdout.write(f"{total / 1e9:.2f} GB {'removed' if options.remove else 'can go (--remove)'}\n")
    return status


if __name__ == '__main__':
    sys.exit(main())
