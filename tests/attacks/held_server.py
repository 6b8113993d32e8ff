"""`python -m tests.attacks.held_server DATABASE`: the service, with a model that can be held up in the middle of a run.

It is held up for as long as the file is there that HOLD names in the environment; without it, one beside the database.
"""

import asyncio
import os
import sys
from pathlib import Path

from service.app import make_app
from service.config import Config
from service.execution.models import Conversation, MockModel, ModelRegistry, ToolCall
from service.server import serve
from service.storage.engines import is_url


def hold_file(database: Path) -> Path:
    """The file beside `database` that holds up the model for as long as it is there."""
    return database.with_suffix(".hold")


class Held(MockModel):
    """The mock, but a task with the word "hold" waits, behind its tools, for as long as the hold file is there."""

    def __init__(self, hold: Path) -> None:
        self._hold = hold

    async def answer(self, conversation: Conversation) -> str | ToolCall:
        answer = await super().answer(conversation)
        while isinstance(answer, str) and "hold" in conversation.task.split() and self._hold.exists():  # noqa: ASYNC110  # another process lets it go
            await asyncio.sleep(0.01)
        return answer


def main() -> None:
    database = sys.argv[1] if is_url(sys.argv[1]) else Path(sys.argv[1])
    hold = os.environ.get("HOLD") or hold_file(Path(database))
    config = Config(port=0, database=database, rate_limit=1_000_000, log_level="warning")
    models = ModelRegistry({"gpt-4o": Held(Path(hold))})
    serve(make_app(config, models=models), config, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
