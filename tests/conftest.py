"""What the tests share: reference cases, directories, simulated exposures with a CRDS cache, and the commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

ROOT = Path(__file__).parent.parent
DATASET = 'jw01345001001_10201_00001_nrca3'
RATE, UNCAL = f'{DATASET}_rate.fits', f'{DATASET}_uncal.fits'
CODE = [*ROOT.glob('*.py'), *(ROOT / 'stage1').glob('*.py'), *(ROOT / 'batch_scripts').glob('*.py')]  # users run it
CASES = (ROOT / 'tests' / 'data', ROOT.parent / 'shared' / 'reference_cases')

# Before any test imports crds, which reads these once a process: no test may reach for a server.
os.environ['CRDS_SERVER_URL'] = 'https://jwst-serverless.stsci.edu'
os.environ['CRDS_CONTEXT'] = 'jwst_0001.pmap'
os.environ.setdefault('OMP_NUM_THREADS', '1')

# What runs in the background of a script ignores Ctrl-C, and hands that down to what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# --- reference cases ---------------------------------------------------------------------------------

def load_case(name):
    """The arrays of a reference case (`name` without .npz); skips where the case is not at hand."""
    for directory in CASES:
        path = directory / f'{name}.npz'
        if path.exists():
            return np.load(path, allow_pickle=False)
    pytest.skip(f'reference case {name} is not in tests/data/ (only some are: 40 MB would be too much for git)')


def unpack(bits):
    """A packed reference mask as a boolean (2048, 2048) array."""
    return np.unpackbits(bits).reshape(2048, 2048).astype(bool)


def case_meta(case):
    """Headers, options and file names of a reference case."""
    return json.loads(str(case['meta']))


# --- files and directories ---------------------------------------------------------------------------

def content(directory):
    """Bytes, mode and time of every file below a directory, by its path there."""
    return {path.relative_to(directory): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
            for path in directory.rglob('*') if path.is_file()}


def history(path, extension=0):
    """HISTORY of a file, in one line."""
    return ''.join(str(card).ljust(72) for card in fits.getheader(path, extension)['HISTORY'])


def forked(call):
    """Process that runs `call()` in a copy of this one, and ends with what it returns."""
    pid = os.fork()
    if not pid:
        status = 99
        try:
            status = call() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def ended(pid):
    """Exit status of a forked process; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def scratch(tmp_path):
    """An empty directory, in memory where there is enough: rate images are 84 MB, and synced to the disk."""
    memory = Path('/dev/shm')
    if not memory.is_dir() or shutil.disk_usage(memory).free < 4e9:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


# --- simulated exposures -----------------------------------------------------------------------------

@pytest.fixture(scope='session')
def field(tmp_path_factory):
    """One simulated field, made once for all workers, not to be changed.

    calibrated/<dataset>_rate.fits, uncals/<dataset>_uncal.fits of three groups, wisps/, and crds_cache/ with all
    references of NRCA3, F200W and the flats of the other modes in which a test runs a script: crds keeps the mappings
    of the first cache that a process uses.
    """
    import simulation

    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'field'
    with FileLock(f'{directory}.lock'):
        if not directory.exists():
            part = directory.with_name('field.part')
            simulation.write_rate(simulation.rate_scene(crowd=0.2, wisp=0.6), part / 'calibrated' / RATE)
            simulation.write_uncal(*simulation.exposure(groups=3, snowballs=8), part / 'uncals' / UNCAL)
            simulation.write_templates(part / 'wisps')
            simulation.write_templates(part / 'wisps', filters=['F150W2'], pupil='F162M')
            for subarray in 'FULL', 'SUB640', 'SUB64P':
                simulation.write_crds_cache(part / 'crds_cache', groups=3, subarray=subarray)
            simulation.write_crds_cache(part / 'crds_cache', filters=['F150W2'], pupil='F162M')
            simulation.write_crds_cache(part / 'crds_cache', ['NRCB2'], ['F115W'])
            part.rename(directory)
    return directory


@pytest.fixture
def place(scratch, field, monkeypatch):
    """The working directory: fresh copies of the exposures of `field`, with its templates and its CRDS cache."""
    import simulation
    for name in f'calibrated/{RATE}', f'uncals/{UNCAL}':
        (scratch / name).parent.mkdir()
        shutil.copy(field / name, scratch / name)
    (scratch / 'wisps').symlink_to(field / 'wisps')
    monkeypatch.chdir(scratch)
    for key, value in simulation.crds_environment(field / 'crds_cache').items():
        monkeypatch.setenv(key, str(value))
    return scratch


@pytest.fixture
def quick(monkeypatch):
    """Finding sources and clipping lines take no time in this process: what a test of safe files need not wait for."""
    import remstriping
    import wispsub

    def pattern(image, mask, axis):
        return np.ma.mean(np.ma.array(image, mask=mask), axis=axis, dtype=float).filled(np.nan)

    monkeypatch.setattr(remstriping, 'source_mask', lambda sci, _: np.nan_to_num(sci) > np.float32(0.22))
    monkeypatch.setattr(remstriping, 'clipped_median', pattern)
    monkeypatch.setattr(wispsub, 'find_sources', lambda sci, _: np.nan_to_num(sci) > np.float32(0.3))


@pytest.fixture
def image(place, quick, flat_of_one):  # noqa: ARG001
    """A fresh rate image in calibrated/, where nothing takes time but what is done with files."""
    return place / 'calibrated' / RATE


@pytest.fixture
def flat_of_one(monkeypatch):
    """Images are flat in this process: the pipeline's step takes a second."""
    from stage1.correction import RateImage
    monkeypatch.setattr(RateImage, 'flat_field', lambda self: (self.sci, self.err))


# --- the commands ------------------------------------------------------------------------------------

def run_script(script, *arguments, cwd, **environment):
    """Run one of the scripts as a user does; returns the finished process with its text output."""
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, env=os.environ | environment, timeout=600, check=False)


def wisps(*options):
    """Run wispsub.py on the rate image, in this process; the exit status."""
    import wispsub
    return wispsub.main([RATE, '--wisp_dir', 'wisps', *map(str, options)])


def stripes(*options):
    """The same of remstriping.py."""
    import remstriping
    return remstriping.main([RATE, *map(str, options)])


def snowballs(*options):
    """Run snowball_wrapper.py on the raw exposure, in this process; the exit status. Products go to reduced/."""
    import snowball_wrapper
    return snowball_wrapper.main([UNCAL, '--output_dir', 'reduced', *map(str, options)])
