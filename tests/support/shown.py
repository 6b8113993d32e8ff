"""The files that the README's section on running it for others shows, each in a block that begins with its name."""

import re
from pathlib import Path

_TITLE = "\n## Run it for others\n"
# where the section is until it stands in the README
_HANDED_IN = Path("/tmp/h/deploy.readme.md")
_README = Path(__file__).parents[2] / "README.md"
_FILE = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _section() -> str:
    readme = _README.read_text(encoding="utf-8")
    if _TITLE not in readme:
        readme = f"\n{_HANDED_IN.read_text(encoding='utf-8')}"
    return readme.partition(_TITLE)[2].partition("\n## ")[0]


SECTION = _section()
# by their names
FILES = {match[1]: match[2] for match in _FILE.finditer(SECTION)}
# what is to be typed, block by block
COMMANDS = [match[1] for match in _COMMANDS.finditer(SECTION)]
