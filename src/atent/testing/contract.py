"""Promises of a contract, the error of a broken promise, and the suite that checks all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from atent.registry import first_line

Case = TypeVar("Case")
Check = Callable[[Case], None]


class ContractError(AssertionError):
    """Error of a broken promise: one line with the promise, what was found and what is allowed.

    Parameters
    ----------
    subject
        The object under test, such as the name of an attack's class; kept as an attribute.
    promise
        The text of the promise; kept as an attribute.
    detail
        What was found and what is allowed.

    Examples
    --------
    >>> from atent.testing import ContractError
    >>> error = ContractError("PGD", "the result is in the box", "found 1.2; allowed: at most 1")
    >>> print(error)
    PGD: the result is in the box: found 1.2; allowed: at most 1
    >>> error.promise
    'the result is in the box'
    """

    def __init__(self, subject: str, promise: str, detail: str) -> None:
        super().__init__(" ".join(f"{subject}: {promise}: {detail}".split()))
        self.subject, self.promise = subject, promise


class Broken(Exception):
    """Raised by a check: what was found, and what is allowed."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(f"found {found}; allowed: {allowed}")


def require(kept: Any, found: str, allowed: str) -> None:
    """`Broken` unless ``kept``."""
    if not kept:
        raise Broken(found, allowed)


class Suite(Generic[Case]):
    """The promises of one contract, in the order of their checks."""

    def __init__(self) -> None:
        self._promises: list[tuple[str, Check[Case], Callable[[Case], bool]]] = []

    def promise(self, text: str, when: Callable[[Case], bool] = lambda _case: True) -> Callable[[Check[Case]], Any]:
        """Decorator: the function checks the promise ``text`` on the cases for which ``when`` is true."""

        def add(check: Check[Case]) -> Check[Case]:
            self._promises.append((text, check, when))
            return check

        return add

    @property
    def texts(self) -> tuple[str, ...]:
        """All promises."""
        return tuple(text for text, _, _ in self._promises)

    def run(self, subject: str, case: Case) -> list[str]:
        """The promises that were checked; ContractError for the first that is broken."""
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
