"""Every machine that users have: what macOS lacks is taken away, and the three commands run."""

import os
import re
import runpy
import subprocess
import sys

import simulation
from conftest import CODE, RATE, ROOT, UNCAL

MAC = ROOT / 'tests' / 'as_on_a_mac'


def test_what_users_run_names_nothing_that_macos_lacks():
    mac = runpy.run_path(str(MAC / 'sitecustomize.py'))         # takes nothing away from this process
    pattern = '|'.join([*(rf'\b{name}\b' for names in mac['LACKING'].values() for name in names), *mac['MISSING']])
    for path in CODE:
        found = re.search(pattern, path.read_text())
        assert not found, (path, found)


def test_it_is_taken_away():
    found = [f'hasattr({module}, "{name}")' for module, name in (('os', 'sched_getaffinity'), ('os', 'posix_fadvise'))]
    code = f"import os\nprint([{', '.join(found)}])\nopen('/proc/self/status')"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False,
                          env=os.environ | {'PYTHONPATH': str(MAC)})
    assert done.stdout == '[False, False]\n' and 'FileNotFoundError' in done.stderr


COMMANDS = f"""
import snowball_wrapper, wispsub, remstriping
assert wispsub.main(['{RATE}', '--fit_scaling', '--wisp_dir', 'wisps']) == 0
assert remstriping.main(['{RATE}']) == 0
assert snowball_wrapper.main(['{UNCAL}', '--output_dir', 'reduced']) == 0
"""


def test_the_commands_run_without_what_macos_lacks(place, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')                # how many threads there are is found out
    simulation.write_rate(simulation.rate_scene(subarray='SUB640', wisp=0.6), place / 'calibrated' / RATE)
    simulation.write_uncal(*simulation.exposure(groups=3, subarray='SUB64P'), place / 'uncals' / UNCAL)
    done = subprocess.run([sys.executable, '-c', COMMANDS], capture_output=True, text=True, check=False,
                          env=os.environ | {'PYTHONPATH': os.pathsep.join([str(MAC), str(ROOT)])})
    assert done.returncode == 0 and done.stderr.count(f'{RATE}: written') == 3, done.stderr
    assert (place / 'reduced' / RATE).exists()
