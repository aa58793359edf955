"""Performs the Dockerfile's build stage in a plain directory, and copies what the final stage copies.

Usage: image.py DIRECTORY; DIRECTORY/image is what is shipped, DIRECTORY/root keeps compiled dependencies.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from docker.utils.build import exclude_paths
from support import copy_tracked


def main(directory):
    root, image = directory / "root", directory / "image"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as files:
        copy_tracked(files := Path(files))
        found, names = stages(files), context(files)
        for rest in [rest for steps in found.values() for step, rest in steps if step == "COPY"]:
            copied(rest, names)
        # An engine has the compiled crates in its cache when only the sources have changed.
        subprocess.run(["find", root, *"-mindepth 2 -maxdepth 2 ! -name target -exec rm -rf {} +".split()], check=True)
        *_, dependencies, ours = perform(found["build"], root, files, names)
    assert ours == {"iga"}, f"after an edit of the sources cargo compiles {sorted(ours)}, not iga alone"
    print(f"Dependencies: {len(dependencies)} crates compiled. Sources: only iga compiled.")
    shutil.rmtree(image, ignore_errors=True)
    image.mkdir()
    for rest in [rest for step, rest in list(found.values())[-1] if step == "COPY"]:
        _, source, _ = shlex.split(rest)
        (program,) = root.glob(source.lstrip("/"))
        shutil.copy(program, image)


def stages(files):
    """The steps of each stage as (instruction, rest), FROM included, by the name or the number of the stage."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (files / "Dockerfile").read_text()).replace("\\\n", " ")
    found = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, rest = line.split(None, 1)
        if instruction == "FROM":
            steps = found.setdefault(rest.partition(" AS ")[2] or str(len(found)), [])
        steps.append((instruction, rest))
    return found


def context(files):
    """The names that .dockerignore lets through, as Docker's own library reads it."""
    lines = (files / ".dockerignore").read_text().splitlines()
    sent = exclude_paths(files, [line for line in lines if line and not line.startswith("#")])
    return {name for name in sent if (files / name).is_file()}


def copied(rest, names):
    """The destinations of the files that a COPY takes from the context, by name."""
    *sources, to = [word for word in shlex.split(rest) if not word.startswith("--")]
    found = {}
    for source in sources if "--from=" not in rest else []:
        below = {name: to + name.removeprefix(source) for name in names if name.startswith(f"{source}/")}
        itself = {name: to + Path(name).name if to.endswith("/") else to for name in names if name == source}
        assert below or itself, f"COPY {rest}: {source} is not in the build context"
        found |= below | itself
    return found


def perform(steps, root, files, names):
    """Yields the crates that cargo compiles in each RUN."""
    for instruction, rest in steps[1:]:
        print(f"{instruction} {rest}", flush=True)
        if instruction == "WORKDIR":
            where = root / rest.lstrip("/")
            where.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            for name, to in copied(rest, names).items():
                (where / to).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(files / name, where / to)
                # A file of a commit is older than a stand-in that is made now.
                os.utime(where / to, (946684800, 946684800))
        elif rest.startswith("rustup target add"):
            print("  not performed: the gate has installed what this machine offers")
        else:
            assert instruction == "RUN", f"image.py cannot perform {instruction}"
            environment = {name: value for name, value in os.environ.items() if name not in ("CARGO_TARGET_DIR", "RUSTFLAGS")}
            result = subprocess.run(["/bin/sh", "-c", rest], cwd=where, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr[-8000:]
            yield set(re.findall(r"(?m)^\s*Compiling (\S+) v", result.stderr))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
