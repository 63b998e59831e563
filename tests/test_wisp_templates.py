"""stage1/wisp_templates.py: templates of every release are found and read."""

from pathlib import Path

import wispsub
from stage1.exposure import ExposureError
from stage1.wisp_templates import bright_window, find_template, read_template

import numpy as np
import pytest
from astropy.io import fits

SHAPE = 2048, 2048


def write_template(path, *extensions, primary=None):
    """A file with image `extensions` (name, value), filled with the value."""
    hdus = [fits.PrimaryHDU(primary)]
    for name, value in extensions:
        data = np.full((len(value), *SHAPE) if np.ndim(value) else SHAPE, value, np.float32)
        hdus.append(fits.ImageHDU(data, name=name))
    fits.HDUList(hdus).writeto(path)
    return path


def test_missing_template_names_what_was_looked_for(tmp_path):
    with pytest.raises(ExposureError, match='WISP_NRCB4_F150W_CLEAR.fits.*wisps_nrcb4_F150W.fits'):
        find_template(tmp_path, 'NRCB4', 'F150W')


@pytest.mark.parametrize('extensions', [
    [('SCI', 1)], [('ERR', 2), ('SCI', 1), ('DQ', 3)], [('CAL', 2), ('RATE', 1)], [('SCI', 2), ('RATE', 1)],
    [('WISP_CAL', 2), ('WISP_RATE', 1)], [('TEMPLATE', 1)], [('', 1)], [('SCI', 1), ('SCI', 2)]])
def test_the_image_for_rates_is_taken(tmp_path, extensions):
    path = write_template(tmp_path / 't.fits', *extensions)
    np.testing.assert_array_equal(read_template(path), np.ones((1, *SHAPE), np.float32))


def test_primary_image_is_taken(tmp_path):
    image = np.ones(SHAPE, '>f8')
    image[0] = np.nan
    template, = read_template(write_template(tmp_path / 't.fits', ('ERR', 2), primary=image))
    np.testing.assert_array_equal(template, image)
    assert template.dtype == np.float32 and template.dtype.isnative


@pytest.mark.parametrize(('extensions', 'words'), [
    ([('CAL', 1)], 'no image for rates'), ([], 'no image for rates'), ([('SCI', np.nan)], 'NaN everywhere')])
def test_unusable_templates_are_errors(tmp_path, extensions, words):
    with pytest.raises(ExposureError, match=words):
        read_template(write_template(tmp_path / 't.fits', *extensions))


@pytest.mark.parametrize('extensions', [[('WISP_0', 0), ('WISP_1', 1), ('MASK', 5)], [('SCI', [[[0.]], [[1.]]])]])
def test_planes_of_a_template_are_extensions_or_a_cube(tmp_path, extensions):
    planes = read_template(write_template(tmp_path / 't.fits', *extensions))
    assert planes.shape == (2, *SHAPE) and planes[0].max() == 0 and planes[1].min() == 1
    with pytest.raises(ExposureError, match='adaptive'):
        wispsub.defined_template(planes, np.zeros(SHAPE, bool))


def test_template_of_another_shape_or_no_template_at_all(tmp_path):
    fits.writeto(tmp_path / 't.fits', np.ones((6, 8), np.float32))
    with pytest.raises(ExposureError, match=r'shape \(6, 8\)'):
        read_template(tmp_path / 't.fits')
    for content in b'junk' * 1000, b'junk', b'SIMPLE  =':
        (tmp_path / 'junk.fits').write_bytes(content)
        with pytest.raises(ExposureError, match='junk.fits (cannot be read|has no image)'):
            read_template(tmp_path / 'junk.fits')


def test_the_fit_window_of_a_template_is_where_it_is_bright():
    planes = np.full((2, *SHAPE), np.nan, np.float32)
    planes[0, 2:4, 3], planes[1, 3, 5] = 0.02, 0.011
    assert bright_window(planes, 0.01) == np.s_[2:4, 3:6]
    assert bright_window(planes, 1) is None


@pytest.mark.parametrize(('filter_', 'pupil', 'name', 'found'), [
    ('F150W2', 'F162M', 'WISP_NRCA3_F150W2_F162M.fits', True), ('F150W2', 'F162M', 'wisps_nrca3_F150W2.fits', True),
    ('F150W2', 'F162M', 'nrca3_f150w2_wisp.fits.gz', True), ('F150W2', 'F162M', 'WISP_NRCA3_F150W2_CLEAR.fits', False),
    ('F150W2', 'CLEAR', 'wisps_nrca3_F150W2.fits', False), ('F150W2', 'CLEAR', 'WISP_NRCA3_F150W2_CLEAR.fits', True),
    ('F150W2', 'F164N', 'wisps_nrca3_F150W2.fits', False), ('F150W2', 'F164N', 'nrca3_f150w2_wisp.fits.gz', False),
    ('F200W', 'F162M', 'wisps_nrca3_F200W.fits', False), ('F210M', 'CLEAR', 'nrca3_f210m_wisp.fits.gz', True),
    ('F200W', 'CLEAR', 'wisps_nrca3_F200W.fits', True), ('F200W', 'CLEAR', 'wisps_nrca3_f200w.fits', True),
    ('F200W', 'CLEAR', 'WISP_NRCA3_F200W_CLEAR.fits', True)])
def test_a_template_of_every_naming_scheme_is_that_of_filter_and_pupil(filter_, pupil, name, found, tmp_path):
    for path in tmp_path / name, tmp_path / 'wisps_nrca4_F200W.fits':
        path.touch()
    if found:
        assert find_template(tmp_path, 'NRCA3', filter_, pupil) == tmp_path / name
    else:
        with pytest.raises(ExposureError, match='no wisp template'):
            find_template(tmp_path, 'NRCA3', filter_, pupil)


def test_the_name_with_the_pupil_comes_first_and_only_the_directory_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'wisps').mkdir()
    for name in 'wisps_nrca3_F200W.fits', 'WISP_NRCA3_F200W_CLEAR.fits':
        (tmp_path / name).touch()
        (tmp_path / 'wisps' / name).touch()
    assert find_template('wisps', 'NRCA3', 'F200W') == Path('wisps', 'WISP_NRCA3_F200W_CLEAR.fits')
