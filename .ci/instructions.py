#!/usr/bin/env python3
"""Counts the instructions that one picture of 8 MiB takes from the model's answer to the upload's body.

Usage: instructions PROGRAM            compares with benches/instructions.txt
       instructions PROGRAM --record   writes that file

The count is that of callgrind, which repeats to a few hundred; it depends on the compiler and on the processor's
vector instructions, so it is compared where there is AVX2 only.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).resolve().parent.parent / "benches" / "instructions.txt"
TOLERANCE = 0.05


def main(program, *flags):
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        print("NOT CHECKED: the count was recorded on a processor with AVX2, and this one has none")
        return
    count = counted(program, 3) - counted(program, 2)
    if "--record" in flags:
        RECORD.write_text(f"{count}\n")
    recorded = int(RECORD.read_text())
    change = count / recorded - 1
    print(f"one picture of 8 MiB: {count:,} instructions, {change:+.2%} against the record")
    if abs(change) > TOLERANCE:
        sys.exit(f"That is more than {TOLERANCE:.0%}. If it is meant: .ci/instructions {program} --record")


def counted(program, pictures):
    with tempfile.TemporaryDirectory() as directory:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/out", program, str(pictures)]
        result = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode or not found:
        sys.exit(result.stderr)
    return int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
