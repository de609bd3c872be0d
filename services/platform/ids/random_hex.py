"""Random ids for logs and traces, which need not be unpredictable."""

from __future__ import annotations

import random

# Not `secrets`: each call of `os.urandom` releases the GIL, and on a busy process the event loop then waits until other
# threads give it back. The generator is seeded by the operating system at the start of the process.
_random = random.Random()  # noqa: S311 (no secret is made of it)


def random_hex(size_bytes: int) -> str:
    """Returns `size_bytes` random bytes as 2 * `size_bytes` hexadecimal digits. Never use it for secrets."""
    return _random.randbytes(size_bytes).hex()
