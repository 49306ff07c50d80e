"""The pages in docs/algorithms name every public function, their code runs, and their pictures exist."""

import re
from pathlib import Path

import pytest

from toolgym.algorithms import cards
from toolgym.trainer.presets import PRESETS

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "algorithms"
PAGES = sorted(FOLDER.glob("*.md"))
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("name", [c.name for c in cards()])
def test_docs_mention_every_registered_function(name):
    assert any(re.search(rf"\b{re.escape(name)}\b", text) for text in TEXT.values()), f"no page mentions {name}"


@pytest.mark.parametrize("name", list(PRESETS))
def test_docs_list_every_preset(name):
    assert f"| `{name}` |" in TEXT["presets.md"]


@pytest.mark.parametrize("page", list(TEXT))
def test_docs_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of it writes files
    blocks = re.findall(r"```python\n(.*?)```", TEXT[page], flags=re.DOTALL)
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), space)  # one name space a page: blocks build on each other


@pytest.mark.parametrize("page", list(TEXT))
def test_docs_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT[page]):
        if "://" not in target:
            assert (FOLDER / target).exists(), f"{page}: {target}"
