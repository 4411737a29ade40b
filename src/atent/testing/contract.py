"""What the suites share: a promise, the error of a broken one, and the run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from atent.registry import first_line

Case = TypeVar("Case")
Check = Callable[[Case], None]


class ContractError(AssertionError):
    """A promise that is not kept: one line with the promise, what was found and what is allowed."""

    def __init__(self, subject: str, promise: str, detail: str) -> None:
        super().__init__(" ".join(f"{subject}: {promise}: {detail}".split()))
        self.subject, self.promise = subject, promise


class Broken(Exception):
    """What a check found, and what is allowed."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(f"found {found}; allowed: {allowed}")


def require(kept: Any, found: str, allowed: str) -> None:
    """`Broken` unless ``kept``."""
    if not kept:
        raise Broken(found, allowed)


class Suite(Generic[Case]):
    """The promises of one contract, in the order in which they are checked."""

    def __init__(self) -> None:
        self._promises: list[tuple[str, Check[Case], Callable[[Case], bool]]] = []

    def promise(self, text: str, when: Callable[[Case], bool] = lambda _case: True) -> Callable[[Check[Case]], Any]:
        """Decorator: the function checks the promise of that ``text`` on the cases to which it applies."""

        def add(check: Check[Case]) -> Check[Case]:
            self._promises.append((text, check, when))
            return check

        return add

    @property
    def texts(self) -> tuple[str, ...]:
        """All promises."""
        return tuple(text for text, _, _ in self._promises)

    def run(self, subject: str, case: Case) -> list[str]:
        """The promises that were checked; ContractError for the first that is not kept."""
        checked = []
        for text, check, applies in self._promises:
            try:
                if not applies(case):
                    continue
                check(case)
            except Broken as broken:
                raise ContractError(subject, text, str(broken)) from None
            except Exception as error:
                raise ContractError(subject, text, f"raised {first_line(error)}") from error
            checked.append(text)
        return checked
