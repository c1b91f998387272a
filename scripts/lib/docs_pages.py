"""
Pages of the site that are no files in docs/: README, CONTRIBUTING, one page for each module.

A hook of mkdocs (mkdocs.yml); it reads sources and imports nothing of the package.
"""

from pathlib import Path
import re

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
TOP = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md'}
"""Pages of the root of the clone, and what they are called in the site."""
ELSEWHERE = '(benchmarks|config|results)'
"""Folders whose files are read in the clone: a link to one becomes its name."""


def modules() -> list[str]:
    """Return the names of all modules of the package, packages before what is in them."""
    found = []
    for path in (ROOT / 'sww_ros').rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
        if not name.endswith('__main__'):
            found.append(name)
    return sorted(found)


def on_files(files, config):
    """Add the pages."""
    for source, page in TOP.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=of_the_site(text)))
    for name in modules():
        files.append(File.generated(config, f'api/{name}.md', content=f'# {name}\n\n::: {name}\n'))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leave files that are not part of the site as names."""
    return re.sub(rf'\[([^]]+)\]\((?:\.\./)?{ELSEWHERE}[^)]*\)', r'\1', markdown)


def of_the_site(text: str) -> str:
    """Return a page of the root with its links as they are from within docs/."""
    for source, page in TOP.items():
        text = text.replace(f']({source})', f']({page})')
    return text.replace('](docs/', '](')
