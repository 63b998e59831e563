"""Measure what the corrections cost, as ratios within one run, and print the table.

Times are medians of several runs, alternating between the commands that are compared; peak memory and core-seconds
are what the operating system accounted to each process. The slow, obvious forms are those that the tests compare
with. The simulated exposures, and a CRDS cache for them, are made in bench/.

Examples
--------
    python tests/bench.py
    python tests/bench.py --only striping --runs 9
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import simulate

ROOT = Path(__file__).resolve().parent.parent
GROUPS = 9
ALL_GROUPS = (3, 5, 7, 9)       # of the exposures whose core-seconds, memory and disk are measured
STRIP = 256                     # rows on which the slow ring median is timed; scaled to all rows
NAME = 'jw01345001001_10201_{:05d}_nrca3'

# What a script cannot do without: read, flat-field and write the same file, with the same imports.
FLOOR = """
import sys
sys.path.insert(0, {root!r})
import {script}
import numpy, scipy.ndimage, tqdm, {imports}
from pathlib import Path
from astropy.io import fits
from nircam_io import flat_field
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


# Runs a command and prints its time, core-seconds and peak memory. A small process of its own, because the memory of
# the one that starts another counts in the peak of that.
LAUNCHER = """
import resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
took, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode:
    sys.exit(done.stderr)
print(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


class Cost(NamedTuple):
    """What a command takes: medians of time and core-seconds, and the largest peak memory."""

    seconds: float
    core_seconds: float
    megabytes: float


class Bench:
    """Rows of the table, and the directory with what is measured."""

    def __init__(self, directory, runs):
        self.directory, self.runs, self.rows = directory, runs, []
        self.environment = os.environ | simulate.crds_environment((directory / 'crds_cache').resolve())
        self.environment.pop('OMP_NUM_THREADS', None)    # as a user starts a script

    def row(self, what, measured, reach):
        """Add a row to the table and show it."""
        self.rows.append((what, measured, reach))
        sys.stdout.write(f'{what:58} {measured:58} {reach}\n')
        sys.stdout.flush()

    def run(self, *commands, fresh=None):
        """`Cost` of each command (a tuple), run in turn; `fresh()` is called before each run."""
        costs = [[] for _ in commands]
        for _ in range(self.runs):
            for command, cost in zip(commands, costs, strict=True):
                if fresh:
                    fresh()
                os.sync()    # what the run before has left to write is not this one's
                done = subprocess.run([sys.executable, '-c', LAUNCHER, sys.executable, *map(str, command)],
                                      cwd=self.directory, env=self.environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"failed: {' '.join(map(str, command))}\n{done.stderr}")
                cost.append([float(word) for word in done.stdout.split()])
        return [Cost(statistics.median(seconds), statistics.median(core_seconds), max(megabytes))
                for seconds, core_seconds, megabytes in (zip(*cost, strict=True) for cost in costs)]


def timed(function, *arguments, runs=3):
    """Median time [s] of a call, and what it returns."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = function(*arguments)
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def same(ours, reference):
    """'identical', or how far two results are apart."""
    if np.array_equal(ours, reference, equal_nan=np.asarray(ours).dtype.kind == 'f'):
        return 'identical'
    return f'DIFFERENT in {np.count_nonzero(np.asarray(ours) != np.asarray(reference))} elements'


def prepare(directory):
    """Simulate one raw exposure with a full CRDS cache, templates, and ten rate images."""
    if not (directory / 'truth.npz').exists():
        simulate.write_exposure(directory, groups=GROUPS, wisp=0.6, name=NAME.format(1))
    rates = directory / 'rates'
    rates.mkdir(exist_ok=True)
    for number in range(1, 11):
        path = rates / f'{NAME.format(number)}_rate.fits'
        if not path.exists():
            simulate.write_rate(simulate.rate_scene(seed=number, wisp=0.6), path)
    return sorted(rates.glob('*_rate.fits'))


def bench_snowballs(bench, _):
    """The mask alone, on the flags of the exposure's groups, and the whole wrapper."""
    from astropy.io import fits

    import slow_snowballs
    import snowball_wrapper
    uncal = f'uncals/{NAME.format(1)}_uncal.fits'
    fresh = Fresh(bench.directory / 'snow')
    plain, ours = bench.run(('-c', PLAIN, uncal, 'snow'),
                            (ROOT / 'snowball_wrapper.py', '--output_dir', 'snow', uncal), fresh=fresh)
    bench.row('whole snowball_wrapper.py / plain Detector1',
              f'{ours.seconds:.1f} / {plain.seconds:.1f} s = {ours.seconds / plain.seconds:.3f}, '
              f'{ours.megabytes:.0f} / {plain.megabytes:.0f} MB = {ours.megabytes / plain.megabytes:.3f}',
              '<= 1.05, <= 1.05')
    groupdq = fits.getdata(bench.directory / 'snow' / f'{NAME.format(1)}_ramp.fits', 'GROUPDQ')
    fast, mask = timed(snowball_wrapper.flag_snowballs, groupdq)
    slow, reference = timed(slow_snowballs.flag_snowballs, groupdq, runs=1)
    bench.row(f'snowball flags of {GROUPS} planes', f'{slow:.1f} / {fast:.3f} s = {slow / fast:.0f} times faster, '
              f'{same(mask, reference)}', '>= 200, identical')


def bench_striping(bench, rates):
    """Ring median and source mask against their slow forms, and the whole script."""
    from astropy.io import fits

    import remstriping
    import slow_striping
    sci, err = (fits.getdata(rates[0], name).astype(np.float32) for name in ('SCI', 'ERR'))
    remstriping.ring_median(sci[:STRIP])    # compile
    fast, ring = timed(remstriping.ring_median, sci)
    slow, reference = timed(slow_striping.ring_median, sci[:STRIP], runs=1)
    slow *= sci.shape[0] / STRIP
    inner = slice(0, STRIP - 60)            # beyond, the strip's own border is reflected
    bench.row(f'ring median (slow form on {STRIP} rows, scaled)', f'{slow:.1f} / {fast:.2f} s = {slow / fast:.0f} '
              f'times faster, {same(ring[inner], reference[inner])}', '>= 15, identical')
    fast, mask = timed(remstriping.source_mask, sci, err)
    slow, reference = timed(slow_striping.source_mask, sci, err, runs=1)
    bench.row('source mask of remstriping', f'{slow:.1f} / {fast:.2f} s = {slow / fast:.0f} times faster, '
              f'{same(mask, reference)}', '>= 10, identical')
    whole_script(bench, rates, 'remstriping', (), '<= 2.5, <= 800 MB', '<= 0.85')


def bench_wisps(bench, rates):
    """The 60 trial scales against the plain loop, and the whole script."""
    from astropy.io import fits

    import slow_wisps
    import wispsub
    image = np.nan_to_num(fits.getdata(rates[0], 'SCI').astype(np.float32))
    y1, y2, x1, x2 = wispsub.WINDOWS['NRCA3']
    template = simulate.wisp_shape('NRCA3', 'F200W')[y1:y2, x1:x2].astype(np.float32)
    fast, ours = timed(wispsub.fit_scale, image[y1:y2, x1:x2], template, wispsub.SCALES)
    slow, reference = timed(slow_wisps.fit_scale, image[y1:y2, x1:x2], template, wispsub.SCALES, runs=1)
    bench.row('60 trial scales', f'{slow:.2f} / {fast:.2f} s = {slow / fast:.1f} times faster, '
              f'{same(ours[1], reference[1])}', '>= 5, identical')
    whole_script(bench, rates, 'wispsub', ('--fit_scaling',), '<= 2, <= 500 MB', '<= 0.65')


def whole_script(bench, rates, script, options, reach, reach_of_ten):
    """One file against the floor, and ten files in one call against ten calls."""
    fresh = Fresh(bench.directory / 'out')
    command = (ROOT / f'{script}.py', *options, '--output_dir', 'out')
    floor_code = FLOOR.format(root=str(ROOT), script=script, imports=IMPORTS[script])
    single = Bench(bench.directory, 1)
    single.run((*command, rates[0].resolve()), fresh=fresh)    # caches
    floor, one = bench.run(('-c', floor_code, rates[0].resolve(), 'floor.fits'), (*command, rates[0].resolve()),
                           fresh=fresh)
    bench.row(f'whole {script}.py / floor', f'{one.seconds:.1f} / {floor.seconds:.1f} s = '
              f'{one.seconds / floor.seconds:.2f}, peak {one.megabytes:.0f} MB (floor {floor.megabytes:.0f}), '
              f'{one.core_seconds:.1f} core-s', reach)
    ten, = single.run((*command, *(rate.resolve() for rate in rates)), fresh=fresh)
    apart = sum(cost.seconds for cost in single.run(*((*command, rate.resolve()) for rate in rates), fresh=fresh))
    bench.row(f'{script}.py: ten files in one call / in ten', f'{ten.seconds:.1f} / {apart:.1f} s = '
              f'{ten.seconds / apart:.2f}', reach_of_ten)


def bench_help(bench, _):
    """Time to the help text."""
    for script in ('snowball_wrapper.py', 'wispsub.py', 'remstriping.py'):
        help_, = Bench(bench.directory, 5).run((ROOT / script, '--help'))
        bench.row(f'{script} --help', f'{help_.seconds:.2f} s', '<= 0.3 s')


def bench_groups(bench, _):
    """Core-seconds, peak memory and disk of snowball_wrapper.py by number of groups."""
    for groups in ALL_GROUPS:
        directory = bench.directory / f'groups{groups}'
        if not (directory / 'truth.npz').exists():
            simulate.write_exposure(directory, groups=groups, name=NAME.format(1))
        fresh = Fresh(directory / 'snow')
        cost, = Bench(directory, bench.runs).run(
            (ROOT / 'snowball_wrapper.py', '--output_dir', 'snow', f'uncals/{NAME.format(1)}_uncal.fits'), fresh=fresh)
        sizes = {path.stem.split('_')[-1]: path.stat().st_size / 1e6 for path in (directory / 'snow').iterdir()}
        bench.row(f'snowball_wrapper.py, {groups} groups', f'{cost.core_seconds:.1f} core-s ({cost.seconds:.1f} s), '
                  f'peak {cost.megabytes:.0f} MB, ' + ', '.join(f'{name} {size:.0f}' for name, size in sizes.items()
                                                               if size >= 1) + ' MB', '')


class Fresh:
    """Called, it empties a directory."""

    def __init__(self, directory):
        self.directory = directory

    def __call__(self):
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()


BENCHES = {'help': bench_help, 'wisps': bench_wisps, 'striping': bench_striping, 'snowballs': bench_snowballs,
           'groups': bench_groups}


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=BENCHES, help='one part of the table')
    parser.add_argument('--runs', type=int, default=5, help='of which the median is taken (%(default)s)')
    parser.add_argument('--directory', type=Path, default=ROOT / 'bench', metavar='DIR')
    options = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    rates = prepare(options.directory)
    bench = Bench(options.directory.resolve(), options.runs)
    for name, function in BENCHES.items():
        if options.only in (None, name):
            function(bench, rates)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    sys.stdout.write(f'core-seconds in all: {usage.ru_utime + usage.ru_stime:.0f}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
