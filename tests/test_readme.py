"""The README keeps its word: its example runs, its tables come from the committed results."""

from pathlib import Path
import re

import pytest

from recjax.bench import readme, results

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_example_runs_and_prints_a_number(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"best of five candidates: [0-4]\n", capsys.readouterr().out)


def test_tables_are_rendered_from_the_result_files():
    assert readme.render(TEXT) == TEXT


def test_rendering_replaces_what_stands_there(tmp_path):
    row = results.Row.of("a case", "din", "auc", [0.7, 0.8, 0.6])
    results.write(tmp_path / "suite", "suite", "a command", 0, [row])
    page = "before\n<!-- results: suite | auc -->\nold\n<!-- end -->\nafter\n"
    new = readme.render(page, tmp_path)
    assert "| a case | din | 0.7000 (0.6000 to 0.8000) |" in new
    assert "old" not in new and new.startswith("before\n") and new.endswith("<!-- end -->\nafter\n")
    assert readme.render(new, tmp_path) == new
    # A suite that was run in parts is one table, and every part says where it comes from.
    more = results.Row.of("another case", "din", "auc", [0.5])
    results.write(tmp_path / "suite" / "part", "suite", "another command", 0, [more])
    whole = readme.render(page, tmp_path)
    assert "| a case |" in whole and "| another case | din | 0.5000 |" in whole
    assert "`a command` on" in whole and "`another command` on" in whole
    # A case of its own replaces what the whole suite said, every row of it.
    again = results.Row.of("a case", "mlp", "auc", [0.4])
    results.write(tmp_path / "suite" / "part", "suite", "another command", 0, [again])
    whole = readme.render(page, tmp_path)
    assert "| a case | mlp | 0.4000 |" in whole and "| a case | din |" not in whole
    with pytest.raises(FileNotFoundError, match="no results.json of suite 'suite'"):
        readme.render(page, tmp_path / "nothing")


def test_every_model_stands_in_the_table():
    from recjax.zoo import MODELS

    for name in MODELS:
        assert f"[`{name}`](zoo/{name}.py)" in TEXT


def test_evidence_exists():
    page = (ROOT / "docs" / "evidence.md").read_text()
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
