"""stage1/pipeline.py: parameter files of Detector1, a quiet pipeline, what HISTORY says."""

import logging
import sys
from types import SimpleNamespace

from conftest import ROOT
from stage1 import pipeline
from stage1.command import start_log
from stage1.exposure import ExposureError
from stage1.pipeline_log import Listener

import pytest
from astropy.io import fits

PARAMETERS = ROOT / 'detector1_1.7.2.asdf'

# What jwst 3.0 runs with where it differs from the 1.7.2 defaults in PARAMETERS.
CHANGED_DEFAULTS = {'firstframe.skip': True, 'persistence.skip': True, 'jump.maximum_cores': '1'}
REMOVED = {'rscd.type', 'persistence.flag_pers_cutoff', 'persistence.input_trapsfilled',
           'persistence.save_persistence', 'persistence.save_trapsfilled'}


@pytest.fixture(scope='module')
def parameter_file():
    """Every parameter in detector1_1.7.2.asdf: {'jump.rejection_threshold': 4.0, ...}."""
    asdf = pytest.importorskip('asdf')
    with asdf.open(PARAMETERS) as file:
        flat = dict(file.tree['parameters'])
        for step in file.tree['steps']:
            flat |= {f"{step['name']}.{key}": value for key, value in step['parameters'].items()}
        return flat


@pytest.fixture(scope='module')
def defaults():
    """Parameters that Detector1 runs with when nothing is said."""
    return pipeline.flat_parameters(pipeline.make_detector1().get_pars())


def test_parameter_file_holds_the_defaults_that_detector1_runs_with(parameter_file, defaults):
    gone = {key for key in REMOVED if defaults.get(key) is None}
    wrong = {key: defaults[key] for key, value in parameter_file.items() if key not in gone and defaults[key] != value}
    wrong.pop('ramp_fit.maximum_cores', None)       # the script has a setting for it
    assert wrong == ({} if 'rscd.type' in defaults else CHANGED_DEFAULTS)


def test_parameter_file_is_read_and_what_is_gone_is_named(defaults, capsys):
    start_log()
    parameters, said = pipeline.read_parameters(PARAMETERS), capsys.readouterr().err
    assert all((name in said) == ('rscd.type' not in defaults) for name in REMOVED)
    assert pipeline.make_detector1(parameters).jump.rejection_threshold == 4.0


def test_changed_parameters_are_those_of_the_file(tmp_path):
    changed = tmp_path / 'changed.asdf'
    changed.write_text(PARAMETERS.read_text().replace('rejection_threshold: 4.0', 'rejection_threshold: 5.5'))
    found = pipeline.changed_parameters(pipeline.make_detector1(pipeline.read_parameters(changed)))
    assert found['jump.rejection_threshold'] == 5.5 and pipeline.changed_parameters(pipeline.make_detector1()) == {}


@pytest.mark.parametrize(('old', 'new', 'named'), [
    ('rejection_threshold: 4.0', 'rejection_threshold: -4.0', 'rejection_threshold'),
    ('skip: false', 'skip: maybe', 'skip'), ('rejection_threshold: 4.0', 'rejection_threshold: {a: 1}', 'wrong.asdf'),
    ('calwebb_detector1.Detector1Pipeline', 'calwebb_image2.Image2Pipeline', 'Detector1Pipeline'),
    ('parameters:', 'nonsense:', 'cannot be read'),
])
def test_a_wrong_parameter_file_is_an_error(tmp_path, old, new, named):
    wrong = tmp_path / 'wrong.asdf'
    wrong.write_text(PARAMETERS.read_text().replace(old, new, 1))
    with pytest.raises(ExposureError, match=named):
        pipeline.read_parameters(wrong)


def test_a_parameter_file_starts_no_program(tmp_path):
    hooked = tmp_path / 'hooked.asdf'
    hooked.write_text(PARAMETERS.read_text().replace('post_hooks: []', f"post_hooks: ['touch {tmp_path}/ran']"))
    assert not pipeline.make_detector1(pipeline.read_parameters(hooked)).jump.post_hooks


def test_the_pipeline_is_quiet_and_the_log_comes_back(capfd):
    loggers = [logging.getLogger(name) for name in ('', 'CRDS', 'stpipe')]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    heard = Listener('x_uncal.fits')
    with heard.listening():
        logging.getLogger('stpipe').warning('heard')
        logging.getLogger('CRDS').info('found')
        sys.stdout.write('printed')
    for word in 'heard', 'found', 'printed':
        assert word in heard.text.getvalue()
    assert capfd.readouterr() == ('', '')
    assert [(logger.handlers[:], logger.level) for logger in loggers] == before


def test_steps_and_downloads_are_told_once_and_warnings_kept(capsys):
    start_log()
    heard = Listener('x_uncal.fits', steps=True)
    stpipe = logging.getLogger('stpipe.Detector1')
    with heard.listening():
        for _ in range(2):
            stpipe.warning('no dark  for this')
        for line in ('Step jump running with args (1,).', 'Step jump done', 'Step ipc running with args (1,).',
                     'Step skipped.', 'Step ipc done', 'Step Detector1Pipeline done', 'nothing of interest'):
            stpipe.info(line)
        logging.getLogger('CRDS').info('Fetching  jwst_nircam_dark_0001.fits (1 M bytes)')
        logging.getLogger('py.warnings').warning('divide by zero')
    assert heard.warnings == ['no dark for this']
    said = [line.split(' ', 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said == ['INFO x_uncal.fits: jump, 0.0 s',
                    'INFO x_uncal.fits: CRDS: Fetching jwst_nircam_dark_0001.fits (1 M bytes)']


def test_a_pipeline_that_makes_nothing_is_said(tmp_path):
    path = tmp_path / 'x_uncal.fits'
    fits.PrimaryHDU().writeto(path)
    made = SimpleNamespace(run=lambda _: None, output_dir=str(tmp_path))            # all saturated
    with pytest.raises(ExposureError, match='made no rate image'):
        pipeline.run_detector1(path, made, tmp_path / 'log')


def test_history_names_every_version_and_takes_any_setting():
    _, line, asked = pipeline.history_lines('x', 'wispsub.py', 'jwst_0001.pmap', {'template': 'é\n\x1b'})
    header = fits.Header()
    header.add_history(asked)
    assert header['HISTORY'][0] == 'wispsub.py settings: template=\\xe9\\n\\x1b'
    assert line.startswith('wispsub.py ') and line.endswith('; CRDS jwst_0001.pmap')
    assert all(f'{package} ' in line for package in ('jwst', 'photutils', 'astropy', 'numpy', 'scipy'))
