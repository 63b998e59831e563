"""Write a simulated exposure and all that its reduction needs.

That is OUTDIR/uncals/<name>_uncal.fits (or OUTDIR/calibrated/<name>_rate.fits), OUTDIR/wisps/wisps_2022_08_26/,
OUTDIR/crds_cache/ and the truth, OUTDIR/truth.npz (`simulation.load_truth` reads it). Cache and templates grow when
OUTDIR is used again; truth.npz is that of the exposure written last, unless --truth names another file.

Examples
--------
    python tests/simulation demo --detector NRCA3 --filter F200W --wisp 0.6
    python tests/simulation demo --rate_only --detector NRCALONG --filter F444W --seed 2
"""

import argparse
import sys
from pathlib import Path

if not __package__:                              # started by the name of the folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from simulation.crds_cache import crds_environment
from simulation.detector import READ_NOISE, STRIPE_RMS
from simulation.files import NAME, write_exposure
from simulation.frame import READOUTS, SUBARRAYS


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(prog='simulation', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('outdir', metavar='OUTDIR', type=Path, help='directory for all of it')
    add('--detector', default='NRCA3', choices=sorted(READ_NOISE), metavar='DET', help='NRCA1 ... NRCBLONG')
    add('--filter', dest='filter_', default='F200W', metavar='FILTER')
    add('--pupil', default='CLEAR', help='of the pupil wheel; a filter there has its blocking filter as --filter')
    add('--subarray', default='FULL', choices=SUBARRAYS, metavar='NAME', help=', '.join(SUBARRAYS))
    add('--seed', type=int, default=1)
    add('--groups', type=int, default=5, help='groups in an integration (%(default)s)')
    add('--integrations', '--ints', dest='ints', type=int, default=1,
        help='integrations, each with stripes of its own in rate images (%(default)s)')
    add('--wisp', type=float, default=0.6, help='scale of the wisp, where the detector has one (%(default)s)')
    add('--snowballs', type=int, default=20, help='in each integration (%(default)s)')
    add('--readout', default='MEDIUM8', choices=READOUTS, metavar='PATTERN', help=', '.join(READOUTS))
    add('--cosmic_rays', type=float, default=6., help='in a second (%(default)s)')
    add('--crowd', type=float, default=1., help='number of galaxies, in units of 700')
    add('--big', action='store_true', help='add a galaxy with an effective radius of 130 pixels')
    add('--no_stripes', dest='stripes', action='store_false', help='leave the row and column patterns out')
    add('--noise', type=lambda text: text if text == 'measured' else float(text), default=STRIPE_RMS, metavar='RMS',
        help='1/f noise: rms of the rows of amplifiers in DN/s (%(default)s), or `measured`: drawn for every group '
             'from spectra of darks, and seen by the reference pixels')
    add('--rate_only', action='store_true', help='a rate image instead of a raw exposure')
    add('--undefined', choices=('nan', 'finite'), default='nan', help='with --rate_only: unusable pixels')
    add('--name', help=f'dataset name ({NAME.format("<detector>")})')
    add('--truth', type=Path, help='file for the truth (OUTDIR/truth.npz)')
    return parser


def main(argv=None):
    """Run the command; returns the exit code."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    if options['groups'] < 1 or options['ints'] < 1:
        parser.error('--groups and --integrations must be at least 1')
    for name in ('snowballs', 'cosmic_rays', 'readout') if options['rate_only'] else ('undefined',):
        del options[name]
    paths = write_exposure(**options)
    for what, path in paths.items():
        sys.stdout.write(f'{what:10} {path}\n')
    for variable, value in crds_environment(paths['cache'].resolve()).items():
        sys.stdout.write(f'export {variable}={value}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
