"""Score both methods of the corrections against the truth of simulated exposures, and write docs/accuracy.md.

The tables: 1/f striping by `dr05`, `adaptive` and jwst's own `clean_flicker_noise` on the same rate images; the same
of weak, usual and strong stripes and of measured noise; what faint sources lose with the stripes; wisp scales by `dr05`
and `adaptive`; the same of wisps whose shape varies (components of the package nmfwisp); snowball flags by
snowball_wrapper.py and jwst's own `expand_large_events` on the same ramps; fields full of light, photographs among
them, and random light. The figures are free of pixel noise: what
was taken out is compared with what was put in. Rates are in 1e-3 DN/s, flux biases in units of the probe's flux.

Examples
--------
    python tests/measure/accuracy.py
    python tests/measure/accuracy.py --dry_run --only wisps --seeds 10
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import common
import simulation
from simulation import AMPS, JUMP_DET, SATURATED, WISP_WINDOWS

import numpy as np

BLOCK = 32                                       # pixels, side of the blocks of `block_rms`
APERTURE = 5                                     # pixels, radius of the aperture at the probes
WISP_FLOOR = 0.01                                # DN/s of the unit wisp: where a residual counts as in the wisp
JUMP_SIZES = ((0.5, 1), (1, 3), (3, 10), (10, np.inf))  # sigma of a group difference


# --- striping: images are (ny, nx) in DN/s; `truth` is a simulation.Truth, `good` is True where a pixel counts ---

def left_over(truth, before, after, good):
    """Pattern that is left in a corrected rate image: (injected pattern) - (before - after).

    NaN where a pixel is not good, not finite in either image, or zero after the correction.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    defined = good & np.isfinite(before) & np.isfinite(after) & (after != 0)
    return np.where(defined, truth.pattern - (before - after), np.nan)


def amp_row_rms(left):
    """Rms over all amp-rows of their mean."""
    return rms(np.concatenate([mean(left[:, amp], axis=1) for amp in AMPS]))


def column_rms(left):
    """Rms over the columns of their mean."""
    return rms(mean(left, axis=0))


def block_rms(left, size=BLOCK):
    """Rms of the means over blocks of `size` x `size` pixels."""
    return rms(block_means(left, size))


def flux_bias(left, probes, radius=APERTURE):
    """Mean over the probes of the change of their aperture sum, in units of their flux."""
    y, x = np.ogrid[:left.shape[0], :left.shape[1]]
    reach, changes = radius + 1, []
    for probe in probes:
        column, row = round(float(probe['x'])), round(float(probe['y']))
        box = np.s_[max(row - reach, 0):row + reach + 1, max(column - reach, 0):column + reach + 1]
        r2 = (x[:, box[1]] - probe['x'])**2 + (y[box[0]] - probe['y'])**2
        changes.append(np.nansum(left[box][r2 <= radius**2]) / probe['flux'])
    return float(np.mean(changes)) if changes else np.nan


def pixels_lost(before, after, good, dq):
    """Number of good pixels that are zero, not finite, or newly DO_NOT_USE in the corrected image."""
    lost = ~np.isfinite(after) | (np.asarray(after) == 0) | (dq & 1 > 0)
    return int(np.count_nonzero(lost & good & np.isfinite(before) & (before != 0)))


def score_striping(truth, before, after, good, dq):
    """All figures of the striping benchmark, {name: value}; `dq` are the flags after the correction."""
    left = left_over(truth, before, after, good)
    sky = truth.blank & np.isfinite(left)
    if not sky.any():               # light covers the whole frame: its darkest tenth stands for the sky
        sky = np.isfinite(left) & (truth.source <= np.quantile(truth.source[good], 0.1))
    level = float(np.nanmean(left[sky]))
    flat = left - level
    near = truth.probes['host'] >= 0
    return {'level': 1e3 * level, 'amp-row': 1e3 * amp_row_rms(flat), 'column': 1e3 * column_rms(flat),
            'block32': 1e3 * block_rms(flat), 'near': 1e3 * float(np.nanmean(left[truth.near])),
            'flux near': flux_bias(left, truth.probes[near]), 'flux far': flux_bias(left, truth.probes[~near]),
            'lost': pixels_lost(before, after, good, dq)}


def mean(values, axis):
    """Mean without NaN along an axis; NaN where there is nothing else."""
    number = np.isfinite(values).sum(axis)
    return np.where(number > 0, np.nansum(values, axis) / np.maximum(number, 1), np.nan)


def block_means(image, size):
    """Means without NaN over blocks of `size` x `size` pixels; the image is cut to whole blocks."""
    ny, nx = (n // size for n in image.shape)
    return mean(image[:ny * size, :nx * size].reshape(ny, size, nx, size), (1, 3))


def rms(values):
    """Root mean square without NaN."""
    return float(np.sqrt(np.nanmean(values**2)))


# --- wisps and snowballs -----------------------------------------------------------------------------

def wisp_pixels(truth, good):
    """The good pixels in which the unit wisp exceeds `WISP_FLOOR`, bool (ny, nx)."""
    inside = np.zeros_like(good)
    inside[WISP_WINDOWS[truth.detector]] = True
    return inside & good & (truth.wisp_unit > WISP_FLOOR)


def score_wisp(truth, removed, good):
    """Rms in the wisp of what is left when `removed` was subtracted (0: before the correction), 1e-3 DN/s."""
    return 1e3 * rms((truth.wisp_light - removed)[wisp_pixels(truth, good)])


def best_single(truth, template, good):
    """One template (ny, nx) at the scale that is best for the wisp when the truth is known, DN/s, flat-fielded."""
    pixels = wisp_pixels(truth, good)
    wisp, shape = (image[pixels].astype(float) for image in (truth.wisp_scale * truth.wisp_unit, template))
    return (wisp @ shape) / (shape @ shape) * template


def score_snowballs(truth, groupdq, later=0, reach=1.5):
    """Fraction of pixel-groups flagged near snowballs, {size: fraction} for the `JUMP_SIZES`.

    `groupdq` is (nints, ngroups, ny, nx); `later` is 0 for the group that first shows a snowball, 1 for the next, where
    the rest of those arrives that land within a group; up to `reach` radii of its halo belong to a snowball.
    """
    jumps = truth.jumps
    size = np.abs(jumps['dn']) / truth.sigma
    ours = np.zeros(len(jumps), bool)
    for ball in truth.snowballs:
        group = ball['group'] + later
        if not simulation.share_of(group, ball['frame'], truth.readout):
            continue
        ours |= ((jumps['integration'] == ball['integration']) & (jumps['group'] == group)
                 & (np.hypot(jumps['x'] - ball['x'], jumps['y'] - ball['y']) <= reach * ball['halo']))
    flags = groupdq[jumps['integration'], jumps['group'], jumps['y'], jumps['x']]
    flagged = flags & (JUMP_DET | SATURATED) > 0
    return {(low, high): float(flagged[ours & (size >= low) & (size < high)].mean()) for low, high in JUMP_SIZES}


# --- the tables --------------------------------------------------------------------------------------

FIELDS = {'ordinary': {}, 'crowded, x 4': {'crowd': 4}, 'big galaxy': {'big': True},
          'long wavelength': {'detector': 'NRCALONG', 'filter_': 'F444W'}}
# 1/f noise: rms of the rows of amplifiers, DN/s (4e-3 in the fields above), that with offsets of whole amplifiers
# besides, and as measured on darks, also as strong as with 5 groups of 4 frames; columns of 0.3 of it
NOISE = {'0.5e-3 DN/s': {'noise': 0.5e-3, 'columns': 0.15e-3}, '1e-3 DN/s': {'noise': 1e-3, 'columns': 0.3e-3},
         '4e-3 DN/s': {'noise': 4e-3}, '20e-3 DN/s': {'noise': 20e-3, 'columns': 6e-3},
         'offsets of 5e-3 DN/s': {'offsets': 5e-3},
         'measured, A3': {'noise': 'measured', 'columns': 0.15e-3},
         'measured, A3, x 11': {'noise': 'measured', 'strength': 11., 'columns': 1.65e-3},
         'measured, B1': {'noise': 'measured', 'columns': 0.2e-3, 'detector': 'NRCB1'}}
FAINT_FIELDS = '4e-3 DN/s', '20e-3 DN/s', 'measured, A3', 'measured, B1'
FAINT_SIZES = (2, 5, 12, 30)                     # pixels, FWHM of sources that are too faint to be masked
FAINT_PEAK = 0.02                                # DN/s at FWHM 1; falls as FWHM^-1.5, as what can be seen does
RANDOM_LIGHT = (3e-3, 10e-3, 20e-3)              # DN/s, rms of light without a smooth place in the frame
RANDOM_LEVELS = (2e-3, 3e-3, 5e-3, 10e-3, 15e-3, 20e-3, 30e-3, 50e-3)
RANDOM_SIZES = (20, 40, 80)                      # pixels, over which it is smooth
WISP_SCALES = (0., 0.2, 0.6, 1., 1.5, 2.)
WISP_FILTERS = ('F150W', 'F200W')
WISP_FIELDS = {'x 0.5': {'crowd': 0.5}, 'x 1': {}, 'x 4': {'crowd': 4}, 'big galaxy': {'big': True}}

COMPONENT_FILTERS = ('F115W', 'F150W', 'F200W')
# wisps of varying shape: what one template leaves at best, and what is to be left at most, 1e-3 DN/s rms
COMPONENT_LEVELS = {'none': (0., 0.), 'faint': (1.2, 0.41), 'middle': (2., 0.36), 'bright': (3.4, 0.59)}


def striping(seeds, fields=FIELDS):
    """Mean scores of each method in each field."""
    rows = []
    for field, options in fields.items():
        methods = {'before': no_change, '`dr05`, threshold 0.8': destripe('dr05', 0.8)}
        if options.get('big'):
            methods['`dr05`, threshold 0.15'] = destripe('dr05', 0.15)
        methods['`adaptive`'] = destripe('adaptive', 0.8)
        methods |= steps()
        scenes = [simulation.rate_scene(seed=seed, **options) for seed in seeds]
        for method, function in methods.items():
            scores = [score_striping(scene, scene.sci, *function(scene)) for scene in scenes]
            means = {name: np.mean([score[name] for score in scores]) for name in scores[0]}
            lost = means.pop('lost')
            rows.append((field, method, *(f'{value:.3f}' for value in means.values()), f'{lost:.0f}'))
    return common.table(('field', 'method', 'level of the sky', 'rows of amplifiers', 'columns', '32 x 32 blocks',
                         'near galaxies', 'flux near galaxies', 'flux elsewhere', 'pixels lost'), rows)


def faint_sources(seeds):
    """Part of their flux, %, that sources lose which are too faint to be masked, by stripes, method and size."""
    cells = list(product(FAINT_FIELDS, seeds))
    with ProcessPoolExecutor() as pool:
        losses = dict(zip(cells, pool.map(flux_lost, cells), strict=True))
    rows = [(field, method, *(f'{100 * np.mean([losses[field, seed][method][size] for seed in seeds]):.1f}'
                              for size in FAINT_SIZES))
            for field in FAINT_FIELDS for method in losses[cells[0]]]
    return common.table(('stripes', 'method', *(f'FWHM {size} pixels' for size in FAINT_SIZES)), rows)


def flux_lost(cell):
    """Part of their flux that goes with the stripes when faint sources are added to a scene, {method: {size: part}}."""
    from scipy import ndimage
    field, seed = cell
    scene = simulation.rate_scene(seed=seed, **NOISE[field])
    methods = {'`dr05`, threshold 0.8': destripe('dr05', 0.8), '`adaptive`': destripe('adaptive', 0.8),
               '`adaptive`, `--no-within_rows`': destripe('adaptive', 0.8, within=False)}
    taken = {method: scene.sci - correct(scene)[0] for method, correct in methods.items()}
    lost = {method: {} for method in methods}
    for size in FAINT_SIZES:
        rng, points = np.random.default_rng([seed, size]), np.zeros(scene.sci.shape, np.float32)
        points[tuple(rng.integers(4, n - 4, 2000 // size + 20) for n in points.shape)] = 1
        sources = ndimage.gaussian_filter(points, size / 2.355, mode='constant')
        sources *= FAINT_PEAK * size**0.5 * 2 * np.pi / 2.355**2
        inside = (ndimage.distance_transform_edt(points == 0) <= 1.2 * size) & scene.good
        more = replace(scene, sci=scene.sci + sources * scene.flat)
        for method, correct in methods.items():
            change = more.sci - correct(more)[0] - taken[method]
            lost[method][size] = np.nansum(change[inside]) / sources[inside].sum()
    return lost


def no_change(scene):
    """The scene as it is."""
    return scene.sci, scene.good, scene.dq


def destripe(method, thresh, **more):
    """Function from a full frame to (corrected image, pixels to count, flags) by a method of remstriping.py."""
    import remstriping
    from stage1.exposure import AMPLIFIERS, reading_directions

    def correct(scene):
        flat = scene.sci / scene.flat
        directions = reading_directions(simulation.reading_axes(scene.detector), len(AMPLIFIERS))
        options = more if method == 'dr05' else more | {'directions': directions}
        found = remstriping.METHODS[method](scene.sci, scene.err, scene.dq, flat, thresh, **options)
        sci, dq = remstriping.subtract_striping(scene.sci, scene.dq, found.horizontal, found.vertical)
        return sci, scene.good, dq

    return correct


def steps():
    """The step clean_flicker_noise with its best setting and with its own choice; nothing in jwst 1.7.2."""
    if importlib.util.find_spec('jwst.clean_flicker_noise') is None:
        return {}
    best = flicker_noise(fit_by_channel=True, background_method='model')
    return {'`clean_flicker_noise`, per amplifier, model': best,
            '`clean_flicker_noise`, `autoparam`': flicker_noise(autoparam=True)}


def flicker_noise(**parameters):
    """The same as `destripe` by the step clean_flicker_noise of the pipeline."""
    def correct(scene):
        from stage1.pipeline_log import Listener
        with tempfile.TemporaryDirectory() as directory, Listener('accuracy').listening():
            os.environ |= simulation.crds_environment(
                simulation.write_crds_cache(directory, [scene.detector], [scene.filter_]))
            from jwst.clean_flicker_noise import CleanFlickerNoiseStep
            step = CleanFlickerNoiseStep(skip=False, apply_flat_field=True, **parameters)
            step.override_flat = str(next(Path(directory).rglob('*flat*.fits')))
            with step.run(str(simulation.write_rate(scene, Path(directory) / 'scene_rate.fits'))) as result:
                return np.array(result.data), scene.good, scene.dq

    return correct


def wisps(seeds):
    """Error of the fitted scale by injected scale, field, detector and filter; pulls of the error bars."""
    grid = product(WISP_SCALES, WISP_FIELDS, sorted(WISP_WINDOWS))
    cells = [(wisp, field, detector, WISP_FILTERS[(number + seed) % len(WISP_FILTERS)], 1000 * seed + number)
             for number, (wisp, field, detector) in enumerate(grid) for seed in seeds]
    with ProcessPoolExecutor() as pool:
        fits = list(pool.map(fit_wisp, cells))
    fits = np.array([(*cell[:4], *fit) for cell, fit in zip(cells, fits, strict=True)],
                    dtype=[('wisp', float), *((name, 'U20') for name in ('field', 'detector', 'filter')),
                           ('old', float), ('new', float), ('error', float), ('warned', bool)])
    parts = {f'{name} {value}': fits[fits[name] == value]
             for name in ('wisp', 'field', 'detector', 'filter') for value in dict.fromkeys(fits[name])}
    return common.table(('', 'scenes', '`dr05`: mean error', 'rms', '`adaptive`: mean error', 'rms', 'worst', 'pulls',
                         'warned'), [wisp_row(name, part) for name, part in (parts | {'all': fits}).items()])


def fit_wisp(cell):
    """Fitted minus injected scale by dr05 and adaptive, error bar of the latter, and whether it warned."""
    import wispsub
    wisp, field, detector, filter_, seed = cell
    scene = simulation.rate_scene(detector, filter_, seed=seed, wisp=wisp, **WISP_FIELDS[field])
    sci = scene.sci / scene.flat
    data = sci, scene.err, scene.dq, scene.template[None], np.isnan(scene.sci), WISP_WINDOWS[detector]
    old, new = wispsub.fit_dr05(*data), wispsub.fit_adaptive(*data)
    return old.scale - wisp, new.scale - wisp, new.error, bool(new.warning)


def wisp_row(name, part):
    """One row of the table of wisps; pulls of scales above 0, which are not clipped."""
    pulls = (part['new'] / part['error'])[part['wisp'] > 0]
    figures = (part['old'].mean(), rms(part['old']), part['new'].mean(), rms(part['new']), np.abs(part['new']).max())
    return (name, len(part), *(f'{value:.3f}' for value in figures), f'{pulls.std():.2f}' if pulls.size > 1 else '',
            part['warned'].sum())


def varying_wisps(seeds):
    """What is left of wisps whose shape varies, made of components measured on flight data."""
    rows = []
    components = {filter_: simulation.wisp_components(filter_)[1] for filter_ in COMPONENT_FILTERS}
    for name, (level, aim) in COMPONENT_LEVELS.items():
        scores = [score_components(planes, filter_, seed, level)
                  for filter_, planes in components.items() for seed in seeds]
        figures = *np.mean(scores, axis=0), np.max(scores, axis=0)[-1], aim
        rows.append((name, len(scores), *(f'{value:.2f}' for value in figures)))
    return common.table(('wisp', 'scenes', 'before', 'best single template', '`dr05`', '`adaptive`', 'worst', 'aim'),
                        rows)


def score_components(components, filter_, seed, level):
    """Score one wisp of varying shape, a random sum of `components` (n, ny, nx), DN/s.

    `level` is what the mean of the components leaves of the wisp at best, 1e-3 DN/s rms: this sets its scale; 0 = no
    wisp. Returns the rms in the wisp (without one: of what was subtracted) as it is, with the mean at its best scale,
    with that mean and the scale of dr05, and with the components and the adaptive fit.
    """
    import wispsub
    unit, mean = simulation.varied_wisp(components, seed), components.mean(axis=0)

    def left(scene, light):
        return score_wisp(scene, light * scene.flat, scene.good)

    scene = simulation.rate_scene('NRCB4', filter_, seed, wisp=1., template=unit)
    best = best_single(scene, mean, scene.good)
    scale = level / left(scene, best)
    scene = simulation.rate_scene('NRCB4', filter_, seed, wisp=scale, template=unit)
    sci = scene.sci / scene.flat
    # dr05 tries scales to 1.19: its template is such that it needs 0.8
    template = best * np.float32((scale or 1) / 0.8)
    where = np.isnan(scene.sci), WISP_WINDOWS['NRCB4']
    old = wispsub.fit_dr05(sci, scene.err, scene.dq, template[None], *where)
    new = wispsub.fit_adaptive(sci, scene.err, scene.dq, components, *where)
    return tuple(left(scene, light)
                 for light in (0 * unit, scale * best, old.scale * template, new.scale * new.template))


def snowballs(_):
    """Flags by size of the true jump, with the jump step's own and ours on the same ramp."""
    import snowball_wrapper
    from stage1.pipeline_log import Listener
    with tempfile.TemporaryDirectory() as directory:
        paths = simulation.write_exposure(directory, groups=9, snowballs=24)
        os.environ |= simulation.crds_environment(paths['cache'])
        truth = simulation.load_truth(paths['truth'])
        with Listener('accuracy').listening():
            alone, own = (jump_flags(str(paths['exposure']), expand) for expand in (False, True))
    flags = {'jump step alone': alone, 'jump step and `snowball_wrapper.py`': snowball_wrapper.flag_snowballs(alone)[0],
             'jump step with its `expand_large_events`': own}
    true = np.zeros(alone.shape, bool)           # above 0.1 sigma
    true[tuple(truth.jumps[name] for name in ('integration', 'group', 'y', 'x'))] = True
    rows = []
    for name, groupdq in flags.items():
        false = np.count_nonzero((groupdq & JUMP_DET > 0) & ~true)
        for later, label, elsewhere in ((0, name, false), (1, 'next group', '')):
            scores = score_snowballs(truth, groupdq, later).values()
            rows.append((label, *(f'{100 * part:.1f}' for part in scores), elsewhere))
    return common.table(('% flagged of jumps of', *(f'{size_range(*size)} sigma' for size in JUMP_SIZES),
                         'pixel-groups flagged elsewhere'), rows)


def size_range(low, high):
    """'1-3' or '> 10'."""
    return f'{low:g}-{high:g}' if np.isfinite(high) else f'> {low:g}'


def jump_flags(path, expand):
    """GROUPDQ after the jump step of Detector1, with its own snowball detection or without."""
    from jwst.pipeline import Detector1Pipeline
    pipeline, kept = Detector1Pipeline(), []
    if expand:
        pipeline.jump.expand_large_events = True
    run = pipeline.jump.run

    def keep(*arguments):
        model = run(*arguments)
        kept.append(model.groupdq.copy())
        return model

    pipeline.jump.run = keep
    pipeline.run(path)
    return kept[0]


def full_of_light(directory):
    """Both methods where light fills the frame, and whether the harm warning says so.

    Parameters
    ----------
    directory : Path or None
        Photographs, see photographs.py; None: only the fields that need none.
    """
    import photographs
    from stage1.striping_harm import harm
    scenes = {'Hubble Deep Field': lambda: photographs.hubble_scene(seed=5)}
    for level in RANDOM_LIGHT:
        scenes[f'random light, {1e3 * level:g}e-3 DN/s'] = partial(photographs.random_scene, level, seed=6)
    for number, (name, pieces) in enumerate(photographs.SCENES.items() if directory else ()):
        scenes[name] = partial(photographs.photograph_scene, directory, pieces, seed=11 + number)
    methods = {'before': no_change, '`dr05`': destripe('dr05', 0.8), '`adaptive`': destripe('adaptive', 0.8)} | steps()
    rows = []
    for field, make in scenes.items():
        scene = make()
        read_noise = float(np.sqrt(np.median(scene.var_rnoise[scene.var_rnoise > 0])))
        for method, function in methods.items():
            sci, good, dq = function(scene)
            scores = score_striping(scene, scene.sci, sci, good, dq)
            ours = method in ('`dr05`', '`adaptive`')
            warned = ours and harm(scene.sci - sci, scene.sci / scene.flat, scene.dq != 0, AMPS, read_noise)
            rows.append((field, method, *(f'{scores[name]:.2f}' for name in ('amp-row', 'column', 'block32', 'near')),
                         f"{scores['lost']:.0f}", 'yes' if warned else ''))
    return common.table(('field', 'method', 'rows of amplifiers', 'columns', '32 x 32 blocks', 'near galaxies',
                         'pixels lost', 'warned'), rows)


def random_light(seeds):
    """What `adaptive` leaves of what was there before, mean and most, where light has no smooth place."""
    cells = list(product(RANDOM_LEVELS, RANDOM_SIZES, seeds))
    with ProcessPoolExecutor() as pool:
        parts = np.array(list(pool.map(part_left, cells))).reshape(len(RANDOM_LEVELS), -1, 3)
    rows = [(f'{1e3 * level:g}e-3 DN/s', *(f'{figure:.2f}' for figure in (*part.mean(axis=0), *part.max(axis=0))))
            for level, part in zip(RANDOM_LEVELS, parts, strict=True)]
    names = 'rows of amplifiers', 'columns', '32 x 32 blocks'
    return common.table(('light', *names, *(f'{name}, most' for name in names)), rows)


def part_left(cell):
    """What `adaptive` leaves of amp-rows, columns and blocks in random light of a (level, size, seed)."""
    import photographs
    level, size, seed = cell
    scene = photographs.random_scene(level, size, seed=100 * seed + round(1e3 * level) + size)
    methods = destripe('adaptive', 0.8), no_change
    after, before = (score_striping(scene, scene.sci, *method(scene)) for method in methods)
    return [after[name] / before[name] for name in ('amp-row', 'column', 'block32')]


TABLES = {'striping': striping, 'stripes of all strengths': partial(striping, fields=NOISE),
          'faint sources': faint_sources, 'wisps': wisps,
          'wisps of varying shape': varying_wisps, 'snowballs': snowballs, 'fields full of light': full_of_light,
          'random light': random_light}


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=TABLES, help='one of the tables')
    parser.add_argument('--seeds', type=int, default=2, help='scenes of each kind (%(default)s)')
    parser.add_argument('--photographs', type=Path, metavar='DIR',
                        help='of galaxies and nebulae, for fields full of light (Debian: stellarium-data)')
    parser.add_argument('--dry_run', action='store_true', help='show the tables, leave docs/accuracy.md alone')
    options = parser.parse_args(argv)
    names = [options.only] if options.only else list(TABLES)
    for name in names:
        common.find_block('accuracy', name)
    for name in names:
        seeds = range(1, options.seeds + 1)
        text = TABLES[name](options.photographs if name == 'fields full of light' else seeds)
        common.say(f'{name}\n\n{text}')
        if not options.dry_run and (options.photographs or name != 'fields full of light'):     # else rows are missing
            common.write_block('accuracy', name, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
