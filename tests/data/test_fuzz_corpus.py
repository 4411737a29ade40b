"""Every file of the fuzzers' corpora is read, or refused in one line: `benchmarks/fuzz.py` has the targets."""

import fuzz
import pytest


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_each_file_of_the_corpus_is_read_or_refused_in_one_line(name):
    files = fuzz.corpus(name)
    assert files
    for file in files:
        try:
            fuzz.tried(name, file.read_bytes())
        except Exception as error:
            raise AssertionError(f"{file.name}: {type(error).__name__}: {error}") from error


def test_what_a_target_may_not_raise_is_found(monkeypatch):
    for wrong in (KeyError("x"), ValueError("two\nlines"), ValueError(""), MemoryError()):

        def target(data, wrong=wrong):
            raise wrong

        monkeypatch.setitem(fuzz.TARGETS, "broken", target)
        with pytest.raises((AssertionError, KeyError, MemoryError)):
            fuzz.tried("broken", b"")
