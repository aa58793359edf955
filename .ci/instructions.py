#!/usr/bin/env python3
"""Compares the instructions for an image of 8 MiB, counted by callgrind, with benches/instructions.txt."""

import platform
import re
import subprocess
from pathlib import Path

from support import REPOSITORY, not_checked

RECORD = REPOSITORY / "benches/instructions.txt"
TOLERANCE = 0.05


def main():
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        return not_checked("the count of instructions; it was recorded on a processor with AVX2")
    build = [REPOSITORY / "scripts/build-static.sh", platform.machine(), "instructions"]
    program = subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    count = counted(program, 3) - counted(program, 2)
    change = count / int(RECORD.read_text()) - 1
    print(f"one image of 8 MiB: {count:,} instructions, {change:+.2%} against the record")
    assert abs(change) <= TOLERANCE, f"more than {TOLERANCE:.0%}; to accept it write {count} to {RECORD}"


def counted(program, images):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, str(images)]
    result = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    return int(re.search(r"Collected : (\d+)", result.stderr)[1])


if __name__ == "__main__":
    main()
