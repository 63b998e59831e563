"""Every machine that users have: what macOS lacks is taken away, and the three commands run."""

import importlib.util
import os
import re
import subprocess
import sys

from conftest import CODE, RATE, ROOT, UNCAL, run_script

import pytest

MAC = ROOT / 'tests' / 'as_on_a_mac'


@pytest.fixture
def lacking():
    """Names in Python that macOS lacks, by module, and directories that it has not."""
    spec = importlib.util.spec_from_file_location('mac', MAC / 'sitecustomize.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LACKING, module.MISSING


def test_what_users_run_names_nothing_that_macos_lacks(lacking):
    modules, directories = lacking
    pattern = '|'.join([*(rf'\b{name}\b' for names in modules.values() for name in names), *directories])
    for path in CODE:
        found = re.search(pattern, path.read_text())
        assert not found, (path, found)


def test_it_is_taken_away():
    found = [f'hasattr({module}, "{name}")' for module, name in (('os', 'sched_getaffinity'), ('os', 'posix_fadvise'))]
    code = f"import os\nprint([{', '.join(found)}])\nopen('/proc/self/status')"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False,
                          env=os.environ | {'PYTHONPATH': str(MAC)})
    assert done.stdout == '[False, False]\n' and 'FileNotFoundError' in done.stderr


@pytest.mark.parametrize(('script', 'arguments'), [
    ('wispsub.py', [RATE, '--fit_scaling', '--wisp_dir', 'wisps', '--output_dir', 'reduced']),
    ('remstriping.py', [RATE, '--output_dir', 'reduced']),
    ('snowball_wrapper.py', [UNCAL, '--output_dir', 'reduced'])])
def test_a_machine_without_what_macos_lacks(script, arguments, place, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')                # how many threads there are is found out
    done = run_script(script, *arguments, cwd=place, PYTHONPATH=str(MAC))
    assert done.returncode == 0 and f'{RATE}: written' in done.stderr, done.stderr
    assert (place / 'reduced' / RATE).exists()
