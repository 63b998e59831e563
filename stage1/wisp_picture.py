"""The picture of a wisp fit, as a PDF."""

import numpy as np

from stage1.masks import block_means


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
    window : (y1, y2, x1, x2)
    title : str
    """
    from matplotlib.backends.backend_pdf import FigureCanvasPdf  # no display is needed, unlike with pyplot
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 7.4))
    FigureCanvasPdf(figure)
    figure.suptitle(title.replace('$', r'\$'), fontsize='medium')  # file names are not formulas
    plot_pictures(figure, image, fit.scale * light, ignore, window, f'removed: {fit.scale:.2f} x template')
    if fit.trials is not None:
        plot_curves(figure, fit.scale, *fit.trials)
    else:
        lines = [f'{comment}: {value:.3f}' for _, value, comment in fit.cards]
        figure.text(0.07, 0.36, '\n'.join([f'scale: {fit.scale:.3f}', *lines]), va='top')
    figure.text(0.5, 0.015, fit.warning, ha='center', color='C3', weight='bold')
    figure.savefig(path, format='pdf', dpi=150)


def plot_pictures(figure, image, removed, ignore, window, name):
    """Draw the fit window before, the light that is removed, and the window after, on one stretch."""
    y1, y2, x1, x2 = window
    before, removed, after = (block_means(data, ignore, 4) for data in (image, removed, image - removed))
    seen = after[np.isfinite(after)]
    sky, low, high = np.percentile(seen, (50, 2, 98)) if seen.size else (0, 0, 1)
    pictures = {'before': before - sky, name: removed, 'after': after - sky}
    grid = figure.add_gridspec(1, 3, left=0.07, right=0.9, bottom=0.46, top=0.87, wspace=0.05)
    for axis, (title, data) in zip(grid.subplots(sharey=True), pictures.items(), strict=True):
        drawn = axis.imshow(data, origin='lower', extent=(x1, x2, y1, y2), interpolation='nearest',
                            cmap='magma', vmin=low - sky, vmax=2.5 * (high - sky))
        axis.set(title=title, xlabel='x [pixel]', facecolor='0.75')
        axis.label_outer()
    figure.axes[0].set_ylabel('y [pixel]')
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.915, 0.47, 0.015, 0.39)), extend='both')
    bar.set_label('DN/s above the sky; grey = masked')


def plot_curves(figure, scale, scales, variances, curve):
    """Draw variance against scale with the curve through it, and what the curve leaves."""
    grid = figure.add_gridspec(1, 2, left=0.07, right=0.97, bottom=0.1, top=0.37, wspace=0.2)
    names = 'MAD$^2$', 'MAD$^2$ - quadratic'
    for axis, base, name in zip(grid.subplots(), (0, curve), names, strict=True):
        axis.plot(scales, 1e6 * (variances - base), 'o', ms=4, mfc='none')
        axis.plot(scales, 1e6 * (curve - base), label='quadratic')
        axis.axvline(scale, color='0.4', ls='--', label=f'scale {scale:.2f}')
        axis.set(ylabel=f'{name}  [($10^{{-3}}$ DN/s)$^2$]', xlabel='scale')
    figure.axes[-2].legend(frameon=False)
