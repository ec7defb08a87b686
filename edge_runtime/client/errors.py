"""What the client raises. No exception of the HTTP library underneath leaves it."""

from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.http import Problem


class DispatcherRefused(RemoteError):  # noqa: N818 - named for what the dispatcher does
    """The dispatcher will not do what was asked; `problem` says why, by code, field and limit."""

    def __init__(self, problem: Problem) -> None:
        where = f" ({problem.field})" if problem.field else ""
        super().__init__(f"{problem.status} {problem.code}{where}: {problem.message}")
        self.problem = problem


class JobRefused(DispatcherRefused):
    """The dispatcher did not accept a job."""


class DispatcherUnreachable(RemoteError):  # noqa: N818 - as DispatcherRefused
    """No answer came from `url` for `waited_s` seconds; `cause` is the last failure, in words."""

    def __init__(self, url: str, waited_s: float, cause: str) -> None:
        super().__init__(f"no answer from {url} for {waited_s:.0f} s: {cause}")
        self.url = url
        self.waited_s = waited_s
        self.cause = cause


class ContractBroken(RemoteError):  # noqa: N818 - as DispatcherRefused
    """What answered does not speak this contract: another version, or not a dispatcher."""
