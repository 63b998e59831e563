"""What was put into an exposure."""

from dataclasses import dataclass

import numpy as np

from .detector import bad_pixels, make_flat, stripe_pattern
from .frame import NX, NY, reference_pixels, stream
from .sky import catalogue, draw_sources, sky_level
from .wisps import distributed_template, wisp_shape


@dataclass
class Truth:
    """What was put into an exposure; images are float32 (2048, 2048), DN/s, and 0 in the reference pixels."""

    detector: str
    filter_: str
    seed: int
    sky: np.ndarray                 # sky level with its gradient (not 0 in the reference pixels)
    source: np.ndarray              # light of galaxies, stars and probes, before the flat
    galaxies: np.ndarray            # table x, y, flux, radius, sersic, q, pa: the ordinary galaxies
    extended: np.ndarray            # same columns: the bright extended galaxies (`big` is the first)
    stars: np.ndarray               # table x, y, flux
    probes: np.ndarray              # table x, y, flux, host (row of `extended`, -1: far from all)
    flat: np.ndarray                # 1 in the reference pixels
    wisp_unit: np.ndarray           # wisp light at scale 1, before the flat
    wisp_scale: float
    template: np.ndarray            # what is distributed: wisp_unit with noise, NaN in places
    true_stripes: np.ndarray        # 1/f noise of every pixel in the rate image
    row_pattern: np.ndarray         # (2048, 4): mean of true_stripes over each of `AMPS`
    column_pattern: np.ndarray      # (2048,)
    bad: np.ndarray                 # bool, True = DO_NOT_USE; the reference pixels are among them
    hot: np.ndarray                 # excess of the hot pixels, 0 elsewhere

    @classmethod
    def draw(cls, detector, filter_, seed, crowd=1., big=False, wisp=0., stripes=True, template=None):
        """Draw all that does not depend on how the detector is read.

        The flat, the wisp and the bad pixels depend on `detector` and `filter_` alone, sky and stripes on `seed` too.

        Parameters
        ----------
        crowd : float
            Number of galaxies in units of 700.
        big : bool
            Add a galaxy with an effective radius of 130 pixels near the middle.
        wisp : float
            Scale of the wisp.
        stripes : bool
            False leaves the row and column patterns out.
        template : (2048, 2048) array, optional
            Unit wisp to use instead of the built-in one, DN/s; NaN counts as 0.
        """
        galaxies, extended, stars, probes = catalogue(stream('sky', detector, filter_, seed), crowd, big)
        unit = wisp_shape(detector, filter_) if template is None else np.nan_to_num(np.asarray(template))
        unit = np.where(reference_pixels(), 0, unit).astype(np.float32)
        pattern, rows, columns = stripe_pattern(stream('stripes', detector, filter_, seed), stripes)
        bad, hot = bad_pixels(detector)
        source = draw_sources(galaxies, extended, stars, probes)
        source[reference_pixels()] = 0
        return cls(detector, filter_, seed, sky_level(detector), source, galaxies, extended, stars, probes,
                   flat=make_flat(detector, filter_), wisp_unit=unit, wisp_scale=float(wisp) if unit.any() else 0.,
                   template=distributed_template(unit, detector, filter_),
                   true_stripes=pattern, row_pattern=rows, column_pattern=columns, bad=bad, hot=hot)

    @property
    def pattern(self):
        """All that destriping should take out of the rate image, DN/s (2048, 2048)."""
        return self.true_stripes + self.column_pattern

    @property
    def wisp_light(self):
        """The wisp in the rate image, DN/s (2048, 2048): scale x wisp x flat."""
        return self.wisp_scale * self.wisp_unit * self.flat

    @property
    def light(self):
        """Noise-free rate image without stripes, DN/s (2048, 2048)."""
        return self.flat * (self.sky + self.source + self.wisp_scale * self.wisp_unit)

    @property
    def blank(self):
        """True = sky without a source (below 0.003 DN/s), (2048, 2048) bool."""
        return self.source < 0.003

    @property
    def near(self):
        """True = 1.5 to 4 effective radii from a bright extended galaxy, (2048, 2048) bool."""
        y, x = np.ogrid[:NY, :NX]
        near = np.zeros((NY, NX), bool)
        for galaxy in self.extended:
            r2 = ((x - galaxy['x'])**2 + (y - galaxy['y'])**2) / galaxy['radius']**2
            near |= (r2 >= 1.5**2) & (r2 <= 4**2)
        return near
