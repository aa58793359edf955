"""Builds the Lambda package with AWS's SAM command line, in a copy of the repository.

Usage: sam.py DIRECTORY; DIRECTORY/package is what is shipped, DIRECTORY/settings.json the function's environment
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from samcli.yamlhelper import yaml_parse
from static import check_that_it_is_static
from support import BUCKET, copy_tracked, not_checked

CREDENTIALS = "google-credentials.json"
PROVIDER = "projects/123456789/locations/global/workloadIdentityPools/iga-aws/providers/iga-lambda"


def main(directory):
    source, package = directory / "source", directory / "package"
    for old in [source, package]:
        shutil.rmtree(old, ignore_errors=True)
    copy_tracked(source)
    make_credentials(source)
    architecture = platform.machine().replace("aarch64", "arm64")
    command = [Path(sys.executable).parent / "sam", "build", "--parameter-overrides", f"Architecture={architecture}"]
    subprocess.run(command, cwd=source, env={**os.environ, "ARCHITECTURE": architecture}, check=True)
    shutil.copytree(source / ".aws-sam/build/IgaFunction", package)
    names = sorted(path.name for path in package.iterdir())
    assert names == ["bootstrap", CREDENTIALS], f"the package holds {names}"
    assert (package / CREDENTIALS).stat().st_mode & 0o777 == 0o644, "Lambda's user cannot read the credentials"
    check_that_it_is_static(package / "bootstrap")
    (directory / "settings.json").write_text(json.dumps(variables(source / "template.yaml")))


def make_credentials(source):
    """As scripts/setup-aws.sh has gcloud make them, which needs no account; or as gcloud would."""
    command = ["gcloud", "iam", "workload-identity-pools", "create-cred-config", PROVIDER, "--aws"]
    if shutil.which("gcloud"):
        subprocess.run([*command, f"--output-file={CREDENTIALS}"], cwd=source, check=True)
        return
    not_checked(f"that gcloud makes such a {CREDENTIALS}; gcloud is not installed")
    endpoint = "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"
    credentials = {
        "type": "external_account",
        "audience": f"//iam.googleapis.com/{PROVIDER}",
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"environment_id": "aws1", "regional_cred_verification_url": endpoint},
    }
    (source / CREDENTIALS).write_text(json.dumps(credentials))


def variables(template):
    """The function's environment, with the defaults of the parameters."""
    template = yaml_parse(template.read_text())
    values = {name: parameter.get("Default") for name, parameter in template["Parameters"].items()}
    values |= {"GoogleProject": "a-project", "Bucket": BUCKET}
    found = template["Resources"]["IgaFunction"]["Properties"]["Environment"]["Variables"]
    return {name: values[value["Ref"]] if isinstance(value, dict) else value for name, value in found.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
