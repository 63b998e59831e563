"""Make one web page on which a night of corrected NIRCam exposures is looked at and redone.

Reads   CALIBRATED/<dataset>_rate.fits with its _rate_prewisp.fits and _rate_pre1f.fits, and their headers.
Writes  the page, one file that needs neither a server nor a network: every exposure before, after wisps and
        after striping, what was removed, score and warnings, the worst first.  What is typed there for an
        exposure is saved as redo.run (commands) and review.csv (for make_batch.py --table).

Examples
--------
    python batch_scripts/review.py calibrated -o review.html
    python batch_scripts/review.py calibrated -o a3.html --match '*_nrca3_rate.fits' -j 8

The score of an exposure is the structure left in its sky, in 1e-3 DN/s: amp-row and column rms after striping
(STRPROW1, STRPCOL1) and what the rms in the wisp region after wisps (WISPRMS1) has beyond the stripes of that
moment (STRPROW0, STRPCOL0), added in quadrature.
"""
import argparse
import base64
import hashlib
import logging
import math
import os
import re
import sys
import warnings
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))
import wispsub  # noqa: E402
from stage1.command import expanded  # noqa: E402
from stage1.correction import STRIPING, WISPS  # noqa: E402
from stage1.exposure import DO_NOT_USE, HOT, ExposureError, one_line  # noqa: E402
from stage1.files import write_whole  # noqa: E402

VIEW_SIZE = 690                 # pixels: most of the large view
THUMB_SIZE = 205                # pixels: most of the picture in the table
EXPOSURE_KB = 120               # kB of pictures per exposure; base64 adds a third (690 exposures: < 115 MB)
QUALITIES = (60, 50, 42, 35, 28, 20, 10)        # WebP, the first that keeps to EXPOSURE_KB
STRETCH = (-4, 20, 0.25)        # black and white in units of the clipped sky rms, softening of the asinh

TEMPLATE = Path(__file__).with_name('review.html.j2')
PANELS = ('before', 'after wisps', 'after striping', 'removed')
NOT_FOR_DISPLAY = DO_NOT_USE | HOT
# name on the page: header keyword
NUMBERS = {
    'scale': 'WISPSCAL', 'scale_error': 'WISPERR', 'null': 'WISPNULL', 'null_error': 'WISPNERR',
    'wisp0': 'WISPRMS0', 'wisp': 'WISPRMS1', 'threshold': 'STRPTHR', 'pedestal': 'STRPPED',
    'masked': 'STRPMASK', 'row0': 'STRPROW0', 'row': 'STRPROW1', 'col0': 'STRPCOL0', 'col': 'STRPCOL1',
    'snowballs': 'SNOWNUM', 'snowball_fraction': 'SNOWFRAC', 'exposure_time': 'EFFEXPTM',
} | {f'{kind}_{amp}'.lower(): f'STRP{kind}_{amp}' for kind in ('FR', 'SH') for amp in 'ABCD'}
STRINGS = {'detector': 'DETECTOR', 'filter': 'FILTER', 'date': 'DATE-OBS', 'template': 'WISPTMPL',
           'wisp_method': 'WISPMETH', 'method': 'STRPMETH'}

log = logging.getLogger('review')


def make_page(directory, output, match='*_rate.fits', workers=None, exposure_kb=EXPOSURE_KB, wisp_dir=None):
    """Write the page of all products in a directory.

    Parameters
    ----------
    directory : Path
    output : Path
    match : str
        Pattern of the rate images' names.
    workers : int or None
        Processes; None = one per core.
    exposure_kb : float
        Upper limit of the pictures of one exposure.
    wisp_dir : Path or None
        Templates for the commands that redo wisps; None = those of wispsub.py.

    Returns
    -------
    int
        Number of exposures on the page.

    Raises
    ------
    ExposureError
        When there is no such directory, nothing in it, or the page cannot be written.
    """
    datasets = find_datasets(directory, match)
    exposures = look_at_all(directory, datasets, workers, exposure_kb)
    exposures.sort(key=worst_first)
    try:
        write_whole(output, lambda path: write_page(path, directory, exposures, wisp_dir))
    except OSError as error:
        raise ExposureError(f'{output} cannot be written: {error.strerror}') from None
    return len(exposures)


def find_datasets(directory, match):
    """Sorted names without `_rate.fits` of the exposures in a directory, also of those that lack the rate."""
    if not directory.is_dir():
        raise ExposureError(f'{directory} is not a directory')
    ending = re.compile(r'(_rate)(_prewisp|_pre1f)?\.fits$')
    datasets = {ending.sub('', path.name) for path in directory.iterdir()
                if ending.search(path.name) and not path.name.startswith('.')
                and Path(ending.sub('_rate.fits', path.name)).match(match)}
    if not datasets:
        raise ExposureError(f'{directory} holds no {match}')
    return sorted(datasets)


def look_at_all(directory, datasets, workers, exposure_kb):
    """`look_at` each dataset, in several processes; a list in no particular order."""
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from tqdm import tqdm
    os.environ.setdefault('OMP_NUM_THREADS', '1')       # N processes are not to fight over N cores
    exposures = []
    with ProcessPoolExecutor(min(workers or os.cpu_count(), len(datasets))) as pool:
        waiting = {pool.submit(look_at, directory, dataset, exposure_kb): dataset for dataset in datasets}
        for future in tqdm(as_completed(waiting), total=len(waiting), unit='exposure', disable=None):
            try:
                exposures.append(future.result())
            except Exception as error:                  # such as a worker that ran out of memory
                exposures.append(unreadable(waiting[future], f'could not be looked at ({one_line(error)})'))
    for exposure in exposures:
        if exposure['broken']:
            log.warning('%s_rate.fits: %s', exposure['dataset'], exposure['broken'])
    return exposures


# --- one exposure ------------------------------------------------------------------------------------

def look_at(directory, dataset, exposure_kb=EXPOSURE_KB):
    """Everything the page shows of one exposure; what is wrong with it is said in `broken` or `notes`.

    Parameters
    ----------
    directory : Path
    dataset : str
        File name without `_rate.fits`.
    exposure_kb : float

    Returns
    -------
    dict
        As `describe` returns it, with `pictures`: {'thumbs': [...], 'views': [...]}, four each, as `PANELS`;
        base64 of WebP pictures, empty where there is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')             # what is wrong is said on the page
            header, sci, dq = read_rate(directory / f'{dataset}_rate.fits')
            exposure = describe(dataset, header)
            images = read_panels(directory, exposure, sci)
            pictures, limits = draw(images, dq, exposure_kb)
    except ExposureError as error:
        return unreadable(dataset, str(error))
    except Exception as error:
        return unreadable(dataset, f'cannot be shown ({one_line(error)})')
    return exposure | {'pictures': pictures, 'limits': limits}


def read_rate(path, flags=True):
    """Primary header, SCI (float32) and, if `flags`, DQ (or None) of a file; images of shape (ny, nx)."""
    import numpy as np
    from astropy.io import fits
    if not path.exists():
        raise ExposureError('is missing')
    if not path.is_file():
        raise ExposureError('is not a file')
    try:
        # Not memory-mapped: a file that shrinks meanwhile would kill the process.
        with fits.open(path, memmap=False) as hdul:
            if 'SCI' not in hdul:
                raise ExposureError('has no SCI extension')
            last = hdul[-1].fileinfo()
            if path.stat().st_size < last['datLoc'] + last['datSpan']:
                raise ExposureError('is truncated: make it again')
            header, sci = hdul[0].header.copy(), hdul['SCI'].data
            if sci is None or sci.ndim != 2 or sci.dtype.kind not in 'fiu':
                raise ExposureError('SCI is not an image with two axes')
            dq = hdul['DQ'].data if flags and 'DQ' in hdul else None
    except ExposureError:
        raise
    except Exception as error:
        raise ExposureError(f'is damaged or not a FITS file ({one_line(error)})') from None
    usable = dq is not None and dq.shape == sci.shape and dq.dtype.kind in 'iu'
    return header, sci.astype(np.float32), dq if usable else None


def describe(dataset, header):
    """What the header says of an exposure, as numbers (None: not there) and text."""
    values = {name: number(header.get(key)) for name, key in NUMBERS.items()}
    values |= {name: text(header.get(key)) for name, key in STRINGS.items()}
    history = ''.join(str(card).ljust(72) for card in header.get('HISTORY', ()))    # entries span cards
    old = re.search(re.escape(WISPS) + r' (.+?), scale=(\d+\.\d+);', history)
    if old and values['scale'] is None:                 # a product of DR0.5, which had no such keywords
        values |= {'scale': float(old[2]), 'template': old[1]}
    return values | {
        'dataset': dataset, 'broken': '', 'notes': [], 'redo_wisps': '', 'redo_striping': '',
        'warnings': [note for note in (text(header.get(key)) for key in ('WISPWARN', 'STRPWARN')) if note],
        'score': score(values),
        'has_wisps': WISPS in history or bool(values['wisp_method']),
        'striped': STRIPING in history or bool(values['method']),
        # changes when an image is redone, so that the page can forget what was typed for the one before
        'stamp': hashlib.sha256(history.encode(errors='replace')).hexdigest()[:16],
    }


def score(values):
    """Structure left in the sky, 1e-3 DN/s, None where the header has no measure of it."""
    row, col, wisp = (values[name] for name in ('row', 'col', 'wisp'))
    if wisp is not None:                                # was measured while the stripes were there
        wisp = math.sqrt(max(wisp**2 - (values['row0'] or 0)**2 - (values['col0'] or 0)**2, 0))
    parts = [part for part in (row, col, wisp) if part is not None]
    return 1000 * math.hypot(*parts) if parts else None


def number(value):
    """`value` as a finite int or float, None if it is none; header cards may hold anything."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def text(value):
    """`value` as text in one line, '' if there is none."""
    return '' if value is None else ' '.join(str(value).split())


def unreadable(dataset, why):
    """An exposure of which nothing can be shown but why."""
    return describe(dataset, {}) | {'broken': why, 'pictures': {'thumbs': [''] * 4, 'views': [''] * 4},
                                    'limits': None, 'redo_wisps': why, 'redo_striping': why}


def read_panels(directory, exposure, rate):
    """Find the images of an exposure and say in it, in place, what is missing and what cannot be redone.

    Returns
    -------
    list of ndarray or None, shape (ny, nx), DN/s
        As `PANELS`; None where there is none.
    """
    prewisp, pre1f = (read_copy(directory, exposure, suffix, rate.shape) for suffix in ('prewisp', 'pre1f'))
    has_wisps, striped = exposure['has_wisps'], exposure['striped']
    if not has_wisps:
        prewisp = None
    if not striped:
        pre1f = None                                    # left from a striping that was undone
    after_wisps = (pre1f if striped else rate) if has_wisps else None
    before = next(image for image in (prewisp, pre1f, rate) if image is not None)
    if has_wisps and prewisp is None:
        exposure['redo_wisps'] = 'the untouched _rate_prewisp.fits is not there'
    elif not has_wisps and striped:
        exposure['redo_wisps'] = 'striping was removed and no wisp: start from _rate_pre1f.fits'
    elif not has_wisps and not may_have_wisps(exposure):
        exposure['redo_wisps'] = f"no wisp correction for {exposure['detector']} {exposure['filter']}"
    if striped and pre1f is None:
        exposure['redo_striping'] = 'the untouched _rate_pre1f.fits is not there'
    if not striped:
        exposure['notes'].append('striping not removed')
    exposure['notes'] += [f'{reason}' for reason in
                          (exposure['redo_wisps'] if has_wisps else '', exposure['redo_striping']) if reason]
    removed = before - rate if before is not rate else None
    return [before, after_wisps, rate if striped else None, removed]


def read_copy(directory, exposure, suffix, shape):
    """Untouched image `<dataset>_rate_<suffix>.fits`, None if it is not there or of no use."""
    path = directory / f"{exposure['dataset']}_rate_{suffix}.fits"
    try:
        image = read_rate(path, flags=False)[1]
        if image.shape == shape:
            return image
        exposure['notes'].append(f'_rate_{suffix}.fits has another shape')
    except ExposureError as error:
        if path.exists():
            exposure['notes'].append(f'_rate_{suffix}.fits {error}')
    return None


def may_have_wisps(exposure):
    """True for the detectors and filters that DR0.5 corrects."""
    return wispsub.has_wisps(exposure['detector'], exposure['filter'], 'dr05')


def worst_first(exposure):
    """Sort key: unreadable, then with a warning or note, then by score."""
    score = exposure['score']
    return (not exposure['broken'], not (exposure['warnings'] or exposure['notes']),
            -(score if score is not None else -1), exposure['dataset'])


# --- pictures ----------------------------------------------------------------------------------------

def draw(images, dq, exposure_kb):
    """Draw the images on one common stretch.

    Parameters
    ----------
    images : list of ndarray or None, shape (ny, nx), DN/s
        As `PANELS`.
    dq : ndarray of int or None, shape (ny, nx)
        Pixels flagged DO_NOT_USE or HOT are left out.
    exposure_kb : float
        Upper limit of all pictures together.

    Returns
    -------
    pictures : dict of list of str
        'thumbs' and 'views', base64 of WebP.
    limits : (float, float)
        Black and white, DN/s from the level of the sky ('removed': from 0).
    """
    import numpy as np
    ignore = None if dq is None else dq & NOT_FOR_DISPLAY > 0
    factors = [math.ceil(max(images[0].shape) / size) for size in (VIEW_SIZE, THUMB_SIZE)]
    views, thumbs = ([None if image is None else block_mean(image, ignore, factor) for image in images]
                     for factor in factors)
    sky, rms = sky_level(views[0])
    limits = STRETCH[0] * rms, STRETCH[1] * rms
    levels = [*(sky if image is None else sky_level(image)[0] for image in views[:3]), 0]
    tone = common_stretch(limits)

    def grey(shrunk):
        return [None if image is None else np.nan_to_num(255 * tone(image - level)).astype(np.uint8)[::-1]
                for image, level in zip(shrunk, levels, strict=True)]

    thumbs = [webp(picture, 70) for picture in grey(thumbs)]
    views = fit_budget(grey(views), 1000 * exposure_kb - sum(map(len, thumbs)))
    return {name: [base64.b64encode(picture).decode() for picture in group]
            for name, group in (('thumbs', thumbs), ('views', views))}, limits


def block_mean(image, ignore, factor):
    """Mean of blocks of factor x factor pixels.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        NaN is left out.
    ignore : ndarray of bool, shape (ny, nx), or None
        True = left out.
    factor : int

    Returns
    -------
    ndarray of float32, shape (ceil(ny / factor), ceil(nx / factor))
        NaN where nothing is left.
    """
    import numpy as np
    good = np.isfinite(image) if ignore is None else np.isfinite(image) & ~ignore
    padding = [(0, -n % factor) for n in image.shape]

    def block_sum(array):
        padded = np.pad(array, padding)
        rows = np.add.reduceat(padded, np.arange(0, padded.shape[0], factor), axis=0, dtype=np.float32)
        return np.add.reduceat(rows, np.arange(0, padded.shape[1], factor), axis=1)

    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        return block_sum(np.where(good, image, np.float32(0))) / block_sum(good)


def sky_level(image):
    """Median and rms of the finite pixels of an image, sources clipped."""
    import numpy as np
    from astropy.stats import sigma_clipped_stats
    values = image[np.isfinite(image)]
    if not values.size:
        raise ExposureError('has no usable pixel')
    _, middle, rms = sigma_clipped_stats(values, sigma_upper=2, sigma_lower=3, maxiters=10)
    return float(middle), float(rms) or 1e-3


def common_stretch(limits):
    """Function from DN/s above the sky to 0 ... 1: asinh between two limits."""
    from astropy.visualization import AsinhStretch, ManualInterval
    return AsinhStretch(STRETCH[2]) + ManualInterval(*limits)


def fit_budget(pictures, budget):
    """Compress the pictures with the best of `QUALITIES` at which they take at most `budget` bytes."""
    for quality in QUALITIES:
        # what was removed is smooth: cheap, and its faint pattern the first to go
        encoded = [webp(picture, min(quality + 20 * (panel == 'removed'), 70))
                   for panel, picture in zip(PANELS, pictures, strict=True)]
        if sum(map(len, encoded)) <= budget:
            break
    return encoded


def webp(picture, quality):
    """WebP file of a grey picture, uint8 (ny, nx); b'' for None."""
    from io import BytesIO

    from PIL import Image
    if picture is None:
        return b''
    file = BytesIO()
    Image.fromarray(picture).save(file, 'WEBP', quality=quality, method=4)
    return file.getvalue()


# --- the page ----------------------------------------------------------------------------------------

def write_page(path, directory, exposures, wisp_dir=None):
    """Write the page, piece by piece, as it may be larger than half the memory."""
    import jinja2
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {'milli': milli, 'short': short, 'csp_hash': csp_hash}
    pictures = [exposure['pictures'] for exposure in exposures]
    data = [{key: value for key, value in exposure.items() if key != 'pictures'} for exposure in exposures]
    for exposure, picture in zip(data, pictures, strict=True):
        exposure['shown'] = [bool(view) for view in picture['views']]
    place = from_top(directory)
    key = hashlib.sha256(str(directory.resolve()).encode(errors='replace')).hexdigest()[:16]
    page = environment.get_template(TEMPLATE.name).generate(
        exposures=data, pictures=pictures, panels=PANELS, directory=place, key=f'nircam-review-{key}',
        output_dir='' if place == wispsub.OUTPUTDIR else place, wisp_dir=from_top(wisp_dir) if wisp_dir else '',
        worst=max((exposure['score'] or 0 for exposure in data), default=0) or 1)
    with open(path, 'w', encoding='utf-8', errors='replace') as file:
        file.writelines(page)


def from_top(directory):
    """A directory as the commands, run from the top level, name it: relative if inside, else absolute."""
    path = Path(os.path.abspath(directory))
    return str(path.relative_to(TOP) if path.is_relative_to(TOP) else path)


def milli(value):
    """A number of DN/s as text in 1e-3 DN/s; a dash for None."""
    return '–' if value is None else f'{1000 * value:.2f}'


def short(value):
    """A number as text in at most four digits; a dash for None."""
    return '–' if value is None else f'{value:.4g}'


def csp_hash(script):
    """The one script that a browser is to run on the page, as its content security policy names it."""
    return 'sha256-' + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


# --- command -----------------------------------------------------------------------------------------

def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('calibrated', type=expanded, metavar='CALIBRATED', help='directory of the products')
    parser.add_argument('-o', '--output', type=expanded, default=Path('review.html'), help='page (%(default)s)')
    parser.add_argument('--match', default='*_rate.fits', help="names of the rate images ('%(default)s')")
    parser.add_argument('-j', '--workers', type=int, help='processes (one per core)')
    parser.add_argument('--exposure_kb', type=float, default=EXPOSURE_KB,
                        help='most kB of pictures per exposure (%(default)s)')
    parser.add_argument('--wisp_dir', type=expanded, help='templates to redo wisps with (as wispsub.py has it)')
    return parser


def main(argv=None):
    """Make the page; exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error(f'--workers {args.workers}: at least 1')
    if not args.exposure_kb > 0:
        parser.error(f'--exposure_kb {args.exposure_kb:g}: more than 0')
    logging.basicConfig(format='%(levelname)s %(message)s', level=logging.INFO)
    try:
        count = make_page(args.calibrated, args.output, args.match, args.workers, args.exposure_kb,
                          args.wisp_dir)
    except ExposureError as error:
        log.error('%s', error)
        return 1
    log.info('%s: %d exposures, %.1f MB', args.output, count, args.output.stat().st_size / 1e6)
    return 0


if __name__ == '__main__':
    sys.exit(main())
