"""Draw the README's picture of a big galaxy under both methods of striping removal.

Example
-------
    python tests/pictures.py docs
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import simulate
from accuracy import destripe, left_over
from demo import average

SEED = 1


def draw(path):
    """Draw one simulated scene before and after each method, and what each leaves of the injected pattern."""
    from matplotlib.figure import Figure
    from PIL import Image
    scene = simulate.rate_scene(seed=SEED, big=True)
    corrected = {'before': scene.sci, 'dr05, threshold 0.15': destripe('dr05', 0.15)(scene)[0],
                 'adaptive': destripe('adaptive', 0.8)(scene)[0]}
    figure = Figure(figsize=(12, 8.6), layout='constrained')
    axes = figure.subplots(2, len(corrected))
    for column, (title, image) in enumerate(corrected.items()):
        left = left_over(scene, scene.sci, image, scene.good)
        for row, (data, spread) in enumerate(((image - scene.sky, 0.03), (left, 0.01))):
            shown = axes[row, column].imshow(average(data - np.nanmedian(data), 4), origin='lower', cmap='gray',
                                             vmin=-spread, vmax=spread, interpolation='nearest')
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
            if column == len(corrected) - 1:
                figure.colorbar(shown, ax=axes[row], label='DN/s', fraction=0.02, pad=0.01)
        axes[0, column].set_title(title)
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
