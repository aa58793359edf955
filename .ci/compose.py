"""Runs the services of docker-compose.yml as processes, with their commands, environments and ports.

Usage: unshare --net compose.py IGA IGA_LOCAL, where the ports of the file are free
"""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from support import REPOSITORY, ask, expect_image, start


def main(iga, iga_local):
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        google, local = (environment(services[name]) for name in ["iga_service", "iga_local"])
        refused = subprocess.run([iga], cwd=directory, env=google, capture_output=True, text=True, timeout=60)
        missing = ["GCP_PROJECT_ID", "GCP_LOCATION", "GCS_BUCKET_NAME", "GOOGLE_APPLICATION_CREDENTIALS"]
        assert refused.returncode == 2 and all(name in refused.stderr for name in missing), refused
        print(f"iga_service without settings ends with 2:\n{refused.stderr.strip()}")
        words = services["iga_emulator"]["command"]
        volume, bucket = (words[words.index(option) + 1] for option in ["--dir", "--bucket"])
        words = [f"{directory}{volume}" if word == volume else word for word in words]
        start(stack, [iga_local, *words], cwd=directory)
        service = start(stack, [iga], cwd=directory, env=local)
        response = ask(service, "http://127.0.0.1:5007/generate_image", {"prompt": "A paper boat"})
        expect_image(Path(f"{directory}{volume}"), bucket, response)
        print(f"--profile local: {response[1]['image_url']} is stored")


def environment(service):
    """The container's environment if nothing is set outside: the default of ${NAME:-default}, and no bare name."""
    found = {name: value for name, value in service["environment"].items() if value is not None}
    return {name: value.split(":-")[-1].rstrip("}") if "${" in value else value for name, value in found.items()}


if __name__ == "__main__":
    main(*map(os.path.abspath, sys.argv[1:]))
