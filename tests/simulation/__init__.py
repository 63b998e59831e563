"""Simulated full-frame NIRCam exposures whose truth is known.

A seed gives a sky (gradient, galaxies, stars), a detector (flat, bad and hot pixels, reference pixels), a wisp and
1/f stripes; `rate_scene` returns them as a rate image as Detector1 leaves it, `exposure` as a raw MEDIUM8 ramp with
cosmic rays and snowballs. Whatever was put in is returned too. `write_crds_cache` writes the CRDS cache that the
pipeline needs for them, so nothing here wants a network.

Images are (ny, nx) = (2048, 2048), rates in DN/s; masks are True where something is. Each part has its own random
stream, so that an option changes nothing but what it names.
"""

# ruff: noqa: F401
from .crds_cache import crds_environment, write_crds_cache
from .detector import make_flat
from .files import NAME, load_truth, save_truth, write_exposure, write_rate, write_uncal
from .frame import AMPS, NX, NY, reference_pixels
from .ramp import Exposure, exposure
from .rate import DO_NOT_USE, JUMP_DET, SATURATED, Scene, rate_scene
from .truth import Truth
from .wisps import WISP_WINDOWS, varied_wisp, wisp_components, wisp_shape, write_templates
