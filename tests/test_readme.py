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
    # The newest run of a case replaces every row of those before.
    again = results.Row.of("a case", "mlp", "auc", [0.4])
    results.write(tmp_path / "suite" / "part", "suite", "another command", 0, [again])
    whole = readme.render(page, tmp_path)
    assert "| a case | mlp | 0.4000 |" in whole and "| a case | din |" not in whole
    # A table shows the cases that know its first metric, and where only they come from.
    recall = results.Row.of("a third case", "mind", "recall@50", [0.3])
    speed = results.Row.of("a third case", "mind", "examples/s", [1234.0], "1/s")
    results.write(tmp_path / "suite" / "third", "suite", "a third command", 0, [recall, speed])
    assert readme.render(page, tmp_path) == whole
    for first, there in (("auc", False), ("recall@50", True)):
        new = readme.render(page.replace("| auc", f"| {first}; examples/s"), tmp_path)
        assert ("| a third case | mind | 0.3000 | 1,234 |" in new) == there
        assert ("a third command" in new) == there and ("| a case |" in new) != there
    # A table may name its cases.
    named = page.replace("suite | auc", "suite: a third case; a case | recall@50")
    named = readme.render(named, tmp_path)
    assert "| a third case | mind |" in named and "| a case |" not in named
    assert readme.render(named, tmp_path) == named
    assert "| a case |" not in readme.render(
        page.replace("suite |", "suite: a third case |"), tmp_path
    )
    with pytest.raises(ValueError, match="no result of case 'a fourth' of suite 'suite'"):
        readme.render(page.replace("suite |", "suite: a fourth |"), tmp_path)
    path = tmp_path / "suite" / "part" / "results.json"
    path.write_text(re.sub(r'"date": "\d+', '"date": "1999', path.read_text()))
    assert "| a case | din | 0.7000" in readme.render(page, tmp_path)
    with pytest.raises(FileNotFoundError, match="no results.json of suite 'suite'"):
        readme.render(page, tmp_path / "nothing")


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
        assert f"[`{name}`](zoo/{name}.py)" in TEXT
    for name in (*RERANKERS, *GENERATORS):
        assert f"[`{name}`](zoo/rerank/{name}.py)" in TEXT


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
