"""What an optimization is to reach."""

from tfopt.errors import InputError


def check_goal(
    accuracy: float | None, max_latency_ms: float | None, max_bytes: int | None, *, minutes: float | None = None
) -> tuple[str, float]:
    """The one goal, by its name.

    Raises:
        InputError: several, or one out of range.
    """
    goals = {"accuracy": accuracy, "max_latency_ms": max_latency_ms, "max_bytes": max_bytes}
    given = {name: float(value) for name, value in goals.items() if value is not None} or {"accuracy": 0.99}
    if len(given) > 1:
        raise InputError(f"give one of {', '.join(goals)}, got {', '.join(given)}")
    ((name, value),) = given.items()
    if not value > 0 or (name == "accuracy" and value > 1):
        raise InputError(f"{name} must be {'in (0, 1]' if name == 'accuracy' else 'above 0'}, got {value:g}")
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes must be above 0, got {minutes:g}")
    return name, value
