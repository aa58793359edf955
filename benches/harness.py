"""The parts of the measurements: programs, upstream, callers, TLS, network, memory limit."""

import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve()
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
KIB, MIB = 1 << 10, 1 << 20
# 10.77.N.2 is the far end of link N.
LINKS = 8

without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# ---- the subjects


class Subject:
    """A program that serves /generate_image."""

    directory = REPOSITORY
    # The share of requests that must succeed.
    least_success = 1

    def command(self, port, upstream):
        return [program(self.name)]

    def environment(self, port, upstream):
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "PORT": str(port),
            "IGA_DEBUG_MODE": "False",
            "GCP_PROJECT_ID": "benchmark",
            "GCP_LOCATION": "us-central1",
            "GCS_BUCKET_NAME": "benchmark",
            "IGA_VERTEXAI_IMAGE_MODEL_ID": "imagen-4.0-generate-001",
            "IGA_VERTEXAI_ENDPOINT": upstream.model,
            "STORAGE_EMULATOR_HOST": upstream.storage,
            # The base image of the container sets it.
            "SSL_CERT_FILE": str(tls().bundle),
            "REQUESTS_CA_BUNDLE": str(tls().bundle),
        }
        if upstream.tls:
            environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(upstream.credentials)
        else:
            metadata = upstream.metadata.removeprefix("http://")
            environment |= {"GCE_METADATA_HOST": metadata, "GCE_METADATA_IP": metadata}
        return environment

    @contextlib.contextmanager
    def running(self, upstream, memory_limit=None, **settings):
        port = free_port()
        environment = {**self.environment(port, upstream), **settings}
        command = self.command(port, upstream)
        if memory_limit:
            command = memory_limit.wrap(command)
        with tempfile.TemporaryFile() as log:
            with started(
                command, stdout=log, stderr=log, env=environment, cwd=self.directory
            ) as process:
                url = f"http://127.0.0.1:{port}"
                running = Running(process, url, log, self.least_success)
                running.wait_until_healthy()
                yield running


class Iga(Subject):
    name = "iga"


class IgaWithoutLog(Subject):
    name = "iga_without_log"


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
        return [
            program("pass_through"),
            upstream.model,
            upstream.storage,
            str(upstream.image_bytes),
        ]


class Peer(Subject):
    # At 80 at once over TLS, one of 200 may break off.
    least_success = 0.99

    def __init__(self, name, *command):
        self.name, self.arguments = name, command
        self.directory = REPOSITORY / "benches/peers" / name
        self.python = TARGET / "benches" / name / "bin"

    def install(self):
        """Installs its packages. Returns whether that succeeded."""
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.python.parent], check=True)
        requirements = self.directory / "requirements.txt"
        install = [self.python / "pip", "install", "--quiet", "--requirement", requirements]
        result = subprocess.run(install, capture_output=True, text=True)
        if result.returncode:
            print(f"NOT MEASURED: {self.name}. Its packages cannot be installed:\n{result.stderr}")
        return not result.returncode

    def packages(self):
        (found,) = self.python.parent.glob("lib/python3*/site-packages")
        return found

    def command(self, port, upstream):
        words = [word.replace("PORT", str(port)) for word in self.arguments[1:]]
        return [self.python / self.arguments[0], *words]


def peers():
    threads = ["--workers=1", "--threads=80"]
    flask = Peer("flask", "gunicorn", *threads, "--bind=127.0.0.1:PORT", "app:app")
    fastapi = Peer("fastapi", "uvicorn", "--host=127.0.0.1", "--port=PORT", "app:app")
    return [peer for peer in [flask, fastapi] if peer.install()]


class Running:
    """A running subject, with the processes that it started."""

    def __init__(self, process, url, log, least_success):
        self.process, self.url, self.log = process, url, log
        self.least_success = least_success

    def wait_until_healthy(self):
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                without_proxy.open(f"{self.url}/health", timeout=10).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                sys.exit(f"{self.process.args} does not respond:\n{self.log.read().decode()}")
            time.sleep(0.01)

    def pids(self):
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cpu_seconds(self):
        # The CPU clock of another process, user and system time: clock_getcpuclockid(3).
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self.pids())

    def peak_mib(self):
        statuses = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in self.pids()]
        peaks = [
            line.split()[1] for lines in statuses for line in lines if line.startswith("VmHWM")
        ]
        return sum(map(int, peaks)) / KIB

    def log_bytes(self):
        return os.fstat(self.log.fileno()).st_size

    def load(self, requests, callers):
        """Asks for images. CPU is that of each image which was received."""
        before = self.cpu_seconds()
        done = load("images", self.url, requests, callers)
        spent = self.cpu_seconds() - before
        if done["ok"] < requests * self.least_success:
            sys.exit(f"{self.process.args}: {done['ok']} of {requests} requests succeeded")
        return {
            **done,
            "cpu_ms": spent * 1e3 / done["ok"],
            "per_second": done["ok"] / done["seconds"],
        }

    def load_to_the_limit(self, requests, callers, upstream, **options):
        """Asks for images that may fail. One that the model made and no caller got is lost."""
        before = upstream.counts()
        done = load("images", self.url, requests, callers, **options)
        lost = upstream.counts()["generated"] - before["generated"] - done["ok"]
        return {"seconds": done["seconds"], "lost": lost, "refused": done["refused"]}


# ---- the upstream and the callers


class Upstream:
    """The fake of Google's services. All its images have one size."""

    name = "upstream"

    def __init__(self, image_bytes, link=None, tls=False, **options):
        self.image_bytes, self.link, self.tls = image_bytes, link, tls
        self.options = options

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        command = [program("upstream"), str(self.image_bytes), *words(self.options)]
        if self.tls:
            command.append(f"tls={tls().directory}")
        if self.link:
            number, round_trip_ms = self.link
            command.append(f"host={far_address(number)}")
            command = [program("distance"), str(number), str(round_trip_ms), *command]
        process = self.stack.enter_context(started(command, stdout=subprocess.PIPE))
        line = process.stdout.readline()
        if not line:
            sys.exit(f"{command} does not start")
        urls = json.loads(line)
        self.metadata, self.model, self.storage = urls["metadata"], urls["model"], urls["storage"]
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.credentials = directory / "credentials.json"
        subject = directory / "subject"
        subject.write_text("subject")
        self.credentials.write_text(json.dumps(federation(subject, f"{urls['token']}/token")))
        return self

    def __exit__(self, *exception):
        self.stack.close()

    def counts(self):
        with without_proxy.open(f"{self.metadata}/counts", timeout=10) as response:
            return json.load(response)


def federation(subject, token_url):
    """Credentials that all clients exchange for an access token at `token_url`."""
    return {
        "type": "external_account",
        # Without a project: Python's client would ask Google for the name of it.
        "audience": "//iam.googleapis.com/locations/global/workloadIdentityPools/p/providers/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": token_url,
        "credential_source": {"file": str(subject)},
    }


def load(mode, url, requests, callers, **options):
    command = [program("load"), mode, url, str(requests), str(callers), *words(options)]
    environment = {**os.environ, "SSL_CERT_FILE": str(tls().bundle)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout)


def stopwatch(subject, what, upstream):
    port = free_port()
    command = [program("stopwatch"), what, str(port), *subject.command(port, upstream)]
    options = {"env": subject.environment(port, upstream), "cwd": subject.directory, "timeout": 120}
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode:
        sys.exit(result.stderr)
    return float(result.stdout)


def words(options):
    texts = {name: str(value).lower() for name, value in options.items()}
    return [f"{name}={text}" for name, text in texts.items()]


@contextlib.contextmanager
def started(command, **options):
    """A process with a session of its own, which ends with the context."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout:
            process.stdout.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- TLS


class Tls:
    """A certificate for the upstream, and a bundle that trusts it beside the public ones."""

    def __init__(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.bundle = self.directory / "bundle.pem"
        config, certificate = self.directory / "config", self.directory / "certificate.pem"
        addresses = ["127.0.0.1", *map(far_address, range(LINKS))]
        names = ",".join(f"IP:{address}" for address in addresses)
        config.write_text(
            "[req]\ndistinguished_name = name\nx509_extensions = extensions\nprompt = no\n"
            "[name]\nCN = benchmark\n[extensions]\nbasicConstraints = CA:FALSE\n"
            f"subjectAltName = {names}\n"
        )
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        files = ["-config", config, "-keyout", self.directory / "key.pem", "-out", certificate]
        command = ["openssl", "req", "-x509", "-days", "2", *curve, *files]
        subprocess.run(command, check=True, capture_output=True)
        self.bundle.write_text(CERTIFICATES.read_text() + certificate.read_text())


def tls():
    """Made once."""
    if not hasattr(tls, "made"):
        tls.made = Tls()
    return tls.made


# ---- the network


def enter_network():
    """Moves this process into its own network namespace. Returns what prevents a link there."""
    new_user, new_net = 0x10000000, 0x40000000
    user, group = os.getuid(), os.getgid()
    if not shutil.which("ip"):
        return "no command ip"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_net):
        if libc.unshare(new_user | new_net):
            return f"no network namespace: {os.strerror(ctypes.get_errno())}"
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"no /dev/net/tun: {error.strerror}"
    return None


def far_address(link):
    return f"10.77.{link}.2"


# ---- a limit of memory


class MemoryLimit:
    """A control group, of version 1 or 2, that limits memory, with the buffers of the kernel."""

    def __init__(self, mib):
        first = Path("/sys/fs/cgroup/memory")
        self.version = 1 if first.is_dir() else 2
        root = first if self.version == 1 else Path("/sys/fs/cgroup")
        self.group = root / f"iga-benches-{os.getpid()}"
        self.limit = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        self.peak = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        self.bytes = mib * MIB

    def __enter__(self):
        """Raises OSError where this process may not make control groups."""
        self.group.mkdir()
        try:
            (self.group / self.limit).write_text(str(self.bytes))
        except OSError:
            self.group.rmdir()
            raise
        return self

    def __exit__(self, *exception):
        self.group.rmdir()

    def wrap(self, command):
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', self.group / "cgroup.procs", *command]

    def peak_mib(self):
        return int((self.group / self.peak).read_text()) / MIB


# ---- building


def build():
    programs = ["iga", "iga_without_log", "minimal_server", "pass_through"]
    for name in [*programs, "upstream", "load", "stopwatch", "distance"]:
        subprocess.run(
            [REPOSITORY / "scripts/build-static.sh", platform.machine(), name], check=True
        )


def program(name):
    return TARGET / f"{platform.machine()}-unknown-linux-musl" / "release" / name


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(": ")[1] for line in lines if "model name" in line)
    congestion_control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "congestion_control": congestion_control,
    }
