"""Grow the flags of snowballs in anybody's own run of the pipeline, as a hook of its jump step.

    strun calwebb_detector1 X_uncal.fits --steps.jump.post_hooks="stage1.strun_hook.GrowSnowballs,"

with PYTHONPATH set to the directory of the scripts; docs/environments.md says how with jwst 1.7.2. A step and not a
function, because jwst 1.7.2 takes no functions.
"""

from jwst.stpipe import Step


class GrowSnowballs(Step):
    """Step that flags the halos of snowballs as jumps, in the ramp model that the jump step returns."""

    class_alias = 'grow_snowballs'

    def process(self, ramp):
        """The same model with grown flags."""
        from snowball_wrapper import flag_snowballs
        ramp.groupdq = flag_snowballs(ramp.groupdq)[0]
        return ramp
