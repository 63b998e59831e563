#!/usr/bin/env python
"""Run Detector1 on raw NIRCam exposures, with the flags of snowballs grown before the ramps are fitted.

A snowball is a large cosmic-ray event: a saturated core in a wide halo, of which the jump step flags only the
brighter part. After the jump step the flags in each group are grown around large events; then the ramps are
fitted, once (Bagley et al. 2023, ApJL 946 L12, section 3.1.1).

Reads   <dataset>_uncal.fits
Writes  <dataset>_rate.fits                     rate image, DN/s
        <dataset>_ramp.fits, _rateints.fits     interim products; the ramp holds the grown flags
        <dataset>_snowballs.ecsv, .reg          what was found: a table, and circles for DS9
        <dataset>_detector1.log                 the whole log of the pipeline

    python snowball_wrapper.py jw01345001001_10201_00001_nrca3_uncal.fits
    python snowball_wrapper.py --input_dir uncals --output_dir calibrated --delinterim uncals/*_uncal.fits

An exposure that has its rate image already is left alone. CRDS supplies reference files, but no parameters: those
are the defaults in the code of the installed pipeline, or come from a parameter file (--params).
"""

import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from stage1.command import FILE_OR_NONE, SWITCH, add_setting, add_shared, choice, new_parser, run_each, start_log
from stage1.correction import corrected, differences, header_of, replace_rate, say_place, side_products
from stage1.exposure import (
    DO_NOT_USE,
    JUMP_DET,
    SATURATED,
    ExposureError,
    check_whole,
    find_input,
    open_exposure,
    primary_header,
)
from stage1.files import left_behind, workspace
from stage1.pipeline import changed_parameters, history_lines, make_detector1, read_parameters, run_detector1

# --- settings, each of them also an option -----------------------------------------------------------

UNCALDIR = 'uncals'         # where bare file names are looked for
OUTPUTDIR = 'calibrated'    # for the products; made when it does not exist
MAXCORES = 'none'           # cores for the ramp fit: 'none' (one process), 'quarter', 'half', 'all'
DELINTERIM = False          # True: no _ramp, no _trapsfilled, and no _rateints of a single integration
PARAMFILE = None            # parameter file of Detector1; None: the defaults in its code, as DR0.5 ran

# --- the recipe, no options --------------------------------------------------------------------------

# (radius of the disc in which most pixels must be flagged, radius of the disc by which that grows), pixels
TIERS = ((7, 7), (15, 35))

# Snowballs that land within a group of averaged frames, see `find_in_groups`; lengths in pixels
RIM = 2                     # width of the rim around newly saturated pixels; most of it jumps where that is a snowball
SHARED = 0.1                # part of a core's usable pixels that jump in a neighbouring group: it counts there too
SHARED_GROWTH = 7           # radius of the disc by which it grows there

ENTRY, SCRIPT = 'Snowballs: flags grown', 'snowball_wrapper.py'
INTERIM = ('ramp', 'rateints', 'trapsfilled')
SAME = 'DETECTOR', 'FILTER', 'PUPIL', 'SUBARRAY', 'DATE-OBS', 'TIME-OBS', 'NINTS', 'NGROUPS'   # in all its headers

log = logging.getLogger('nircam')


# --- one exposure ------------------------------------------------------------------------------------

def process(name, options):
    """Make the rate image of one raw exposure; arguments as `run_each` says.

    `options.parameters` holds what `read_parameters` found in the parameter file; None without one.
    """
    path, integrations = find_uncal(name, options.input_dir)
    dataset, output = path.name.removesuffix('_uncal.fits'), Path(options.output_dir)
    rate = output / f'{dataset}_rate.fits'
    say_place(path, output, options.input_dir)
    made = header_of(rate)
    if corrected(made, ENTRY) and not options.redo:
        if not of_one_exposure(primary_header(path), made):
            raise ExposureError(f'{rate} was made of another exposure: give another --output_dir (--redo replaces it)')
        spare = interim_files(output, dataset, integrations) if options.delinterim else []
        if not any(map(Path.exists, spare)) and not left_behind(output, dataset) and finished(rate, options):
            return                                  # and nothing has to be written
    with workspace(output, dataset) as work:
        if not finished(rate, options):
            found = run_with_grown_flags(path, work, options)
            log.info('%s: %d snowballs, %.4f %% of the pixels of all groups flagged',
                     path.name, count_snowballs(found.rows), 100 * found.fraction)
            write_catalogue(found.rows, work / f'{dataset}_snowballs.ecsv', found.history)
            write_regions(found.rows, work / f'{dataset}_snowballs.reg', found.history)
            if options.delinterim:
                remove_interim(work, dataset, integrations)
            replace_rate(work, rate, [rate.name], side_products(rate), {})
        if options.delinterim:  # also those of an earlier run
            remove_interim(output, dataset, integrations)


# --- snowballs ---------------------------------------------------------------------------------------

def flag_snowballs(groupdq):
    """Flag the halos of snowballs as jumps.

    For both `TIERS`, pixels with exactly JUMP_DET are median filtered over a disc (border 'reflect' in scipy's
    naming); saturated pixels in what remains join them, for the core of a snowball saturates; all is filtered
    again, and grown by a disc. Both tiers start from the plane as it is.

    Parameters
    ----------
    groupdq : ndarray of uint8, shape (nints, ngroups, ny, nx)
        As the jump step leaves it.

    Returns
    -------
    grown : ndarray of uint8, same shape
        With JUMP_DET set where snowballs grow to in each group; all other bits stay.
    rows : list of tuple
        The catalogue, see `COLUMNS`.
    fraction : float
        Fraction of the elements of `groupdq` that snowballs flag.
    """
    grown, areas, flagged = groupdq.copy(), [], 0
    for integration, planes in enumerate(groupdq):
        for group, cores in enumerate(find_in_groups(planes)):
            mask, snowballs = grow_snowballs(cores)
            grown[integration, group][mask] |= JUMP_DET
            flagged += int(mask.sum())
            areas += [(integration, group, *snowball) for snowball in snowballs]
    return grown, number_snowballs(areas), flagged / max(groupdq.size, 1)


def find_snowballs(plane, also=False):
    """Find the cores of snowballs in one group: large areas of jumps, and saturated pixels among them.

    The values of `plane`, GROUPDQ of the group, (ny, nx) uint8, are matched exactly, not bit by bit, as in DR0.5: a
    pixel with both flags counts as neither. Where `also`, (ny, nx) bool, is True, a pixel counts as a jump whatever
    its value.

    Returns for each tier the core, (ny, nx) bool, and the radius of the disc by which it grows, pixels.
    """
    from stage1.filters import disc_median
    jumps, cores = (plane == JUMP_DET) | also, []
    for radius, growth in TIERS:
        seeds = disc_median(jumps, radius)
        saturated = seeds & (plane == SATURATED)
        cores.append((disc_median(jumps | saturated, radius) if saturated.any() else seeds, growth))
    return cores


def grow_snowballs(cores):
    """Grow the cores of one group, as `find_snowballs` returns them.

    Returns what is to be flagged (True), (ny, nx) bool, and for each connected core the last five `COLUMNS`, a list.
    """
    import numpy as np
    mask, snowballs = np.zeros(cores[0][0].shape, bool), []
    # A dilation of all is the union of the dilations of each, and that takes a small box only.
    for box, this in separate(np.logical_or.reduce([core for core, _ in cores]), max(growth for _, growth in cores)):
        grown, reach = np.zeros(this.shape, bool), 0.
        for core, growth in cores:
            part = core[box] & this
            if part.any():
                grown |= dilate(part, growth)
                reach = max(reach, equal_area_radius(part) + growth)
        mask[box] |= grown
        y, x = (float(values.mean()) + side.start for values, side in zip(np.nonzero(this), box, strict=True))
        snowballs.append((x, y, equal_area_radius(this), reach, int(grown.sum())))
    return mask, snowballs


def separate(flags, margin):
    """Take apart flags, (ny, nx) bool, into groups that touch, also at corners.

    Yields where each group and `margin` pixels around it are in `flags`, two slices, which may end beyond its border,
    and the flags of this group alone in that box, bool.
    """
    import numpy as np
    from scipy import ndimage
    for rows, in ndimage.find_objects(ndimage.label(flags.any(axis=1))[0]):     # no group reaches across an empty row
        above, below = min(margin, rows.start), min(margin, len(flags) - rows.stop)
        labels = np.pad(ndimage.label(flags[rows], np.ones((3, 3)))[0], ((above, below), (0, 0)))
        first = rows.start - above
        for label, place in enumerate(ndimage.find_objects(labels), 1):
            y, x = (slice(max(side.start - margin, 0), side.stop + margin) for side in place)
            yield (slice(first + y.start, first + y.stop), x), labels[y, x] == label


def dilate(mask, radius):
    """Grow (ny, nx) bool `mask` by the disc x^2 + y^2 <= radius^2; beyond the border it is False."""
    from scipy import ndimage
    return ndimage.distance_transform_edt(~mask) <= radius


def equal_area_radius(mask):
    """Radius of the circle that has the area of `mask`, pixels."""
    return math.sqrt(mask.sum() / math.pi)


# --- snowballs within a group: a departure from the paper --------------------------------------------

def find_in_groups(planes):
    """Find the cores of snowballs in each group of an integration.

    Those of `find_snowballs`, and more in ramps with pixels that saturate within a group. There groups are means of
    frames, and a snowball that lands within one shows there in part and in the next group with the rest. Its core
    may stay below saturation in the mean: today's pipeline flags it DO_NOT_USE, and SATURATED in the next group
    (jwst 1.7.2 does not see it). What is left of the halo in either group may be too thin a ring for a median
    filter. So what was not saturated in all of the group before counts as a jump where it has a rim of jumps (stars
    have none); and cores in which jumps are found again one group earlier or later are cores there too.

    Parameters
    ----------
    planes : ndarray of uint8, shape (ngroups, ny, nx)
        GROUPDQ of the integration.

    Returns
    -------
    list of list of tuple
        For each group as `find_snowballs`; where pixels saturate within a group, also cores that those beside share.
    """
    import numpy as np
    within = np.zeros(planes.shape, bool)
    within[:-1] = (planes[:-1] == DO_NOT_USE) & (planes[1:] == SATURATED)
    if not within.any():
        return [find_snowballs(plane) for plane in planes]
    fresh = within | (planes == SATURATED)
    fresh[1:] &= planes[:-1] != SATURATED
    found = [find_snowballs(plane, with_rim(inside, plane == JUMP_DET))
             for plane, inside in zip(planes, fresh, strict=True)]
    result = []
    for group, plane in enumerate(planes):
        beside = [core for cores in found[max(group - 1, 0):group] + found[group + 1:group + 2] for core, _ in cores]
        shared = jump_again(np.logical_or.reduce(beside), plane) if beside else np.zeros(plane.shape, bool)
        result.append([*found[group], (shared, SHARED_GROWTH)])
    return result


def with_rim(inside, jumps):
    """Keep the connected groups of `inside`, bool (ny, nx), around which most pixels are `jumps`."""
    kept = inside & False
    for box, group in separate(inside, RIM):
        rim = dilate(group, RIM) & ~group
        if 2 * (rim & jumps[box]).sum() > rim.sum():
            kept[box] |= group
    return kept


def jump_again(core, plane):
    """Keep the connected parts of `core`, bool (ny, nx), with enough jumps in the `plane` of another group."""
    kept = core & False
    for box, part in separate(core, 0):
        usable = plane[box][part & (plane[box] & (DO_NOT_USE | SATURATED) == 0)]
        if (usable == JUMP_DET).sum() > SHARED * usable.size:
            kept[box] |= part
    return kept


# --- the catalogue -----------------------------------------------------------------------------------

# Integrations, groups and pixels are counted from 0, snowballs from 1.
COLUMNS = (('snowball', int), ('integration', int), ('group', int), ('x', float), ('y', float),
           ('core_radius', float), ('grown_radius', float), ('pixels', int))


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


def write_catalogue(snowballs, path, history=()):
    """Write the rows of the catalogue as a table that `astropy.table.Table.read` reads with units."""
    from astropy.table import Table
    names, kinds = zip(*COLUMNS, strict=True)
    table = Table(rows=snowballs or None, names=names, dtype=kinds)
    table.meta['comments'] = ['integration, group, x and y are counted from 0; core_radius: circle of the area that'
                              ' was detected; grown_radius: with the growth; pixels: flagged for this area. Areas'
                              ' that overlap, in one group or the next, are one snowball', *history]
    for name in ('x', 'y', 'core_radius', 'grown_radius'):
        table[name].unit, table[name].format = 'pix', '.2f'
    table.write(path, format='ascii.ecsv')


def write_regions(snowballs, path, history=()):
    """Write circles for DS9 around the cores and the flagged areas, labelled with snowball, integration and group.

    Pixels are counted from 1, as DS9 does, integrations and groups from 0, as in the table.
    """
    lines = ['# Region file format: DS9', *(f'# {line}' for line in history), 'global color=cyan', 'image']
    for number, integration, group, x, y, core, grown, _ in snowballs:
        lines += [f'circle({x + 1:.2f},{y + 1:.2f},{core:.2f})',
                  f'circle({x + 1:.2f},{y + 1:.2f},{grown:.2f}) # dash=1 '
                  f'text={{{number}: integration {integration} group {group}}}']
    path.write_text('\n'.join(lines) + '\n')


# --- the pipeline ------------------------------------------------------------------------------------

def find_uncal(name, directory):
    """Path of a raw exposure after checking that it is one, and its number of integrations."""
    path = find_input(name, directory)
    if path.name.endswith('_rate.fits'):
        raise ExposureError('is a rate image: give the raw exposure, _uncal.fits')
    if not path.name.endswith('_uncal.fits'):
        raise ExposureError('is not named <dataset>_uncal.fits')
    with open_exposure(path, 'uncal') as hdul:
        return path, hdul['SCI'].shape[0]


def finished(rate, options):
    """True when the rate image is there and to be left alone; ExposureError when it is not ours to replace."""
    if options.redo or not rate.exists():
        return False
    header = primary_header(rate)
    if not corrected(header, ENTRY):
        raise ExposureError(f'{rate} exists and was not made by this script (--redo replaces it)')
    try:
        check_whole(rate)
    except ExposureError as error:
        raise ExposureError(f'{error} (--redo does)') from None
    other, how = differences(header, asked(options)), 'left alone (--redo makes it again)'
    if other:
        log.warning('%s: was made with the %s: %s', rate.name, other, how)
    else:
        log.info('%s: exists, with grown flags: %s', rate.name, how)
    return True


def of_one_exposure(before, after):
    """True when nothing in two primary headers says that they are not of one exposure."""
    return all(before[key] == after[key] for key in SAME if key in before and key in after)


def asked(options):
    """What HISTORY of a rate image made with these options has: where the parameters come from, in a word."""
    return {'parameters': options.params.name if options.params else 'code defaults'}


@dataclass
class Found:
    """Snowballs of an exposure, filled in while the pipeline runs."""

    rows: list = field(default_factory=list)        # of the catalogue
    fraction: float = 0.                            # of the pixels of all groups: what they flag
    history: list = field(default_factory=list)     # of str: HISTORY of all products


def run_with_grown_flags(path, work, options):
    """Run Detector1 with the grown flags; its products go to the directory `work`; returns `Found`."""
    found, settings = Found(), asked(options)

    def grow_flags(ramp):
        ramp.groupdq, found.rows, found.fraction = flag_snowballs(ramp.groupdq)

    pipeline = make_detector1(options.parameters, grow_flags, lambda model: stamp(model, found, settings))
    if pipeline.jump.skip:
        raise ExposureError(f'{options.params} skips the jump step: there are no flags to grow')
    if options.parameters is not None:
        settings |= changed_parameters(pipeline)
    settings |= {'ramp_fit.maximum_cores': options.maxcores}
    pipeline.save_results, pipeline.save_calibrated_ramp = True, not options.delinterim
    pipeline.output_dir, pipeline.output_file, pipeline.output_ext = str(work), None, '.fits'
    pipeline.ramp_fit.maximum_cores = options.maxcores
    run_detector1(path, pipeline, work / path.name.replace('_uncal.fits', '_detector1.log'))
    return found


def stamp(model, found, settings):
    """Write into a product, in memory, what was done to it: HISTORY, and keywords in the primary header."""
    # Straight into the tree: `model.history` of older datamodels edits another one, which is not saved.
    entries = model.instance.setdefault('history', {}).setdefault('entries', [])
    if any(ENTRY in str(entry) for entry in entries):
        return
    if not found.history:
        found.history = history_lines(ENTRY, SCRIPT, model.meta.ref_file.crds.context_used, settings)
    entries += found.history
    primary = model.instance.setdefault('extra_fits', {}).setdefault('PRIMARY', {})
    primary.setdefault('header', []).extend([
        ['SNOWNUM', count_snowballs(found.rows), 'snowballs found'],
        ['SNOWFRAC', round(found.fraction, 9), 'fraction of pixels x groups that they flag']])


def remove_interim(directory, dataset, integrations):
    """Remove the interim products of an exposure, if they are there."""
    for path in interim_files(directory, dataset, integrations):
        path.unlink(missing_ok=True)


def interim_files(directory, dataset, integrations):
    """Paths of the interim products of an exposure; the rates of several integrations are not, and stay."""
    return [directory / f'{dataset}_{kind}.fits' for kind in INTERIM if kind != 'rateints' or integrations == 1]


# --- the command line --------------------------------------------------------------------------------

def build_parser():
    """The command line; its defaults are the settings at the top."""
    parser = new_parser(__doc__, 'uncals', 'raw exposure')
    add_shared(parser, 'UNCALDIR', UNCALDIR, OUTPUTDIR,
               'make the rate image again from the raw exposure')
    add_setting(parser, '--maxcores', 'MAXCORES', MAXCORES, choice('none', 'quarter', 'half', 'all'),
                'processes for the ramp fit; overrides the parameter file')
    add_setting(parser, '--delinterim', 'DELINTERIM', DELINTERIM, SWITCH,
               'do not keep the interim products: _ramp, _trapsfilled, and the _rateints of a single integration')
    add_setting(parser, '--params', 'PARAMFILE', PARAMFILE, FILE_OR_NONE,
                'parameter file of Detector1; None: the defaults in its code')
    return parser


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    start_log(options.verbose)
    try:
        options.parameters = read_parameters(options.params) if options.params else None
    except ExposureError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted\n')
    return run_each(options.uncals, process, options)


if __name__ == '__main__':
    sys.exit(main())
