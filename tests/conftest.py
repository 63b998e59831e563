"""What the tests share: the reference cases and simulated exposures with a CRDS cache of their own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
DATASET = 'jw01345001001_10201_00001_nrca3'
CASES = (ROOT / 'tests' / 'data', ROOT.parent / 'shared' / 'reference_cases')

# Before any test imports crds, which reads these once a process: no test may reach for a server.
os.environ['CRDS_SERVER_URL'] = 'https://jwst-serverless.stsci.edu'
os.environ['CRDS_CONTEXT'] = 'jwst_0001.pmap'
os.environ.setdefault('OMP_NUM_THREADS', '1')


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


def run_script(script, *arguments, cwd, **environment):
    """Run one of the scripts as a user does; returns the finished process with its text output."""
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, env=os.environ | environment, timeout=600, check=False)


@pytest.fixture
def scratch(tmp_path):
    """An empty directory, in memory where there is enough: rate images are 84 MB, and synced to the disk."""
    memory = Path('/dev/shm')
    if not memory.is_dir() or shutil.disk_usage(memory).free < 4e9:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


@pytest.fixture(scope='session')
def field(tmp_path_factory):
    """One simulated field, not to be changed: calibrated/<dataset>_rate.fits, wisps/ and crds_cache/ with the flat."""
    import simulate
    directory = tmp_path_factory.mktemp('field')
    (directory / 'calibrated').mkdir()
    simulate.write_rate(simulate.rate_scene(crowd=0.2, wisp=0.6), directory / 'calibrated' / f'{DATASET}_rate.fits')
    simulate.write_templates(directory / 'wisps')
    simulate.write_crds_cache(directory / 'crds_cache')
    return directory
