"""The files that the README's section on running it for others shows, each in a block that begins with its name."""

import re
from pathlib import Path

_TITLE = "\n## Run it for others\n"
_README = Path(__file__).parents[2] / "README.md"
_FILE = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


SECTION = _README.read_text(encoding="utf-8").partition(_TITLE)[2].partition("\n## ")[0]
# by their names
FILES = {match[1]: match[2] for match in _FILE.finditer(SECTION)}
# what is to be typed, block by block
COMMANDS = [match[1] for match in _COMMANDS.finditer(SECTION)]
