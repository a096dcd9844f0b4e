"""The list of faults in mutants.py is of lines that there are; running them is for whoever changes tests."""

from __future__ import annotations

import mutants
import pytest


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in mutants.MUTANTS}))
def test_every_fault_has_its_line(file: str) -> None:
    """A changed line is to be changed in the list too, and the fault to be run: the test may no longer see it."""
    text = (mutants.ROOT / file).read_text(encoding="utf-8")
    for mutant in mutants.MUTANTS:
        if mutant.file == file:
            assert text.count(mutant.old) == 1, f"{mutant.old!r}: run python tests/mutants.py {file}"
            assert mutant.new != mutant.old


def test_faults_are_listed_once_and_their_tests_exist() -> None:
    assert len({mutant[:3] for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
    for mutant in mutants.MUTANTS:
        assert all((mutants.ROOT / "tests" / name).exists() for name in mutant.tests.split()), mutant
