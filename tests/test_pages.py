"""The README and `docs/` keep their word: code runs, commands parse, figures are results."""

from pathlib import Path
import re
import shlex
import sys
import types

import jax
import pytest

from recjax import cli
from recjax.bench import pages, results
from recjax.bench.suites import SUITES
from recjax.train import defaults
from recjax.train.data import sources
from recjax.train.options import options_of, split

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in pages.pages()}
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text, *languages):
    return [code for language, code in _BLOCK.findall(text) if language in languages]


# --- code ------------------------------------------------------------------------------------

WITH_CODE = [name for name, text in PAGES.items() if blocks(text, "python", "py")]


@pytest.fixture
def as_users_have_it():
    """Tests are stricter about dtypes and shapes than JAX is."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_runs(name, as_users_have_it, tmp_path, monkeypatch):
    """All blocks of a page in a row, in one module and an empty folder."""
    monkeypatch.chdir(tmp_path)
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    for number, code in enumerate(blocks(PAGES[name], "python", "py"), 1):
        exec(compile(code, f"{name}, block {number}", "exec"), vars(page))


# --- commands ----------------------------------------------------------------------------------

SHELL = ("", "sh", "bash", "shell", "console")


def commands(text):
    """Lines of the shell blocks, without prompts and with continuations joined."""
    for block in blocks(text, *SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


COMMANDS = [
    (name, line)
    for name, text in PAGES.items()
    for line in commands(text)
    if line.startswith(("recjax ", "make "))
]


def check(line):
    """Raises, or leaves by SystemExit, for a command that would be refused whatever the data."""
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= {*known}, line
        return
    if words[-1] == "--help":
        with pytest.raises(SystemExit, match="^0$"):
            cli._parser().parse_args(words)
        return
    options = cli._parser().parse_args(words)
    if source := getattr(options, "data", None):
        kinds = {sources.kind_of(known).partition("[")[0] for known in sources.SOURCES}
        assert sources.kind_of(source) in kinds, line
    if words[0] == "train":
        split(defaults.ALL[options.model].Config, options_of(options.overrides))
    if words[0] == "bench":
        assert options.suite in SUITES, line


@pytest.mark.parametrize("name, line", COMMANDS, ids=[f"{n}: {c}" for n, c in COMMANDS])
def test_commands_parse(name, line):
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "recjax train nobody",
        "recjax train din --data nothing:x",
        "recjax train din --set no_such_option=1",
        "recjax train din --no-such-flag",
        "recjax bench nothing",
        "make nothing",
    ],
)
def test_a_stale_command_is_noticed(line):
    with pytest.raises((AssertionError, KeyError, ValueError, SystemExit)):
        check(line)


# --- links -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    text = _BLOCK.sub("", PAGES[name])
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http", "#")):
            assert ((ROOT / name).parent / link.partition("#")[0]).exists(), link


# --- figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_rendered_from_the_result_files(name):
    assert pages.render(PAGES[name]) == PAGES[name]


@pytest.mark.parametrize("name", PAGES)
def test_no_line_begins_with_a_figure(name):
    """Markdown takes a line that begins with a comment as HTML, and shows its links as text."""
    assert not re.search(r"^\s*(?:[-*] )?<!-- value:", PAGES[name], re.MULTILINE)


def test_the_readme_shows_no_table_of_results():
    assert "<!-- results:" not in README and len(README.splitlines()) <= 165


def test_rendering_replaces_what_stands_there(tmp_path):
    row = results.Row.of("a case", "din", "auc", [0.7, 0.8, 0.6])
    results.write(tmp_path / "suite", "suite", "a command", 0, [row])
    page = "before\n<!-- results: suite | auc -->\nold\n<!-- end -->\nafter\n"
    new = pages.render(page, tmp_path)
    assert "| a case | din | 0.7000 (0.6000 to 0.8000) |" in new
    assert "old" not in new and new.startswith("before\n") and new.endswith("<!-- end -->\nafter\n")
    assert pages.render(new, tmp_path) == new
    # A suite that was run in parts is one table, and every part says where it comes from.
    more = results.Row.of("another case", "din", "auc", [0.5])
    results.write(tmp_path / "suite" / "part", "suite", "another command", 0, [more])
    whole = pages.render(page, tmp_path)
    assert "| a case |" in whole and "| another case | din | 0.5000 |" in whole
    assert "`a command` on" in whole and "`another command` on" in whole
    # The newest run of a case replaces every row of those before.
    again = results.Row.of("a case", "mlp", "auc", [0.4])
    results.write(tmp_path / "suite" / "part", "suite", "another command", 0, [again])
    whole = pages.render(page, tmp_path)
    assert "| a case | mlp | 0.4000 |" in whole and "| a case | din |" not in whole
    # A table shows the cases that know its first metric, and where only they come from.
    recall = results.Row.of("a third case", "mind", "recall@50", [0.3])
    speed = results.Row.of("a third case", "mind", "examples/s", [1234.0], "1/s")
    results.write(tmp_path / "suite" / "third", "suite", "a third command", 0, [recall, speed])
    assert pages.render(page, tmp_path) == whole
    for first, there in (("auc", False), ("recall@50", True)):
        new = pages.render(page.replace("| auc", f"| {first}; examples/s"), tmp_path)
        assert ("| a third case | mind | 0.3000 | 1,234 |" in new) == there
        assert ("a third command" in new) == there and ("| a case |" in new) != there
    # A table may name its cases.
    named = page.replace("suite | auc", "suite: a third case; a case | recall@50")
    named = pages.render(named, tmp_path)
    assert "| a third case | mind |" in named and "| a case |" not in named
    assert pages.render(named, tmp_path) == named
    assert "| a case |" not in pages.render(
        page.replace("suite |", "suite: a third case |"), tmp_path
    )
    with pytest.raises(ValueError, match="no result of case 'a fourth' of suite 'suite'"):
        pages.render(page.replace("suite |", "suite: a fourth |"), tmp_path)
    path = tmp_path / "suite" / "part" / "results.json"
    path.write_text(re.sub(r'"date": "\d+', '"date": "1999', path.read_text()))
    assert "| a case | din | 0.7000" in pages.render(page, tmp_path)
    with pytest.raises(FileNotFoundError, match="no results.json of suite 'suite'"):
        pages.render(page, tmp_path / "nothing")


def test_a_single_figure_stands_in_a_line(tmp_path):
    row = results.Row.of("a case, control", "din - mlp", "auc", [0.7, 0.8, 0.6])
    results.write(tmp_path / "suite", "suite", "a command", 0, [row])
    page = "by <!-- value: suite; a case, control; din - mlp; auc -->?<!-- end --> on average"
    new = pages.render(page, tmp_path)
    assert new == page.replace("?", "0.7000") and pages.render(new, tmp_path) == new
    for word, other in (("auc", "gauc"), ("din", "dien"), ("case", "world")):
        with pytest.raises(ValueError, match=f"no result of .*{other}"):
            pages.render(page.replace(word, other), tmp_path)


@pytest.mark.parametrize(
    "chain, holds",
    [
        ("din, large > mlp", True),
        ("mlp > din, large", False),
        ("din, large ~ mlp", False),
        ("mlp ~ dien", True),
        ("mlp > dien", False),
        ("din, large > mlp ~ dien", True),
        ("din, large > mlp > dien", False),
        ("mlp > 0.35", True),
        ("1 > din, large", True),
        ("-1 > mlp", False),
        ("mlp ~ 0.4", True),
    ],
)
def test_a_claim_holds_or_is_refused(chain, holds, tmp_path):
    rows = [
        results.Row.of("a case, control", method, "auc", values)
        for method, values in (
            ("din, large", [0.7, 0.8, 0.6]),
            ("mlp", [0.4, 0.5]),
            ("dien", [0.5, 0.6, 0.3]),
        )
    ]
    results.write(tmp_path / "suite", "suite", "a command", 0, rows)
    page = f"din is ahead\n\n<!-- holds: suite; a case, control; auc; {chain} -->\n"
    if holds:
        assert pages.render(page, tmp_path) == page
    else:
        with pytest.raises(ValueError, match="does not hold that suite; a case, control; auc;"):
            pages.render(page, tmp_path)
    with pytest.raises(ValueError, match="no result of 'auc' of 'nobody'"):
        pages.render(page.replace(chain, "nobody > 0"), tmp_path)


def test_tables_name_units_once():
    rows = [results.Row.of("case", "a", "size", [12.3456], "MiB")]
    rows += [results.Row.of("case", "a", "ms per step", [123.456], "ms")]
    table = results.markdown(rows, ["size", "ms per step"]).splitlines()
    assert table[0] == "| case | method | size (MiB) | ms per step |"
    assert table[2] == "| case | a | 12.35 | 123.5 |"


def test_every_model_stands_in_the_table():
    from recjax.zoo import MODELS
    from recjax.zoo.rerank import GENERATORS, RERANKERS

    for name in MODELS:
        assert f"[`{name}`](zoo/{name}.py)" in README
    for name in (*RERANKERS, *GENERATORS):
        assert f"[`{name}`](zoo/rerank/{name}.py)" in README


def test_evidence_exists():
    page = PAGES["docs/evidence.md"]
    rows = [line for line in page.splitlines() if re.match(r"\| [TCRL]\d+", line)]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([^`]+)`", row)
        assert named, f"no evidence in: {row}"
        for path in named:
            file, _, test = path.partition("::")
            assert (ROOT / file).is_file(), f"{path} does not exist: {row}"
            if test:
                assert f"def {test}(" in (ROOT / file).read_text(), f"no such test: {path}"
