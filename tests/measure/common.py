"""What the commands of this folder share: where the code is, and the blocks of figures in docs/*.md.

A block is what stands between the lines `<!-- PAGE: NAME -->` and `<!-- end -->`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]      # the scripts, and `simulation`


def find_block(page, name):
    """Text before and after a block of docs/`page`.md, with its markers; `SystemExit` where it has none."""
    path, marker, end = DOCS / f'{page}.md', f'<!-- {page}: {name} -->\n', '<!-- end -->\n'
    before, found, rest = path.read_text().partition(marker)
    block, closed, after = rest.partition(end)
    if not found or not closed or '<!--' in block:
        raise SystemExit(f'{path}: the block between the lines "{marker.strip()}" and "{end.strip()}" is missing')
    return before + found, closed + after


def write_block(page, name, text):
    """Put `text` into a block of docs/`page`.md."""
    before, after = find_block(page, name)
    (DOCS / f'{page}.md').write_text(f'{before}\n{text}\n{after}')


def table(head, rows):
    """A Markdown table; columns of figures stand to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    rule = ['--:' if all(cell[-1:].isdigit() or not cell for cell in column) else '---'
            for column in zip(*rows, strict=True)]
    lines = [head, rule, *rows]
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def say(text):
    """Write to standard output now, so that it stands in order among what other processes write."""
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()
