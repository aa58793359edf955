#!/usr/bin/env python3
"""Measures IGA beside its baselines, in one run, and writes docs/performance/results.json.

Usage: benches/run.py                  all measurements, about 20 minutes on two otherwise idle cores
       benches/run.py --only NAME      repeats one measurement, with its baselines, and keeps the others
       benches/run.py --quick FILE     runs each measurement once and small, without peers, and writes FILE

The quick run checks that the harness works. benches/report.py turns the results into the tables and charts of
docs/performance.md.
"""

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve()
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
KIB, MIB = 1 << 10, 1 << 20
USUAL = 3 * MIB // 2
directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Plan:
    """How often and how much each measurement runs."""

    rounds, peer_rounds = 5, 3
    starts, peer_starts = 41, 5
    images, peer_images = 1000, 200
    sizes = [64 * KIB, 512 * KIB, USUAL, 4 * MIB, 8 * MIB, 14 * MIB, 20 * MIB]
    # Callers, bytes of an image, latency of the model in ms, number of images.
    in_transfer, in_flight = (80, 8 * MIB, 0, 240), (1000, USUAL, 2000, 2000)
    concurrencies = [1, 4, 16, 80, 250, 1000]
    budgets_mib = [2, 8, 32, 128]


class Quick(Plan):
    rounds = peer_rounds = 1
    starts = 2
    images = 20
    sizes = [64 * KIB, USUAL]
    in_transfer, in_flight = (8, 8 * MIB, 0, 16), (40, USUAL, 100, 40)
    concurrencies = [1, 40]
    budgets_mib = [2]


def main(arguments):
    plan, file, results = Plan, REPOSITORY / "docs/performance/results.json", {}
    measures = [sizes_on_disk, starts, images, memory, by_size, by_concurrency, by_budget, ceiling]
    match arguments:
        case []:
            pass
        case ["--only", name] if name in (names := [measure.__name__ for measure in measures]):
            results = json.loads(file.read_text())
            measures = [measures[names.index(name)]]
        case ["--quick", path]:
            plan, file = Quick, Path(path)
        case _:
            sys.exit(__doc__)
    build()
    subjects = [Iga(), PassThrough(), *(peers() if plan is Plan else [])]
    results |= {"machine": machine(), "programs": [subject.name for subject in subjects]}
    for measure in measures:
        print(f"== {measure.__name__}", flush=True)
        results[measure.__name__] = measure(plan, subjects)
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(file)


# ---- the measurements


def sizes_on_disk(plan, subjects):
    sizes = {"iga": program("iga").stat().st_size, "minimal server": program("minimal_server").stat().st_size}
    for subject in subjects:
        if isinstance(subject, Peer):
            sizes[subject.name] = sum(file.lstat().st_size for file in subject.packages().rglob("*") if file.is_file())
    return sizes


def starts(plan, subjects):
    """Milliseconds from exec to the first 200: for /health and for an image."""
    found = Table()
    with Upstream(64 * KIB) as upstream:
        for number in range(plan.starts):
            for subject in [MinimalServer(), MinimalServerOneThread(), *taking_part(subjects, number, plan.peer_starts)]:
                if isinstance(subject, PassThrough):
                    continue
                for what in ["health", "image"]:
                    found.add(subject, what, stopwatch(subject, what, upstream))
    return found.rows


def images(plan, subjects):
    """Idle memory; then CPU for each image, latency and speed at three levels of concurrency."""
    found = Table()
    with Upstream(USUAL) as upstream:
        for number in range(plan.rounds):
            for subject in taking_part(subjects, number, plan.peer_rounds):
                with subject.running(upstream) as process:
                    found.add(subject, "idle_mib", process.peak_mib())
                    process.load(20, 4)
                    for callers in [1, 16, 80]:
                        requests = plan.peer_images if isinstance(subject, Peer) else plan.images
                        done = process.load(requests, callers)
                        for name in ["cpu_ms", "p50_ms", "p99_ms", "per_second"]:
                            found.add(subject, f"{name} {callers}", done[name])
    return found.rows


def memory(plan, subjects):
    """Peak memory of a fresh process under load, and the number of failed requests."""
    found = Table()
    for row, (callers, image_bytes, latency_ms, requests) in [
        ("in_transfer", plan.in_transfer),
        ("in_flight", plan.in_flight),
    ]:
        with Upstream(image_bytes, latency_ms) as upstream:
            for number in range(plan.peer_rounds):
                for subject in taking_part(subjects, number, 1):
                    with subject.running(upstream, IGA_MAX_GENERATIONS=str(callers)) as process:
                        done = process.load(callers if isinstance(subject, Peer) else requests, callers, may_fail=True)
                        found.add(subject, f"{row} mib", process.peak_mib())
                        found.add(subject, f"{row} failed", done["failed"])
    return found.rows


def by_size(plan, subjects):
    """CPU and peak memory against the size of the image, with 16 callers."""
    found = Table()
    for image_bytes in plan.sizes:
        with Upstream(image_bytes) as upstream:
            for number in range(plan.peer_rounds):
                for subject in taking_part(subjects, number, 1):
                    with subject.running(upstream) as process:
                        process.load(16, 16)
                        done = process.load(48 if isinstance(subject, Peer) else 160, 16)
                        found.add(subject, f"cpu_ms {image_bytes}", done["cpu_ms"])
                        found.add(subject, f"mib {image_bytes}", process.peak_mib())
    return found.rows


def by_concurrency(plan, subjects):
    """CPU and peak memory against the number of callers; the model takes 200 ms."""
    found = Table()
    with Upstream(USUAL, 200) as upstream:
        for callers in plan.concurrencies:
            for number in range(plan.peer_rounds):
                for subject in taking_part(subjects, number, 0):
                    with subject.running(upstream, IGA_MAX_GENERATIONS="1000") as process:
                        done = process.load(max(50, 3 * callers), callers)
                        found.add(subject, f"cpu_ms {callers}", done["cpu_ms"])
                        found.add(subject, f"mib {callers}", process.peak_mib())
    return found.rows


def by_budget(plan, subjects):
    """CPU and speed with 80 callers against the transfer budget, which only IGA has."""
    found = Table()
    with Upstream(USUAL) as upstream:
        for number in range(plan.rounds):
            for subject in taking_part(subjects, number, 0):
                for budget_mib in plan.budgets_mib if isinstance(subject, Iga) else [0]:
                    with subject.running(upstream, IGA_TRANSFER_BUDGET_MIB=str(budget_mib)) as process:
                        process.load(20, 4)
                        done = process.load(plan.images, 80)
                        for name in ["cpu_ms", "per_second"]:
                            found.add(subject, f"{name} {budget_mib}", done[name])
    return found.rows


def ceiling(plan, subjects):
    """Images per second and p50 of the callers and the upstream without a service between them."""
    with Upstream(USUAL) as upstream:
        runs = [load("ceiling", upstream.address, plan.images, callers, str(USUAL)) for callers in [1, 16, 80]]
    return {str(callers): [run["ok"] / run["seconds"], run["p50_ms"]] for callers, run in zip([1, 16, 80], runs)}


class Table:
    """Figures by name and program, one for each round."""

    def __init__(self):
        self.rows = {}

    def add(self, subject, name, figure):
        figures = self.rows.setdefault(name, {}).setdefault(subject.name, [])
        figures.append(figure)
        print(f"{subject.name:26} {name:20} {figure:10.2f}", flush=True)


def taking_part(subjects, number, peer_rounds):
    """The subjects of this round: the peers are slow, so they take part in the first rounds only."""
    return [subject for subject in subjects if number < peer_rounds or not isinstance(subject, Peer)]


# ---- the subjects


class Subject:
    """A program that serves /generate_image."""

    directory = REPOSITORY

    def command(self, port, upstream):
        return [program(self.name)]

    def environment(self, port, upstream):
        return {
            "PATH": os.environ["PATH"],
            "NO_PROXY": "127.0.0.1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PORT": str(port),
            "IGA_DEBUG_MODE": "False",
            "GCP_PROJECT_ID": "benchmark",
            "GCP_LOCATION": "us-central1",
            "GCS_BUCKET_NAME": "benchmark",
            "IGA_VERTEXAI_IMAGE_MODEL_ID": "imagen-4.0-generate-001",
            "IGA_VERTEXAI_ENDPOINT": f"http://{upstream.address}",
            "STORAGE_EMULATOR_HOST": f"http://{upstream.address}",
            "GCE_METADATA_HOST": upstream.address,
            "GCE_METADATA_IP": upstream.address,
            # The base image of the container sets it.
            "SSL_CERT_FILE": BUNDLE,
        }

    @contextlib.contextmanager
    def running(self, upstream, **settings):
        port = free_port()
        environment = {**self.environment(port, upstream), **settings}
        command = self.command(port, upstream)
        prints_address = isinstance(self, PassThrough)
        with started(command, prints_address, env=environment, cwd=self.directory) as process:
            running = Running(process, self.address(process, port))
            running.wait_until_healthy()
            yield running

    def address(self, process, port):
        return f"127.0.0.1:{port}"


class Iga(Subject):
    name = "iga"


class MinimalServer(Subject):
    name = "minimal server"

    def command(self, port, upstream):
        return [program("minimal_server")]


class MinimalServerOneThread(Subject):
    name = "minimal server, one thread"

    def command(self, port, upstream):
        return [program("minimal_server"), "one-thread"]


class PassThrough(Subject):
    name = "pass-through"

    def command(self, port, upstream):
        return [program("pass_through"), upstream.address, str(upstream.image_bytes)]

    def address(self, process, port):
        return process.stdout.readline().decode().strip()


class Peer(Subject):
    def __init__(self, name, *command):
        self.name, self.arguments = name, command
        self.directory = REPOSITORY / "benches/peers" / name
        self.python = TARGET / "benches" / name / "bin"

    def install(self):
        """Installs its packages. Returns whether that succeeded."""
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.python.parent], check=True)
        install = [self.python / "pip", "install", "--quiet", "--requirement", self.directory / "requirements.txt"]
        result = subprocess.run(install, capture_output=True, text=True)
        if result.returncode:
            print(f"NOT MEASURED: {self.name}. Its packages cannot be installed:\n{result.stderr}", flush=True)
        return not result.returncode

    def packages(self):
        (found,) = self.python.parent.glob("lib/python3*/site-packages")
        return found

    def command(self, port, upstream):
        return [self.python / self.arguments[0], *(word.replace("PORT", str(port)) for word in self.arguments[1:])]


def peers():
    flask = Peer("flask", "gunicorn", "--workers=1", "--threads=80", "--bind=127.0.0.1:PORT", "app:app")
    fastapi = Peer("fastapi", "uvicorn", "--host=127.0.0.1", "--port=PORT", "app:app")
    return [peer for peer in [flask, fastapi] if peer.install()]


class Running:
    """A running subject, with the processes that it started."""

    def __init__(self, process, address):
        self.process, self.address = process, address

    def wait_until_healthy(self):
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                directly.open(f"http://{self.address}/health", timeout=10).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{self.process.args} does not respond")
            time.sleep(0.01)

    def pids(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def cpu_seconds(self):
        # The CPU clock of another process, user and system time: clock_getcpuclockid(3).
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self.pids())

    def peak_mib(self):
        lines = "".join(Path(f"/proc/{pid}/status").read_text() for pid in self.pids()).splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / KIB

    def load(self, requests, callers, may_fail=False):
        before = self.cpu_seconds()
        done = load("images", self.address, requests, callers)
        spent = self.cpu_seconds() - before
        if done["failed"] and not may_fail:
            sys.exit(f"{self.process.args}: {done['failed']} of {requests} requests failed")
        return {**done, "cpu_ms": spent * 1e3 / requests, "per_second": done["ok"] / done["seconds"]}


class Upstream:
    """The fake of Google's services. All its images have one size."""

    def __init__(self, image_bytes, latency_ms=0):
        self.image_bytes = image_bytes
        self.latency_ms = latency_ms

    def __enter__(self):
        command = [program("upstream"), str(self.image_bytes), str(self.latency_ms)]
        self.stack = contextlib.ExitStack()
        process = self.stack.enter_context(started(command))
        self.address = process.stdout.readline().decode().strip()
        return self

    def __exit__(self, *exception):
        self.stack.close()


def load(mode, address, requests, callers, *more):
    command = [program("load"), mode, address, str(requests), str(callers), *more]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout)


def stopwatch(subject, what, upstream):
    port = free_port()
    command = [program("stopwatch"), what, str(port), *subject.command(port, upstream)]
    environment = subject.environment(port, upstream)
    result = subprocess.run(command, env=environment, cwd=subject.directory, capture_output=True, text=True, timeout=120)
    if result.returncode:
        sys.exit(result.stderr)
    return float(result.stdout)


@contextlib.contextmanager
def started(command, prints_address=True, **options):
    """A process, ended on exit. Its stdout is a pipe if it prints an address; otherwise a log file, which costs CPU."""
    with tempfile.TemporaryFile() as log:
        out = subprocess.PIPE if prints_address else log
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, **options)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if prints_address:
                process.stdout.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- building


def build():
    for name in ["iga", "minimal_server", "pass_through", "upstream", "load", "stopwatch"]:
        subprocess.run([REPOSITORY / "scripts/build-static.sh", platform.machine(), name], check=True)


def program(name):
    return TARGET / f"{platform.machine()}-unknown-linux-musl" / "release" / name


def machine():
    cpu = next(line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "kernel": platform.release()}


if __name__ == "__main__":
    main(sys.argv[1:])
