#!/usr/bin/env python
"""Write batch files: the commands of the three scripts for many exposures, one command a line.

Reads the headers of the uncal files (or, if there are none, of the rate files) in a directory and writes
detector1_and_snowballs.run, wisp_subtraction.run and remstriping.run, in that order of use, into --out. Each line
runs from the top level, by bash, run_batch.sh or submit_slurm.sh. Wisp scales and mask thresholds come from a table
where it has them; elsewhere the scale is fitted and the threshold is the script's default. Without a directory, the
files of the CEERS DR0.5 release are written from their table, by pointing. Rate files are corrected where they are.

The table is a csv file with the columns dataset (file name without _uncal.fits or _rate.fits), wisp_scale (a number,
or the word fit), mask_threshold and, optionally, method; the review page saves one.

Examples
--------
    python batch_scripts/make_batch.py uncals --out night1 --check
    python batch_scripts/make_batch.py uncals --out night1 --todo
    python batch_scripts/make_batch.py calibrated --out again --table review.csv --redo
    python batch_scripts/make_batch.py
"""

import argparse
import csv
import logging
import os
import shlex
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
sys.path.insert(0, str(TOP))

import remstriping  # noqa: E402
import snowball_wrapper  # noqa: E402
import wispsub  # noqa: E402
from stage1.command import expanded, start_log  # noqa: E402
from stage1.correction import corrected  # noqa: E402
from stage1.exposure import ExposureError, check_complete, check_kind, check_mode, one_line  # noqa: E402
from stage1.pipeline import make_detector1  # noqa: E402
from stage1.pipeline_log import Listener  # noqa: E402
from stage1.wisp_templates import find_template, read_template  # noqa: E402

TABLE = HERE / 'stage1_images.csv'   # CEERS DR0.5: 690 exposures of epoch 1, in the order of the release
SNOWBALLS, WISPS, STRIPES = STEPS = 'detector1_and_snowballs', 'wisp_subtraction', 'remstriping'
METHODS = tuple(remstriping.METHODS)
DEFAULT_WISPDIR = TOP / expanded(wispsub.WISPDIR)   # the lines run at the top level

# What the products of one exposure take, bytes
RATE = 84e6                          # also _rateints of one integration, _prewisp, _pre1f
RAMP_GROUP = 38e6                    # one group of _ramp
MAPS = 35e6                          # patterns, masks and the like

# What references are chosen by, among the keywords of the primary header
LOOKUP = ('INSTRUME', 'DETECTOR', 'FILTER', 'PUPIL', 'CHANNEL', 'MODULE', 'EXP_TYPE', 'READPATT', 'SUBARRAY',
          'NOUTPUTS', 'DATE-OBS', 'TIME-OBS')

log = logging.getLogger('nircam')


@dataclass(frozen=True)
class Exposure:
    """One exposure: the file it starts from, its primary header, and where its rate image is or will be."""

    dataset: str
    source: Path
    rate: Path
    header: dict

    @property
    def mode(self):
        """Detector and filter."""
        return tuple(str(self.header.get(key, '')).strip() for key in ('DETECTOR', 'FILTER'))


# --- the two kinds of batch --------------------------------------------------------------------------

def release_batches(table, out):
    """Write the batches of a release: one of all exposures in the table's order, one of each pointing."""
    batches = {'all': []}
    for dataset, row in table.items():
        if not row['pointing']:
            raise ExposureError(f'{dataset} has no pointing in the table: name the directory of its exposures')
        lines = {SNOWBALLS: command('snowball_wrapper.py', f'{dataset}_uncal.fits'),
                 STRIPES: striping_line(f'{dataset}_rate.fits', row)}
        if row['wisp_scale']:
            lines[WISPS] = wisp_line(f'{dataset}_rate.fits', row)
        batches['all'].append(lines)
        batches.setdefault(row['pointing'], []).append(lines)
    for name, batch in batches.items():
        write_batch(out / name, batch)


def directory_batch(exposures, table, options):
    """Lines of every exposure: a list of (exposure, {step: line})."""
    return [(exposure, exposure_lines(exposure, table.get(exposure.dataset, {}), options)) for exposure in exposures]


def exposure_lines(exposure, row, options):
    """Lines of one exposure, {step: line}, without those that have nothing to do."""
    rate, method = from_top(exposure.rate), options.method
    done = finished_steps(exposure.rate) if options.todo or options.redo else set()
    lines = {}
    if exposure.source != exposure.rate:
        # a rate image that is damaged would be taken for finished
        again = ['--redo'] * (options.todo and not done and exposure.rate.exists())
        lines[SNOWBALLS] = command('snowball_wrapper.py', *again, *place(snowball_wrapper, exposure),
                                   from_top(exposure.source))
    wisps = wispsub.has_wisps(*exposure.mode, method_of(row, options.method, wispsub), options.wisp_dir)
    if wisps and (row.get('wisp_scale') or not options.redo):
        wisp_dir = [] if options.wisp_dir == DEFAULT_WISPDIR else ['--wisp_dir', from_top(options.wisp_dir)]
        redo = ['--redo'] * (options.redo and WISPS in done)
        lines[WISPS] = wisp_line(rate, row, method, [*redo, *wisp_dir, *place(wispsub, exposure)])
    if not options.redo or any(row.get(key) for key in ('wisp_scale', 'mask_threshold', 'method')):
        # an image that starts again with its wisps has lost its striping correction: there is nothing to redo
        redo = ['--redo'] * (options.redo and STRIPES in done and WISPS not in lines)
        lines[STRIPES] = striping_line(rate, row, method, [*redo, *place(remstriping, exposure)])
    return {step: line for step, line in lines.items() if options.redo or step not in done}


def finished_steps(rate):
    """Steps that the rate image has behind it; none if it is missing or damaged."""
    try:
        header = read_header(rate, 'rate')
    except (ExposureError, OSError):
        return set()
    return {SNOWBALLS} | {step for step, script in ((WISPS, wispsub), (STRIPES, remstriping))
                          if corrected(header, script.ENTRY)}


# --- lines -------------------------------------------------------------------------------------------

def wisp_line(rate, row, method=None, options=()):
    """Command that subtracts the wisp: by the scale of the table's row, else by a fitted one."""
    scale, method = row.get('wisp_scale'), method_of(row, method, wispsub)
    if scale and scale != 'fit':
        how = ['--scale', scale]
    else:
        how = ['--fit_scaling'] + (['--method', method] if method != wispsub.METHOD else [])
    return command('wispsub.py', *options, *how, rate)


def striping_line(rate, row, method=None, options=()):
    """Command that removes the striping; only the dr05 method has a threshold."""
    thresh, method = row.get('mask_threshold'), method_of(row, method, remstriping)
    how = ['--method', method] if method != remstriping.METHOD else []
    if thresh and method == 'dr05':
        how += ['--thresh', thresh]
    return command('remstriping.py', *options, '--save_patterns', *how, rate)


def method_of(row, method, script):
    """The method in force: the table's, else the command line's, else the script's default."""
    return row.get('method') or method or script.METHOD


def place(script, exposure):
    """Option for the output directory, where it is not the script's own."""
    directory = from_top(exposure.rate.parent)
    return [] if directory == script.OUTPUTDIR else ['--output_dir', directory]


def from_top(path):
    """A path as the lines name it: relative to the top level if inside, else absolute; never like an option or ~."""
    path = Path(os.path.abspath(path))
    if os.path.expandvars(path) != str(path):
        raise ExposureError(f'{path}: rename it, the scripts would take the $ in it for a variable')
    if not path.is_relative_to(TOP):
        return str(path)
    path = str(path.relative_to(TOP))
    return f'./{path}' if path.startswith(('-', '~')) else path


def command(script, *words):
    """One line for the shell."""
    return ' '.join(map(quote, ('python', script, *words)))


def quote(word):
    """Quote a word for bash, on one line whatever it holds."""
    if not any(ord(letter) < 32 for letter in word):
        return shlex.quote(word)
    return "$'" + ''.join(f'\\x{ord(letter):02x}' if ord(letter) < 32 or letter in "\\'" else letter
                          for letter in word) + "'"


def write_batch(directory, batch):
    """Write the three .run files of a list of {step: line}; a step without lines gets an empty file."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers = []
    for step in STEPS:
        lines = [lines[step] + '\n' for lines in batch if step in lines]
        (directory / f'{step}.run').write_text(''.join(lines), 'utf-8', 'surrogateescape')
        numbers.append(f'{len(lines)} {step}')
    log.info('%s: %s', directory, ', '.join(numbers))


# --- what is read ------------------------------------------------------------------------------------

def read_table(path):
    """Read a table of settings: {dataset: row}, in order, each value a string, '' where there is none."""
    table = {}
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            if 'dataset' not in (reader.fieldnames or ()):
                raise ExposureError(f'{path}: the first line has no column "dataset"')
            for row in reader:
                row = {key: (row.get(key) or '').strip()
                       for key in ('dataset', 'pointing', 'wisp_scale', 'mask_threshold', 'method')}
                problem = 'comes twice' if row['dataset'] in table else row_problem(row)
                if problem:
                    raise ExposureError(f"{path}, line {reader.line_num}: {row['dataset']} {problem}")
                table[row['dataset']] = row
    except (OSError, UnicodeError, csv.Error) as error:
        raise ExposureError(f'{path}: cannot be read as a table ({one_line(error)})') from None
    return table


def row_problem(row):
    """What is wrong with a row of the table, '' if nothing; its values go into commands."""
    if not row['dataset'] or '/' in row['dataset']:
        return 'is not the name of a dataset'
    if '/' in row['pointing'] or row['pointing'] in ('.', '..'):
        return f"has pointing {row['pointing']}, which cannot be the name of a directory"
    if row['method'] not in ('', *METHODS):
        return f"has method {row['method']}, not one of {', '.join(METHODS)}"
    for key, highest in (('wisp_scale', 10), ('mask_threshold', 1)):
        if row[key] and (key, row[key]) != ('wisp_scale', 'fit'):
            try:
                good = 0 <= float(row[key]) <= highest  # not NaN
            except ValueError:
                good = False
            if not good:
                return f'has {key} {row[key]}, which is not a number from 0 to {highest}'
    return ''


def find_exposures(directory, output_dir, only=None):
    """Exposures of a directory, by name, and what is wrong with the others.

    Parameters
    ----------
    directory : Path
        Of uncal files; if it has none, of rate files.
    output_dir : Path
        Where the rate images of uncal files go.
    only : container of str, optional
        The datasets that are wanted.

    Returns
    -------
    exposures : list of Exposure
    problems : list of (file name, what is wrong)
    """
    for kind in 'uncal', 'rate':
        paths = sorted(directory.glob(f'*_{kind}.fits'))
        if paths:
            break
    else:
        raise ExposureError(f'{directory}: holds neither *_uncal.fits nor *_rate.fits')
    exposures, problems = [], []
    for path in paths:
        dataset = path.name.removesuffix(f'_{kind}.fits')
        if only is not None and dataset not in only:
            continue
        try:
            header = read_header(path, kind)
        except (ExposureError, OSError) as error:
            problems.append((path.name, str(error)))
        else:
            rate = path if kind == 'rate' else output_dir / f'{dataset}_rate.fits'
            exposures.append(Exposure(dataset, path, rate, header))
    return exposures, problems


def read_header(path, kind):
    """Primary header of a complete 'uncal' or 'rate' file that the scripts take; pixels are not read."""
    from astropy.io import fits
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # truncation is judged below
            with fits.open(path, lazy_load_hdus=False) as hdul:
                check_complete(path, hdul)
                check_mode(hdul[0].header)
                check_kind(hdul, kind)
                return hdul[0].header
    except ExposureError:
        raise
    except Exception as error:
        raise ExposureError(f'is not a readable FITS file ({one_line(error)})') from None


# --- before it starts --------------------------------------------------------------------------------

def check(batch, problems, options):
    """Look at all that the batch needs: a list of (subject, good, text)."""
    rows = [('inputs', False, f'{name}: {problem}') for name, problem in problems]
    if not batch and not problems:
        return [('inputs', True, 'nothing left to do')]
    rows.append(('inputs', bool(batch), f'{len(batch)} readable and of the right kind'))
    rows += check_templates([exposure for exposure, lines in batch if WISPS in lines], options.wisp_dir)
    rows += check_references([(exposure, lines) for exposure, lines in batch if lines])
    rows += check_space(batch)
    rows += [check_writable(directory) for directory in sorted({exposure.rate.parent for exposure, _ in batch})]
    return [*rows, check_writable(options.out)]


def check_templates(exposures, wisp_dir):
    """Rows about the wisp templates."""
    good, bad = set(), []
    for mode in sorted({exposure.mode for exposure in exposures}):
        try:
            path = find_template(wisp_dir, *mode)
            read_template(path, (2048, 2048))
            good.add(path)
        except (ExposureError, OSError) as error:
            bad.append(('templates', False, f"{' '.join(mode)}: {error}"))
    return bad + [('templates', True, f'{len(good)} in {wisp_dir}')] * bool(good)


def check_references(batch):
    """Rows about what CRDS has for the exposures: each reference is named, and its file is in the cache."""
    groups, good, bad = {}, set(), []
    for exposure, lines in batch:
        key = tuple(str(exposure.header.get(name, '')) for name in LOOKUP)
        groups.setdefault((SNOWBALLS in lines, key), []).append(exposure.dataset)
    heard = Listener('references')
    try:
        with heard.listening():
            import crds
            types = make_detector1().reference_file_types
            for (raw, key), datasets in groups.items():
                parameters = {name: value for name, value in zip(LOOKUP, key, strict=True) if value}
                wanted = sorted({'flat', *types}) if raw else ['flat']
                best = crds.getrecommendations(parameters, reftypes=wanted, observatory='jwst')
                for kind, name in best.items():
                    problem = reference_problem(kind, name)
                    if problem:
                        bad.append((f"{' '.join(key[1:4])}: {problem}", datasets))
                    elif not name.startswith('NOT FOUND'):
                        good.add(name)
    except (Exception, SystemExit) as error:
        return [('references', False, heard.reason(error))]
    rows = [('references', False, f'{problem} ({len(datasets)} exposures, first {datasets[0]})')
            for problem, datasets in bad]
    return rows + [('references', True, f"{len(good)} in {os.environ.get('CRDS_PATH', 'the CRDS cache')}")] * bool(good)


def reference_problem(kind, name):
    """What is wrong with the reference file of a type that CRDS recommends, '' if nothing."""
    import crds
    if name.upper() == 'NOT FOUND N/A':  # the step that wants it is skipped, but these three are needed
        return f'CRDS has no {kind}' if kind in ('flat', 'gain', 'readnoise') else ''
    if name.startswith('NOT FOUND'):
        return f"no {kind}: {name.removeprefix('NOT FOUND').strip()}"
    path = Path(crds.locate_file(name, 'jwst'))
    return '' if path.is_file() and path.stat().st_size else f'{kind} {name} is not in the cache'


def check_space(batch):
    """Row about disk space for the products of each output directory that are not there yet."""
    needed = {}
    for exposure, lines in batch:
        place = existing(exposure.rate.parent)
        needed[place] = needed.get(place, 0) + sum(product_size(exposure.header, step) for step in lines)
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        yield 'disk space', size < free, f'{size / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free in {place}'


def product_size(header, step):
    """Disk space that the products of one step take, bytes."""
    if step == SNOWBALLS:
        integrations, groups = (int(header.get(key, 1)) for key in ('NINTS', 'NGROUPS'))
        interim = 0 if snowball_wrapper.DELINTERIM else integrations * groups * RAMP_GROUP
        return RATE * (1 + integrations) + interim
    return RATE + MAPS


def check_writable(directory):
    """Row about whether files can be written to a directory, or it be made."""
    try:
        tempfile.TemporaryFile(dir=existing(directory)).close()
    except OSError as error:
        return 'writable', False, f'{directory}: {error.strerror}'
    return 'writable', True, str(directory)


def existing(path):
    """The path, or the nearest directory above it that exists."""
    path = Path(os.path.abspath(path))
    return path if path.exists() else existing(path.parent)


# --- the command line --------------------------------------------------------------------------------

def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('uncals', metavar='UNCALS', type=expanded, nargs='?', help='directory of uncal or rate files')
    add('--table', type=expanded, help=f'settings (without UNCALS: {TABLE.name}; with UNCALS: none)')
    add('--out', type=expanded, help='where the batch is written (without UNCALS: batch_scripts; with UNCALS: batch)')
    add('--method', choices=METHODS, help='where the table names none; as the scripts have it by default')
    add('--output_dir', type=expanded, help=f'where the rate images of uncal files go ({snowball_wrapper.OUTPUTDIR})')
    add('--wisp_dir', type=expanded, default=DEFAULT_WISPDIR, help=f'where the templates are ({wispsub.WISPDIR})')
    add('--todo', action='store_true', help='leave out what is done and complete')
    add('--redo', action='store_true',
        help='only the exposures of the table, started again from their untouched rate images')
    add('--check', action='store_true', help='write nothing: look for all that would fail later; exit status 1 if any')
    return parser


def main(argv=None):
    """Run the command; return the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.redo and not (options.uncals and options.table):
        parser.error('--redo needs a directory of rate images and a --table')
    if options.redo and options.todo:
        parser.error('--redo and --todo exclude each other')
    start_log()
    try:
        if options.uncals is None:
            release_batches(read_table(options.table or TABLE), options.out or HERE)
            return 0
        return make(options)
    except (ExposureError, OSError) as error:
        log.error('%s', error)
        return 1


def make(options):
    """Write or check the batch of a directory; return the exit status."""
    table = read_table(options.table) if options.table else {}
    output_dir = options.output_dir or TOP / expanded(snowball_wrapper.OUTPUTDIR)
    exposures, problems = find_exposures(options.uncals, output_dir, table if options.redo else None)
    if options.redo and any(exposure.source != exposure.rate for exposure in exposures):
        raise ExposureError(f'{options.uncals}: --redo is for a directory of rate images, not of uncal files')
    options.out = options.out or Path('batch')
    batch = directory_batch(exposures, table, options)
    if options.check:
        rows = check([(exposure, lines) for exposure, lines in batch if lines], problems, options)
        for subject, good, text in rows:
            sys.stdout.write(f"{'ok' if good else 'MISSING':8}{subject:12}{text}\n")
        return 0 if all(good for _, good, _ in rows) else 1
    for name, problem in problems:
        log.error('%s: %s; left out', name, problem)
    unknown = table.keys() - {exposure.dataset for exposure in exposures}
    if unknown:
        log.warning('%d exposures of the table are not in %s', len(unknown), options.uncals)
    write_batch(options.out, [lines for _, lines in batch])
    if options.redo:
        for done in (options.out / 'log').glob('*/*.done'):
            done.unlink()  # to be done once more, even by the same command as last time
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
