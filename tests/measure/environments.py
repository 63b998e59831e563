"""Reduce one simulated exposure under jwst 3.0 and under jwst 1.7.2, and write to docs/environments.md what changes.

Example
-------
    python tests/measure/environments.py .venv/bin/python .venv-dr05/bin/python compare
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import common
import simulation
from demo import COMMANDS, DATASET
from simulation import DO_NOT_USE, JUMP_DET, SATURATED

import numpy as np


def reduce(python, outdir, products):
    """Run the three scripts with one Python on the exposure in `outdir`; products go to `outdir`/`products`."""
    shutil.rmtree(outdir / products, ignore_errors=True)        # what is there would be left alone
    environment = os.environ | simulation.crds_environment((outdir / 'crds_cache').resolve())
    for command in COMMANDS:
        script, *arguments = command.format(DATASET).split()
        subprocess.run([python.absolute(), common.ROOT / script, '--output_dir', products, *arguments,
                        *(() if script.startswith('snowball') else ('--input_dir', products))],
                       cwd=outdir, env=environment, check=True)


def compare(one, two):
    """Rows (quantity, value of one, value of two) of the products in two directories; or one value of both together."""
    from astropy.io import fits

    def both(ending, extension):
        return [fits.getdata(directory / f'{DATASET}{ending}.fits', extension) for directory in (one, two)]

    headers = [fits.getheader(directory / f'{DATASET}_rate.fits') for directory in (one, two)]
    groupdq = both('_ramp', 'GROUPDQ')
    ramps = [flags & JUMP_DET > 0 for flags in groupdq]
    marks = np.any([flags & (JUMP_DET | SATURATED) > 0 for flags in groupdq], axis=(0, 1, 2))
    yield 'pixel-groups flagged as jumps', *(f'{100 * flags.mean():.4f} %' for flags in ramps)
    yield 'pixel-groups flagged by one only', f'{100 * (ramps[0] ^ ramps[1]).mean():.4f} %', ''
    yield 'snowballs found', *(header['SNOWNUM'] for header in headers)
    for stage, ending in (('Detector1', '_rate_prewisp'), ('striping', '_rate')):
        images, flags = both(ending, 'SCI'), [dq & DO_NOT_USE > 0 for dq in both(ending, 'DQ')]
        yield f'rate after {stage}: NaN pixels', *(np.isnan(image).sum() for image in images)
        yield f'rate after {stage}: flagged DO_NOT_USE', *(flag.sum() for flag in flags)
        good = ~(flags[0] | flags[1]) & np.isfinite(images[0]) & np.isfinite(images[1])
        apart = np.abs(images[0].astype(float) - images[1])[good]
        yield (f'rate after {stage}: difference of the others, DN/s', f'median {np.median(apart):.1e}, 99 % below '
               f'{np.percentile(apart, 99):.1e}, largest {apart.max():.2g}', '')
        if stage == 'Detector1':
            far, marked = apart > 1e-5, marks[good]
            yield (f'rate after {stage}: of them differ by more than 1e-5 DN/s', f'{100 * far.mean():.1f} %, of which '
                   f'{100 * marked[far].mean():.1f} % have a jump or a saturated group', '')
    yield 'fitted wisp scale', *(f"{header['WISPSCAL']:.2f}" for header in headers)
    for name, pattern in (('horiz', 'row'), ('vert', 'column')):
        patterns = both(f'_rate_{name}', 0)
        yield f'{pattern} pattern: rms difference, DN/s', f'{np.nanstd(patterns[0] - patterns[1]):.1e}', ''


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pythons', nargs=2, type=Path, metavar='PYTHON')
    parser.add_argument('outdir', type=Path, metavar='OUTDIR')
    parser.add_argument('--dry_run', action='store_true', help='show the table, leave docs/environments.md alone')
    options = parser.parse_args(argv)
    from astropy.io import fits

    common.find_block('environments', 'environments')
    simulation.write_exposure(options.outdir, groups=9, wisp=0.6, name=DATASET)
    products = [options.outdir / name for name in ('one', 'two')]
    for python, directory in zip(options.pythons, products, strict=True):
        reduce(python, options.outdir, directory.name)
    versions = [fits.getval(directory / f'{DATASET}_rate.fits', 'CAL_VER') for directory in products]
    text = common.table(('', *(f'jwst {version}' for version in versions)), list(compare(*products)))
    common.say(text)
    if not options.dry_run:
        common.write_block('environments', 'environments', text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
