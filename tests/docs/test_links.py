"""Links and images of the documents exist; quotations equal the code."""

import ast
import os
import re

import pytest

from tests.docs.documents import DOCUMENTS, FENCE, ROOT, find_anchors

LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_to_files_and_headings(document):
    broken = []
    for link in LINK.findall(FENCE.sub('', document.read_text())):
        if re.match(r'https?://', link):
            continue
        path, _, anchor = link.partition('#')
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in find_anchors(target.read_text())):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_navigation_and_every_image_is_shown():
    navigation = (ROOT / 'mkdocs.yml').read_text()
    pages = {path.name for path in DOCUMENTS if path.parent.name == 'docs'}
    assert pages == set(re.findall(r': ([\w-]+\.md)$', navigation, re.MULTILINE))
    texts = {path: path.read_text() for path in DOCUMENTS}
    shown = {
        os.path.normpath(path.parent / link)
        for path, text in texts.items()
        for link in re.findall(r'!\[[^\]]+\]\(([^)]+)\)', text)
    }
    assert shown == {str(path) for path in (ROOT / 'docs/images').iterdir()}


def test_the_method_quotes_the_code():
    text = (ROOT / 'docs/method.md').read_text()
    quotes = re.findall(
        r'\(\.\./(mmpatchmix/[\w/]+\.py)\)[^\[\]]*?```python\n(.*?)```', text, re.DOTALL
    )
    assert len(quotes) == text.count('```python')
    for path, quote in quotes:
        code = (ROOT / path).read_text()
        # Without white space: what is indented less may be wrapped otherwise.
        assert ''.join(quote.split()) in ''.join(code.split()), f'{path} has no longer\n{quote}'


def test_messages_quoted_by_symptom_are_those_of_the_code():
    text = (ROOT / 'docs/troubleshooting.md').read_text()
    cells = ' '.join(re.findall(r'^\| ([^|]+) \|', text, re.MULTILINE))
    quotes = re.findall(r'"([^"]+)"', cells)
    texts = {
        node.value
        for path in (ROOT / 'mmpatchmix').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert len(quotes) > 5
    assert [quote for quote in quotes if not any(quote in text for text in texts)] == []
