"""How long to wait before the next attempt."""


def durable_delay_s(attempt: int, first_s: float, asked_s: float | None, cap_s: float = 600.0) -> float:
    """Seconds before attempt ``attempt`` (the second is 2): doubling, at least what the service asked for."""
    delay = min(cap_s, first_s * 2.0 ** max(0, attempt - 2))
    return max(delay, min(asked_s or 0.0, cap_s))


def transport_delay_s(attempt: int, asked_s: float | None, jitter: float, base_s: float = 0.2) -> float:
    """Seconds before a request is sent again.

    Args:
        attempt: The attempt that failed, from 1.
        asked_s: The service's Retry-After, which is a lower bound.
        jitter: A random number in [0, 1): spreads the callers, since they all failed at once.
        base_s: The first delay's scale.
    """
    delay = min(8.0, base_s * 2.0 ** (attempt - 1)) * (0.5 + jitter / 2)
    return delay if asked_s is None else asked_s + delay * 0.25
