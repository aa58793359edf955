"""What the gate's scripts share: places, processes that end with a check, HTTP on loopback, the emulator."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = Path(os.environ.get("IGA_CI_TOOLS", REPOSITORY / "target/ci"))
BUCKET = "iga-images"
without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def not_checked(sentence):
    """Prints what this machine cannot check; `.ci/run` repeats it at its end."""
    print(f"NOT CHECKED: {sentence}", flush=True)
    with open(TOOLS / "not-checked", "a") as file:
        print(sentence, file=file)


def same(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def copy_tracked(to):
    """The files in git. They keep their times, so that cargo compiles only what changed."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, to / name)


def start(stack, command, **options):
    """A process that ends with the stack. If a check fails, its `log` is printed."""
    file = stack.enter_context(tempfile.NamedTemporaryFile())
    options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **options}
    process = stack.enter_context(subprocess.Popen(command, **options))
    process.log = lambda: Path(file.name).read_text()
    stack.push(lambda failure, *_: failure and print(process.log()))
    stack.callback(process.kill)
    return process


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % listener.getsockname()[1]


def until(condition, what):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.02)
    return found


def ask(process, url, body=None, headers={}):
    """The status and the JSON of a response, as soon as the process listens."""
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)

    def response():
        try:
            with without_proxy.open(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except urllib.error.URLError as error:
            # If the connection is refused, nothing was sent.
            if not isinstance(error.reason, ConnectionRefusedError) or process.poll() is not None:
                raise

    return until(response, f"{url} responds")


def expect_image(directory, bucket, response):
    """The response names an image, and the emulator has stored it in its directory."""
    status, body = response
    assert status == 200, response
    found, name = body["image_url"].removeprefix("gs://").split("/", 1)
    same(found, bucket)
    image = (directory / bucket / name).read_bytes()
    assert image.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")), image[:16]


class Emulator:
    """Google's services, as `iga-local emulator` emulates them."""

    def __init__(self, stack, program, directory, *options):
        self.program, self.directory = program, directory
        command = [program, "--dir", directory, "emulator", "--port", "0", "--bucket", BUCKET, *options]
        self.process = start(stack, command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.url
        self.address = self.url.removeprefix("http://")

    def settings(self, **changes):
        """The settings with which IGA uses it."""
        settings = {"GCP_PROJECT_ID": "a-project", "GCP_LOCATION": "us-central1", "GCS_BUCKET_NAME": BUCKET}
        settings |= {"STORAGE_EMULATOR_HOST": self.url, "IGA_VERTEXAI_ENDPOINT": self.url}
        return {**settings, "GCE_METADATA_HOST": self.address, **changes}

    def counters(self):
        return ask(self.process, f"{self.url}/_emulator/counters")[1]

    def expect_image(self, response):
        expect_image(self.directory, BUCKET, response)
