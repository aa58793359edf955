"""Runs the static binary in a directory that holds only the files of the shipped image.

Usage: unshare --mount static.py IGA IGA_LOCAL, as root of that mount namespace
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import trustme
from support import Emulator, ask, free_address, same, start, until

NONROOT = 65532
BUNDLE = "etc/ssl/certs/ca-certificates.crt"


def main(iga, iga_local):
    check_that_it_is_static(iga)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        directory = Path(directory)
        # As in an image, every user may enter: the process inside is not root.
        directory.chmod(0o755)
        ours, other = trustme.CA(), trustme.CA()
        root = image_root(stack, directory / "root", iga, ours)
        emulator = Emulator(stack, iga_local, directory / "objects")
        check_tls(stack, root, emulator, ours, other)
        check_that_certificates_are_needed(root, emulator)
        check_stop_signal_as_pid_1(stack, root, emulator)


def check_that_it_is_static(program):
    same(dynamic_parts(program), [])
    assert dynamic_parts("/bin/sh"), "this check finds nothing in a dynamic program"
    print(f"{program}: {Path(program).stat().st_size} bytes, static")


def dynamic_parts(program):
    command = ["readelf", "--wide", "--segments", "--dynamic", program]
    parts = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"INTERP|\(NEEDED\).*", parts)


def image_root(stack, root, iga, authority):
    """distroless/static:nonroot, the binary, and what an engine mounts: the resolver's files and /dev/null."""
    files = {
        "etc/passwd": f"root:x:0:0::/root:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}::/home/nonroot:/sbin/nologin\n",
        "etc/group": f"root:x:0:\nnonroot:x:{NONROOT}:\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/resolv.conf": Path("/etc/resolv.conf").read_text(),
        BUNDLE: Path(f"/{BUNDLE}").read_text() + authority.cert_pem.bytes().decode(),
        "dev/null": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.copy(iga, root / "iga")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    subprocess.run(["mount", "--bind", "/dev/null", root / "dev/null"], check=True)
    stack.callback(subprocess.run, ["umount", root / "dev/null"], check=True)
    return root


def check_tls(stack, root, emulator, ours, other):
    good, bad = (tls_front(stack, authority, emulator) for authority in [ours, other])
    iga = Iga(stack, root, emulator, IGA_VERTEXAI_ENDPOINT=good, STORAGE_EMULATOR_HOST=good)
    same(ask(iga.process, f"{iga.url}/health"), (200, {"status": "ok"}))
    same(Path(f"/proc/{iga.process.pid}").stat().st_uid, NONROOT)
    emulator.expect_image(iga.generate())
    print("through TLS with a certificate of the bundle: an image")
    before = emulator.counters()
    for vertex, storage in [(bad, good), (good, bad)]:
        iga = Iga(stack, root, emulator, IGA_VERTEXAI_ENDPOINT=vertex, STORAGE_EMULATOR_HOST=storage)
        # With a key IGA must reach Cloud Storage before it pays.
        status, body = iga.generate({"Idempotency-Key": storage})
        assert status in (500, 503), (status, body)
        assert "certificate" in iga.process.log(), "the certificate is not the cause"
    for name in ["model_calls", "paid_generations"]:
        same(emulator.counters()[name], before[name])
    print("through TLS with a certificate of another authority: refused, and nothing is paid")


def check_that_certificates_are_needed(root, emulator):
    bundle = root / BUNDLE
    text = bundle.read_text()
    for state, change in [("empty", lambda: bundle.write_text("")), ("missing", bundle.unlink)]:
        change()
        ended = subprocess.run(inside(root), env=environment(emulator), capture_output=True, text=True, timeout=60)
        same(ended.returncode, 2)
        assert "no usable CA certificates" in ended.stderr and "panicked" not in ended.stderr, ended.stderr
        print(f"certificates {state}: {ended.stderr.strip()}")
    bundle.write_text(text)


def check_stop_signal_as_pid_1(stack, root, emulator):
    slow = Emulator(stack, emulator.program, emulator.directory, "--latency-ms", "1500")
    iga = Iga(stack, root, slow, isolated=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    responses = []
    request = threading.Thread(target=lambda: responses.append(iga.generate()))
    request.start()
    until(lambda: slow.counters()["model_calls"], "IGA calls the model")
    os.kill(iga.pid_1(), signal.SIGTERM)
    request.join(60)
    assert responses, "the request got no response"
    slow.expect_image(responses[0])
    same(iga.process.wait(60), 0)
    print("SIGTERM as PID 1: the running request got its image, and the process ended with 0")


def inside(root):
    return ["chroot", f"--userspec={NONROOT}:{NONROOT}", "--groups=", root, "/iga"]


def environment(emulator, **changes):
    """As an engine sets it; `unshare` and `chroot` are found by the PATH."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return emulator.settings(PATH=path, SSL_CERT_FILE=f"/{BUNDLE}", **changes)


class Iga:
    """The binary as an engine starts it from the image."""

    def __init__(self, stack, root, emulator, isolated=[], **changes):
        address = free_address()
        self.url = f"http://{address}"
        settings = environment(emulator, PORT=address.split(":")[1], **changes)
        self.process = start(stack, [*isolated, *inside(root)], env=settings)

    def pid_1(self):
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        same((status["Name"].strip(), status["NSpid"].split()[-1]), ("iga", "1"))
        return int(pid)

    def generate(self, headers={}):
        return ask(self.process, f"{self.url}/generate_image", {"prompt": "A paper boat"}, headers)


def tls_front(stack, authority, emulator):
    """The URL of a server that speaks TLS in front of the emulator's plain HTTP."""
    pem = authority.issue_cert("localhost").private_key_and_cert_chain_pem
    certificate = stack.enter_context(pem.tempfile())
    port = free_address().split(":")[1]
    listener = f"OPENSSL-LISTEN:{port},bind=127.0.0.1,fork,cert={certificate},verify=0"
    start(stack, ["socat", listener, f"TCP:{emulator.address}"])
    until(lambda: socket.socket().connect_ex(("127.0.0.1", int(port))) == 0, "socat listens")
    return f"https://localhost:{port}"


if __name__ == "__main__":
    main(*map(os.path.abspath, sys.argv[1:]))
