"""What the scripts ask of the pipeline: the flat field, Detector1, and what made a product."""

import gc
import logging
import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from stage1 import VERSION
from stage1.exposure import ExposureError, one_line, primary_header, printable
from stage1.pipeline_log import Listener

# Switches of older pipelines, whose names are today those of parameters that hold a file name.
FORMER_SWITCHES = ('persistence.save_persistence',)

log = logging.getLogger('nircam')


# --- the flat field ----------------------------------------------------------------------------------

def flat_field(path, keep_flagged=False):
    """Flat-field a rate image with the pipeline's own step, in the current CRDS context.

    Parameters
    ----------
    path : Path
    keep_flagged : bool
        Keep the values of pixels that are flagged DO_NOT_USE, as jwst 1.7.2 does.

    Returns
    -------
    sci, err : ndarray of float32, shape (ny, nx)
        DN/s.
    dq : ndarray of uint32, shape (ny, nx)
        With the flags of the flat.
    flat, context : str
        Names of the flat and of the CRDS context.

    Raises
    ------
    ExposureError
        When there is no flat for this detector, filter and pupil, or CRDS cannot say.
    """
    import numpy as np
    wanted, where = mode(primary_header(path)), crds_settings()
    heard = Listener(path.name)
    try:
        with heard.listening():
            from jwst.flatfield import FlatFieldStep
            result = FlatFieldStep().run(without_flags(path) if keep_flagged else str(path))
    except (Exception, SystemExit) as error:
        check_asdf(error)
        raise ExposureError(f'no flat field for {wanted}: {heard.reason(error)} ({where})') from None
    with result:
        if result.meta.cal_step.flat_field != 'COMPLETE':
            raise ExposureError(f'no flat field for {wanted}: CRDS has none ({where})')
        name, context = Path(result.meta.ref_file.flat.name).name, result.meta.ref_file.crds.context_used
        arrays = result.data.astype(np.float32), result.err.astype(np.float32), result.dq.astype(np.uint32)
        return *arrays, name, context


def check_asdf(error):
    """Raise ExposureError when what stopped the pipeline is that a file has no ASDF extension."""
    if isinstance(error, KeyError) and 'ASDF' in str(error):
        raise ExposureError('has no ASDF extension: save it once with jwst.datamodels') from None


def without_flags(path):
    """The rate image as a datamodel with no pixel flagged."""
    from jwst import datamodels
    model = datamodels.open(str(path))
    model.dq[...] = 0
    return model


# --- Detector1 ---------------------------------------------------------------------------------------

def make_detector1(parameters=None, after_jump=None, stamp=None):
    """Detector1 with a function that is called after its jump step, and one before each product is written.

    Parameters
    ----------
    parameters : dict, optional
        Parameters that are not to have the default of the code.
    after_jump, stamp : callable, optional
        Called with the ramp model, and with the model of each product; not needed to look at parameters only.

    Returns
    -------
    Detector1Pipeline
    """
    from jwst.jump import JumpStep
    from jwst.pipeline import Detector1Pipeline
    from stpipe.config_parser import ConfigObj

    class Jump(JumpStep):
        def process(self, ramp):
            result = super().process(ramp)
            after_jump(result)
            return result

    class Detector1(Detector1Pipeline):
        step_defs = Detector1Pipeline.step_defs | {'jump': Jump}

        def save_model(self, model, *args, **kwargs):
            stamp(model)
            return super().save_model(model, *args, **kwargs)

    if parameters is None:
        return Detector1()
    return Detector1.from_config_section(ConfigObj(parameters), name=Detector1Pipeline.__name__)


def run_detector1(path, pipeline, log_file):
    """Run a pipeline of `make_detector1` on a raw exposure, with its whole log in `log_file`.

    Each step is logged when it ends, with its time, and what the pipeline warns of, once.

    Raises
    ------
    ExposureError
        When CRDS lacks something, or the pipeline stops or makes no rate image.
    """
    wanted, where = mode(primary_header(path)), crds_settings()
    heard = Listener(path.name, steps=True)
    if not gc.get_freeze_count():
        gc.freeze()  # the steps call gc.collect() all the time, which would search all that was imported each time
    try:
        with heard.listening():
            result = pipeline.run(str(path))
            if result is not None:      # as of an exposure that is saturated everywhere
                result.close()
    except OSError as error:
        raise ExposureError(f'Detector1 stopped: {one_line(error)}') from None
    except (Exception, SystemExit) as error:
        check_asdf(error)
        raise ExposureError(f'Detector1 stopped for {wanted}: {heard.reason(error)} ({where})') from None
    for warning in heard.warnings:
        log.warning('%s: Detector1: %s', path.name, warning)
    log_file.write_text(heard.text.getvalue())
    if not (Path(pipeline.output_dir) / path.name.replace('_uncal.fits', '_rate.fits')).exists():
        raise ExposureError('Detector1 made no rate image: is the ramp fit skipped, or every group saturated?')


def changed_parameters(pipeline):
    """Parameters of a pipeline that do not have the default of the code, {'jump.rejection_threshold': 5.0, ...}."""
    standard, chosen = (flat_parameters(p.get_pars()) for p in (make_detector1(), pipeline))
    places = 'input_dir', 'output_dir', 'output_file', 'output_ext', 'save_results'     # where, not how
    return {key: value for key, value in chosen.items()
            if value != standard[key] and key.split('.')[-1] not in places}


def flat_parameters(parameters):
    """The nested dict of a pipeline's parameters as {'jump.rejection_threshold': 4.0, ...}."""
    flat = {key: value for key, value in parameters.items() if key != 'steps'}
    return flat | {f'{step}.{key}': value for step, values in parameters.get('steps', {}).items()
                   for key, value in values.items()}


def read_parameters(path):
    """Read a parameter file of Detector1.

    Parameters
    ----------
    path : str or Path
        As `strun` takes it (ASDF, or the older cfg).

    Returns
    -------
    dict
        The parameters that the installed pipeline has; the others are named in a warning and left out.

    Raises
    ------
    ExposureError
        When the file cannot be read, is for another pipeline, or holds a wrong value.
    """
    try:
        with Listener(path).listening():
            from jwst.pipeline import Detector1Pipeline
            from stpipe import config_parser
            config = config_parser.load_config_file(str(path)).dict()
            known = Detector1Pipeline.load_spec_file().dict()
            pipeline = str(config.pop('class', 'none')).split('.')[-1]
    except Exception as error:
        raise ExposureError(f'{path} cannot be read as a parameter file ({one_line(error)})') from None
    if pipeline not in ('Detector1Pipeline', 'calwebb_detector1'):
        raise ExposureError(f'{path} does not hold parameters of Detector1Pipeline')
    config.pop('name', None)
    config, dropped = usable(config, known)
    if dropped:
        log.warning('%s: left out, because this pipeline does not have them: %s', path, ', '.join(dropped))
    try:
        with Listener(path).listening():
            make_detector1(config)
    except Exception as error:
        raise ExposureError(f'{path}: {one_line(error)}') from None
    return config


def usable(config, known, prefix=''):
    """The nested parameters of `config` that are in `known`, and the names of the others.

    Hooks are left out as well: a parameter file must not start programs.
    """
    kept, dropped = {}, []
    for key, value in config.items():
        hook = key in ('pre_hooks', 'post_hooks') and value
        changed = prefix + key in FORMER_SWITCHES and isinstance(value, bool) and known.get(key, '')[:7] != 'boolean'
        if key not in known or hook or changed:
            dropped.append(prefix + key)
        elif isinstance(value, dict) and isinstance(known[key], dict):
            kept[key], below = usable(value, known[key], '' if key == 'steps' else f'{prefix}{key}.')
            dropped += below
        else:
            kept[key] = value
    return kept, dropped


# --- words -------------------------------------------------------------------------------------------

def mode(header):
    """What references are chosen by, for messages: 'NRCA3 F200W CLEAR 2022-12-21'."""
    return ' '.join(str(header.get(key)) for key in ('DETECTOR', 'FILTER', 'PUPIL', 'DATE-OBS'))


def crds_settings():
    """The environment variables of CRDS, for messages."""
    return ', '.join(f"{key}={os.environ.get(key, 'unset')}"
                     for key in ('CRDS_PATH', 'CRDS_SERVER_URL', 'CRDS_CONTEXT'))


# --- HISTORY -----------------------------------------------------------------------------------------

def history_lines(what, script, context, settings):
    """Three HISTORY lines: what was done, by which script and when (UTC); the versions; the settings."""
    versions = ', '.join(f'{name} {version(name)}' for name in ('jwst', 'photutils', 'astropy', 'numpy', 'scipy'))
    words = ', '.join(f'{key}={value}' for key, value in settings.items())
    return [f'{what}; {script} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}',
            f'{script} {VERSION}; {versions}; CRDS {context}',
            printable(f'{script} settings: {words}')]
