"""How many requests are let in at once: beyond that, an answer at once is worth more than a place in a queue."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Overloaded


class Gate:
    """Lets `most` requests work at the same time, and none that comes once it is `draining`.

    It awaits nothing: who finds no room is refused at once (load shedding), so that those inside stay fast.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0
        self.lent = 0
        # connections end with their next answer; and once it drains, that is a refusal
        self.closing = False
        self.draining = False

    def refuse_if_draining(self) -> None:
        """Raises Overloaded once the service is about to stop."""
        if self.draining:
            raise Overloaded("The service is about to stop; please try again.")

    def __enter__(self) -> None:
        """Takes a place inside. Raises Overloaded where there is none."""
        self.refuse_if_draining()
        if self.inside >= self.most:
            raise Overloaded
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1

    @contextmanager
    def place_lent(self) -> Iterator[None]:
        """Gives the caller's place to others while it waits for its client, and takes one again after that.

        Raises Overloaded where there is none left then, and where twice as many wait already: each may hold a body.
        """
        if self.lent >= 2 * self.most:
            raise Overloaded
        self.inside -= 1
        self.lent += 1
        try:
            yield
        finally:
            self.inside += 1
            self.lent -= 1
        if self.inside > self.most:
            raise Overloaded
