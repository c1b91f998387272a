"""Whether the docs build, what they link to is there, and what is pinned twice agrees."""

from __future__ import annotations

import ast
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from experiments.faults import kinds

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md')))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    titles = re.findall(r'^#+ (.+)$', text, flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def dead_links(page: Path) -> list[str]:
    found = []
    for link in re.findall(r'\]\((?!https?:)([^)]+)\)', page.read_text()):
        name, _, anchor = link.partition('#')
        target = page.parent / name if name else page
        if not target.exists() or anchor and anchor not in anchors(target):
            found.append(link)
    return found


def printed() -> list[str]:
    """Return all texts of the package, with … for what is filled in."""
    found = []
    for file in (ROOT / 'sww_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(''.join(part.value if isinstance(part, ast.Constant) else '…'
                                     for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def is_printed(message: str, texts: list[str]) -> bool:
    """Whether a text has the pieces between the … of a message, in their order."""
    pattern = re.compile('.*'.join(map(re.escape, re.split(' ?… ?', message))), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_what_the_page_of_troubles_quotes_is_what_is_printed():
    page = (ROOT / 'docs/troubleshooting.md').read_text()
    quoted = re.findall(r'^\| `(.+?)` \| ', page, flags=re.MULTILINE)
    texts = printed()
    assert len(quoted) >= 25
    assert [message for message in quoted if not is_printed(message, texts)] == []
    assert not is_printed('the stamps … dance', texts)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_everything_that_a_page_links_to_is_there(page: Path):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# One title\n[a](page.md#one-title) [b](gone.md) [c](#gone) [d](https://x.y)')
    assert dead_links(page) == ['gone.md', '#gone']


def test_every_test_that_the_page_of_reliability_names_is_there():
    defined = {name for file in (ROOT / 'test').glob('test_*.py')
               for name in re.findall(r'^def (test_\w+)', file.read_text(), re.MULTILINE)}
    page = (ROOT / 'docs/reliability.md').read_text()
    named = set(re.findall(r'`(test_\w+)`', page))
    assert len(named) > 40 and named <= defined, named - defined
    assert set(re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE)) == set(kinds())


@pytest.fixture
def clone(tmp_path):
    """What the docs are built from, in a folder of its own."""
    pytest.importorskip('mkdocstrings', reason='mkdocs is not installed: requirements/docs.txt')
    for name in ('docs', 'sww_ros', 'scripts'):
        shutil.copytree(ROOT / name, tmp_path / name,
                        ignore=shutil.ignore_patterns('__pycache__', '*.safetensors', '*.json'))
    for name in ('README.md', 'CONTRIBUTING.md', 'mkdocs.yml'):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(clone: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict'], cwd=clone,
                          env=dict(os.environ, NO_MKDOCS_2_WARNING='1'), text=True,
                          capture_output=True, timeout=600)


def test_the_site_is_built_with_the_api_reference(clone):
    built = build(clone)
    assert built.returncode == 0, built.stderr
    page = (clone / 'site/api/sww_ros.streaming.session/index.html').read_text()
    assert 'sww_ros.streaming.session.Session.feed' in page
    assert 'speak while watching' in (clone / 'site/index.html').read_text()


def test_a_dead_link_ends_the_build(clone):
    (clone / 'docs/install.md').write_text('[gone](gone.md)')
    built = build(clone)
    assert built.returncode == 1 and 'gone.md' in built.stderr


def test_ruff_before_a_commit_is_the_ruff_of_the_tests():
    hook, = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert f'ruff=={hook["rev"][1:]}\n' in (ROOT / 'requirements/constraints.txt').read_text()


def test_the_public_workflow_runs_what_ci_runs():
    flow = yaml.safe_load((ROOT / '.github/workflows/test.yml').read_text())
    runs = [step['run'] for step in flow['jobs']['test']['steps'] if 'run' in step]
    assert runs == ['scripts/test'] and 'scripts/test' in (ROOT / '.ci/run').read_text()
    assert os.access(ROOT / 'scripts/test', os.X_OK)


def test_every_file_of_the_core_and_of_the_simulation_is_in_the_architecture():
    text = (ROOT / 'docs/architecture.md').read_text()
    for room in ('streaming', 'evaluation/simulation'):
        for path in (ROOT / 'sww_ros' / room).glob('[a-z]*.py'):
            assert f'| `{path.name}`' in text or f', `{path.name}`' in text, path


def test_every_file_that_the_architecture_names_is_there():
    text = (ROOT / 'docs/architecture.md').read_text()
    for name in re.findall(r'`([\w/]+\.py)`', text):
        assert any(str(path).endswith(f'/{name}') for path in ROOT.rglob(Path(name).name)), name
