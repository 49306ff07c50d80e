"""The README's example runs as it stands and prints what the README says; its commands and files exist."""

import argparse
import re
import shlex
import subprocess
import sys

import pytest

from tests.sources import ROOT
from toolgym.cli.main import COMMANDS, build_parser

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md")]


def block(language: str) -> str:
    """The only fenced block in that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return found


def test_readme_example_prints_what_it_says():
    result = subprocess.run([sys.executable, "-W", "error", "-c", block("python")], capture_output=True, text=True)
    assert (result.stderr, result.stdout) == ("", block("text"))


def commands() -> list[str]:
    """The ``toolgym …`` lines of the README, without their comments."""
    lines = [
        line.split("#")[0].strip() for b in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in b.splitlines()
    ]
    return [line for line in lines if line.startswith("toolgym ")]


@pytest.mark.parametrize("line", commands())
def test_readme_commands_parse(line: str):
    words = shlex.split(line)[1:]
    args, rest = build_parser(words[0]).parse_known_args(words)
    assert isinstance(args, argparse.Namespace)
    assert callable(args.handler)
    assert rest == []


def test_readme_shows_every_command():
    assert {line.split()[1] for line in commands()} == COMMANDS.keys()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_and_files_of_documents_exist(path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    named = re.findall(r"`((?:toolgym|tests|docs|benchmarks|examples|scripts)/[\w/.-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists() and not name.endswith("-v0")] == []
