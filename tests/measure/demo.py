"""Simulate one raw exposure, clean it with the three scripts, and compare what was injected with what came back.

Writes OUTDIR/uncals/, OUTDIR/calibrated/ and what the scripts need, OUTDIR/demo.run (the commands, as a user
would type them in OUTDIR), OUTDIR/summary.txt, OUTDIR/summary.png and OUTDIR/review.html.

Example
-------
    python tests/measure/demo.py demo
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import common
import simulation
from accuracy import amp_row_rms, block_means, column_rms, left_over, score_snowballs, score_wisp, size_range
from common import say

import numpy as np

DATASET = 'jw01345001001_10201_00001_nrca3'
COMMANDS = ('snowball_wrapper.py {}_uncal.fits', 'wispsub.py --fit_scaling {}_rate.fits',
            'remstriping.py --save_patterns {}_rate.fits')


def demo(outdir):
    """Simulate, clean, compare, draw; returns the exit status."""
    simulation.write_exposure(outdir, wisp=0.6, name=DATASET)
    say(f'simulated {outdir}/uncals/{DATASET}_uncal.fits')
    status = run_commands(outdir)
    if status:
        return status
    images = read_products(outdir / 'calibrated')
    table = compare(simulation.load_truth(outdir / 'truth.npz'), images, outdir / 'calibrated')
    (outdir / 'summary.txt').write_text(table)
    say('\n' + table)
    draw(images, outdir / 'summary.png')
    say(f'pictures: {outdir}/summary.png')
    status = subprocess.run([sys.executable, common.ROOT / 'batch_scripts' / 'review.py', outdir / 'calibrated',
                             '-o', outdir / 'review.html'], check=False).returncode
    say(f'page to inspect: {outdir}/review.html')
    return status


def run_commands(outdir):
    """Write the commands to demo.run, one a line, and run them with bash in `outdir`; returns its exit status."""
    script = outdir / 'demo.run'
    top = os.path.relpath(common.ROOT, outdir)
    script.write_text(''.join(f'python {top}/{command.format(DATASET)}\n' for command in COMMANDS))
    say(f'{script}:\n{script.read_text()}')
    for old in (outdir / 'calibrated').glob(f'{DATASET}_*'):
        old.unlink()
    environment = os.environ | simulation.crds_environment((outdir / 'crds_cache').resolve())
    environment['PATH'] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(['bash', '-e', script.name], cwd=outdir, env=environment, check=False).returncode


def read_products(directory):
    """Rate image untouched, after wisps and after striping, flags and header: {name: array}."""
    from astropy.io import fits
    names = {'raw': '_rate_prewisp', 'wisps': '_rate_pre1f', 'striping': '_rate'}
    images = {key: fits.getdata(directory / f'{DATASET}{ending}.fits', 'SCI') for key, ending in names.items()}
    rate = directory / f'{DATASET}_rate.fits'
    return images | {'good': fits.getdata(rate, 'DQ') & simulation.DO_NOT_USE == 0, 'header': fits.getheader(rate)}


def compare(truth, images, directory):
    """The table of injected against recovered, as text."""
    from astropy.io import fits
    from astropy.table import Table
    catalogue = Table.read(directory / f'{DATASET}_snowballs.ecsv')
    found = sum(bool(np.any(np.isin(catalogue['group'] - ball['group'], (0, 1))
                            & (np.hypot(catalogue['x'] - ball['x'], catalogue['y'] - ball['y']) < ball['halo'])))
                for ball in truth.snowballs)
    flagged = score_snowballs(truth, fits.getdata(directory / f'{DATASET}_ramp.fits', 'GROUPDQ'))
    good = images['good']
    before = score_wisp(truth, 0, good)
    after = score_wisp(truth, images['raw'].astype(float) - images['wisps'], good)
    rows = [('quantity', 'injected', 'recovered / left'),
            ('snowballs', f'{len(truth.snowballs)}', f'{found} found')]
    rows += [(f'  pixel-groups with a jump of {size_range(low, high)} sigma', '', f'{100 * part:.1f} % flagged')
             for (low, high), part in flagged.items()]
    rows += [('wisp scale', f'{truth.wisp_scale:.2f}', f"{images['header']['WISPSCAL']:.2f}"),
             ('  rms in the wisp [1e-3 DN/s]', f'{before:.2f}', f'{after:.2f}')]
    stages = [left_over(truth, images['wisps'], images[key], good) for key in ('wisps', 'striping')]
    stages = [left - np.nanmean(left[truth.blank]) for left in stages]
    for name, rms in (('rows of amplifiers', amp_row_rms), ('columns', column_rms)):
        injected, left = (1e3 * rms(stage) for stage in stages)
        rows.append((f'{name}, rms [1e-3 DN/s]', f'{injected:.2f}', f'{left:.2f}'))
    return ''.join(f'{name:44}{one:>10}{two:>20}\n' for name, one, two in rows)


def draw(images, path):
    """Draw the image before, between and after the corrections, and what they took out, on one stretch."""
    from matplotlib.figure import Figure
    raw, wisps, striping = (images[key].astype(float) for key in ('raw', 'wisps', 'striping'))
    panels = {'rate image': (raw, raw), 'after wisp subtraction': (wisps, raw),     # image, and whose sky level is 0
              'after 1/f striping': (striping, striping), 'removed': (raw - striping, raw - striping)}
    figure = Figure(figsize=(12, 12.6), layout='constrained')
    for axes, (title, (image, sky)) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        shown = axes.imshow(block_means(image - np.nanmedian(sky), 2), origin='lower', cmap='gray', vmin=-0.03,
                            vmax=0.03, interpolation='nearest')
        axes.set(title=title, xticks=[], yticks=[])
    figure.colorbar(shown, ax=figure.axes, orientation='horizontal', fraction=0.03, pad=0.01,
                    label='DN/s from the sky level; all panels on one stretch')
    figure.savefig(path, dpi=90)


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('outdir', metavar='OUTDIR', type=Path)
    return demo(parser.parse_args(argv).outdir)


if __name__ == '__main__':
    sys.exit(main())
