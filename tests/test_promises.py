"""tests/promises.toml is complete: each item of the pages stands in it, and the tests that it names exist and run."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGES = ROOT.parent / "shared"  # beside the checkout where the project is made
ITEMS: list[dict[str, Any]] = tomllib.loads((TESTS / "promises.toml").read_text())["item"]
SECTIONS = sorted({(item["page"], item["section"]) for item in ITEMS})
NAMED = sorted({test for item in ITEMS for test in item["tests"]})
# what may stand between two items of a page
BETWEEN = re.compile(r"[\s·,.:;]*")


@functools.cache
def _module(path: str) -> ast.Module:
    return ast.parse((TESTS / path).read_text())


def _function(path: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    for node in _module(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    return None


def _taken_apart(test: str) -> tuple[str, str, str]:
    """File, function, and the case within the brackets ("" for all)."""
    path, _, rest = test.partition("::")
    name, _, case = rest.partition("[")
    return path, name, case.removesuffix("]")


def _page(page: str, section: str) -> str:
    """What the page says under that heading."""
    text = (PAGES / page).read_text()
    if page == "spool.md":
        return text.partition(f"\n## {section}")[2].partition("\n")[2].partition("\n## ")[0]
    group, _, name = section.partition(": ")
    under = text.partition(f"\n## {group}")[2].partition("\n## ")[0]
    found = re.search(rf"^{re.escape(name)}[^:\n]*: (.*)$", under, re.MULTILINE)
    assert found is not None, f"the page has no line that begins with {name}"
    return found[1]


def test_the_pages_sections_are_all_there() -> None:
    faults = ("Replies", "Files", "Process and machine")
    inputs = ("Smuggling", "Addresses", "Shape", "Files", "Shown to people", "Signed mail")
    rules = ("Names", "Identity", "Claim", "Log", "Sidecar", "Recovery", "Age and expiry", "Permissions")
    expected = [
        *(("promises.md", f"Faults: {name}") for name in faults),
        *(("promises.md", f"Bad inputs: {name}") for name in inputs),
        *(("spool.md", name) for name in rules),
    ]
    assert [(page, section.partition(" (")[0]) for page, section in SECTIONS] == sorted(expected)
    assert len(ITEMS) > 120, "a table that shrank"


@pytest.mark.skipif(not PAGES.is_dir(), reason="the pages are not part of the checkout")
@pytest.mark.parametrize(("page", "section"), SECTIONS)
def test_nothing_of_a_page_is_missing(page: str, section: str) -> None:
    """The items one after another are the page's text."""
    rest = _page(page, section)
    for item in (i for i in ITEMS if (i["page"], i["section"]) == (page, section)):
        before, found, rest = rest.partition(item["text"])
        assert found, f"the page has no {item['text'][:80]!r} here"
        assert BETWEEN.fullmatch(before), f"not in the table: {before[:200]!r}"
    assert BETWEEN.fullmatch(rest), f"not in the table: {rest[:200]!r}"


def test_each_item_has_a_test_and_a_text_of_its_own() -> None:
    texts = [(item["page"], item["section"], item["text"]) for item in ITEMS]
    assert len(set(texts)) == len(texts)
    assert [item["text"] for item in ITEMS if not item["tests"]] == []


@pytest.mark.parametrize("test", NAMED)
def test_the_test_that_is_named_exists_and_runs(test: str) -> None:
    path, name, case = _taken_apart(test)
    function = _function(path, name)
    assert function is not None, f"there is no {name} in {path}"
    assert any(isinstance(node, ast.Assert | ast.With | ast.AsyncWith | ast.Call) for node in ast.walk(function))
    if case:
        constants = {
            n.value for n in ast.walk(_module(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
        assert case in constants, f"{path} has no case {case!r}"
    marks = [ast.unparse(decorator) for decorator in function.decorator_list]
    assert not [mark for mark in marks if "skip" in mark or "xfail" in mark], "it would prove nothing"
    calls = [ast.unparse(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)]
    assert not {"pytest.skip", "pytest.xfail", "pytest.importorskip"} & set(calls), "it would prove nothing"


@pytest.mark.parametrize("path", sorted({_taken_apart(test)[0] for test in NAMED}))
def test_no_module_with_such_tests_is_skipped_on_linux(path: str) -> None:
    marks = [
        ast.unparse(node)
        for node in _module(path).body
        if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0])
    ]
    assert all("needs inotify" in mark for mark in marks), marks  # which Linux has


def test_the_papers_show_how_a_directory_is_shared() -> None:
    """The last rule of spool.md's "Permissions" is about what is written down."""
    readme, unit = (ROOT / "README.md").read_text(), (ROOT / "deploy" / "mpu.service").read_text()
    for words in ("-m 2770", "setgid", "setfacl -d", "--cap-add LEASE"):
        assert words in readme, words
    assert "AmbientCapabilities=CAP_LEASE" in unit
    assert "CAP_LEASE" in readme
