"""Reduce one simulated exposure under jwst 3.0 and under jwst 1.7.2, and print what changes between the two.

Examples
--------
    python tests/compare_environments.py .venv/bin/python .venv-dr05/bin/python compare
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import simulate
from demo import COMMANDS, DATASET, ROOT

DO_NOT_USE, JUMP_DET = 1, 4


def reduce(python, outdir, products):
    """Run the three scripts with one Python on the exposure in `outdir`; products go to `outdir`/`products`."""
    environment = os.environ | simulate.crds_environment((outdir / 'crds_cache').resolve())
    for command in COMMANDS:
        script, *arguments = command.format(DATASET).split()
        subprocess.run([python.absolute(), ROOT / script, '--output_dir', products, *arguments,
                        *(() if script.startswith('snowball') else ('--input_dir', products))],
                       cwd=outdir, env=environment, check=True, stderr=subprocess.DEVNULL)


def compare(one, two):
    """Rows (quantity, value) that say how the products in two directories differ."""
    from astropy.io import fits

    def both(ending, extension):
        return [fits.getdata(directory / f'{DATASET}{ending}.fits', extension) for directory in (one, two)]

    headers = [fits.getheader(directory / f'{DATASET}_rate.fits') for directory in (one, two)]
    yield 'jwst', ' / '.join(str(header['CAL_VER']) for header in headers)
    ramps = [flags & JUMP_DET > 0 for flags in both('_ramp', 'GROUPDQ')]
    yield 'pixel-groups flagged as jumps [%]', ' / '.join(f'{100 * flags.mean():.4f}' for flags in ramps)
    yield '  flagged by one only [%]', f'{100 * (ramps[0] ^ ramps[1]).mean():.5f}'
    yield 'snowballs', ' / '.join(str(header['SNOWNUM']) for header in headers)
    for stage, ending in (('Detector1', '_rate_prewisp'), ('striping', '_rate')):
        images, flags = both(ending, 'SCI'), [dq & DO_NOT_USE > 0 for dq in both(ending, 'DQ')]
        yield f'rate after {stage}: NaN pixels', ' / '.join(str(np.isnan(image).sum()) for image in images)
        yield '  pixels flagged DO_NOT_USE', ' / '.join(str(flag.sum()) for flag in flags)
        good = ~(flags[0] | flags[1]) & np.isfinite(images[0]) & np.isfinite(images[1])
        apart = np.abs(images[0].astype(float) - images[1])[good]
        yield '  |difference| of the others [DN/s]', ', '.join(
            f'{name} {value:.1e}' for name, value in (('median', np.median(apart)), ('99 %', np.percentile(apart, 99)),
                                                      ('largest', apart.max())))
    yield 'wisp scale', ' / '.join(f"{header['WISPSCAL']:.2f}" for header in headers)
    for name in ('horiz', 'vert'):
        patterns = both(f'_rate_{name}', 0)
        yield f'{name} pattern: rms of the difference [DN/s]', f'{np.nanstd(patterns[0] - patterns[1]):.1e}'


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pythons', nargs=2, type=Path, metavar='PYTHON')
    parser.add_argument('outdir', type=Path, metavar='OUTDIR')
    options = parser.parse_args(argv)
    simulate.write_exposure(options.outdir, groups=9, wisp=0.6, name=DATASET)
    for python, products in zip(options.pythons, ('one', 'two'), strict=True):
        reduce(python, options.outdir, products)
    for what, value in compare(options.outdir / 'one', options.outdir / 'two'):
        sys.stdout.write(f'{what:44} {value}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
