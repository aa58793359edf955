"""Checks, without an account, what the pages and scripts for deployment do, and that no key leaves this machine.

Usage: files.py              also writes what the linters of the deployment files need
       files.py --mutations  breaks each property in a copy, as mutations.py says; the checks must find it
"""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from image import context
from mutations import MUTATIONS
from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform
from support import REPOSITORY, TOOLS, copy_tracked, not_checked, same

logging.disable()
ACCOUNT, NUMBER = "123456789012", "123456789"
SETTINGS = {"PROJECT": "example-1", "REGION": "europe-west4", "BUCKET": "example-bucket"}
SECRETS = [".env", "gcp-credentials.json", "google-credentials.json"]


def main(arguments):
    if arguments == ["--mutations"]:
        return check_mutations()
    write_for_linters()
    check_copy("README.md", "", "")
    print(*(f"{check.__doc__} ok" for check in CHECKS), sep="\n")


# ---- for the linters


def write_for_linters():
    """The schemas of Google's files, and template.yaml as SAM deploys it."""
    monitoring = [("metrics", "logging.v2", "LogMetric"), ("alerts", "monitoring.v3", "AlertPolicy"), ("dashboards", "monitoring.v1", "Dashboard")]
    for name, api, message in [("service", "run.v1", "Service"), ("cloudbuild", "cloudbuild.v1", "Build"), *monitoring]:
        (TOOLS / f"{name}.schema.json").write_text(google_schema(api, message))
    template = yaml_parse((REPOSITORY / "template.yaml").read_text())
    template["Resources"]["IgaFunction"]["Properties"]["CodeUri"] = "s3://bucket/key"
    place = {"AWS::Region": "us-east-1", "AWS::AccountId": ACCOUNT, "AWS::Partition": "aws"}
    no_managed_policies = type("NoManagedPolicies", (), {"load": dict})()
    (TOOLS / "template.json").write_text(json.dumps(transform(template, place, no_managed_policies)))


def google_schema(api, message):
    """The JSON schema of a message, from the description of an API in Google's client library."""
    (documents,) = TOOLS.glob("venv/lib/python3*/site-packages/googleapiclient/discovery_cache/documents")
    schemas = json.dumps(json.loads((documents / f"{api}.json").read_text())["schemas"])
    schemas = re.sub(r'"id": "\w+", ', "", schemas)
    schemas = re.sub(r'"\$ref": "(\w+)"', r'"$ref": "#/schemas/\1"', schemas)
    schemas = schemas.replace('"properties": {', '"additionalProperties": false, "properties": {')
    draft = "http://json-schema.org/draft-03/schema#"
    return f'{{"$schema": "{draft}", "$ref": "#/schemas/{message}", "schemas": {schemas}}}'


def lint_gcloud_commands(files):
    """gcloud: its own parser knows the commands and options of pages and scripts."""
    if not shutil.which("gcloud"):
        return not_checked("the commands and options of gcloud in pages and scripts; gcloud is not installed")
    commands = sorted({shlex.join(words).replace(" replace - ", " replace service.yaml ") for words in commands_of_pages(files)})
    (files / "commands.json").write_text(json.dumps([{"command_string": command} for command in commands]))
    command = ["gcloud", "meta", "lint-gcloud-commands", "--commands-file=commands.json"]
    judged = json.loads(subprocess.run(command, cwd=files, check=True, stdout=subprocess.PIPE).stdout)
    wrong = [f"{found['command_string']}: {found['error_message']}" for found in judged if not found["success"]]
    same((len(judged), wrong), (len(commands), []))


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
    """The gcloud commands that a command runs; stand-ins only write down their arguments."""
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
        return [words for words in lines if words[0] == "gcloud"]


def commands_of_pages(files):
    """The gcloud commands of the shell blocks in the README and docs/, including those of the setup scripts."""
    pages = [files / "README.md", *files.glob("docs/*.md")]
    blocks = [block for page in pages for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", page.read_text())]
    relevant = filter(re.compile(r"gcloud|scripts/setup").search, blocks)
    return [words for block in relevant for words in recorded(files, "bash", "-euc", block)]


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
    """scripts/setup-google.sh: the service and builds get only the roles that they need."""
    iga, build = (f"serviceAccount:{name}@example-1.iam.gserviceaccount.com" for name in ["iga", "iga-build"])
    commands = commands_of_setup(files, ["scripts/setup-google.sh"])
    same(grants(commands), {iga: SERVICE, build: BUILDS})


def check_setup_aws(files):
    """scripts/setup-aws.sh: one role of one AWS account gets the roles that the service needs."""
    options = f"--project example-1 --bucket example-bucket --account {ACCOUNT}"
    commands = commands_of_setup(files, ["scripts/setup-aws.sh", *options.split()])
    pool = f"projects/{NUMBER}/locations/global/workloadIdentityPools/iga-aws"
    same(grants(commands), {f"principalSet://iam.googleapis.com/{pool}/attribute.aws_role/{AWS_ROLE}": SERVICE})
    providers = [words for words in commands if {"create-aws", "update-aws"} & set(words)]
    for words in providers:
        same(option(words, "attribute-condition"), f"attribute.aws_role == '{AWS_ROLE}'")
    same([option(words, "account-id") for words in providers], [ACCOUNT, ACCOUNT])
    template = yaml_parse((files / "template.yaml").read_text())
    assert AWS_ROLE.endswith("/" + template["Parameters"]["RoleName"]["Default"]), "template.yaml has another role"


def commands_of_setup(files, command):
    """The commands in an empty project. --print runs none, and a second run creates nothing."""
    commands = recorded(files, *command)
    same(recorded(files, command[0], "--print", *command[1:]), [])
    again = recorded(files, *command, exists="yes")
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


CHECKS = [check_keys, check_pages, check_setup_google, check_setup_aws, lint_gcloud_commands]


def check_copy(name, old, new):
    """Runs the checks on a copy of the repository with one change."""
    with tempfile.TemporaryDirectory() as directory:
        copy_tracked(files := Path(directory))
        subprocess.run(["git", "init", "--quiet", directory], check=True)
        text = (files / name).read_text()
        if old not in text:
            sys.exit(f"{name} does not hold {old!r}")
        (files / name).write_text(text.replace(old, new))
        for check in CHECKS:
            check(files)


def check_mutations():
    for name, fault, old, new in MUTATIONS:
        try:
            check_copy(name, old, new)
        except AssertionError as problem:
            print(f"{name}: {fault}: {str(problem)[:100]}", flush=True)
        else:
            sys.exit(f"{name}: {fault}: NOT FOUND")


if __name__ == "__main__":
    main(sys.argv[1:])
