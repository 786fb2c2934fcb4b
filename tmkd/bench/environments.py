"""Python environments of other tools, built once in the cache folder from pinned lists."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
from pathlib import Path

from tmkd.core.errors import TmkdError
from tmkd.core.files import cache_folder

logger = logging.getLogger(__name__)

REQUIREMENTS = Path(__file__).parent / "requirements"
OURS = "tmkd"


def interpreter(name: str) -> Path:
    """The Python of an environment, which is built if it does not exist.

    Args:
        name: `tmkd` for the Python that runs this, else a list under requirements/.

    Raises:
        TmkdError: It cannot be built. The message holds the installer's last line.
    """
    if name == OURS:
        return Path(sys.executable)
    wanted = REQUIREMENTS / f"{name}.txt"
    mark = hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]
    return environment(wanted, cache_folder("bench") / f"{name}-{mark}")


def environment(wanted: Path, folder: Path) -> Path:
    """The Python of an environment with the packages of a list; it is built unless it was built from the same list.

    Args:
        wanted: The list, one pinned package a line. Its name is the environment's name in messages.
        folder: Where the environment is.

    Raises:
        TmkdError: It cannot be built. The message holds the installer's last line.
    """
    python, ready, name = folder / "bin" / "python", folder / ".ready", wanted.stem
    if not (ready.is_file() and ready.read_bytes() == wanted.read_bytes()):
        logger.info(f"building the environment of {name} in {folder} (once)")
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], name)
        # torch alone and first: together with others an installer may prefer a build with gigabytes of GPU libraries.
        pins = wanted.read_text().split()
        for part in ([pin for pin in pins if pin.startswith("torch==")], pins):
            if part:
                _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *part], name)
        ready.write_bytes(wanted.read_bytes())
    return python


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise TmkdError(f"the environment of {name} cannot be built: {last}")
