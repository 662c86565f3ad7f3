"""The list of what is kept from the published system: the mutation run can start, and the documentation agrees."""

from pathlib import Path

import pytest
from faults import mutate

ROOT = Path(__file__).resolve().parents[1]


def test_every_mutation_applies():
    """Each pattern is found exactly once, and each named test exists."""
    for mutation in mutate.MUTATIONS:
        assert mutate.find(mutation, ROOT).is_file()
        file, function = mutation.test.split("::")
        assert f"def {function}(" in (ROOT / "tests" / f"test_{file}.py").read_text(), mutation.name


@pytest.mark.parametrize("old", ["no such line", "return"])
def test_an_ambiguous_mutation_is_refused(monkeypatch, old, capsys):
    """Before any test runs: a pattern that is missing, or found more than once."""
    changed = mutate.MUTATIONS[0]._replace(old=old)
    monkeypatch.setattr(mutate, "MUTATIONS", (changed,))
    monkeypatch.setattr(mutate, "run_tests", lambda *_: pytest.fail("the tests ran"))
    assert mutate.main([]) == 2
    assert "expected once" in capsys.readouterr().err


def test_an_unnoticed_mutation_is_reported(monkeypatch, capsys):
    """A change that no test looks at makes the run fail."""
    harmless = mutate.MUTATIONS[0]._replace(new=mutate.MUTATIONS[0].old + "  # the same")
    monkeypatch.setattr(mutate, "MUTATIONS", (harmless,))
    assert mutate.main([]) == 1
    assert "NOT CAUGHT" in capsys.readouterr().out


def test_each_mutation_has_its_row_in_the_documentation():
    """docs/design.md, "Kept from the published system": the quirk, and the test that guards it."""
    table = (ROOT / "docs" / "design.md").read_text().split("## Kept from the published system")[1].split("\n## ")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    documented = {(row[0].removeprefix("| "), row[3].removesuffix(" |").strip("`")) for row in rows}
    assert documented == {(mutation.name, mutation.test) for mutation in mutate.MUTATIONS}
