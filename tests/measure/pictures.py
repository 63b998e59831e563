"""Draw the pictures of the documents: a big galaxy, a nebula and a spiral under both methods of striping removal.

The last two are photographs, see photographs.py; they are drawn when a folder of them is given.

Examples
--------
    python tests/measure/pictures.py docs
    python tests/measure/pictures.py docs --photographs /usr/share/stellarium/nebulae/default
"""

import argparse
import sys
from pathlib import Path

from accuracy import block_means, destripe, left_over
from simulation import rate_scene

import numpy as np


def draw(path, scene, thresh, spread):
    """Draw one simulated scene before and after each method, and what each leaves of the injected pattern.

    `thresh` is that of dr05; `spread` of the grey levels of the image, DN/s.
    """
    from matplotlib.figure import Figure
    from PIL import Image
    corrected = {'before': scene.sci, f'dr05, threshold {thresh}': destripe('dr05', thresh)(scene)[0],
                 'adaptive': destripe('adaptive', 0.8)(scene)[0]}
    figure = Figure(figsize=(12, 8.6), layout='constrained')
    axes = figure.subplots(2, len(corrected))
    for column, (title, image) in zip(axes.T, corrected.items(), strict=True):
        left = left_over(scene, scene.sci, image, scene.good)
        for panel, data, limit in zip(column, (image - scene.sky, left), (spread, 0.01), strict=True):
            shown = panel.imshow(block_means(data - np.nanmedian(data), 4), origin='lower', cmap='gray', vmin=-limit,
                                 vmax=limit, interpolation='nearest')
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
    parser.add_argument('--photographs', type=Path, metavar='DIR', help='(Debian: stellarium-data)')
    options = parser.parse_args(argv)
    draw(options.outdir / 'big_galaxy.png', rate_scene(big=True), 0.15, 0.03)
    if options.photographs:
        import photographs
        for name, scene, spread in (('nebula', 'nebula', 0.3), ('spiral', 'a spiral of 1000 px', 0.05)):
            draw(options.outdir / f'{name}.png', photographs.photograph_scene(options.photographs,
                                                                             photographs.SCENES[scene]), 0.8, spread)
    return 0


if __name__ == '__main__':
    sys.exit(main())
