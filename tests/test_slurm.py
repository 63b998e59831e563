"""batch.slurm on a real Slurm: one controller and one node on the loopback address, started here."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import make_batch
from conftest import ROOT
from simulation import crds_environment, rate_scene, write_crds_cache, write_rate, write_templates

import numpy as np
import pytest
from astropy.io import fits

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol')
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
ReturnToService=2
KillWait=2
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP
"""

missing = [program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
reason = f"not installed: {', '.join(missing)} (apt install slurm-wlm munge)" if missing else 'its daemons run as root'
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing) or os.geteuid() != 0, reason=reason)]


@pytest.fixture(scope='module')
def slurm():
    """Start munge, a controller and a node; yields the environment in which they answer."""
    directory = Path(tempfile.mkdtemp(prefix='slurm'))           # short: a socket has to fit into 108 characters
    for name in 'state', 'spool':
        (directory / name).mkdir()
    (directory / 'munge.key').write_bytes(os.urandom(128))
    (directory / 'munge.key').chmod(0o600)
    configuration = directory / 'slurm.conf'
    host, (controller_port, node_port) = socket.gethostname().split('.')[0], free_ports(2)
    configuration.write_text(CONFIGURATION.format(**locals()))
    environment = os.environ | {'SLURM_CONF': str(configuration), 'PATH': f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    munge = [f'--{kind}={directory}/munge.{ending}' for kind, ending in (
        ('socket', 'socket'), ('key-file', 'key'), ('pid-file', 'pid'), ('log-file', 'log'), ('seed-file', 'seed'))]
    daemons = []
    try:
        for command in (['munged', '--foreground', '--force', *munge], ['slurmctld', '-D', '-f', configuration],
                        ['slurmd', '-D', '-f', configuration, '-N', 'node']):
            with open(directory / f'{command[0]}.out', 'wb') as output:
                daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
            time.sleep(1)
        wait_for(lambda: 'idle' in run('sinfo', '--noheader', environment=environment), 60,
                 lambda: '\n'.join(path.read_text(errors='replace')[-2000:] for path in directory.glob('*.out')))
        yield environment
        run('scancel', '--user=root', environment=environment)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(directory, ignore_errors=True)


def free_ports(number):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(number)]
        return [server.getsockname()[1] for server in sockets]


def run(*command, environment):
    """What a command of Slurm says, at the top level."""
    done = subprocess.run([*map(str, command)], env=environment, text=True, capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for(condition, seconds, explain=lambda: ''):
    """Wait until `condition()` holds, and return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    pytest.fail(f'not within {seconds} s\n{explain()}')

@pytest.fixture(scope='module')
def exposures(tmp_path_factory):
    """12 simulated rate images, their flats and templates, and a python that reaches no network."""
    directory = tmp_path_factory.mktemp('night 1')
    modes = (('NRCA3', 'F200W', 'FULL'), ('NRCB4', 'F150W', 'SUB640'), ('NRCALONG', 'F444W', 'SUB640'))
    for seed, (detector, filter_, subarray) in enumerate(modes):
        scene = rate_scene(detector, filter_, seed=seed, subarray=subarray, wisp=0.6)
        first = write_rate(scene, directory / 'rates' / f'jw0_0_{detector.lower()}_rate.fits')
        for i in range(1, 4):
            shutil.copy(first, first.with_name(first.name.replace('_0_', f'_{i}_')))
        write_crds_cache(directory / 'cache', [detector], [filter_])
    write_templates(directory / 'wisps', ['NRCA3', 'NRCB4'], ['F200W', 'F150W'])
    (directory / 'bin').mkdir()
    python = directory / 'bin' / 'python'
    alone = subprocess.run(['unshare', '--net', 'true'], check=False).returncode == 0
    python.write_text(f"#!/bin/sh\nexec {'unshare --net ' * alone}{sys.executable} \"$@\"\n")
    python.chmod(0o755)
    return directory


def histories(directory):
    """Number of HISTORY entries (wisps, striping) of each rate image."""
    def count(path):
        text = str(fits.getheader(path).get('HISTORY', ''))
        return text.count('Wisps: subtracted'), text.count('Removed horizontal,vertical striping')
    return {path.name.removesuffix('_rate.fits'): count(path) for path in sorted(directory.glob('*_rate.fits'))}


def test_twelve_exposures_one_bad_one_killed(slurm, exposures):
    rates, cache, directory = exposures / 'rates', exposures / 'cache', exposures / 'batch 100%d'
    environment = slurm | crds_environment(cache) | {'PATH': f"{exposures / 'bin'}:{slurm['PATH']}"}
    def snapshot():
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in cache.rglob('*')}
    before = snapshot()
    bad, killed = 'jw0_2_nrcb4', 'jw0_1_nrca3'
    shutil.copytree(rates, exposures / 'raw')
    assert make_batch.main([*map(str, (rates, '--out', directory, '--wisp_dir', exposures / 'wisps'))]) == 0
    os.truncate(rates / f'{bad}_rate.fits', 1_000_000)

    def submit():
        """Submit the batch as three shares; returns what they said when all have ended."""
        job = run('sbatch', '--parsable', '--array=1-3', '--cpus-per-task=1', '--mem-per-cpu=2000',
                  f'--output={exposures}/slurm_%A_%a.out', 'batch_scripts/batch.slurm', directory,
                  environment=environment).strip()
        yield job
        wait_for(lambda: not run('squeue', '--noheader', environment=slurm), 900)
        yield '\n'.join(path.read_text() for path in sorted(exposures.glob(f'slurm_{job}_*.out')))

    submitted = submit()
    next(submitted)
    log = directory / 'log' / f'{killed}.log'
    worker = wait_for(lambda: log.exists() and re.search(r'process (\d+)\npython remstriping', log.read_text()), 900)[1]
    os.kill(int(worker), signal.SIGKILL)
    said = next(submitted)
    expected = {name: (not name.endswith('long'), 1) for name in histories(exposures / 'raw')}
    done = histories(rates)
    assert {name for name in expected if done.get(name) != expected[name]} == {bad, killed}, said
    assert done[killed] == (1, 0) and f'{killed}.log: the process was killed' in said
    assert re.search(f'{bad}.log: .*is truncated', said)
    assert said.count(' 1 failed') == 2 and said.count(' 0 failed') == 1

    shutil.copy(exposures / 'raw' / f'{bad}_rate.fits', rates)
    submitted = submit()
    next(submitted)
    said = next(submitted)
    assert histories(rates) == expected and said.count('1 done, 3 left alone') == 2 and '0 done, 4 left alone' in said
    assert snapshot() == before
    for name in bad, killed:                         # as its twin, which was left in peace
        twin = name.replace('_1_', '_0_').replace('_2_', '_0_')
        assert np.array_equal(fits.getdata(rates / f'{name}_rate.fits'), fits.getdata(rates / f'{twin}_rate.fits'),
                              equal_nan=True)
    assert not [path for path in rates.iterdir() if path.name.startswith('.')]
