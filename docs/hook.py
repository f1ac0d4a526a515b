"""MkDocs hook of `make docs`.

Links to files outside docs/ lead to pages made from these files, formulas become MathML, and
Sphinx's roles in docstrings become code.
"""

import os
import re
from html import unescape
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
# A relative link with a folder or an ending, and its anchor.
LINK = re.compile(r'(?<=\]\()(?!\w+:)([\w./-]+)(#[\w-]*)?(?=\))')
KINDS = {'.py': 'python', '.sh': 'bash', '.toml': 'toml', '.yml': 'yaml'}
_origins: dict[str, Path] = {}  # page of the site -> its source file


def on_files(files: Files, config) -> Files:
    """Add a page for every file outside docs/ that a page links to."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    _origins.update({path.relative_to(DOCS).as_posix(): path for path in waiting})
    while waiting:
        origin = waiting.pop()
        for link, _ in LINK.findall(_text_of(origin)):
            target = Path(os.path.normpath(origin.parent / link))
            uri = _uri_of(target)
            if DOCS in target.parents or uri in _origins or not target.exists():
                continue  # MkDocs reports missing files
            _origins[uri] = target
            files.append(File.generated(config, uri, content=_text_of(target)))
            waiting.append(target)
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Point links to the pages of :func:`on_files`."""
    origin, here = _origins[page.file.src_uri], os.path.dirname(page.file.src_uri)

    def lead(match: re.Match) -> str:
        target = Path(os.path.normpath(origin.parent / match[1]))
        if not target.exists():
            return match[0]
        anchor = re.sub(r'^#L(\d+)$', r'#__codelineno-0-\1', match[2] or '')
        return os.path.relpath(_uri_of(target), here or '.') + anchor

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page, config, files) -> str:
    """Convert formulas, which arithmatex has marked."""

    def draw(match: re.Match) -> str:
        formula = unescape(match[1])
        display = 'block' if formula.startswith('\\[') else 'inline'
        return convert(formula[2:-2].strip(), display=display)

    pattern = r'<(?:span|div) class="arithmatex">(.*?)</(?:span|div)>'
    return re.sub(pattern, draw, html, flags=re.DOTALL)


class PlainRoles(griffe.Extension):
    """Turn ``:class:`~a.B```, a role of Sphinx, into code."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            text = re.sub(r':\w+:`(?:~(?:\w+\.)*)?([\w.]+)`', r'`\1`', obj.docstring.value)
            obj.docstring.value = text.replace('::\n', ':\n')


def _uri_of(path: Path) -> str:
    """Return the URI of the page of a file."""
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    return f'source/{path.relative_to(ROOT).as_posix().removesuffix(".md")}.md'


def _text_of(path: Path) -> str:
    """Return a file as Markdown: itself, its code, or the contents of a folder."""
    if path.suffix == '.md':
        return path.read_text(encoding='utf-8')
    name = path.relative_to(ROOT).as_posix()
    head = f'---\nsearch: {{exclude: true}}\n---\n# `{name}`\n\n'
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix in ('.py', '.sh') or p.is_dir())
        names = [p.name for p in inside if not p.name.startswith(('_', '.'))]
        return head + '\n'.join(f'- [`{name}`]({path.name}/{name})' for name in names)
    return f'{head}```{KINDS.get(path.suffix, "text")} linenums="1"\n{path.read_text()}\n```\n'
