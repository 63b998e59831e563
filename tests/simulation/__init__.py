"""Simulated NIRCam exposures, full frames and subarrays, whose truth is known.

A seed gives a sky (gradient, galaxies, stars), a detector (flat, bad and hot pixels, reference pixels), a wisp and
1/f stripes; `rate_scene` returns them as a rate image as Detector1 leaves it, `exposure` as a raw ramp of averaged
frames with cosmic rays and snowballs. Whatever was put in is returned too. `write_crds_cache` writes the CRDS cache
that the pipeline needs for them, so nothing here wants a network.

Images are (ny, nx), drawn as full frames and then cut, rates in DN/s; masks are True where something is. Each part has
its own random stream, so that an option changes nothing but what it names.
"""

# ruff: noqa: F401
from .crds_cache import crds_environment, write_crds_cache
from .detector import make_flat, reading_axes
from .files import NAME, load_truth, save_truth, write_exposure, write_rate, write_rateints, write_uncal
from .frame import AMPS, NX, NY, READOUTS, SUBARRAYS, reference_pixels, subarray_place
from .ramp import Exposure, exposure, share_of
from .rate import DO_NOT_USE, JUMP_DET, SATURATED, Scene, mean_scene, rate_scene
from .truth import Truth
from .wisps import WISP_WINDOWS, varied_wisp, wisp_components, wisp_shape, write_templates
