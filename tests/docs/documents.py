"""Links and commands of the documents."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FENCE = re.compile(r'^```(\w*).*?\n(.*?)^```', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(
    r'(?:\w+=\S* +)*(?:mmpatchmix|python|bash|make|torchrun|pip|pytest|source|ln)(?: |$)'
    r'|--cfg-options |\.\.\. --'
)


def read_commands(document: Path) -> list[str]:
    """Return the commands of a document: of shell blocks, indented blocks and inline code."""
    text = document.read_text(encoding='utf-8')
    blocks = [code for language, code in FENCE.findall(text) if language == 'bash']
    text = FENCE.sub('', text)
    blocks.append('\n'.join(re.findall(r'^    (.*)$', text, re.MULTILINE)))
    lines = []
    for block in blocks:
        block = re.sub(r"<<'END'\n.*?\nEND$", '', block, flags=re.DOTALL | re.MULTILINE)
        lines += re.sub(r'\\\n\s*', '', block).splitlines()
    text = re.sub(r'^    .*$', '', text, flags=re.MULTILINE)
    lines += [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', text)]
    return [line for line in lines if COMMAND.match(line) or re.fullmatch(r'[A-Z]+=\S+', line)]


def find_anchors(markdown: str) -> set[str]:
    """Return the anchors that headings get, by GitHub and by MkDocs alike."""
    headings = re.findall(r'^#+ (.*)$', FENCE.sub('', markdown), re.MULTILINE)
    plain = (re.sub(r'[`*]|\]\([^)]*\)|\[', '', heading).lower() for heading in headings)
    return {re.sub(r'[^\w\s-]', '', heading).strip().replace(' ', '-') for heading in plain}
