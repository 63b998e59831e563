"""What was put into an exposure."""

from dataclasses import dataclass, fields

import numpy as np

from .detector import COLUMN_RMS, STRIPE_RMS, bad_pixels, make_flat, stripe_pattern
from .frame import NX, NY, PERIOD, READOUTS, frame_time, reference_pixels, stream, subarray_place
from .sky import catalogue, draw_sources, sky_level
from .wisps import distributed_template, wisp_shape


@dataclass
class Truth:
    """What was put into an exposure; images are float32 (ny, nx), DN/s, and 0 in the reference pixels.

    A full frame, (2048, 2048), until `cut`.
    """

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
    row_pattern: np.ndarray         # (ny, 4), or 1: mean of true_stripes over each amplifier
    column_pattern: np.ndarray      # (2048,)
    bad: np.ndarray                 # bool, True = DO_NOT_USE; the reference pixels are among them
    hot: np.ndarray                 # excess of the hot pixels, 0 elsewhere
    pupil: str = 'CLEAR'
    subarray: str = 'FULL'
    readout: str = 'MEDIUM8'

    @classmethod
    def draw(cls, detector, filter_, seed, crowd=1., big=False, wisp=0., stripes=True, template=None, pupil='CLEAR',
             subarray='FULL', noise=STRIPE_RMS, columns=COLUMN_RMS, offsets=0., groups=9, strength=1., integration=0):
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
        pupil, subarray : str
        noise : float or 'measured'
            Rms of the mean over an amp-row, DN/s; or measured spectra, see `stripe_pattern`.
        columns : float
            Rms of the column pattern, DN/s.
        offsets : float
            Rms of offsets of whole amplifiers, DN/s, which count as stripes; their mean is 0.
        groups, strength : int, float
            Of the ramp behind measured noise, and by how much that noise is stronger.
        integration : int
            From 0; each has stripes of its own.
        """
        galaxies, extended, stars, probes = catalogue(stream('sky', detector, filter_, seed), crowd, big)
        unit = wisp_shape(detector, filter_) if template is None else np.nan_to_num(np.asarray(template))
        unit = np.where(reference_pixels(), 0, unit).astype(np.float32)
        key = 'stripes', detector, filter_, seed, *([integration] if integration else [])
        pattern, rows, column_pattern = stripe_pattern(stream(*key), stripes, detector, subarray, noise, columns,
                                                       groups, PERIOD * frame_time(subarray), strength)
        steps = stream('offsets', detector, seed).normal(0, offsets, rows.shape[1])
        steps -= steps.mean()
        rows += steps
        pattern += np.where(reference_pixels(), 0, np.repeat(steps, NX // len(steps)))
        bad, hot = bad_pixels(detector)
        source = draw_sources(galaxies, extended, stars, probes)
        source[reference_pixels()] = 0
        return cls(detector, filter_, seed, sky_level(detector), source, galaxies, extended, stars, probes,
                   flat=make_flat(detector, filter_), wisp_unit=unit, wisp_scale=float(wisp) if unit.any() else 0.,
                   template=distributed_template(unit, detector, filter_),
                   true_stripes=pattern, row_pattern=rows, column_pattern=column_pattern, bad=bad, hot=hot,
                   pupil=pupil, subarray=subarray)

    def cut(self):
        """Keep what the subarray sees, in place: images, and positions in its pixels; the same object.

        All of `extended` stay, for probes refer to its rows.
        """
        rows, columns = self.place
        self.row_pattern, self.column_pattern = self.row_pattern[rows], self.column_pattern[columns]
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, np.ndarray):
                continue
            if value.shape == (NY, NX):
                value = value[rows, columns].copy()
            elif 'x' in (value.dtype.names or ()):
                value = value.copy()
                value['x'] -= columns.start
                value['y'] -= rows.start
                inside = np.all([(value[name] > -0.5) & (value[name] < side.stop - side.start - 0.5)
                                 for name, side in (('x', columns), ('y', rows))], axis=0)
                value = value if item.name == 'extended' else value[inside]
            setattr(self, item.name, value)
        return self

    @property
    def place(self):
        """Rows and columns of the detector, two slices."""
        return subarray_place(self.detector, self.subarray)

    @property
    def tframe(self):
        """Seconds of a frame."""
        return frame_time(self.subarray)

    @property
    def tgroup(self):
        """Seconds from group to group."""
        return sum(READOUTS[self.readout]) * self.tframe

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
        y, x = np.ogrid[:len(self.sky), :self.sky.shape[1]]
        near = np.zeros(self.sky.shape, bool)
        for galaxy in self.extended:
            r2 = ((x - galaxy['x'])**2 + (y - galaxy['y'])**2) / galaxy['radius']**2
            near |= (r2 >= 1.5**2) & (r2 <= 4**2)
        return near
