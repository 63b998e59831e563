#!/usr/bin/env python
"""Write batch files: the commands of the three scripts for many exposures, one command a line.

Reads the headers of the uncal files (or, if there are none, of the rate files) in a directory and in those below it,
as downloads from MAST leave them, and writes detector1_and_snowballs.run, wisp_subtraction.run and remstriping.run,
in that order of use, into --out. run_batch.py runs them. Wisp scales and mask thresholds come from a table where it
has them; elsewhere the scale is fitted and the threshold is the script's default. Without a directory, the files of
the CEERS DR0.5 release are written from their table, by pointing. Rate files are corrected where they are.

The table is a csv file with the columns dataset (file name without _uncal.fits or _rate.fits), wisp_scale (a number,
or the word fit), mask_threshold and, optionally, method; the review page saves one.

Examples
--------
    python batch_scripts/make_batch.py uncals --out night1 --check
    python batch_scripts/make_batch.py mastDownload --out night1 --delinterim --no_patterns
    python batch_scripts/make_batch.py calibrated --out again --table review.csv --redo
    python batch_scripts/make_batch.py
"""

import csv
import glob
import logging
import math
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from run_batch import SCRIPTS, TOP, in_words, read_line, strict_parser  # the first, for it finds the others

# isort: split
import remstriping
import snowball_wrapper
import wispsub
from stage1.command import DIRECTORY, EXISTING, FILE, VARIABLE, new_parser, run_command, start_log
from stage1.correction import CORRECTIONS, copy_of, corrected, header_of, subtracted
from stage1.exposure import DETECTOR_SIDE, ExposureError, exposure_header, place
from stage1.pipeline import crds_settings, make_detector1
from stage1.pipeline_log import Listener
from stage1.wisp_templates import find_template, read_template

HERE = Path(__file__).resolve().parent
TABLE = HERE / 'stage1_images.csv'   # CEERS DR0.5: 690 exposures of epoch 1, in the order of the release
SNOWBALLS, WISPS, STRIPES = STEPS = 'detector1_and_snowballs', 'wisp_subtraction', 'remstriping'
ENTRIES = dict(zip(STEPS, (script.ENTRY for script in SCRIPTS.values()), strict=True))     # of HISTORY
DEFAULT_WISPDIR = TOP / strict_parser('wispsub.py').get_default('wisp_dir')     # the lines run at the top level

# What the products of an exposure of the full frame take, bytes. Ramps of older pipelines hold the errors as well.
RATE, PATTERN, MAPS = 84e6, 17e6, 1e6
RAMP, RAMP_GROUP = 34e6, {False: 21e6, True: 38e6}

# Those that a table may have; the page says in the last which exposures are accepted
TABLE_COLUMNS = 'dataset', 'pointing', 'wisp_scale', 'mask_threshold', 'method', 'flag', 'accepted'
FOR_THE_EYE = 'detector', 'filter'      # columns that are not read

# What references are chosen by, among the keywords of the primary header
LOOKUP = ('INSTRUME', 'DETECTOR', 'FILTER', 'PUPIL', 'CHANNEL', 'MODULE', 'EXP_TYPE', 'READPATT', 'SUBARRAY',
          'NOUTPUTS', 'DATE-OBS', 'TIME-OBS')

log = logging.getLogger('nircam')


@dataclass(frozen=True)
class Exposure:
    """One exposure: the file it starts from, its primary header, and where its rate image is or will be."""

    dataset: str
    start: Path
    rate: Path
    header: dict


# --- the two kinds of batch --------------------------------------------------------------------------

def release_batches(table, options):
    """Write the batches of a release: one of all exposures in the table's order, one of each pointing."""
    batches = {'all': []}
    if any(row['mask_threshold'] and method_of(row, options, remstriping) == 'adaptive' for row in table.values()):
        log.warning('mask_threshold of the table is not used where the method is adaptive')
    for dataset, row in table.items():
        if not row['pointing']:
            raise ExposureError(f'{dataset} has no pointing in the table: name the directory of its exposures')
        lines = {SNOWBALLS: snowball_line(options, f'{dataset}_uncal.fits'),
                 STRIPES: striping_line(row, options, f'{dataset}_rate.fits')}
        if row['wisp_scale']:
            lines[WISPS] = wisp_line(row, options, f'{dataset}_rate.fits')
        batches['all'].append(lines)
        batches.setdefault(row['pointing'], []).append(lines)
    for name, batch in batches.items():
        write_batch((options.out or HERE) / name, batch)


def exposure_lines(exposure, row, options):
    """Lines of one exposure, {step: line}."""
    rate, redo, lines = from_top(exposure.rate), ['--redo'] * options.redo, {}
    whole = exposure.rate.with_name(f'{exposure.dataset}_rateints.fits')
    done = header_of(whole) if options.redo else {}
    if any(corrected(done, entry) for entry in CORRECTIONS):
        rate = from_top(whole)          # all integrations were corrected, and are again
    asked = [key for key in ('wisp_scale', 'mask_threshold', 'method') if row.get(key)]
    row = as_it_is(row, exposure.header) if options.redo else row
    if 'mask_threshold' in asked and method_of(row, options, remstriping) == 'adaptive':
        log.warning('%s: mask_threshold %s of the table is not used: the method is adaptive', exposure.dataset,
                    row['mask_threshold'])
    if exposure.start != exposure.rate:
        lines[SNOWBALLS] = snowball_line(options, *output_option(snowball_wrapper, exposure), from_top(exposure.start))
    wisps = wispsub.to_be_corrected(exposure.header, method_of(row, options, wispsub), options.wisp_dir)
    if wisps and (row.get('wisp_scale') or not options.redo):
        wisp_dir = [] if options.wisp_dir == DEFAULT_WISPDIR else ['--wisp_dir', from_top(options.wisp_dir)]
        lines[WISPS] = wisp_line(row, options, *redo, *wisp_dir, *output_option(wispsub, exposure), rate)
    elif row.get('wisp_scale'):
        log.warning('%s: no wisp is corrected here: wisp_scale %s of the table is not used', exposure.dataset,
                    row['wisp_scale'])
    if asked or not options.redo:
        lines[STRIPES] = striping_line(row, options, *redo, *output_option(remstriping, exposure), rate)
    return lines


def as_it_is(row, header):
    """A row of the table for an image to be redone: what it leaves open, it has as the image has it."""
    thresh, asked = header.get('STRPTHR'), row.get('mask_threshold')
    return row | {'wispsub': header.get('WISPMETH'), 'rows_only': header.get('STRPINNR') is False,
                  'remstriping': 'dr05' if asked else header.get('STRPMETH'),   # which alone has a threshold
                  'mask_threshold': asked or (f'{thresh}' if isinstance(thresh, float) else '')}


# --- lines -------------------------------------------------------------------------------------------

def snowball_line(options, *words):
    """Command that makes the rate image."""
    return shlex.join(('python', 'snowball_wrapper.py', *['--delinterim'] * options.delinterim, *words))


def wisp_line(row, options, *words):
    """Command that subtracts the wisp: by the scale of the table's row, else by a fitted one."""
    scale, method = row.get('wisp_scale'), method_of(row, options, wispsub)
    how = ['--scale', scale] if scale and scale != 'fit' else ['--fit_scaling']
    how += ['--method', method] if method != wispsub.METHOD else []
    return shlex.join(('python', 'wispsub.py', *how, *words))


def striping_line(row, options, *words):
    """Command that removes the striping; only the dr05 method has a threshold."""
    thresh, method = row.get('mask_threshold'), method_of(row, options, remstriping)
    how = [] if options.no_patterns else ['--save_patterns']
    how += ['--method', method] if method != remstriping.METHOD else []
    how += ['--thresh', thresh] if thresh and method == 'dr05' else []
    how += ['--no-within_rows'] if row.get('rows_only') and method == 'adaptive' else []
    return shlex.join(('python', 'remstriping.py', *how, *words))


def method_of(row, options, script):
    """The method: the table's, else the command line's, else that of the image to be redone, or the default."""
    held = row.get(script.__name__)
    return row.get('method') or options.method or (held if held in script.METHODS else script.METHOD)


def output_option(script, exposure):
    """Option for the output directory, where it is not the script's own."""
    directory = from_top(exposure.rate.parent)
    return [] if directory == script.OUTPUTDIR else ['--output_dir', directory]


def from_top(path):
    """A path as commands name it: relative to the top level if inside, else absolute; never like an option or ~."""
    path = Path(os.path.abspath(path))
    if not path.is_relative_to(TOP):
        return str(path)
    path = str(path.relative_to(TOP))
    return f'./{path}' if path.startswith(('-', '~')) else path


def check_name(path):
    """Raise ExposureError where a line cannot name a path."""
    path = os.path.abspath(path)
    if VARIABLE.search(path):
        raise ExposureError(f'rename {path}: the scripts would take the $ in it for a variable')
    if not path.isprintable():
        raise ExposureError(f'rename {path}: a command cannot hold the control characters in it')


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
    """Read a table of settings: {dataset: row}, in order, each value a string, '' where there is none.

    ExposureError, which names the line, when something in it is wrong.
    """
    table = {}
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            names = [name.strip().lower() for name in next(csv.reader(file), ())]
            wrong = [name for name in names if name not in TABLE_COLUMNS + FOR_THE_EYE]
            if 'dataset' not in names or wrong:
                what = f"the column {', '.join(map(repr, wrong))}" if 'dataset' in names else 'no column "dataset"'
                raise ExposureError(f"{path}: the first line has {what}; the columns are {', '.join(TABLE_COLUMNS)}")
            reader = csv.DictReader(file, names, restkey='surplus')
            for row in reader:
                surplus = row.get('surplus')
                row = {key: (row.get(key) or '').strip() for key in TABLE_COLUMNS if key != 'accepted' or key in row}
                row['wisp_scale'] = row['wisp_scale'].lower()
                problem = 'comes twice' if row['dataset'] in table else row_problem(row)
                problem = 'has more cells than there are columns' if surplus else problem
                if problem:
                    raise ExposureError(f"{path}, line {reader.line_num + 1}: {row['dataset']} {problem}")
                table[row['dataset']] = row
    except (UnicodeError, csv.Error) as error:
        raise ExposureError(f'{path}: is not a csv file in UTF-8 ({error}): save the table as one') from None
    return table


def row_problem(row):
    """What is wrong with a row of the table, '' if nothing; the scripts say what its values may be."""
    if not row['dataset'] or '/' in row['dataset']:
        return 'is not the name of a dataset'
    if '/' in row['pointing'] or row['pointing'] in ('.', '..', 'all'):
        return f"has pointing {row['pointing']}, which cannot be the name of a directory"
    for key, script, option in (('wisp_scale', 'wispsub.py', '--scale'), ('method', 'remstriping.py', '--method'),
                                ('mask_threshold', 'remstriping.py', '--thresh')):
        if row[key] and (key, row[key]) != ('wisp_scale', 'fit'):
            try:
                strict_parser(script).parse_args([f'{option}={row[key]}', 'x'])
            except ExposureError as error:
                return f'has {key} {row[key]} ({error})'
    return ''


def find_exposures(directory, output_dir, only=None):
    """Exposures of a directory and those below it, by name, and what is wrong with the others.

    They are the uncal files or, if there are none, the rate files; the rate images of the former go to `output_dir`.
    `only` names the datasets that are wanted, to be redone, which takes rate files. Returns a list of `Exposure`, and
    one of (file name, what is wrong).
    """
    kinds = ('uncal', 'rate') if only is None else ('rate',)
    for kind in kinds:
        names = glob.iglob(f'**/*_{kind}.fits', root_dir=directory, recursive=True)     # enters links, also in circles
        paths = {path.resolve(): path for path in map(directory.joinpath, sorted(names, reverse=True))}.values()
        if paths:
            break
    else:
        names = ' and no '.join(f'*_{kind}.fits' for kind in kinds)
        raise ExposureError(f'{directory}: holds no {names}: name the directory of exposures')
    exposures, problems = {}, []
    for path in sorted(paths, key=lambda path: (path.name, len(path.parts), path)):       # copies may be further down
        dataset = path.name.removesuffix(f'_{kind}.fits')
        if only is not None and dataset not in only:
            continue
        rate = path if kind == 'rate' else output_dir / f'{dataset}_rate.fits'
        try:
            if dataset in exposures:
                raise ExposureError(f'is there twice, also as {exposures[dataset].start}')
            for file in path, rate:
                check_name(file)
            exposures[dataset] = Exposure(dataset, path, rate, exposure_header(path, kind))
        except ExposureError as error:
            problems.append((path.name, str(error)))
    return list(exposures.values()), problems


# --- before it starts --------------------------------------------------------------------------------

def check(batch, problems, options):
    """Look at all that the batch needs: a list of (subject, good, text)."""
    rows = [('inputs', False, f'{name}: {problem}') for name, problem in problems]
    rows.append(('inputs', bool(batch), f'{len(batch)} readable and of the right kind'))
    batch = [(exposure, lines) for exposure, lines in batch if lines]       # all of them, but with --redo
    rows += check_templates([(exposure, lines[WISPS]) for exposure, lines in batch if WISPS in lines], options.wisp_dir)
    rows += check_references(batch)
    rows += check_copies(batch, options.redo)
    if not options.redo:
        rows += check_outputs(batch)
    rows += check_space(batch, options)
    rows += [check_writable(directory) for directory in sorted({exposure.rate.parent for exposure, _ in batch})]
    return [*rows, check_writable(options.out)]


def check_templates(batch, wisp_dir):
    """Rows about the wisp templates, of a list of (exposure, line)."""
    good, scales = 0, {}
    for exposure, line in batch:
        scales.setdefault(wispsub.mode_of(exposure.header), []).append(read_line(line, 0).options.scale)
    for mode, given in sorted(scales.items()):
        try:
            planes = read_template(find_template(wisp_dir, *mode))
            if any(given) and len(planes) > 1:
                raise ExposureError(f'a template of {len(planes)} planes takes no scale: leave it out of the table')
            good += 1
        except ExposureError as error:
            yield 'templates', False, f"{' '.join(mode)}: {error}"
    if good:
        yield 'templates', True, f'{good} in {wisp_dir}'


def check_references(batch):
    """Rows about what CRDS has for the exposures: each reference is named, and its file is, or can be, in the cache."""
    missing, good, cache = {}, set(), os.environ.get('CRDS_PATH', 'the CRDS cache')
    heard = Listener('references')
    try:
        with heard.listening():
            import crds
            from crds.core import config, heavy_client
            online = heavy_client.get_config_info('jwst').connected and not config.get_cache_readonly()
            types = make_detector1().reference_file_types if any(SNOWBALLS in lines for _, lines in batch) else []
            for exposure, lines in batch:
                chosen_by = {name: str(exposure.header[name]) for name in LOOKUP if name in exposure.header}
                wanted = sorted({'flat', *types}) if SNOWBALLS in lines else ['flat']
                best = crds.getrecommendations(chosen_by, reftypes=wanted, observatory='jwst')
                for kind, name in best.items():
                    problem = reference_problem(kind, name, online)
                    if problem:
                        subject = ' '.join(wispsub.mode_of(exposure.header))
                        missing.setdefault(f'{subject}: {problem}', []).append(exposure.dataset)
                    elif not name.startswith('NOT FOUND'):
                        good.add(name)
    except (Exception, SystemExit) as error:
        return [('references', False, f'{heard.reason(error)} ({crds_settings()})')]
    rows = [('references', False, f'{problem} ({len(names)} exposures, first {names[0]})')
            for problem, names in missing.items()]
    what = f'{len(good)} known; what {cache} lacks will be downloaded' if online else f'{len(good)} in {cache}'
    return rows + [('references', True, what)] * bool(good)


def reference_problem(kind, name, online):
    """What is wrong with the reference file of a type that CRDS recommends, '' if nothing; `online`: it is fetched."""
    import crds
    if name.upper() == 'NOT FOUND N/A':  # the step that wants it is skipped, but these three are needed
        return f'CRDS has no {kind}' if kind in ('flat', 'gain', 'readnoise') else ''
    if name.startswith('NOT FOUND'):
        return f"no {kind}: {name.removeprefix('NOT FOUND').strip()}"
    path = Path(crds.locate_file(name, 'jwst'))
    return '' if online or (path.is_file() and path.stat().st_size) else f'{kind} {name} is not in the cache'


def check_copies(batch, redo=True):
    """Rows about untouched copies that are missing, from which lines would start: to `redo`, or as wisps come first."""
    for exposure, lines in batch:
        for step in (step for step in (WISPS, STRIPES) if step in lines):
            images = [exposure.rate]
            if '_rateints.fits' in str(lines[step]):
                images.append(exposure.rate.with_name(f'{exposure.dataset}_rateints.fits'))
            for image, header in zip(images, map(header_of, images), strict=True):
                late = step == WISPS and not corrected(header, ENTRIES[step]) and corrected(header, ENTRIES[STRIPES])
                copy = copy_of(image, ENTRIES[STRIPES if late else step])
                if (late or redo and subtracted(header, ENTRIES[step])) and not copy.exists():
                    yield 'copies', False, f'{copy.name}: make the rate image again, with snowball_wrapper.py --redo'


def check_outputs(batch):
    """Rows about rate images in the places of products that are not made by snowball_wrapper.py, and block it."""
    for exposure, lines in batch:
        rate = exposure.rate
        if SNOWBALLS in lines and rate.exists() and not corrected(header_of(rate), ENTRIES[SNOWBALLS]):
            yield 'outputs', False, f'{rate} was not made by snowball_wrapper.py: move it away'


def check_space(batch, options):
    """Rows about the space that products will take on each disk, without those of steps that are done."""
    needed = {}
    for exposure, lines in batch:
        where, stem = existing(exposure.rate.parent), str(exposure.rate).removesuffix('_rate.fits')
        done = header_of(exposure.rate)
        sizes = (size for step, line in lines.items() if '--redo' in line or not corrected(done, ENTRIES[step])
                 for ending, size in products(exposure.header, step, options).items()
                 if not os.path.exists(f'{stem}_{ending}.fits'))
        part = math.prod(axis.stop - axis.start for axis in place(exposure.header)) / DETECTOR_SIDE**2
        needed.setdefault(os.stat(where).st_dev, []).append((str(where), part * sum(sizes)))
    for members in needed.values():
        places, sizes = zip(*members, strict=True)
        where, total, free = ' and '.join(dict.fromkeys(places)), sum(sizes), shutil.disk_usage(places[0]).free
        yield ('disk space', total < free, f'{total / 1e9:.2f} GB will be taken, up to {max(sizes) / 1e6:.0f} MB by an '
               f'exposure; {free / 1e9:.1f} GB free in {where}')


def products(header, step, options):
    """Large products of one step as {ending: bytes}; the small ones count with the rate image."""
    if step == WISPS:
        return {'rate_prewisp': RATE}
    if step == STRIPES:
        return {'rate_pre1f': RATE} | ({} if options.no_patterns else {'rate_horiz': PATTERN, 'rate_vert': PATTERN})
    integrations, groups = (int(header.get(key, 1)) for key in ('NINTS', 'NGROUPS'))
    sizes = {'rate': RATE + MAPS}
    if integrations > 1 or not options.delinterim:
        sizes['rateints'] = RATE * integrations
    if not options.delinterim:
        sizes['ramp'] = RAMP + integrations * groups * RAMP_GROUP[version('jwst').startswith('1.')]
    return sizes


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
    parser = new_parser(__doc__)
    add = parser.add_argument
    add('uncals', metavar='UNCALS', type=EXISTING, nargs='?', help='directory of uncal or rate files')
    add('--table', type=FILE, help=f'settings (without UNCALS: {TABLE.name}; with UNCALS: none)')
    add('--out', type=DIRECTORY, help='where the batch is written (without UNCALS: batch_scripts; with UNCALS: batch)')
    add('--method', choices=remstriping.METHODS, help='where the table names none; as the scripts have it by default')
    add('--output_dir', type=DIRECTORY, help=f'where the rate images of uncal files go ({snowball_wrapper.OUTPUTDIR})')
    add('--wisp_dir', type=DIRECTORY, default=DEFAULT_WISPDIR, help=f'where the templates are ({wispsub.WISPDIR})')
    add('--delinterim', action='store_true', default=snowball_wrapper.DELINTERIM,
        help='keep no interim products of Detector1: 140 to 310 MB less an exposure')
    add('--no_patterns', action='store_true', help='do not write what was subtracted as striping: 34 MB less')
    add('--redo', action='store_true',
        help='only rate images for which the table has a value, started again from their untouched copies')
    add('--check', action='store_true', help='write nothing: look for all that would fail later; exit status 1 if any')
    return parser


def main(argv=None):
    """Run the command; return the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.redo and not (options.uncals and options.table):
        parser.error('--redo needs a directory of rate images and a --table')
    if not options.uncals and (options.check or options.output_dir or options.wisp_dir != DEFAULT_WISPDIR):
        parser.error('--check, --output_dir and --wisp_dir need UNCALS, the directory of exposures')
    start_log()
    try:
        if options.uncals is None:
            release_batches(read_table(options.table or TABLE), options)
            return 0
        return make(options)
    except (ExposureError, OSError) as error:
        log.error('%s', in_words(error))
        return 1


def make(options):
    """Write or check the batch of a directory; return the exit status."""
    table = read_table(options.table) if options.table else {}
    output_dir = options.output_dir or TOP / strict_parser('snowball_wrapper.py').get_default('output_dir')
    check_name(options.wisp_dir)
    exposures, problems = find_exposures(options.uncals, output_dir, table if options.redo else None)
    options.out = options.out or Path('batch')
    batch = [(exposure, exposure_lines(exposure, table.get(exposure.dataset, {}), options)) for exposure in exposures]
    named = {exposure.dataset for exposure in exposures} | {name.rsplit('_', 1)[0] for name, _ in problems}
    unknown = table.keys() - named
    if unknown:
        names = f"{', '.join(sorted(unknown)[:3])}{' ...' * (len(unknown) > 3)}"
        log.warning('%d exposures of the table are not in %s: %s', len(unknown), options.uncals, names)
    if options.output_dir and any(exposure.start == exposure.rate for exposure in exposures):
        log.warning('--output_dir is not used: rate files are corrected where they are')
    if options.check:
        rows = check(batch, problems, options)
        for subject, good, text in rows:
            sys.stdout.write(f"{'ok' if good else 'MISSING':8}{subject:12}{text}\n")
        return 0 if all(good for _, good, _ in rows) else 1
    for name, problem in problems:
        log.error('%s: %s; left out', name, problem)
    write_batch(options.out, [lines for _, lines in batch])
    return 1 if problems else 0


if __name__ == '__main__':
    run_command(main)
