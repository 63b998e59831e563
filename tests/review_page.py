"""For the tests of the review page: products as the scripts leave them, and the page in headless Chromium."""
import contextlib
import csv
import io
import shutil
import time

from hdus import rate_hdus

import numpy as np
import pytest
from astropy.io import fits

with contextlib.suppress(ImportError):          # tests of the browser are skipped without
    from selenium.webdriver import ActionChains, Keys  # noqa: F401

WISP_LINE = 'Wisps: subtracted wisps_nrca3_F200W.fits, scale={:.2f}; wispsub.py 2026-01-02 03:04:05'
STRIPING_LINE = 'Removed horizontal,vertical striping; remstriping.py 2026-01-02 03:05:06'


def write_rate(path, sci, cards, history):
    """Write a rate file with these pixels."""
    hdul = rate_hdus(sci.shape, history, **cards)
    hdul['SCI'].data = sci.astype(np.float32)
    hdul.writeto(path)


def write_products(directory, dataset, size=256, seed=1, wisp=None, striped=True, left=0., detector='NRCA3',
                   filter_='F200W', **cards):
    """Write the products of an exposure: noise, a star, row stripes and a wisp of scale `wisp` (None: without).

    `left` is the part of the stripes that their correction leaves. Returns a dict of ndarray: `sky` and what was
    injected besides, `wisp` and `stripes`.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    truth = {'sky': 0.2 + 0.005 * rng.standard_normal((size, size)) + 5 * np.exp(-900 * ((x - .3)**2 + (y - .7)**2)),
             'wisp': 0.06 * (wisp or 0) * np.exp(-40 * (x + y - 1.2)**2),
             'stripes': 0.004 * rng.standard_normal((size, 1)) + 0 * x}
    truth['sky'][10:14, 20:40] = np.nan
    sci, history = sum(truth.values()), []
    header = {'DETECTOR': detector, 'FILTER': filter_, 'SUBARRAY': 'TINY', 'SNOWNUM': 12, 'SNOWFRAC': 0.01}
    if wisp is not None:
        write_rate(directory / f'{dataset}_rate_prewisp.fits', sci, header, history)
        history = [WISP_LINE.format(wisp)]
        header |= {'WISPMETH': 'dr05', 'WISPSCAL': wisp, 'WISPTMPL': 'wisps_nrca3_F200W.fits'}
        (directory / f'{dataset}_wisp.pdf').touch()
        sci = sci - truth['wisp']
    if striped:
        write_rate(directory / f'{dataset}_rate_pre1f.fits', sci, header, history)
        history = [*history, STRIPING_LINE]
        header |= {'STRPMETH': 'dr05', 'STRPTHR': 0.8, 'STRPMASK': 0.3}
        sci = sci - (1 - left) * truth['stripes']
        mask = fits.ImageHDU((truth['sky'] > 0.3).astype(np.uint8))
        fits.HDUList([fits.PrimaryHDU(), mask]).writeto(directory / f'{dataset}_rate_1fmask.fits')
    write_rate(directory / f'{dataset}_rate.fits', sci, header | cards, history)
    return truth


def start_chromium(profile, downloads):
    """Headless Chromium, a selenium driver; skips where there is none."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='needs selenium')
    binary = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if not binary or not driver:
        pytest.skip('needs Chromium and chromedriver (Debian: chromium, chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in ('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-dev-shm-usage',
                   'disable-background-networking', 'disable-component-update', 'disable-sync',
                   'window-size=1600,1000', f'user-data-dir={profile}'):
        options.add_argument(f'--{switch}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.execute_cdp_cmd('Browser.setDownloadBehavior', {'behavior': 'allow', 'downloadPath': str(downloads)})
    browser.downloads = downloads
    return browser


class Page:
    """What a user does with the page."""

    def __init__(self, browser):
        self.browser = browser

    def js(self, code, *arguments):
        """Value of a JavaScript expression."""
        return self.browser.execute_script(f'return {code}', *arguments)

    def names(self):
        """Datasets in the order shown."""
        return self.js("$$('.row').filter(row => !row.hidden).map(row => exposures[row.dataset.index].dataset)")

    def field(self, dataset, selector):
        """Element in the row of a dataset, brought into view."""
        element = self.js('$(arguments[1], rows[exposures.findIndex(e => e.dataset === arguments[0])])',
                          dataset, selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        return element

    def type(self, dataset, field, text):
        """Type a value into a row."""
        element = self.field(dataset, f'[data-field={field}]')
        if field != 'method':
            element.clear()
        element.send_keys(text)
        self.js('document.activeElement.blur()')

    def keys(self, *keys):
        """Press keys, one after the other."""
        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def find(self, selector):
        """Element of the page."""
        return self.browser.find_element('css selector', selector)

    def current(self):
        """Dataset that keys are for."""
        return self.js('exposures[current].dataset')

    def shown(self):
        """What the larger view shows: panel, and the kind of its picture, once it is loaded."""
        for _ in range(200):
            if self.js('images[panel].complete && images[panel].naturalWidth'):
                break
            time.sleep(0.02)
        return self.js("[panel, images.findIndex(i => !i.hidden), images[panel].src.split(':')[0]]")

    def save(self):
        """Save; the rows of the table that is then downloaded, as tuples without the header, by dataset."""
        self.find('#save').click()
        deadline = time.monotonic() + 10
        while not (files := list(self.browser.downloads.glob('*.csv'))) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.table, = files
        first, *rows = csv.reader(io.StringIO(self.table.read_text('utf-8')))
        assert first == ['dataset', 'wisp_scale', 'mask_threshold', 'method', 'flag', 'accepted']
        return {row[0]: tuple(row[1:]) for row in rows}
