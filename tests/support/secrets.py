"""What must stand in no log: keys, bodies, prompts. Most tests send some, and all their logs are searched."""

import logging
import re

# stands in the description of the agents that the tests make: so in bodies, in prompts, and in the answers to both
PLANTED = "planted-c83f07a1"

_SECRET = re.compile(rf"{PLANTED}|mk(?:_|%5F)[0-9A-Za-z]{{12}}|key_tenant_[ab]", re.ASCII)
# the spec itself, which Connexion logs at its start, names the demo keys
_PUBLISHED = "`key_tenant_a` and `key_tenant_b` work for a try"
# the tests' own tools, which say what they send
_TOOLS = ("selenium", "urllib3", "hypothesis", "schemathesis", "trio")


def leaks(log: str) -> list[str]:
    """The lines of a log that hold a secret."""
    return [line for line in log.splitlines() if _SECRET.search(line.replace(_PUBLISHED, ""))]


class LeakFinder(logging.Handler):
    """Looks at every record of this process, at every level, with what its exception says; `found` are those that leak."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen = 0
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in _TOOLS:
            return
        self.seen += 1
        self.found += [f"{record.name}: {line}" for line in leaks(self.format(record))]
