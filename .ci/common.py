"""What the checks of the files for deployment share."""

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent


def complain(problems):
    if problems := list(problems):
        sys.exit("\n".join(problems))


def problems_found_by(tool, *arguments):
    result = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True)
    if result.returncode:
        yield f"{tool}: {(result.stdout + result.stderr).strip()}"


def tracked():
    """The names of the files that git has."""
    listed = subprocess.run(["git", "ls-files", "--cached"], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return listed.stdout.splitlines()


def rows(files=REPOSITORY):
    """The settings of the README's table: names, which are alternatives, and default."""
    found = re.findall(r"(?m)^\| ((?:`[A-Z_]+`(?:, then )?)+) \| (.*?) \| ", (files / "README.md").read_text())
    assert len(found) > 15, found
    return [(re.findall("`([A-Z_]+)`", names), preset if preset.count("`") > 2 else preset.strip("`")) for names, preset in found]


def presets(files=REPOSITORY):
    """Every setting and its default."""
    found = {name: preset for names, preset in rows(files) for name in names}
    assert len(found) > 20, found
    return found
