"""The picture of a wisp fit, as a PDF."""

import os

from stage1.masks import block_means

import numpy as np


def plot_wisp(path, fit, image, light, ignore, window, title):
    """Draw the fit window before, the light that is removed, the window after, and how the scale was found.

    Parameters
    ----------
    path : Path
    fit : Fit
        Of wispsub.py.
    image, light : ndarray, shape (ny, nx)
        Flat-fielded fit window, and the wisp in it at scale 1, DN/s.
    ignore : ndarray of bool, shape (ny, nx)
        True = left out of the fit; left blank.
    window : tuple of slice
        Its rows and columns.
    title : list of str
        The first two lines in larger type.
    """
    os.environ.pop('MPLBACKEND', None)      # a notebook's, which this environment may not have; no display is needed
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 8.2))
    title = [line.replace('$', r'\$') for line in title]    # file names are not formulas
    figure.text(0.5, 0.985, '\n'.join(title[:2]), ha='center', va='top')
    figure.text(0.5, 0.93, '\n'.join(title[2:]), ha='center', va='top', fontsize=6, color='0.4')
    plot_pictures(figure, image, fit.scale * light, ignore, window, f'removed: {fit.scale:.2f} x template')
    if fit.trials is not None:
        plot_curves(figure, fit.scale, *fit.trials)
    elif fit.details is not None:
        plot_adaptive(figure, fit)
    figure.text(0.5, 0.015, fit.warning, ha='center', color='C3', weight='bold')
    figure.savefig(path, format='pdf', dpi=150)


def plot_pictures(figure, image, removed, ignore, window, name):
    """Draw the fit window before, the light that is removed, and the window after, on one stretch."""
    rows, columns = window
    before, removed, after = (block_means(data, ignore, 4) for data in (image, removed, image - removed))
    seen = after[np.isfinite(after)]
    sky, low, high = np.percentile(seen, (50, 2, 98)) if seen.size else (0, 0, 1)
    pictures = {'before': before - sky, name: removed, 'after': after - sky}
    grid = figure.add_gridspec(1, 3, left=0.07, right=0.88, bottom=0.45, top=0.84, wspace=0.05)
    for axis, (title, data) in zip(grid.subplots(sharey=True), pictures.items(), strict=True):
        drawn = axis.imshow(data, origin='lower', extent=(columns.start, columns.stop, rows.start, rows.stop),
                            interpolation='nearest', cmap='magma', vmin=low - sky, vmax=2.5 * (high - sky))
        axis.set(title=title, xlabel='x [pixel]', facecolor='0.75')
        axis.label_outer()
    figure.axes[0].set_ylabel('y [pixel]')
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.895, 0.46, 0.015, 0.37)), extend='both')
    bar.set_label('DN/s above the sky; grey = masked')


def plot_curves(figure, scale, scales, variances, curve):
    """Draw variance against scale with the curve through it, and what the curve leaves."""
    grid = figure.add_gridspec(1, 2, left=0.07, right=0.97, bottom=0.1, top=0.36, wspace=0.2)
    names = 'MAD$^2$', 'MAD$^2$ - quadratic'
    for axis, base, name in zip(grid.subplots(), (0, curve), names, strict=True):
        axis.plot(scales, 1e6 * (variances - base), 'o', ms=4, mfc='none')
        axis.plot(scales, 1e6 * (curve - base), label='quadratic')
        axis.axvline(scale, color='0.4', ls='--', label=f'scale {scale:.2f}')
        axis.set(ylabel=f'{name}  [($10^{{-3}}$ DN/s)$^2$]', xlabel='scale')
    figure.axes[-2].legend(frameon=False)


def plot_adaptive(figure, fit):
    """Draw the scale with its error beside the scales of displaced templates, and the blocks that were used."""
    left, right = figure.add_gridspec(1, 2, left=0.07, right=0.97, bottom=0.1, top=0.36, wspace=0.22).subplots()
    nulls = fit.details.nulls
    left.axhspan(-fit.error, fit.error, color='0.9', label='error of the scale')
    left.axhline(0, color='0.4', lw=0.8)
    left.plot(np.arange(1, len(nulls) + 1), nulls, 'o', ms=4, mfc='none', label='displaced templates, should be 0')
    left.plot(1, nulls[0], 'o', ms=4, label='the one mirrored in y')
    left.errorbar(0, fit.scale, fit.error, fmt='s', ms=4, color='C3', label=f'{fit.scale:.3f} +- {fit.error:.3f}')
    left.set(ylabel='scale', xlabel='fit')
    left.legend(frameon=False, fontsize='x-small')
    rows, columns = fit.details.region
    right.imshow(fit.details.used, origin='lower', cmap='gray', vmin=0, vmax=1, aspect='auto',
                 extent=(columns.start, columns.stop, rows.start, rows.stop), interpolation='nearest')
    right.set(title='used: white; masked: black', xlabel='x [pixel]', ylabel='y [pixel]')
