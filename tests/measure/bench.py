"""Measure what the corrections cost, compare it with the aims, and write docs/cost.md.

Times are medians of several runs, alternating between the commands that are compared; peak memory and core-seconds
are what the operating system accounted to each process. The slow, obvious forms are those that the tests compare
with. The simulated exposures, and a CRDS cache for them, are made in bench/. The tables are written when all of them
have been measured; with --only or --dry_run they are only shown.

Examples
--------
    python tests/measure/bench.py
    python tests/measure/bench.py --only striping --runs 9
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import common
import simulation
from common import ROOT

import numpy as np

GROUPS = (3, 5, 7, 9)
STRIP = 256                     # rows on which the slow ring median is timed; scaled to all rows
NAME = 'jw01345001001_10201_{:05d}_nrca3'
UNCAL = f'groups{{}}/{NAME.format(1)}_uncal.fits'
INTERIM = ('_ramp', '_rateints')

# What a script cannot do without: read, flat-field and write the same file, with the same imports.
FLOOR = """
import sys
sys.path.insert(0, {root!r})
import {script}
import numpy, scipy.ndimage, tqdm, {imports}
from pathlib import Path
from astropy.io import fits
from stage1.pipeline import flat_field
path, target = map(Path, sys.argv[1:])
with fits.open(path, memmap=False) as hdul:
    flat_field(path)
    hdul['SCI'].data = hdul['SCI'].data * 1
    hdul.writeto(target, overwrite=True)
"""
IMPORTS = {'wispsub': 'photutils.background, astropy.stats, matplotlib.backends.backend_pdf',
           'remstriping': 'scipy.fft, scipy.optimize, astropy.stats, numba'}

# The same pipeline without the growth of flags, saving the same products.
PLAIN = """
import sys
from jwst.pipeline import Detector1Pipeline
pipeline = Detector1Pipeline()
pipeline.save_results = pipeline.save_calibrated_ramp = True
pipeline.output_dir = sys.argv[2]
pipeline.run(sys.argv[1])
"""

# The commands of a batch one by one
APART = """
import subprocess, sys
for step in 'detector1_and_snowballs', 'wisp_subtraction', 'remstriping':
    subprocess.run(['bash', '-e', f'{sys.argv[2]}/{step}.run'], cwd=sys.argv[1], check=True)
"""

# Runs a command and prints its time, core-seconds and peak memory. A small process of its own, because the memory of
# the one that starts another counts in the peak of that.
LAUNCHER = """
import resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
took, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode:
    sys.exit(done.stderr)
print(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1024**2 if sys.platform == 'darwin' else 1024))
"""


class Cost(NamedTuple):
    """What a command takes: medians of time and core-seconds, the largest peak memory, and what it wrote."""

    seconds: float
    core_seconds: float
    megabytes: float
    products: dict              # ending of the name: MB


class Bench:
    """What has been measured so far, and the directory with what is measured."""

    def __init__(self, directory, runs):
        self.directory, self.runs = directory, runs
        self.rows, self.steps = [], {}      # of the tables; steps: {command: Cost}
        self.environment = os.environ | simulation.crds_environment(directory / 'crds_cache')
        self.environment['PATH'] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment.pop('OMP_NUM_THREADS', None)       # as a user starts a script
        self.rates = self.prepare()

    def prepare(self):
        """Simulate raw exposures with a full CRDS cache, templates, and ten rate images; returns those."""
        simulation.write_crds_cache(self.directory / 'crds_cache', groups=GROUPS[-1])
        simulation.write_templates(self.directory / 'wisps')
        for groups in GROUPS:
            path = self.directory / UNCAL.format(groups)
            if not path.exists():
                simulation.write_uncal(*simulation.exposure(groups=groups, wisp=0.6), path)
        rates = [self.directory / 'rates' / f'{NAME.format(number)}_rate.fits' for number in range(1, 11)]
        for seed, path in enumerate(rates, 1):
            if not path.exists():
                simulation.write_rate(simulation.rate_scene(seed=seed, wisp=0.6), path)
        return rates

    def row(self, what, measured, **aims):
        """Add a row to the table of costs and show it; `aims` are {text: is it met?}."""
        verdict = 'PASS' if all(aims.values()) else 'miss'
        self.rows.append((what, measured, ', '.join(aims), verdict))
        common.say(' | '.join(self.rows[-1]))

    def faster(self, what, slow, fast, aim):
        """Add a row that compares a slow and a fast form, each as (seconds, result)."""
        same = np.array_equal(fast[1], slow[1], equal_nan=fast[1].dtype.kind == 'f')
        ratio = slow[0] / fast[0]
        self.row(what, f"{slow[0]:.1f} / {fast[0]:.2f} s = {ratio:.0f} times faster, "
                       f"{'identical' if same else 'DIFFERENT'}", **{f'>= {aim}': ratio >= aim, 'identical': same})

    def run(self, *commands, runs=None, **environment):
        """`Cost` of each command (a tuple), run in turn, each time with `out` empty; products are those of the last.

        `environment` are variables besides those of `self.environment`.
        """
        costs, out = [[] for _ in commands], self.directory / 'out'
        for _ in range(runs or self.runs):
            for command, cost in zip(commands, costs, strict=True):
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                os.sync()       # what the run before has left to write is not this one's
                done = subprocess.run([sys.executable, '-c', LAUNCHER, sys.executable, *map(str, command)],
                                      cwd=self.directory, env=self.environment | environment, capture_output=True,
                                      text=True)
                if done.returncode:
                    raise SystemExit(f"failed: {' '.join(map(str, command))}\n{done.stderr}")
                cost.append([float(word) for word in done.stdout.split()])
        products = {path.stem.removeprefix(NAME.format(1)): path.stat().st_size / 1e6 for path in out.iterdir()}
        return [Cost(statistics.median(seconds), statistics.median(core_seconds), max(megabytes), products)
                for seconds, core_seconds, megabytes in (zip(*cost, strict=True) for cost in costs)]


def timed(function, *arguments, runs=3):
    """Median time [s] of a call, and what it returns."""
    times = []
    for _ in range(runs):
        start = perf_counter()
        result = function(*arguments)
        times.append(perf_counter() - start)
    return statistics.median(times), result


def bench_help(bench):
    """Time to the help text."""
    for script in ('snowball_wrapper.py', 'wispsub.py', 'remstriping.py'):
        cost, = bench.run((ROOT / script, '--help'))
        bench.row(f'`{script} --help`', f'{cost.seconds:.2f} s', **{'<= 0.3 s': cost.seconds <= 0.3})


def bench_snowballs(bench):
    """The mask alone, on the flags of the exposure's groups, and the whole wrapper."""
    import slow_snowballs
    import snowball_wrapper

    from astropy.io import fits
    uncal = UNCAL.format(GROUPS[-1])
    plain, ours = bench.run(('-c', PLAIN, uncal, 'out'), (ROOT / 'snowball_wrapper.py', '--output_dir', 'out', uncal))
    time, memory = ours.seconds / plain.seconds, ours.megabytes / plain.megabytes
    bench.row('whole `snowball_wrapper.py` / plain Detector1',
              f'{ours.seconds:.1f} / {plain.seconds:.1f} s = {time:.2f}, '
              f'{ours.megabytes:.0f} / {plain.megabytes:.0f} MB = {memory:.2f}',
              **{'<= 0.95': time <= 0.95, '<= 1.05': memory <= 1.05})
    groupdq = fits.getdata(bench.directory / 'out' / f'{NAME.format(1)}_ramp.fits', 'GROUPDQ')
    bench.faster(f'snowball flags of {GROUPS[-1]} group planes / rank filter and dilation of scipy',
                 timed(slow_snowballs.flag_snowballs, groupdq, runs=1),
                 timed(lambda flags: snowball_wrapper.flag_snowballs(flags)[0], groupdq), 200)


def bench_striping(bench):
    """Ring median and source mask against their slow forms, and the whole script."""
    import remstriping
    import slow_striping

    from astropy.io import fits
    sci, err = (fits.getdata(bench.rates[0], name).astype(np.float32) for name in ('SCI', 'ERR'))
    ring = remstriping.RING_RADIUS, remstriping.RING_WIDTH
    remstriping.ring_median(sci[:STRIP], *ring)    # compile
    inner = slice(0, STRIP - 60)            # beyond, the strip's own border is reflected
    fast, median = timed(remstriping.ring_median, sci, *ring)
    slow, reference = timed(slow_striping.ring_median, sci[:STRIP], runs=1)
    bench.faster(f'ring median / scipy (on {STRIP} rows, scaled)',
                 (slow * sci.shape[0] / STRIP, reference[inner]), (fast, median[inner]), 15)
    bench.faster('source mask of `remstriping.py` / astropy and photutils',
                 timed(slow_striping.source_mask, sci, err, runs=1), timed(remstriping.source_mask, sci, err), 10)
    whole_script(bench, 'remstriping', (), ratio=2.5, megabytes=800, ten=0.85)
    adaptive, = bench.run((ROOT / 'remstriping.py', '--method', 'adaptive', '--output_dir', 'out', bench.rates[0]),
                          runs=3, OMP_NUM_THREADS='1')      # as a batch starts it
    bench.row('whole `remstriping.py --method adaptive`, one thread',
              f'{adaptive.seconds:.1f} s, peak {adaptive.megabytes:.0f} MB',
              **{'<= 12 s': adaptive.seconds <= 12, '<= 900 MB': adaptive.megabytes <= 900})


def bench_wisps(bench):
    """The 60 trial scales against the plain loop, and the whole script."""
    import slow_wisps
    import wispsub

    from astropy.io import fits
    window = wispsub.WINDOWS['NRCA3']
    image = np.nan_to_num(fits.getdata(bench.rates[0], 'SCI').astype(np.float32))[window]
    template = simulation.wisp_shape('NRCA3', 'F200W')[window]
    slow, deviations = timed(slow_wisps.median_absolute_deviations, image, template, wispsub.SCALES, runs=1)
    fast, (_, variances, _) = timed(wispsub.fit_scale, image, template, wispsub.SCALES, runs=3)
    bench.faster('60 trial scales / plain loop', (slow, np.square(deviations)), (fast, variances), 5)
    whole_script(bench, 'wispsub', ('--fit_scaling', '--wisp_dir', 'wisps'), ratio=2, megabytes=500, ten=0.65)


def whole_script(bench, script, options, ratio, megabytes, ten):
    """One file against the floor, and ten files in one call against ten calls; the numbers are the aims."""
    command = (ROOT / f'{script}.py', *options, '--output_dir', 'out')
    floor_code = FLOOR.format(root=str(ROOT), script=script, imports=IMPORTS[script])
    bench.run((*command, bench.rates[0]), runs=1)       # caches
    floor, one = bench.run(('-c', floor_code, bench.rates[0], 'floor.fits'), (*command, bench.rates[0]))
    bench.steps[f'`{script}.py`'] = one
    bench.row(f'whole `{script}.py` / reading, flat-fielding and writing the same file',
              f'{one.seconds:.1f} / {floor.seconds:.1f} s = {one.seconds / floor.seconds:.2f}, '
              f'peak {one.megabytes:.0f} MB (without: {floor.megabytes:.0f})',
              **{f'<= {ratio}': one.seconds / floor.seconds <= ratio,
                 f'<= {megabytes} MB': one.megabytes <= megabytes})
    together, = bench.run((*command, *bench.rates), runs=1)
    apart = sum(cost.seconds for cost in bench.run(*((*command, rate) for rate in bench.rates), runs=1))
    bench.row(f'`{script}.py`: ten files in one call / in ten',
              f'{together.seconds:.1f} / {apart:.1f} s = {together.seconds / apart:.2f}',
              **{f'<= {ten}': together.seconds / apart <= ten})


def bench_groups(bench):
    """Core-seconds, peak memory and products of snowball_wrapper.py by number of groups."""
    for groups in GROUPS:
        cost, = bench.run((ROOT / 'snowball_wrapper.py', '--output_dir', 'out', UNCAL.format(groups)))
        bench.steps[f'`snowball_wrapper.py`, {groups} groups'] = cost


def bench_warm(bench, exposures=6):
    """Raw exposures from their first step to their last: the commands one by one, one warm process, and two."""
    raw, batch, out = (bench.directory / name for name in ('raw', 'batch', 'out'))
    for old in (raw, batch):
        shutil.rmtree(old, ignore_errors=True)
    raw.mkdir()
    for number in range(exposures):
        os.link(bench.directory / UNCAL.format(GROUPS[-1]), raw / f'bench_{number}_uncal.fits')
    subprocess.run([sys.executable, ROOT / 'batch_scripts' / 'make_batch.py', raw, '--out', batch, '--output_dir', out,
                    '--wisp_dir', bench.directory / 'wisps'], check=True, env=bench.environment)
    run_batch = ROOT / 'batch_scripts' / 'run_batch.py', batch
    apart, = bench.run(('-c', APART, ROOT, batch), runs=1)
    warm, two = bench.run((*run_batch, '-j1'), (*run_batch, '-j2'), runs=3)
    ratio = warm.core_seconds / apart.core_seconds
    bench.row(f'{exposures} exposures by `run_batch.py`, one process / separate commands',
              f'{warm.core_seconds:.0f} / {apart.core_seconds:.0f} core-s = {ratio:.2f}, '
              f'{warm.megabytes:.0f} / {apart.megabytes:.0f} MB', **{'<= 0.68': ratio <= 0.68})
    faster = warm.seconds / two.seconds
    bench.row('the same, one process / two', f'{warm.seconds:.0f} / {two.seconds:.0f} s = {faster:.2f}',
              **{'>= 1.85': faster >= 1.85})


def steps_table(steps):
    """The block `groups`: {command: Cost}."""
    return common.table(('command', 'core-seconds', 'seconds', 'peak memory', 'products above 1 MB'), [
        (name, f'{cost.core_seconds:.1f}', f'{cost.seconds:.1f}', f'{cost.megabytes / 1000:.2f} GB',
         ', '.join(f'`{ending}` {size:.0f} MB' for ending, size in sorted(cost.products.items()) if size >= 1))
        for name, cost in steps.items()])


def survey_table(steps):
    """The block `survey`: arithmetic on those steps that an exposure of most groups with a wisp needs."""
    snowballs, *others = (cost for name, cost in steps.items()
                          if 'groups' not in name or name.endswith(f' {GROUPS[-1]} groups'))
    each = [cost.core_seconds for cost in (snowballs, *others)]
    products = {ending: size for cost in (snowballs, *others) for ending, size in cost.products.items()}
    everything = sum(products.values())
    lean = everything - sum(products.get(ending, 0) for ending in INTERIM)
    rows = [(f'{number:,}{remark}', f'{number * sum(each) / 3600:,.1f}',
             *(duration(number * sum(each) / 3600 / cores) if number > cores else '' for cores in (2, 48, 1000)),
             *(f'{number * size / 1e6:.3g} TB' for size in (everything, lean)))
            for number, remark in ((690, ' (CEERS epoch 1)'), (10_000, ''), (1_000_000, ''))]
    return (f"{' + '.join(f'{value:.1f}' for value in each)} = {sum(each):.1f} core-seconds and {everything:.0f} MB "
            f'of disk for an exposure of {GROUPS[-1]} groups with a wisp; {lean:.0f} MB with `--delinterim`.\n\n'
            + common.table(('exposures', 'core-hours', 'on 2 cores', 'on 48 cores', 'on 1000 cores', 'disk',
                            'with `--delinterim`'), rows))


def duration(hours):
    """'6 min', '2.4 h' or '142 d'."""
    if hours < 1:
        return f'{60 * hours:.2g} min'
    return f'{hours:.2g} h' if hours < 48 else f'{hours / 24:.0f} d'


BENCHES = {'groups': bench_groups, 'snowballs': bench_snowballs, 'wisps': bench_wisps, 'striping': bench_striping,
           'help': bench_help, 'warm': bench_warm}
BLOCKS = ('costs', 'groups', 'survey')


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=BENCHES, help='one part')
    parser.add_argument('--runs', type=int, default=5, help='of which the median is taken (%(default)s)')
    parser.add_argument('--directory', type=Path, default=ROOT / 'bench', metavar='DIR')
    parser.add_argument('--dry_run', action='store_true', help='show the tables, leave docs/cost.md alone')
    options = parser.parse_args(argv)
    for name in BLOCKS:
        common.find_block('cost', name)
    bench = Bench(options.directory.resolve(), options.runs)
    for name, function in BENCHES.items():
        if options.only in (None, name):
            function(bench)
    steps = bench.steps
    tables = {'costs': common.table(('what', 'measured', 'aim', 'aim met'), bench.rows), 'groups': steps_table(steps),
              'survey': survey_table(steps) if not options.only else ''}
    for name, text in tables.items():
        common.say(f'\n{name}\n\n{text}')
        if not (options.only or options.dry_run):
            common.write_block('cost', name, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
