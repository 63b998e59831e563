#!/usr/bin/env python
"""Make one web page on which a night of corrected NIRCam exposures is looked at, accepted, flagged or redone.

Reads   CALIBRATED/<dataset>_rate.fits with its _rate_prewisp.fits, _rate_pre1f.fits, _rate_1fmask.fits and
        _snowballs.ecsv.
Writes  the page, which needs neither a server nor a network: every exposure before, after wisps and after
        striping, what was removed, how much structure is left, and warnings, the worst first. What is typed
        there is saved as review_<date>.csv, for make_batch.py --table.
        <page>_files/, beside the page: the pictures in full resolution, and what is known of each exposure, so
        that the next page looks at changed exposures only. The page works without it, and it may be deleted.

Examples
--------
    python batch_scripts/review.py calibrated -o review.html
    python batch_scripts/review.py calibrated -o a3.html --match '*_nrca3_rate.fits' -j 8

What is left is measured here, the same way for every method (what_is_left.py); the score adds amp-rows, columns
and wisp in quadrature, 1e-3 DN/s.
"""

import base64
import hashlib
import json
import logging
import math
import os
import re
import shlex
import sys
import urllib.parse
from itertools import repeat
from pathlib import Path

from run_batch import PROCESSES, TOP, begin, cores, in_words  # the first, for it finds the others

# isort: split
import wispsub
from make_batch import DEFAULT_WISPDIR, from_top
from review_pictures import EXPOSURE_KB, PANELS, draw
from stage1 import check_environment
from stage1.command import DIRECTORY, EXISTING, FILE, new_parser, number_in, run_command, start_log
from stage1.correction import CORRECTIONS, STRIPING, WISPS, corrected, history_of, old_wisp, subtracted
from stage1.exposure import AMPLIFIERS, DO_NOT_USE, HOT, ExposureError, amplifiers, one_line, open_exposure
from stage1.files import publish, workspace
from stage1.striping_score import RAISED, line_rms

import numpy as np

LEAST_HARM = 1.                 # 1e-3 DN/s; a correction did harm that left more, and RAISED times what was there

HERE = Path(__file__).resolve().parent
READ = ('_rate.fits', '_rate_prewisp.fits', '_rate_pre1f.fits', '_rate_1fmask.fits', '_snowballs.ecsv')
MEASURED = ('score', 'row0', 'row', 'col0', 'col', 'wisp0', 'wisp')
# What the page knows of an exposure besides, from its header: name there, keyword
STRINGS = {'detector': 'DETECTOR', 'filter': 'FILTER', 'pupil': 'PUPIL', 'date': 'DATE-OBS'}
# and what is listed in the large view: name, keyword or none, what it is called, how the number is written ('': text)
COLUMNS = (
    ('score', '', 'score', '.2f'), ('row', '', 'amp-rows left', '.2f'), ('col', '', 'columns left', '.2f'),
    ('wisp', '', 'wisp left', '.2f'), ('scale', 'WISPSCAL', 'wisp scale', '.4g'),
    ('scale_error', 'WISPERR', 'scale error', '.2g'), ('null', 'WISPNULL', 'mirrored template', '.2g'),
    ('null_error', 'WISPNERR', 'its error', '.2g'), ('wisp_method', 'WISPMETH', 'wisp method', ''),
    ('template', 'WISPTMPL', 'template', ''), ('threshold', 'STRPTHR', 'threshold', '.4g'),
    ('striping_method', 'STRPMETH', 'striping method', ''), ('masked', 'STRPMASK', 'masked, %', '.1f'),
    ('pedestal', 'STRPPED', 'sky level, DN/s', '.4g'), ('snowballs', 'SNOWNUM', 'snowballs', '.0f'),
    ('snowball_area', 'SNOWFRAC', 'snowball pixels, %', '.2f'),
    ('exposure_time', 'EFFEXPTM', 'exposure time, s', '.0f'), ('full_rows', '', 'full rows A-D', ''),
    ('shrinkage', '', 'shrinkage A-D', ''),
)
# and can be sorted by besides
MARKS = (('name', 'name'), ('detector', 'detector'), ('filter', 'filter'), ('method', 'method'), ('date', 'date'),
         ('warnings', 'warnings'), ('flagged', 'flagged'), ('accepted', 'accepted'), ('changed', 'to redo'),
         ('seen', 'seen'))

log = logging.getLogger('nircam')


def make_page(options):
    """Write the page of all products in a directory; options as `build_parser` says.

    ExposureError, or OSError, when there is nothing in the directory, or the page cannot be written.
    """
    output = options.output
    if output.is_dir():
        raise ExposureError(f'{output} is a directory: give the name of a page, such as {output / "review.html"}')
    if output.suffix not in ('.html', '.htm'):
        raise ExposureError(f'{output} is not the name of a page: give one that ends in .html')
    datasets = find_datasets(options.calibrated, options.match)
    store = output.with_name(f'{output.stem}_files')
    store.mkdir(parents=True, exist_ok=True)
    exposures = look_at_all(datasets, store, options)
    for exposure in exposures:
        say_what_can_be_redone(exposure, options.wisp_dir)
    exposures.sort(key=lambda exposure: exposure['dataset'])        # the page puts the worst first
    with workspace(output.parent, output.name) as work:
        write_page(work / output.name, exposures, options)
        publish(work, output.parent, [output.name])
    wanted = {name for exposure in exposures for name in (f"{exposure['key']}.json", *exposure['full'])}
    for path in store.iterdir():                    # of exposures as they were on an earlier page
        if path.name not in wanted and re.match('[0-9a-f]{32}', path.name):
            path.unlink()


def find_datasets(directory, match):
    """Sorted names without `_rate.fits` of the exposures in a directory, also of those that lack the rate."""
    ending = re.compile(r'(_rate)(_prewisp|_pre1f)?\.fits$')
    datasets = {ending.sub('', path.name) for path in directory.iterdir()
                if ending.search(path.name) and not path.name.startswith('.')
                and Path(ending.sub('_rate.fits', path.name)).match(str(match))}
    if not datasets:
        raise ExposureError(f'{directory} itself holds no {match}: give the directory of the corrected images')
    return sorted(datasets)


def look_at_all(datasets, store, options):
    """Everything the page shows of each dataset: kept from the last page, or looked at, in several processes."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from tqdm import tqdm
    sources = [path.read_bytes() for folder in (TOP, TOP / 'stage1', HERE) for path in sorted(folder.glob('*.py'))]
    code = hashlib.sha256(b''.join(sources)).hexdigest()
    keys = {dataset: fingerprint(dataset, code, options) for dataset in datasets}
    exposures = [exposure for key in keys.values() if (exposure := recall(store, key))]
    new = sorted(keys.keys() - {exposure['dataset'] for exposure in exposures})
    others = '; the others are as on the last page' if len(new) < len(keys) else ''
    log.info('%d exposures, %d of them to be looked at%s', len(keys), len(new), others)
    if new:
        seconds = 0.1 if sys.stderr.isatty() else 30
        # what packages warn of is said on the page, in words
        with ProcessPoolExecutor(min(options.workers or cores(), len(new)), initializer=begin) as pool:
            looks = pool.map(look_at, new, map(keys.get, new), repeat(store), repeat(options))
            try:
                exposures += tqdm(looks, total=len(new), unit='exposure', mininterval=seconds)
            except BrokenProcessPool:
                raise ExposureError('a process was killed, or memory ran out: start again, with fewer (-j); what was '
                                    'looked at is kept') from None
            except KeyboardInterrupt:
                log.error('stopped; what was looked at is kept')
                os._exit(130)           # the processes end with this one
    for exposure in exposures:
        if exposure['broken']:
            log.warning('%s_rate.fits: %s', exposure['dataset'], exposure['broken'])
    return exposures


def fingerprint(dataset, code, options):
    """What the look of an exposure depends on, as 32 hexadecimal digits: other files or `code`, other digits."""
    calibrated, parts = options.calibrated.resolve(), [code, options.exposure_kb, options.small]
    for path in (options.wisp_dir.resolve(), *(calibrated / f'{dataset}{ending}' for ending in READ)):
        parts += [str(path), *((path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else ())]
    return hashlib.sha256(repr(parts).encode(errors='replace')).hexdigest()[:32]


def recall(store, key):
    """The exposure with a fingerprint as an earlier run of `look_at` kept it; None if that is not all there."""
    try:
        exposure = json.loads((store / f'{key}.json').read_text('ascii'))
        return exposure if all((store / name).exists() for name in exposure['full']) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- one exposure ------------------------------------------------------------------------------------

def look_at(dataset, key, store, options):
    """Everything the page shows of one exposure; what is wrong with it is said in `broken` or `notes`.

    Parameters
    ----------
    dataset : str
        File name without `_rate.fits`.
    key : str
        `fingerprint` of the exposure.
    store : Path
        Directory for the pictures in full resolution and what is kept for the next page.
    options : argparse.Namespace
        See `build_parser`.

    Returns
    -------
    dict
        As `describe` returns it, with numbers by `judge`; `pictures`, {'thumbs': [...], 'views': [...]}, base64
        of WebP, as `PANELS`, '' where there is none, and last of the views the mask; `full`, file names in `store`
        in the same order.
    """
    directory = options.calibrated
    try:
        header, sci, dq = read_rate(directory / f'{dataset}_rate.fits')
        exposure = describe(dataset, key, header)
        images = read_panels(directory, exposure, sci)
        ignore = ~np.isfinite(sci) | (sci == 0) | (dq & (DO_NOT_USE | HOT) > 0)
        if not exposure['scale'] and exposure['wisp_method'] != 'adaptive' and wispsub.to_be_corrected(
                header, wispsub.METHOD, options.wisp_dir):
            exposure['notes'].append('wisp not removed')
        judge(exposure, images, ignore, amplifiers(header, dq))
        exposure['circles'] = snowball_circles(directory / f'{dataset}_snowballs.ecsv')
        mask = read_mask(directory / f'{dataset}_rate_1fmask.fits', sci.shape)
        draw(exposure, images, ignore, mask, options.exposure_kb, None if options.small else store)
        (store / f'{key}.json').write_text(json.dumps(exposure, allow_nan=False), 'ascii')
    except Exception as error:
        why = str(error) if isinstance(error, ExposureError) else f'cannot be shown ({one_line(error)})'
        return describe(dataset, key, {}) | {'broken': why}
    return exposure


def read_rate(path, shape=None):
    """Primary header, SCI (float32) and DQ of a rate image, (ny, nx), which has to be of `shape` if given."""
    if not path.is_file():
        raise ExposureError('is not a file' if path.exists() else 'is missing')
    with open_exposure(path, 'rate') as hdul:
        sci = hdul['SCI'].data.astype(np.float32)
        if shape not in (None, sci.shape):
            raise ExposureError('has another shape')
        return hdul[0].header, sci, hdul['DQ'].data.astype(np.uint32, copy=False)


def describe(dataset, key, header):
    """What the header says of an exposure, as numbers (None: not there) and text."""
    values = {name: text(header.get(keyword)) for name, keyword in STRINGS.items()} | dict.fromkeys(MEASURED)
    values |= {name: (number if spec else text)(header.get(keyword)) for name, keyword, _, spec in COLUMNS if keyword}
    values |= {name: 100 * values[name] for name in ('masked', 'snowball_area') if values[name] is not None}
    for name, start, spec in (('full_rows', 'STRPFR_', '.0f'), ('shrinkage', 'STRPSH_', '.2f')):
        found = [number(header.get(start + amp)) for amp in AMPLIFIERS]
        values[name] = '' if found == [None] * len(found) else ' '.join(written(value, spec) for value in found)
    if values['scale'] is None and (old := old_wisp(header)):
        values['template'], values['scale'] = old
    wisp_method = values['wisp_method'] if values['wisp_method'] != 'fixed' else ''
    return values | {
        'method': values['striping_method'] or wisp_method,
        'dataset': dataset, 'key': key, 'broken': '', 'notes': [], 'lost': {}, 'circles': [],
        'limits': None, 'shape': [0, 0], 'full': [], 'pictures': {'thumbs': [''] * 4, 'views': [''] * 5},
        'warnings': [note for note in (text(header.get(name)) for name in ('WISPWARN', 'STRPWARN')) if note],
        'planes': 'WISPSC1' in header,                      # several, of the template
        'has_wisps': corrected(header, WISPS), 'striped': corrected(header, STRIPING),
        'wisps_subtracted': subtracted(header, WISPS),      # else a copy of the input need not be there
        # another one when an image is redone, so that the page can forget what was typed for the one before
        'stamp': hashlib.sha256(f'{dataset}\n{history_of(header)}'.encode(errors='replace')).hexdigest()[:16],
    }


def number(value):
    """`value` as a finite int or float, None if it is none; header cards may hold anything."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def text(value):
    """`value` as text in one line, '' if there is none."""
    return '' if value is None else ' '.join(str(value).split())


def read_panels(directory, exposure, rate):
    """Find the images of an exposure and say in it, in place, what is missing.

    Returns
    -------
    list of ndarray or None, shape (ny, nx), DN/s
        As `PANELS`; None where there is none.
    """
    copies = {}
    for entry, made in ((WISPS, exposure['wisps_subtracted']), (STRIPING, exposure['striped'])):
        suffix = CORRECTIONS[entry].suffix
        try:
            if made:                                    # a copy left from a correction undone counts for nothing
                _, copies[suffix], _ = read_rate(directory / f"{exposure['dataset']}_rate_{suffix}.fits", rate.shape)
        except ExposureError as error:
            exposure['lost'][suffix] = f'the untouched _rate_{suffix}.fits {error}'
    if copies or not all(why.endswith('is missing') for why in exposure['lost'].values()):
        exposure['notes'] += exposure['lost'].values()          # else finish.py was here, and all is in order
    after_wisps = None
    if exposure['has_wisps']:
        after_wisps = copies.get('pre1f') if exposure['striped'] else rate
    if not exposure['striped']:
        exposure['notes'].append('striping not removed')
    before = next(iter(copies.values()), None if exposure['lost'] else rate)
    removed = before - rate if copies else None
    return [before, after_wisps, rate if exposure['striped'] else None, removed]


def read_mask(path, shape):
    """Source mask of the striping, bool (ny, nx), True = source; None if there is none of that shape."""
    from astropy.io import fits
    try:
        mask = fits.getdata(path)
    except Exception:
        return None
    return mask > 0 if mask is not None and mask.shape == shape else None


def snowball_circles(path):
    """What the catalogue of snowballs says: a list of [x, y, radius], pixels, of each the largest."""
    from astropy.table import Table
    try:
        table = Table.read(path, format='ascii.basic')
        table.sort(['snowball', 'grown_radius'])
        rows = table.iterrows('snowball', 'x', 'y', 'grown_radius')
        largest = {snowball: [round(float(value)) for value in circle] for snowball, *circle in rows}
    except Exception:                                   # not there, or not as the script writes it
        return []
    return list(largest.values())


def say_what_can_be_redone(exposure, wisp_dir):
    """Set in an exposure why wisps and striping cannot be redone ('' = can be), and if a scale can only be fitted."""
    mode = exposure['detector'], exposure['filter'], exposure['pupil'] or 'CLEAR'
    only_fit = exposure['planes'] or not wispsub.has_wisps(*mode, 'dr05', wisp_dir)
    striping = exposure['broken'] or exposure['lost'].get('pre1f', '')
    wisps = exposure['lost'].get('prewisp', '') if exposure['wisps_subtracted'] else striping
    if not wisps and only_fit and not wispsub.has_wisps(*mode, 'adaptive', wisp_dir):
        wisps = f'no wisp template for {" ".join(mode)}'
    exposure |= {'redo_wisps': wisps, 'redo_striping': striping, 'only_fit': only_fit}


# --- what is left ------------------------------------------------------------------------------------

def judge(exposure, images, ignore, amps):
    """Measure what the corrections found and left, 1e-3 DN/s, and warn where they did harm; in place.

    Parameters
    ----------
    exposure : dict
    images : list of ndarray or None, shape (ny, nx), DN/s
        As `PANELS`.
    ignore : ndarray of bool, shape (ny, nx)
        True = ignore.
    amps : dict of slice
        Columns of each amplifier.
    """
    from what_is_left import LEAST_SIZE, find_sky, flatten, light_taken, wisp_rms
    before, after_wisps, after_striping, _ = images
    last = next(image for image in (after_striping, after_wisps, before) if image is not None)
    if min(last.shape) < LEAST_SIZE:
        return
    flat, deviations = flatten(last, ignore)
    sky = find_sky(flat, deviations, ignore)            # the same pixels for all that follows
    found = dict(zip(('row', 'col'), line_rms(flat, sky, amps), strict=True))
    if after_striping is not None and 'pre1f' not in exposure['lost']:
        start = before if after_wisps is None else after_wisps
        found |= dict(zip(('row0', 'col0'), line_rms(flatten(start, ignore)[0], sky, amps), strict=True))
        taken = light_taken(start - last, ignore, amps)
        if taken and math.isfinite(found['row']):
            found['row'] = math.hypot(found['row'], taken)
            exposure['warnings'].append('the striping correction took light of a source along')
    if after_wisps is not None and 'prewisp' not in exposure['lost'] and exposure['scale']:
        wisp = (before - after_wisps) / exposure['scale'] > wispsub.WISP_LEVEL
        found |= {'wisp0': wisp_rms(flatten(before, ignore)[0], sky, ignore, wisp),
                  'wisp': wisp_rms(flat, sky, ignore, wisp)}
    exposure |= {name: round(1000 * value, 2) for name, value in found.items()
                 if value is not None and math.isfinite(value)}
    for name, what in (('row', 'amp-rows'), ('col', 'columns'), ('wisp', 'wisp')):
        now, earlier = exposure[name], exposure[name + '0']
        if now is not None and earlier is not None and now > max(RAISED * earlier, LEAST_HARM):
            exposure['warnings'].append(f'worse than before: {what} {now}, from {earlier}')
    left = [exposure[name] for name in ('row', 'col', 'wisp') if exposure[name] is not None]
    exposure['score'] = round(math.hypot(*left), 2) if left else None
    if not left:
        exposure['notes'].append('too little sky to measure on')


# --- the page ----------------------------------------------------------------------------------------

def write_page(path, exposures, options):
    """Write the page, piece by piece, as it may be larger than half the memory."""
    import jinja2
    from markupsafe import Markup
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {'written': written, 'csp_hash': csp_hash}
    directory, output, data = options.calibrated, options.output, []
    for exposure in exposures:
        pdf = directory / f"{exposure['dataset']}_wisp.pdf"
        data.append(exposure | {'pictures': None, 'facts': facts(exposure),
                                'pdf': link(pdf, output) if pdf.is_file() else ''})
    key = hashlib.sha256(str(directory.resolve()).encode(errors='replace')).hexdigest()[:16]
    about = {'key': f'nircam-review-{key}', 'files': link(output.with_name(f'{output.stem}_files'), output),
             'redo': commands(directory, options.wisp_dir),
             'finish': shlex.join(('python', 'batch_scripts/finish.py', from_top(directory), '--table', 'TABLE')),
             'sortable': [*((name, label) for name, _, label, _ in COLUMNS), *MARKS],
             'names': ' '.join((*(name for name, _, _, spec in COLUMNS if spec), 'row0 col0 wisp0'))}
    page = environment.get_template('review.html.j2').stream(
        page=about, exposures=data, pictures=[exposure['pictures'] for exposure in exposures], panels=PANELS,
        directory=from_top(directory), script=Markup((HERE / 'review.js').read_text('utf-8')),
        style=Markup((HERE / 'review.css').read_text('utf-8')),
        worst=max((exposure['score'] or 0 for exposure in data), default=0) or 1)
    page.dump(str(path), 'utf-8', 'replace')


def facts(exposure):
    """What is known of an exposure, as [what, text] in the order of `COLUMNS`."""
    rows = []
    for name, _, label, spec in COLUMNS:
        if exposure[name] not in (None, ''):
            before = exposure.get(name + '0')
            since = '' if before is None else f', from {before:{spec}}'
            rows.append([label, f'{exposure[name]:{spec}}{since}'])
    return rows


def commands(directory, wisp_dir):
    """What to run with a saved table, to stand where TABLE is: one command a line, run from the top level."""
    wisps = ['--wisp_dir', from_top(wisp_dir)] if wisp_dir != DEFAULT_WISPDIR else []
    make = ['batch_scripts/make_batch.py', from_top(directory), '--out', 'redo', '--table', 'TABLE', '--redo', *wisps]
    return f'python {shlex.join(make)}\npython batch_scripts/run_batch.py redo\n'


def link(path, output):
    """A file as the page `output` links to it."""
    return './' + urllib.parse.quote(os.path.relpath(path, output.parent), errors='surrogateescape')


def written(value, spec):
    """A number as text; a dash for None."""
    return '–' if value is None else format(value, spec)


def csp_hash(code):
    """The one script or style that a browser is to take from the page, as its content security policy names it."""
    return 'sha256-' + base64.b64encode(hashlib.sha256(str(code).encode()).digest()).decode()


# --- command -----------------------------------------------------------------------------------------

def build_parser():
    """Command line of this script."""
    parser = new_parser(__doc__)
    parser.add_argument('calibrated', type=EXISTING, metavar='CALIBRATED', help='directory of the products')
    parser.add_argument('-o', '--output', type=FILE, default=Path('review.html'), help='page (%(default)s)')
    parser.add_argument('--match', type=FILE, default='*_rate.fits', help="names of the rate images ('%(default)s')")
    parser.add_argument('-j', '--workers', type=PROCESSES, help='processes (one per core)')
    parser.add_argument('--exposure_kb', type=number_in(1, 1e6), default=EXPOSURE_KB,
                        help='most kB of pictures per exposure on the page (%(default)s)')
    parser.add_argument('--small', action='store_true', help='no pictures in full resolution beside the page')
    parser.add_argument('--wisp_dir', type=DIRECTORY, default=DEFAULT_WISPDIR,
                        help=f'templates to redo wisps with ({wispsub.WISPDIR})')
    return parser


def main(argv=None):
    """Make the page; exit status."""
    options = build_parser().parse_args(argv)
    check_environment('jinja2', 'PIL')
    start_log()
    try:
        make_page(options)
    except (ExposureError, OSError) as error:
        log.error('%s', in_words(error))
        return 1
    return 0


if __name__ == '__main__':
    run_command(main)
