"""Tables of figures: written between markers, nowhere else."""

import common

import pytest


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(common, 'DOCS', tmp_path)
    page = tmp_path / 'page.md'
    page.write_text('Before.\n\n<!-- page: one -->\nold\n<!-- end -->\nAfter.\n<!-- page: open -->\n'
                    '<!-- page: two -->\n<!-- end -->\n')
    return page


def test_a_block_is_replaced_and_nothing_else(page):
    before = page.read_text()
    common.write_block('page', 'one', common.table(('what', 'figure'), [('a', 1.5), ('b', 20)]))
    table = '\n| what | figure |\n| --- | --: |\n| a | 1.5 |\n| b | 20 |\n\n'
    assert page.read_text() == before.replace('old\n', table)
    common.write_block('page', 'one', 'old')
    assert page.read_text() == before.replace('old\n', '\nold\n')


@pytest.mark.parametrize('name', ['three', 'open'])
def test_a_missing_marker_is_refused_in_words(page, name):
    before = page.read_text()
    with pytest.raises(SystemExit, match=f'page.md: the block between the lines "<!-- page: {name} -->"'):
        common.write_block('page', name, 'text')
    assert page.read_text() == before
