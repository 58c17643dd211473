"""Who does work that can be divided: this process, several, or actors of Ray."""

import dataclasses
from collections.abc import Callable, Generator, Iterable
from typing import Any, Literal, get_args

from tfopt._base.children import WARM
from tfopt._base.cores import usable_cores
from tfopt._base.ray_actors import check_ray, in_actors
from tfopt._base.workers import in_children
from tfopt.errors import InputError

Through = Literal["processes", "ray"]
_AGAIN = 2  # a call that kills three processes is at fault itself


@dataclasses.dataclass(frozen=True)
class Workers:
    """Processes that divide work, each with its own copy of what it needs for it, such as a loaded artifact.

    Attributes:
        count: how many; 1 with "processes" is the process that asks.
        through: "processes" of this machine; or "ray", actors of Ray Data on the cluster that the program is
            connected to, the one that `RAY_ADDRESS` names, or this machine. That needs the extra `ray`.

    Raises:
        InputError: fewer than one, or another way.
    """

    count: int = 1
    through: Through = "processes"

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise InputError(f"workers must be 1 or more, got {self.count!r}")
        if self.through not in get_args(Through):
            raise InputError(f"work is done through 'processes' or 'ray', got {self.through!r}")

    @staticmethod
    def of(given: "Workers | int") -> "Workers":
        """What was given, a number as one of processes."""
        return given if isinstance(given, Workers) else Workers(given)

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do it."""
        return self.count > 1 or self.through == "ray"

    def check(self) -> None:
        """Raises InputError where they need a package that is missing."""
        if self.through == "ray":
            check_ray()

    def threads(self, given: int | None) -> int | None:
        """Threads of the runtime in each of them: those given, or its share of the cores; None for all of them."""
        if given is not None or not self.elsewhere:
            return given
        return 1 if self.through == "ray" else max(1, usable_cores() // self.count)

    def each(
        self,
        function: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        *,
        setup: Callable[[], Any],
    ) -> Generator[Any, None, None]:
        """What `function` returns for each call, in their order; a call whose process was killed is done again.

        Close it where it is left before its end: the processes end then.

        Args:
            function: of a module that can be imported.
            calls: arguments after the first, which are pickled, as are results.
            setup: is called once in each process; what it returns is the first argument.

        Raises:
            TfoptError: what a call raised.
            ChildFailedError: a call ended several processes, or raised something else.
        """
        if self.through == "ray":
            return in_actors(function, calls, workers=self.count, setup=setup, again=_AGAIN)
        return in_children(
            function, calls, workers=self.count, preload=WARM, setup=setup, again=_AGAIN, patience_s=None
        )


ALONE = Workers()
