"""Draw the README's picture of a big galaxy under both methods of striping removal.

Example
-------
    python tests/measure/pictures.py docs
"""

import argparse
import sys
from pathlib import Path

from accuracy import block_means, destripe, left_over
from simulation import rate_scene

import numpy as np


def draw(path):
    """Draw one simulated scene before and after each method, and what each leaves of the injected pattern."""
    from matplotlib.figure import Figure
    from PIL import Image
    scene = rate_scene(big=True)
    corrected = {'before': scene.sci, 'dr05, threshold 0.15': destripe('dr05', 0.15)(scene)[0],
                 'adaptive': destripe('adaptive', 0.8)(scene)[0]}
    figure = Figure(figsize=(12, 8.6), layout='constrained')
    axes = figure.subplots(2, len(corrected))
    for column, (title, image) in zip(axes.T, corrected.items(), strict=True):
        left = left_over(scene, scene.sci, image, scene.good)
        for panel, data, spread in zip(column, (image - scene.sky, left), (0.03, 0.01), strict=True):
            shown = panel.imshow(block_means(data - np.nanmedian(data), 4), origin='lower', cmap='gray', vmin=-spread,
                                 vmax=spread, interpolation='nearest')
            panel.set(xticks=[], yticks=[])
            if title == 'adaptive':
                figure.colorbar(shown, ax=panel, label='DN/s', fraction=0.02, pad=0.01)
        column[0].set_title(title)
    axes[0, 0].set_ylabel('image')
    axes[1, 0].set_ylabel('pattern that is left')
    figure.savefig(path, dpi=75)
    Image.open(path).convert('L').save(path, optimize=True)


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('outdir', type=Path, metavar='OUTDIR')
    draw(parser.parse_args(argv).outdir / 'big_galaxy.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
