"""Runs the shipped binary under AWS's runtime interface emulator, against the emulator of Google's services.

Usage: lambda.py IGA IGA_LOCAL [SETTINGS]

SETTINGS is a JSON file with the environment of template.yaml. IGA is then the binary of a package: it uses the
google-credentials.json beside it and the AWS credentials that every function has.
"""

import base64
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from support import REPOSITORY, TOOLS, Emulator, ask, free_address, same, start

PLAIN, BASE64, BALANCER = "generate_image.json", "generate_image_base64.json", "generate_image_alb.json"
MISSING = {
    "error_code": "IGA_BAD_REQUEST_PROMPT_MISSING",
    "message": "Prompt is required for image generation.",
    "details": "Missing or empty 'prompt' in request body.",
}


def main(iga, iga_local, settings=None):
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        task = Path(directory, "task")
        task.mkdir()
        shutil.copy(iga, task / "bootstrap")
        emulator = Emulator(stack, iga_local, Path(directory, "objects"))
        environment = template_environment(Path(settings), Path(iga).parent, task, emulator) if settings else emulator.settings()
        check(Function(stack, task, environment), emulator)


def check(function, emulator):
    for name in [PLAIN, BASE64, BALANCER]:
        expect_image(function, event(name), emulator)
        print(f"{name}: stored")
    response = function.invoke({**event(PLAIN), "body": "{}"})
    same((response["statusCode"], json.loads(response["body"])), (400, MISSING))
    print("no prompt: 400")
    process = function.process_id()
    response = function.invoke({**event(BASE64), "body": "%%%"})
    assert 400 <= response.get("statusCode", 0) < 500 or "errorType" in response, response
    expect_image(function, event(PLAIN), emulator)
    same(function.process_id(), process)
    print("invalid base64: refused, and the same process takes the next event")


def expect_image(function, sent, emulator):
    response = function.invoke(sent)
    headers = {name.lower(): value for name, value in response["headers"].items()}
    assert headers["x-request-id"].startswith("iga_req_"), headers
    same((headers["content-type"], response["isBase64Encoded"]), ("application/json", False))
    body = json.loads(response["body"])
    same(set(body), {"image_url", "prompt_used", "model_version"})
    emulator.expect_image((response["statusCode"], body))
    request = base64.b64decode(sent["body"]) if sent["isBase64Encoded"] else sent["body"]
    same(body["prompt_used"], json.loads(request)["prompt"])


def event(name):
    return json.loads((REPOSITORY / "events" / name).read_text())


def template_environment(settings, package, task, emulator):
    """The template's environment, with the emulator as Google and its token service, and `task` as /var/task."""
    federation = json.loads((package / "google-credentials.json").read_text())
    federation["token_url"] = f"{emulator.url}/v1/token"
    (task / "google-credentials.json").write_text(json.dumps(federation))
    settings = json.loads(settings.read_text())
    for there, here in [("/var/task", str(task)), ("/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt")]:
        settings = {name: value.replace(there, here) for name, value in settings.items()}
    google = {name: emulator.url for name in ["STORAGE_EMULATOR_HOST", "IGA_VERTEXAI_ENDPOINT"]}
    aws = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"}
    return {**settings, **google, **aws, "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_SESSION_TOKEN": "a-session"}


class Function:
    """The binary in its task directory, as Lambda starts it."""

    def __init__(self, stack, task, environment):
        address = free_address()
        self.url = f"http://{address}/2015-03-31/functions/function/invocations"
        function = {"NAME": "iga", "VERSION": "$LATEST", "MEMORY_SIZE": "512", "TIMEOUT": "60"}
        environment = {f"AWS_LAMBDA_FUNCTION_{name}": value for name, value in function.items()} | environment
        environment |= {"PATH": os.environ["PATH"], "HOME": str(task.parent), "NO_PROXY": "127.0.0.1"}
        # AWS's emulator is part of the package of the SAM command line.
        machine = platform.machine().replace("aarch64", "arm64")
        (file,) = TOOLS.glob(f"sam-venv/lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-{machine}")
        rie = Path(shutil.copy(file, task.parent))
        rie.chmod(0o755)
        command = [rie, "--runtime-interface-emulator-address", address, "--runtime-api-address", free_address()]
        self.process = start(stack, [*command, "./bootstrap"], cwd=task, env=environment)

    def invoke(self, sent):
        return ask(self.process, self.url, sent)[1]

    def process_id(self):
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        (process,) = [pid for file in children for pid in file.read_text().split()]
        return process


if __name__ == "__main__":
    main(*map(os.path.abspath, sys.argv[1:]))
