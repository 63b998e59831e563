#!/usr/bin/env python
"""Run Detector1 on raw NIRCam exposures, with the flags of snowballs grown before the ramps are fitted.

A snowball is a large cosmic-ray event: a saturated core in a wide halo, of which the jump step flags only the
brighter part. After the jump step the flags in each group are grown around large events; then the ramps are
fitted, once (Bagley et al. 2023, ApJL 946 L12, section 3.1.1).

Reads   <dataset>_uncal.fits
Writes  <dataset>_rate.fits                     rate image, DN/s
        <dataset>_ramp.fits, _rateints.fits     interim products; the ramp holds the grown flags
        <dataset>_snowballs.ecsv, .reg          what was found: a table, and circles for DS9

    snowball_wrapper.py jw01345001001_10201_00001_nrca3_uncal.fits
    snowball_wrapper.py --input_dir uncals --output_dir calibrated --delinterim uncals/*_uncal.fits

An exposure that has its rate image already is left alone. Reference files come from CRDS, parameters do not:
they are the defaults in the code of the installed pipeline, or those of a parameter file (--params).
"""

import argparse
import contextlib
import logging
import math
import os
import sys
from datetime import datetime
from pathlib import Path

from nircam_io import (
    CORRECTIONS,
    ExposureError,
    add_redo,
    corrected,
    describe,
    expanded,
    find_input,
    identity,
    log,
    one_line,
    open_exposure,
    primary_header,
    provenance,
    publish,
    quiet_pipeline,
    reason,
    run_each,
    start_log,
    workspace,
)

# --- settings, each of them also an option -----------------------------------------------------------

UNCALDIR = 'uncals'         # where bare file names are looked for
OUTPUTDIR = 'calibrated'    # made when it does not exist
MAXCORES = 'none'           # cores for the ramp fit: 'none' (one process), 'quarter', 'half', 'all'
DELINTERIM = False          # True: no _ramp, no _trapsfilled, and no _rateints of a single integration
PARAMFILE = None            # parameter file of Detector1; None: the defaults in its code, as DR0.5 ran

# (radius of the disc in which most pixels must be flagged, radius of the disc by which that grows), pixels
TIERS = ((7, 7), (15, 35))

# Values of GROUPDQ. Exact matches, not bit tests, as in DR0.5: a pixel with both flags counts as neither.
SATURATED = 2
JUMP_DET = 4

# Parameters that older pipelines switch on and off, and that are a file name under the same name today.
FORMER_SWITCHES = ('persistence.save_persistence',)

ENTRY = 'Snowballs: flags grown'
INTERIM = ('ramp', 'rateints', 'trapsfilled')

# Columns of the catalogue; integrations, groups and pixels are counted from 0, snowballs from 1.
COLUMNS = (('snowball', int), ('integration', int), ('group', int), ('x', float), ('y', float),
           ('core_radius', float), ('grown_radius', float), ('pixels', int))


# --- one exposure ------------------------------------------------------------------------------------

def process(name, options):
    """Make the rate image of one raw exposure.

    Parameters
    ----------
    name : str
        Path, or file name in `options.input_dir`.
    options : argparse.Namespace
        See `build_parser`; besides, `parameters` holds what `read_parameters` found in the parameter file.

    Raises
    ------
    ExposureError
    """
    path = find_input(name, options.input_dir)
    if not path.name.endswith('_uncal.fits'):
        raise ExposureError('is not named <dataset>_uncal.fits')
    if not path.name.isascii():
        raise ExposureError('has a name that FITS headers cannot hold: rename it in plain ASCII')
    with open_exposure(path, 'uncal') as hdul:
        header, integrations = hdul[0].header, hdul['SCI'].shape[0]
    dataset, output = path.name.removesuffix('_uncal.fits'), Path(options.output_dir)
    interim = [f'{dataset}_{kind}.fits' for kind in INTERIM if kind != 'rateints' or integrations == 1]
    rate = output / f'{dataset}_rate.fits'
    with workspace(output, dataset) as work:
        seen = {rate: identity(rate)}
        if not finished(rate, options.redo):
            snowballs, fraction = run_detector1(path, header, work, options)
            log.info('%s: %d snowballs, %.4f %% of the pixels of all groups flagged',
                     path.name, count_snowballs(snowballs), 100 * fraction)
            write_catalogue(snowballs, work / f'{dataset}_snowballs.ecsv')
            write_regions(snowballs, work / f'{dataset}_snowballs.reg')
            if options.delinterim:
                for file in interim:
                    (work / file).unlink(missing_ok=True)
            publish(work, output, rate.name, seen)
        if options.delinterim:  # also those of an earlier run
            for file in interim:
                (output / file).unlink(missing_ok=True)


def finished(rate, redo):
    """True when the rate image is there and to be left alone; ExposureError when it is not ours to replace."""
    if not rate.exists():
        return False
    try:
        header = primary_header(rate)
    except ExposureError:  # damaged
        if redo is not True:
            raise
        return False
    ours = any(ENTRY in str(card) for card in header.get('HISTORY', ()))
    if redo is not True and not ours:
        raise ExposureError(f'{rate} exists and was not made by this script (--redo replaces it)')
    if not redo:
        log.info('%s: exists, with grown flags: left alone (--redo makes it again)', rate.name)
        return True
    for entry, (script, *_) in CORRECTIONS.items():
        if corrected(header, entry):
            log.warning('%s: is made again from the raw exposure, so %s must be run again', rate.name, script)
    return False


# --- the pipeline ------------------------------------------------------------------------------------

def run_detector1(path, header, work, options):
    """Run Detector1 with the grown flags.

    Parameters
    ----------
    path : Path
        The raw exposure.
    header : Header
        Its primary header, for messages.
    work : Path
        Directory for the products.
    options : argparse.Namespace

    Returns
    -------
    snowballs : list of tuple
        Rows of the catalogue, see `COLUMNS`.
    fraction : float
        Fraction of the pixels of all groups that they flag.

    Raises
    ------
    ExposureError
        When CRDS lacks something, or the pipeline stops or makes no rate image.
    """
    wanted = ' '.join(str(header.get(key)) for key in ('DETECTOR', 'FILTER', 'PUPIL', 'DATE-OBS'))
    where = ', '.join(f"{key}={os.environ.get(key, 'unset')}"
                      for key in ('CRDS_PATH', 'CRDS_SERVER_URL', 'CRDS_CONTEXT'))
    try:
        with quiet_pipeline() as said, pipeline_warnings(path.name):
            pipeline = make_pipeline(options.parameters)
            pipeline.settings = settings_of(pipeline, options)
            pipeline.save_results, pipeline.save_calibrated_ramp = True, not options.delinterim
            pipeline.output_dir, pipeline.output_file, pipeline.output_ext = str(work), None, '.fits'
            pipeline.ramp_fit.maximum_cores = options.maxcores
            pipeline.run(str(path)).close()
    except OSError as error:
        raise ExposureError(f'Detector1 stopped: {one_line(error)}') from None
    except (Exception, SystemExit) as error:
        raise ExposureError(f'Detector1 stopped for {wanted}: {reason(error, said.getvalue())} ({where})') from None
    if not (work / path.name.replace('_uncal.fits', '_rate.fits')).exists():
        raise ExposureError('Detector1 made no rate image: is the ramp fit skipped?')
    return pipeline.snowballs, pipeline.fraction


@contextlib.contextmanager
def pipeline_warnings(name):
    """Say once each what the pipeline warns of while it runs for the exposure `name`; the rest is quiet."""
    messages, python_warnings = {}, set()    # a dict keeps the order

    def collect(record):
        text = ' '.join(record.getMessage().split())
        messages[text] = None
        if record.name == 'py.warnings':     # divisions by zero and the like; older pipelines log them once more
            python_warnings.add(text)

    handler = logging.Handler(logging.WARNING)
    handler.emit = collect
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        for message in messages:
            if message not in python_warnings:
                log.warning('%s: Detector1: %s', name, message)


def make_pipeline(parameters=None):
    """Detector1 that grows the flags after its jump step and says in each product what was done.

    Parameters
    ----------
    parameters : dict, optional
        Parameters that are not to have the default of the code.
    """
    from jwst.jump import JumpStep
    from jwst.pipeline import Detector1Pipeline
    from stpipe.config_parser import ConfigObj

    class SnowballJump(JumpStep):
        def process(self, ramp):
            result = super().process(ramp)
            self.parent.snowballs, self.parent.fraction = grow_flags(result.groupdq)
            return result

    class SnowballPipeline(Detector1Pipeline):
        step_defs = Detector1Pipeline.step_defs | {'jump': SnowballJump}
        settings, snowballs, fraction = {}, [], 0.

        def save_model(self, model, *args, **kwargs):
            stamp(model, self)
            return super().save_model(model, *args, **kwargs)

    if parameters is None:
        return SnowballPipeline()
    return SnowballPipeline.from_config_section(ConfigObj(parameters), name=Detector1Pipeline.__name__)


def stamp(model, pipeline):
    """Write into a product, in memory, what was done to it: HISTORY, and keywords in the primary header."""
    # Straight into the tree: `model.history` of older datamodels edits another one, which is not saved.
    entries = model.instance.setdefault('history', {}).setdefault('entries', [])
    if any(ENTRY in str(entry) for entry in entries):
        return
    script = Path(__file__).name
    entries += [f'{ENTRY}; {script} {datetime.now():%Y-%m-%d %H:%M:%S}',
                provenance(script, model.meta.ref_file.crds.context_used), describe(script, pipeline.settings)]
    primary = model.instance.setdefault('extra_fits', {}).setdefault('PRIMARY', {})
    primary.setdefault('header', []).extend([
        ['SNOWNUM', count_snowballs(pipeline.snowballs), 'snowballs found'],
        ['SNOWFRAC', round(pipeline.fraction, 9), 'fraction of pixels x groups that they flag']])


def settings_of(pipeline, options):
    """What a product depends on besides versions, for its HISTORY: the parameters that are no default."""
    settings = {'parameters': Path(options.params).name if options.params else 'code defaults'}
    if options.parameters is not None:
        standard, chosen = (flat_parameters(p.get_pars()) for p in (make_pipeline(), pipeline))
        settings |= {key: value for key, value in chosen.items() if value != standard[key]}
    return settings | {'ramp_fit.maximum_cores': options.maxcores}


def flat_parameters(parameters):
    """The nested dict of a pipeline's parameters as {'jump.rejection_threshold': 4.0, ...}."""
    flat = {key: value for key, value in parameters.items() if key != 'steps'}
    return flat | {f'{step}.{key}': value for step, values in parameters.get('steps', {}).items()
                   for key, value in values.items()}


def read_parameters(path):
    """Read a parameter file of Detector1.

    Parameters
    ----------
    path : str or Path
        As `strun` takes it (ASDF, or the older cfg).

    Returns
    -------
    dict
        The parameters that the installed pipeline has; the others are named in a warning and left out.

    Raises
    ------
    ExposureError
        When the file cannot be read, is for another pipeline, or holds a wrong value.
    """
    try:
        with quiet_pipeline():
            from jwst.pipeline import Detector1Pipeline
            from stpipe import config_parser
            config = config_parser.load_config_file(str(path)).dict()
            known = Detector1Pipeline.load_spec_file().dict()
    except Exception as error:
        raise ExposureError(f'{path} cannot be read as a parameter file ({one_line(error)})') from None
    if config.pop('class', 'none').split('.')[-1] not in ('Detector1Pipeline', 'calwebb_detector1'):
        raise ExposureError(f'{path} holds no parameters of Detector1Pipeline')
    config.pop('name', None)
    dropped = drop_unusable(config, known)
    if dropped:
        log.warning('%s: left out, because this pipeline does not have them: %s', path, ', '.join(dropped))
    try:
        with quiet_pipeline():
            make_pipeline(config)
    except Exception as error:
        raise ExposureError(f'{path}: {one_line(error)}') from None
    return config


def drop_unusable(config, known, prefix=''):
    """Remove from nested parameters, in place, what is not in `known`; returns the names of what was removed.

    Hooks go as well: a parameter file must not start programs.
    """
    dropped = []
    for key, value in list(config.items()):
        hook = key in ('pre_hooks', 'post_hooks') and value
        changed = prefix + key in FORMER_SWITCHES and isinstance(value, bool) and known.get(key, '')[:7] != 'boolean'
        if key not in known or hook or changed:
            dropped.append(prefix + key)
            del config[key]
        elif isinstance(value, dict):
            dropped += drop_unusable(value, known[key], '' if key == 'steps' else f'{prefix}{key}.')
    return dropped


# --- snowballs ---------------------------------------------------------------------------------------

def flag_snowballs(groupdq):
    """Flag the halos of snowballs as jumps.

    Parameters
    ----------
    groupdq : ndarray of uint8, shape (nints, ngroups, ny, nx)
        As the jump step leaves it.

    Returns
    -------
    ndarray of uint8, same shape
        With JUMP_DET set in the mask of `find_snowballs` of each group; all other bits stay.
    """
    grown = groupdq.copy()
    grow_flags(grown)
    return grown


def grow_flags(groupdq):
    """`flag_snowballs` in place, because a ramp is large.

    Returns
    -------
    rows : list of tuple
        The catalogue, see `COLUMNS`.
    fraction : float
        Fraction of the elements of `groupdq` that snowballs flag.
    """
    areas, flagged = [], 0
    for integration, planes in enumerate(groupdq):
        for group, plane in enumerate(planes):
            mask, snowballs = measure_snowballs(plane)
            plane[mask] |= JUMP_DET
            flagged += int(mask.sum())
            areas += [(integration, group, *snowball) for snowball in snowballs]
    return number_snowballs(areas), flagged / max(groupdq.size, 1)


def number_snowballs(areas):
    """Number the areas that were found, rows of the catalogue without their first column, by snowball.

    One snowball shows as several areas when its saturated core leaves only pieces of a ring, and in the next
    groups when it is flagged there too. Areas whose centre lies in what another one grew to, in the same group
    or the one before, are the same snowball.
    """
    rows, last = [], 0
    for integration, group, x, y, core, grown, pixels in areas:
        near = (row for row in rows if row[1] == integration and row[2] >= group - 1
                and math.hypot(x - row[3], y - row[4]) < max(grown, row[6]))
        number = next((row[0] for row in near), last + 1)
        last = max(last, number)
        rows.append((number, integration, group, x, y, core, grown, pixels))
    return rows


def count_snowballs(rows):
    """Number of snowballs in the rows of a catalogue."""
    return max((row[0] for row in rows), default=0)


def find_snowballs(plane):
    """Find the pixels of one group that snowballs spoil.

    Parameters
    ----------
    plane : ndarray of uint8, shape (ny, nx)
        GROUPDQ of the group.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True = to be flagged.

    Notes
    -----
    For both `TIERS`, pixels with exactly JUMP_DET are median filtered over a disc (border 'reflect' in scipy's
    naming); saturated pixels in what remains join them, for the core of a snowball saturates; all is filtered
    again, and grown by a disc. Both tiers start from the plane as it is (Bagley et al. 2023, section 3.1.1).
    """
    return measure_snowballs(plane)[0]


def measure_snowballs(plane):
    """Mask of `find_snowballs`, and a tuple of the last five `COLUMNS` for each connected core."""
    import numpy as np
    mask, snowballs = np.zeros(plane.shape, bool), []
    cores = [find_cores(plane, radius) for radius, _ in TIERS]
    # A dilation of all is the union of the dilations of each, and that takes a small box only.
    for box, this in connected(np.logical_or(*cores), max(growth for _, growth in TIERS)):
        grown, reach = np.zeros(this.shape, bool), 0.
        for core, (_, growth) in zip(cores, TIERS, strict=True):
            part = core[box] & this
            if part.any():
                grown |= dilate(part, growth)
                reach = max(reach, equal_area_radius(part) + growth)
        mask[box] |= grown
        y, x = (float(values.mean()) + side.start for values, side in zip(np.nonzero(this), box, strict=True))
        snowballs.append((x, y, equal_area_radius(this), reach, int(grown.sum())))
    return mask, snowballs


def find_cores(plane, radius):
    """Pixels in large groups of jumps, and saturated pixels among them, before they grow.

    Parameters
    ----------
    plane : ndarray of uint8, shape (ny, nx)
        GROUPDQ of one group.
    radius : int
        Of the median filter, pixels.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True = core of a snowball.
    """
    jumps = plane == JUMP_DET
    seeds = disc_median(jumps, radius)
    saturated = seeds & (plane == SATURATED)
    return disc_median(jumps | saturated, radius) if saturated.any() else seeds


def disc_median(flags, radius):
    """Median filter of flags over the disc x^2 + y^2 <= radius^2.

    Parameters
    ----------
    flags : ndarray of bool, shape (ny, nx)
    radius : int
        Pixels; below 16.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        What `scipy.ndimage.median_filter` gives with that footprint and its border mode 'reflect'.

    Notes
    -----
    Of the A pixels of a disc at least A - A // 2 must be set. A disc about any pixel of a block of radius + 1
    lies in the 3 x 3 blocks around that one. Where these hold too few flags, and that is nearly everywhere,
    nothing need be counted.
    """
    import numpy as np
    from scipy import ndimage
    area = sum(2 * half + 1 for half in half_widths(radius))
    needed = area - area // 2
    block = radius + 1
    padded = np.pad(flags, [(block, block + -size % block) for size in flags.shape], mode='symmetric')
    counts = count_in_blocks(padded, block)
    around = counts[:-2] + counts[1:-1] + counts[2:]
    around = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
    labels, _ = ndimage.label(around >= needed, np.ones((3, 3), bool))
    result = np.zeros(flags.shape, bool)
    for rows, columns in ndimage.find_objects(labels):
        inside = result[rows.start * block:rows.stop * block, columns.start * block:columns.stop * block]
        tile = padded[rows.start * block + 1:, columns.start * block + 1:]    # one radius before `inside`
        tile = tile[:inside.shape[0] + 2 * radius, :inside.shape[1] + 2 * radius]
        inside |= count_in_discs(tile, radius) >= needed
    return result


def count_in_blocks(flags, block):
    """Number of flags in each square of `block` pixels (8 or 16), which must fit into (ny, nx) `flags`."""
    import numpy as np
    ny, nx = (size // block for size in flags.shape)
    # Eight flags, a byte each, are added at once as one integer; at most 16 of them do not overflow a byte.
    columns = flags.view(np.uint64).reshape(ny, block, -1).sum(axis=1).view(np.uint8)
    return columns.reshape(ny, nx, block).sum(axis=2, dtype=np.int64)


def count_in_discs(tile, radius):
    """Number of flags within `radius` of each pixel that is `radius` or more from the border of `tile`.

    Parameters
    ----------
    tile : ndarray of bool, shape (ny + 2 radius, nx + 2 radius)
    radius : int
        Pixels.

    Returns
    -------
    ndarray of uint16, shape (ny, nx)
    """
    import numpy as np
    ny, nx = (size - 2 * radius for size in tile.shape)
    # Sums from the left end of the row: the flags in a run are a difference of two, also when uint16 wraps.
    sums = np.zeros((tile.shape[0], tile.shape[1] + 1), np.uint16)
    np.cumsum(tile, axis=1, dtype=np.uint16, out=sums[:, 1:])
    total = np.zeros((ny, nx), np.uint16)
    for row, half in enumerate(half_widths(radius)):
        total += sums[row:row + ny, radius + half + 1:][:, :nx]
        total -= sums[row:row + ny, radius - half:][:, :nx]
    return total


def half_widths(radius):
    """Half-width of a disc in each of its 2 radius + 1 rows, pixels, the middle one not counted."""
    return [math.isqrt(radius**2 - row**2) for row in range(-radius, radius + 1)]


def connected(flags, margin, block=16):
    """Take apart flags into groups that touch, also at corners.

    Parameters
    ----------
    flags : ndarray of bool, shape (ny, nx)
    margin : int
        Pixels around each group.
    block : int
        Blocks with flags are labelled before pixels, which is quicker by far where flags are few.

    Yields
    ------
    box : tuple of slice
        Where the group and the margin are in `flags`; ends at its border.
    group : ndarray of bool
        The flags of this group alone, in that box.
    """
    import numpy as np
    from scipy import ndimage
    eight = np.ones((3, 3), bool)
    padded = np.pad(flags, [(0, -size % block) for size in flags.shape])
    blocks, _ = ndimage.label(count_in_blocks(padded, block) > 0, eight)
    for number, area in enumerate(ndimage.find_objects(blocks), 1):
        area_pixels = tuple(slice(side.start * block, side.stop * block) for side in area)
        own = (blocks[area] == number).repeat(block, axis=0).repeat(block, axis=1)
        labels, _ = ndimage.label(padded[area_pixels] & own, eight)
        for label, small in enumerate(ndimage.find_objects(labels), 1):
            start = [side.start + corner.start for side, corner in zip(small, area_pixels, strict=True)]
            box = tuple(slice(max(first - margin, 0), first + side.stop - side.start + margin)
                        for first, side in zip(start, small, strict=True))
            group = np.zeros(flags[box].shape, bool)
            inside = tuple(slice(first - side.start, None) for first, side in zip(start, box, strict=True))
            pixels = labels[small] == label
            group[inside][:pixels.shape[0], :pixels.shape[1]] = pixels
            yield box, group


def dilate(mask, radius):
    """Grow (ny, nx) bool `mask` by the disc x^2 + y^2 <= radius^2; beyond the border it is False."""
    from scipy import ndimage
    return ndimage.distance_transform_edt(~mask) <= radius


def equal_area_radius(mask):
    """Radius of the circle that has the area of `mask`, pixels."""
    return math.sqrt(mask.sum() / math.pi)


# --- the catalogue -----------------------------------------------------------------------------------

def write_catalogue(snowballs, path):
    """Write the rows of the catalogue as a table that `astropy.table.Table.read` reads with units."""
    from astropy.table import Table
    columns = zip(*snowballs, strict=True) if snowballs else [()] * len(COLUMNS)
    table = Table(list(map(list, columns)), names=[name for name, _ in COLUMNS], dtype=[kind for _, kind in COLUMNS])
    table.meta['comments'] = ['integration, group, x and y are counted from 0; core_radius: circle of the area that'
                              ' was detected; grown_radius: with the growth; pixels: flagged for this area. Areas'
                              ' that overlap, in one group or the next, are one snowball']
    for name in ('x', 'y', 'core_radius', 'grown_radius'):
        table[name].unit, table[name].format = 'pix', '.2f'
    table.write(path, format='ascii.ecsv')


def write_regions(snowballs, path):
    """Write circles for DS9 around the cores and the flagged areas, labelled with snowball, integration and group."""
    lines = ['# Region file format: DS9', 'global color=cyan', 'image']
    for number, integration, group, x, y, core, grown, _ in snowballs:    # DS9 counts from 1
        lines += [f'circle({x + 1:.2f},{y + 1:.2f},{core:.2f})',
                  f'circle({x + 1:.2f},{y + 1:.2f},{grown:.2f}) # dash=1 '
                  f'text={{{number}: integration {integration + 1} group {group + 1}}}']
    path.write_text('\n'.join(lines) + '\n')


# --- the command line --------------------------------------------------------------------------------

def build_parser():
    """The command line; its defaults are the settings at the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('uncals', nargs='+', metavar='UNCAL', help='raw exposures, <dataset>_uncal.fits')
    add('--input_dir', type=expanded, default=UNCALDIR, metavar='DIR',
        help='where bare names are looked for (%(default)s)')
    add('--output_dir', type=expanded, default=OUTPUTDIR, metavar='DIR', help='for the products (%(default)s)')
    add('--maxcores', default=MAXCORES, choices=('none', 'quarter', 'half', 'all'),
        help='cores for the ramp fit (%(default)s); wins over the parameter file')
    add('--delinterim', default=DELINTERIM, action=argparse.BooleanOptionalAction,
        help='keep no _ramp, _trapsfilled, and _rateints of a single integration')
    add('--params', type=expanded, default=PARAMFILE, metavar='FILE',
        help='parameter file of Detector1 (the defaults in its code)')
    add_redo(add, 'make the rate image again from the raw exposure')
    return parser


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    start_log()
    options.parameters = None
    if options.params:
        try:
            options.parameters = read_parameters(options.params)
        except ExposureError as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            parser.exit(130, f'{parser.prog}: interrupted\n')
    return run_each(options.uncals, lambda name: process(name, options))


if __name__ == '__main__':
    sys.exit(main())
