"""submit_slurm.sh on a real Slurm: one controller and one node on the loopback address, started here."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import make_batch
from conftest import ROOT
from make_batch import STEPS, STRIPES, WISPS
from simulation import crds_environment, rate_scene, write_crds_cache, write_rate, write_templates

import numpy as np
import pytest
from astropy.io import fits

SUBMIT = ROOT / 'batch_scripts' / 'submit_slurm.sh'
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol')
LIMIT = 8                                              # MaxArraySize: 12 exposures take two chunks

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=2
MaxArraySize={limit}
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP
"""

missing = [program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (apt install slurm-wlm munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason='the Slurm daemons are started as root'),
]


# --- a cluster ---------------------------------------------------------------------------------------

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
    configuration.write_text(CONFIGURATION.format(**locals(), limit=LIMIT))
    environment = os.environ | {'SLURM_CONF': str(configuration),
                                'PATH': f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    munge = [f'--{kind}={directory}/munge.{ending}' for kind, ending in (
        ('socket', 'socket'), ('key-file', 'key'), ('pid-file', 'pid'), ('log-file', 'log'), ('seed-file', 'seed'))]
    daemons = []
    try:
        for command in (['munged', '--foreground', '--force', *munge], ['slurmctld', '-D', '-f', configuration],
                        ['slurmd', '-D', '-f', configuration, '-N', 'node']):
            with open(directory / f'{command[0]}.out', 'wb') as output:
                daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
            time.sleep(1)
        wait_for(lambda: 'idle' in run('sinfo', '--noheader', environment=environment).stdout, 60,
                 lambda: '\n'.join(path.read_text(errors='replace')[-2000:] for path in directory.glob('*.out')))
        yield environment
        run('scancel', '--user=root', environment=environment)
        drain(environment, 60)
        time.sleep(1)
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
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def run(*command, environment):
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60, check=False, cwd='/')


def wait_for(condition, seconds, explain=lambda: ''):
    """Wait until `condition()` holds, and return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    pytest.fail(f'not within {seconds} s\n{explain()}')


def queue(environment):
    """Numbers of the jobs that are queued or running."""
    return run('squeue', '--noheader', '--array', '--format=%i', environment=environment).stdout.split()


def submit(environment, directory, *options):
    """Submit a batch; returns the lines that tell about it."""
    done = run(SUBMIT, directory, *options, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def drain(environment, seconds=600):
    """Wait until the queue is empty."""
    wait_for(lambda: not queue(environment), seconds, lambda: run('squeue', environment=environment).stdout)


# --- stand-in commands: what waits for what ----------------------------------------------------------

def write_fakes(directory, names, wisps):
    """Write a batch whose commands note that they ran, or fail when the file `fails` beside the batch names them."""
    directory.mkdir()
    work = 'sleep 0.3; test "$1" = "$(cat "$0/fails")" && exit 1; echo "$1" >>"$0/ran"'
    for step in STEPS:
        lines = [f"""sh -c '{work}' '{directory.parent}' '{step} {name}' 'x y/{name}_rate.fits'\n"""
                 for name in names if step != WISPS or name in wisps]
        (directory / f'{step}.run').write_text(''.join(lines))


def ran(tmp_path):
    """(step, dataset) in the order in which they ran; forgets them."""
    lines = (tmp_path / 'ran').read_text().splitlines()
    (tmp_path / 'ran').unlink()
    return [tuple(line.split(' ', 1)) for line in lines]


def test_each_element_waits_for_its_own_exposure(slurm, tmp_path):
    names, wisps = [f'e {i}' for i in range(11)], ['e 1', 'e 4', 'e 10']
    directory = tmp_path / 'a batch 100%d'
    write_fakes(directory, names, wisps)
    (tmp_path / 'fails').write_text(f'{WISPS} e 4\n')
    said = submit(slurm, directory)
    assert [line.split()[2] for line in said].count(WISPS) == 2                          # one in each chunk
    refused = run(SUBMIT, directory, environment=slurm)
    assert refused.returncode == 2 and 'still in the queue' in refused.stderr
    drain(slurm)
    order, wanted = ran(tmp_path), {name: [step for step in STEPS if step != WISPS or name in wisps] for name in names}
    for name in names:
        assert [step for step, other in order if other == name] == (wanted[name] if name != 'e 4' else [STEPS[0]])
    (tmp_path / 'fails').write_text('')
    said = submit(slurm, directory, '--partition=main', '--time=2')
    assert len(said) == 2
    drain(slurm)
    assert ran(tmp_path) == [(WISPS, 'e 4'), (STRIPES, 'e 4')]
    assert submit(slurm, directory) == ['nothing left to do']


def test_what_sbatch_refuses_is_said(slurm, tmp_path):
    write_fakes(tmp_path / 'batch', ['x'], [])
    done = run(SUBMIT, tmp_path / 'batch', '--partition=none', environment=slurm)
    assert done.returncode == 1 and 'partition' in done.stderr and not queue(slurm)


def test_the_whole_release_fits(slurm, tmp_path):
    """690 exposures, with the highest limit that we use, and held: the list of indices must not be too long."""
    directory = tmp_path / 'all'
    shutil.copytree(ROOT / 'batch_scripts' / 'all', directory, ignore=shutil.ignore_patterns('log'))
    fake = tmp_path / 'bin'
    fake.mkdir()
    (fake / 'sbatch').write_text('#!/bin/bash\nfor option; do [[ $option == --array=* ]] && echo "$option" >>'
                                 f"{tmp_path}/arrays; done\necho $((++n))$RANDOM; cat >>{tmp_path}/scripts\n")
    (fake / 'scontrol').write_text('#!/bin/bash\necho "MaxArraySize            = 100001"\n')
    (fake / 'squeue').write_text('#!/bin/bash\n')
    for path in fake.iterdir():
        path.chmod(0o755)
    said = submit(slurm | {'PATH': f"{fake}:{slurm['PATH']}"}, directory)
    assert [line.split(': ')[1].split(',')[0] for line in said] == [
        'detector1_and_snowballs of 690 exposures', 'wisp_subtraction of 132 exposures',
        *sorted(['remstriping of 132 exposures', 'remstriping of 558 exposures'],
                key=lambda text: [text in line for line in said].index(True))]
    assert max(map(len, (tmp_path / 'arrays').read_text().splitlines())) < 4096


# --- the scripts -------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def exposures(tmp_path_factory):
    """12 simulated rate images, their flats and templates, and a python that reaches no network."""
    directory = tmp_path_factory.mktemp('night 1')
    modes = (('NRCA3', 'F200W'), ('NRCB4', 'F150W'), ('NRCALONG', 'F444W'))
    for seed, (detector, filter_) in enumerate(modes):
        first = write_rate(rate_scene(detector, filter_, seed=seed, wisp=0.6), directory / 'rates' /
                           f'jw0_0_{detector.lower()}_rate.fits')
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
    rates, cache, directory = exposures / 'rates', exposures / 'cache', exposures / 'batch'
    environment = slurm | crds_environment(cache) | {'CRDS_READONLY_CACHE': '1',
                                                     'PATH': f"{exposures / 'bin'}:{slurm['PATH']}"}
    cached = snapshot(cache)
    bad, killed = 'jw0_2_nrca3', 'jw0_1_nrcb4'
    shutil.copytree(rates, exposures / 'raw')
    assert make_batch.main([*map(str, (rates, '--out', directory, '--wisp_dir', exposures / 'wisps'))]) == 0
    os.truncate(rates / f'{bad}_rate.fits', 10_000_000)
    said = submit(environment, directory, '--mem=2000')
    assert sorted(line.split(': ')[1].split(',')[0] for line in said) == [
        'remstriping of 4 exposures', 'remstriping of 8 exposures', 'wisp_subtraction of 8 exposures']
    kill_element(slurm, directory, STRIPES, killed)
    drain(slurm)
    expected = {name: (not name.endswith('long'), 1) for name in histories(exposures / 'raw')}
    done = histories(rates)
    assert {name for name in expected if done.get(name) != expected[name]} == {bad, killed}
    assert done[killed] == (1, 0)
    assert 'truncated' in (directory / 'log' / WISPS / f'{bad}.log').read_text()
    assert not (directory / 'log' / STRIPES / f'{bad}.log').exists()

    shutil.copy(exposures / 'raw' / f'{bad}_rate.fits', rates)
    said = submit(environment, directory, '--mem=2000')
    assert sorted(line.split(': ')[1].split(',')[0] for line in said) == [
        'remstriping of 1 exposures', 'remstriping of 1 exposures', 'wisp_subtraction of 1 exposures']
    drain(slurm)
    assert histories(rates) == expected
    assert submit(environment, directory) == ['nothing left to do']
    assert snapshot(cache) == cached
    for name in bad, killed:                         # as its twin, which was left in peace
        twin = name.replace('_1_', '_0_').replace('_2_', '_0_')
        assert np.array_equal(fits.getdata(rates / f'{name}_rate.fits'), fits.getdata(rates / f'{twin}_rate.fits'),
                              equal_nan=True)
    assert not [path for path in rates.iterdir() if path.name.startswith('.')]


def kill_element(environment, directory, step, dataset):
    """Cancel the element of a dataset while its command runs."""
    log = directory / 'log' / step / f'{dataset}.log'
    job = wait_for(lambda: log.exists() and re.search(r'Slurm job (\d+_\d+)', log.read_text()), 600)[1]
    time.sleep(1)
    assert run('scancel', job, environment=environment).returncode == 0
    wait_for(lambda: job not in queue(environment), 30)
    assert log.with_suffix('.done').read_text() == '', log.read_text()      # begun, not done


def snapshot(directory):
    """Names, sizes and times of all that a directory holds."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.rglob('*')}
