"""What the three stage-1 scripts stand on; one job a file.

exposure            find, open and check one exposure
files               whole files only, from one process at a time
correction          a rate image corrected once, with the untouched one kept
pipeline            flat field, Detector1, provenance, parameter files
pipeline_log        what the pipeline says
command             log, options and settings, one file after the other
masks, filters      small functions on images, and the ones made fast
wisp_templates      find and read wisp templates
wisp_picture        draw the fit of a wisp
adaptive_wisps      the adaptive fit of wisps
adaptive_striping   the adaptive method for 1/f striping; what light it understands is in light_model, offsets of
                    amplifiers in amp_offsets, the noise as a series in readout order in within_rows
striping_score      score a striping correction; striping_harm tells when it did harm
strun_hook          the growth of flags in anybody's own run of the pipeline

A script that is copied elsewhere takes this folder along. Importing it ends the program, with one line, where a package
is missing.
"""

import sys
from importlib.util import find_spec

VERSION = '1.1.0'

NEEDED = ('numpy', 'scipy', 'astropy', 'jwst', 'photutils', 'matplotlib', 'numba', 'filelock', 'tqdm', 'skimage')


def check_environment(*more):
    """End the program with one line where the packages that the scripts run on, and `more`, are not installed."""
    missing, old = [name for name in (*NEEDED, *more) if find_spec(name) is None], sys.version_info < (3, 11)
    if old or missing:
        what = 'no Python from 3.11 on' if old else f"no {', '.join(missing)}"
        sys.exit(f'{what} in {sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]}): activate the '
                 'environment first, or make it as the README says')


check_environment()
