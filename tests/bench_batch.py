"""Measure what a second worker is worth: exposures per hour of run_batch.sh with one and with two.

Examples
--------
    python tests/bench_batch.py --exposures 8
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import simulate

ROOT = Path(__file__).resolve().parent.parent


def prepare(directory, exposures):
    """Simulate rate images with their flats and template; returns the directory of the images."""
    rates = directory / 'raw'
    first = simulate.write_rate(simulate.rate_scene(wisp=0.6), rates / 'bench_000_rate.fits')
    for number in range(1, exposures):
        shutil.copy(first, rates / f'bench_{number:03d}_rate.fits')
    simulate.write_crds_cache(directory / 'crds_cache')
    simulate.write_templates(directory / 'wisps')
    return rates


def run_seconds(directory, rates, workers):
    """Time [s] of a batch of wisps and striping on fresh copies of the images in `rates`, with so many workers."""
    images, batch = directory / f'images_{workers}', directory / f'batch_{workers}'
    shutil.copytree(rates, images)
    environment = os.environ | simulate.crds_environment(directory / 'crds_cache')
    environment['PATH'] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    subprocess.run([sys.executable, ROOT / 'batch_scripts' / 'make_batch.py', images, '--out', batch,
                    '--wisp_dir', directory / 'wisps'], check=True, env=environment)
    start = time.perf_counter()
    subprocess.run([ROOT / 'batch_scripts' / 'run_batch.sh', batch, '-j', str(workers)], check=True, env=environment,
                   stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    shutil.rmtree(images)
    return seconds


def throughput_ratio(exposures=8, workers=2):
    """How many times more exposures a number of workers do in the same time than one: (ratio, seconds of both)."""
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        rates = prepare(directory, exposures)
        run_seconds(directory, rates, 1 + workers)           # compiles, and fills the disk cache
        one, many = (run_seconds(directory, rates, number) for number in (1, workers))
    return one / many, (one, many)


def main(argv=None):
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--exposures', type=int, default=8)
    parser.add_argument('--workers', type=int, default=2)
    options = parser.parse_args(argv)
    ratio, (one, many) = throughput_ratio(options.exposures, options.workers)
    sys.stdout.write(f'{options.exposures} exposures: one worker {one:.0f} s, {options.workers} workers {many:.0f} s; '
                     f'{ratio:.2f} times the throughput (reach: 1.7 with 2)\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
