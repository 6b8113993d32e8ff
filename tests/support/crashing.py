"""`python -m tests.support.crashing POINT DATABASE`: the service, which dies behind the query POINT, or at "committed".

At "committed" it is the commit of what was to keep an answer.
"""

import os
import sys

from service.__main__ import main
from tests.support.storage import watch

done: list[str] = []


def die(name: str) -> None:
    done.append(name)
    if name == sys.argv[1] and (name != "committed" or "keep_answer" in done):
        os._exit(70)


if __name__ == "__main__":
    watch(setattr, die)
    main(["serve", "--port", "0", "--database", sys.argv[2]])
