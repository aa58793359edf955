#!/usr/bin/env python3
"""Checks the deployment files without an account: by the tools of their formats, and for security properties.

Usage: files.py              runs the tools and checks the properties
       files.py --mutations  breaks the properties in a copy, as mutations.py says; each mutation must be found
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cfnlint.api import ManualArgs, lint
from image import context
from mutations import MUTATIONS
from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform
from support import REPOSITORY, TOOLS, copy_tracked, not_checked, same, tracked

logging.disable()
ACCOUNT, NUMBER = "123456789012", "123456789"
SETTINGS = {"PROJECT": "example-1", "REGION": "europe-west4", "BUCKET": "example-bucket"}
SETUP_GOOGLE = ["scripts/setup-google.sh", *SETTINGS.values()]
SECRETS = [".env", "gcp-credentials.json", "google-credentials.json"]
SETUP_AWS = ["scripts/setup-aws.sh", "--project", "example-1", "--bucket", "example-bucket", "--account", ACCOUNT]


def main(arguments):
    if arguments == ["--mutations"]:
        return check_mutations()
    run_tools()
    with copy_of_files() as files:
        for check in CHECKS:
            check(files)
            print(f"{check.__doc__} ok")
        lint_gcloud_commands(files)


# ---- the tools of the formats


def run_tools():
    """All of them run, so that one run shows all problems."""
    problems = [tool("hadolint", "Dockerfile")]
    problems.append(tool("shellcheck", ".ci/run", *(name for name in tracked() if name.endswith(".sh"))))
    for name, schema in {"cloudbuild.yaml": "vendor.cloudbuild", "docker-compose.yml": "vendor.compose-spec"}.items():
        problems.append(tool("check-jsonschema", "--builtin-schema", schema, name))
    for name, message in {"service.yaml": ("run.v1", "Service"), "cloudbuild.yaml": ("cloudbuild.v1", "Build")}.items():
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(google_schema(*message))
            file.flush()
            problems.append(tool("check-jsonschema", "--schemafile", file.name, name))
    for options in [[], ["--lint"]]:
        problems.append(tool("sam", "validate", *options, "--template", "template.yaml", environment="sam-venv"))
    # SAM's own parameters are used up in the expanded template, thus W2001.
    config = ManualArgs(ignore_checks=["W2001"], regions=["us-east-1"])
    problems += [f"cfn-lint: {found.rule.id} {found.message}" for found in lint(json.dumps(expanded()), config=config)]
    if any(problems):
        sys.exit("\n".join(filter(None, problems)))


def tool(name, *arguments, environment="venv"):
    result = subprocess.run([TOOLS / environment / "bin" / name, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    print(f"{name} {shlex.join(arguments)}: {'problems' if result.returncode else 'ok'}", flush=True)
    return f"{name}: {result.stdout}{result.stderr}" if result.returncode else None


def google_schema(api, message):
    """The JSON schema of a message, from the description of an API in Google's client library."""
    (documents,) = TOOLS.glob("venv/lib/python3*/site-packages/googleapiclient/discovery_cache/documents")
    schemas = json.dumps(json.loads((documents / f"{api}.json").read_text())["schemas"])
    schemas = re.sub(r'"id": "\w+", ', "", schemas)
    schemas = re.sub(r'"\$ref": "(\w+)"', r'"$ref": "#/schemas/\1"', schemas)
    schemas = schemas.replace('"properties": {', '"additionalProperties": false, "properties": {')
    draft = "http://json-schema.org/draft-03/schema#"
    return f'{{"$schema": "{draft}", "$ref": "#/schemas/{message}", "schemas": {schemas}}}'


def expanded():
    """template.yaml as SAM deploys it."""
    template = yaml_parse((REPOSITORY / "template.yaml").read_text())
    template["Resources"]["IgaFunction"]["Properties"]["CodeUri"] = "s3://bucket/key"
    place = {"AWS::Region": "us-east-1", "AWS::AccountId": ACCOUNT, "AWS::Partition": "aws"}
    no_managed_policies = type("NoManagedPolicies", (), {"load": dict})()
    return json.loads(json.dumps(transform(template, place, no_managed_policies)))


def lint_gcloud_commands(files):
    """gcloud's own parser must know the commands and options."""
    if not shutil.which("gcloud"):
        return not_checked("gcloud knows the commands and options in scripts and pages; gcloud is not installed")
    commands = sorted({shlex.join(words).replace(" replace - ", " replace service.yaml ") for words in commands_of_pages(files)})
    (files / "commands.json").write_text(json.dumps([{"command_string": command} for command in commands]))
    command = ["gcloud", "meta", "lint-gcloud-commands", "--commands-file=commands.json"]
    judged = json.loads(subprocess.run(command, cwd=files, check=True, stdout=subprocess.PIPE).stdout)
    same(len(judged), len(commands))
    same([f"{found['command_string']}: {found['error_message']}" for found in judged if not found["success"]], [])
    print(f"{len(commands)} gcloud commands: ok")


# ---- commands, recorded by stand-ins


STAND_IN = f"""#!/bin/bash
{{ printf '%s\\x1f' "${{0##*/}}" "$@"; echo; }} >>"$HOME/log"
case " $* " in
    *'value(projectNumber)'*) echo {NUMBER} ;;
    *'value(uniform_bucket_level_access)'*) echo True ;;
    *' --format='*) ;;
    *' describe '*) [ -n "$EXISTS" ] ;;
esac
"""


def recorded(files, *command, exists=""):
    """The gcloud commands and the output of a command; stand-ins only write down their arguments."""
    with tempfile.TemporaryDirectory() as home:
        for name in ["gcloud", "sam", "curl", "cargo", "docker"]:
            Path(home, name).write_text(STAND_IN)
            Path(home, name).chmod(0o755)
        Path(home, "log").touch()
        environment = SETTINGS | {"PATH": f"{home}:/usr/bin:/bin", "HOME": home, "EXISTS": exists, "URL": "https://x"}
        environment |= {f"AWS_{name}": "x" for name in ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"]}
        result = subprocess.run(command, cwd=files, env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{shlex.join(command)}: {result.stdout}{result.stderr}"
        lines = [line.split("\x1f")[:-1] for line in Path(home, "log").read_text().splitlines()]
        return [words for words in lines if words[0] == "gcloud"], result.stdout


def commands_of_pages(files):
    """What the shell blocks of the README and of docs/ ask of gcloud, the setup scripts included."""
    pages = [files / "README.md", *files.glob("docs/*.md")]
    blocks = [block for page in pages for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", page.read_text())]
    blocks = [block for block in blocks if re.search(r"gcloud|scripts/setup", block)]
    return [words for block in blocks for words in recorded(files, "bash", "-euc", block)[0]]


def option(words, name):
    return next((word.partition("=")[2] for word in words if word.startswith(f"--{name}=")), None)


# ---- security properties


def check_keys(files):
    """.gitignore and .dockerignore: no key in a commit or in an image."""
    for name in SECRETS:
        (files / name).touch()
        ignored = ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", "--no-index", "--quiet", name]
        assert subprocess.run(ignored, cwd=files).returncode == 0, f".gitignore: {name} could be committed"
    same(context(files) & {*SECRETS, ".git/config"}, set())


def check_pages(files):
    """README.md and docs: the commands let only authenticated callers in, and grant no broad role."""
    broad = r"--role=roles/(owner|editor|viewer|\w+\.admin|iam\.serviceAccountTokenCreator)\b"
    commands = commands_of_pages(files)
    for words in commands:
        text = shlex.join(words)
        assert not re.search(rf"allUsers|allAuthenticatedUsers|--allow-unauthenticated|{broad}", text), text
        assert "--no-invoker-iam-check" not in words or "--ingress=internal" in words, text
    deployments = [words for words in commands if words[:3] == ["gcloud", "run", "deploy"]]
    assert deployments and all("--no-allow-unauthenticated" in words for words in deployments), deployments
    for words in deployments:
        assert re.match("iga@", option(words, "service-account") or ""), words
        assert "--source=." not in words or "/iga-build@" in (option(words, "build-service-account") or ""), words


PERMISSIONS = {
    "igaModels": "aiplatform.endpoints.predict",
    "igaObjects": "storage.objects.delete,storage.objects.get,storage.objects.list",
}
BUILDS = {
    ("storage buckets gs://run-sources-example-1-europe-west4", "roles/storage.objectViewer"),
    ("projects example-1", "roles/logging.logWriter"),
    ("projects example-1", "roles/run.developer"),
    ("artifacts repositories iga", "roles/artifactregistry.writer"),
    ("iam service-accounts iga@example-1.iam.gserviceaccount.com", "roles/iam.serviceAccountUser"),
}
SERVICE = {
    ("projects example-1", "projects/example-1/roles/igaModels"),
    ("storage buckets gs://example-bucket", "roles/storage.objectCreator"),
    ("storage buckets gs://example-bucket", "projects/example-1/roles/igaObjects"),
}
AWS_ROLE = f"arn:aws:sts::{ACCOUNT}:assumed-role/iga-lambda"


def check_setup_google(files):
    """scripts/setup-google.sh: the service and builds get the roles that they need, and no more."""
    iga, build = (f"serviceAccount:{name}@example-1.iam.gserviceaccount.com" for name in ["iga", "iga-build"])
    same(grants(commands_of_setup(files, SETUP_GOOGLE)), {iga: SERVICE, build: BUILDS})


def check_setup_aws(files):
    """scripts/setup-aws.sh: one role of one AWS account gets the roles that the service needs."""
    commands = commands_of_setup(files, SETUP_AWS)
    pool = f"projects/{NUMBER}/locations/global/workloadIdentityPools/iga-aws"
    same(grants(commands), {f"principalSet://iam.googleapis.com/{pool}/attribute.aws_role/{AWS_ROLE}": SERVICE})
    providers = [words for words in commands if {"create-aws", "update-aws"} & set(words)]
    for words in providers:
        same(option(words, "attribute-condition"), f"attribute.aws_role == '{AWS_ROLE}'")
    same([option(words, "account-id") for words in providers], [ACCOUNT, ACCOUNT])
    role = yaml_parse((files / "template.yaml").read_text())["Parameters"]["RoleName"]["Default"]
    same(role, AWS_ROLE.rpartition("/")[2])


def commands_of_setup(files, command):
    """The commands in an empty project. --print prints the same and runs none; a second run creates nothing."""

    def changes(commands):
        texts = [shlex.join(words) for words in commands if "describe" not in words]
        return [re.sub("--lifecycle-file=.*", "", text) for text in texts]

    commands, _ = recorded(files, *command)
    none, printed = recorded(files, command[0], "--print", *command[1:])
    same((none, changes(recorded(files, "bash", "-euc", printed)[0])), ([], changes(commands)))
    again, _ = recorded(files, *command, exists="yes")
    same([words for words in again if {"create", "create-aws"} & set(words)], [])
    for words in commands + again:
        if words[1:3] == ["iam", "roles"] and option(words, "permissions"):
            same(option(words, "permissions"), PERMISSIONS[words[4]])
        if words[1:4] == ["storage", "buckets", "create"]:
            assert {"--uniform-bucket-level-access", "--public-access-prevention"} <= set(words), words
    return commands


def grants(commands):
    """(resource, role) of each binding, by its member."""
    found = {}
    for words in [words for words in commands if "add-iam-policy-binding" in words]:
        resource = [word for word in words[1:] if word != "add-iam-policy-binding" and not word.startswith("--")]
        found.setdefault(option(words, "member"), set()).add((" ".join(resource), option(words, "role")))
    return found


CHECKS = [check_keys, check_pages, check_setup_google, check_setup_aws]


@contextlib.contextmanager
def copy_of_files():
    with tempfile.TemporaryDirectory() as directory:
        copy_tracked(Path(directory))
        subprocess.run(["git", "init", "--quiet", directory], check=True)
        yield Path(directory)


def check_mutations():
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(problem_after, MUTATIONS))
    for (name, what, *_), problem in zip(MUTATIONS, found):
        print(f"{name}: {what}: {(problem or 'NOT FOUND').splitlines()[0][:120]}")
    assert all(found), "a mutation is not found"


def problem_after(mutation):
    name, what, old, new = mutation
    with copy_of_files() as files:
        text = (files / name).read_text()
        assert text.count(old) == 1, f"{what}: {name} does not hold {old!r} once"
        (files / name).write_text(text.replace(old, new))
        try:
            for check in CHECKS:
                check(files)
        except AssertionError as error:
            return str(error)


if __name__ == "__main__":
    main(sys.argv[1:])
