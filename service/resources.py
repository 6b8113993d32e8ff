"""Where the files that are not Python stand: openapi/, sql/ and migrations/."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """The folder `name` of the product: from the installed package, else from the source tree beside it.

    A wheel carries copies inside the package; an editable install reads the source tree.
    Raises FileNotFoundError where neither is there.
    """
    for folder in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"The folder {name!r} is missing: this installation is incomplete.")
