"""Checks recorded requests and the emulator's responses against Google's discovery documents.

Usage: discovery.py JOURNAL

JOURNAL is the file that the emulator writes with EMULATOR_JOURNAL during the tests. Every request of IGA must be one of the
documents' methods and keep to its path, parameters and body. Every response that no fault has made must keep to the
documents too. Then valid requests and responses are spoilt, one detail each, and every spoilt one must be found.

IGA sends no User-Agent. Requests with one come from the emulator's own tests, which send wrong ones on purpose, and from
Google's clients; only the responses to them are checked.
"""

import base64
import copy
import importlib.util
import json
import re
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

DOCUMENTS = ["aiplatform.v1", "aiplatform.v1beta1", "storage.v1", "sts.v1", "iamcredentials.v1"]
FEWEST_REQUESTS = 8000
REQUIRED = {
    "aiplatform.projects.locations.publishers.models.generateContent",
    "aiplatform.projects.locations.publishers.models.predict",
    "iamcredentials.projects.serviceAccounts.generateAccessToken",
    "storage.buckets.testIamPermissions",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.insert",
    "storage.objects.list",
    "sts.token",
}
METADATA = r"(instance/?|instance/region|instance/service-accounts/default/(token|email|scopes)?|project/project-id|universe/universe[-_]domain)"
# Requests that no document describes, and what is checked of each.
UNDOCUMENTED = [
    (r"GET /computeMetadata/v1/" + METADATA, "the metadata server", lambda record: record["headers"].get("metadata-flavor") == "Google"),
    (r"GET /", "the time of Cloud Storage, and the detection of a metadata server", lambda record: True),
    (r"POST /token", "OAuth 2.0", lambda record: "grant_type" in record["body"]),
]
# Deprecated fields that are in use, each with its reason.
DEPRECATED = {
    "GenerationConfig.imageConfig": "its successor responseFormat.image is sent by none of Google's clients yet",
}
# A test changes IGA's requests so, as a server would see them that does not know the parameter.
WRONG_ON_PURPOSE = "_fGenerationMatch=0"
# The emulator records no more of a body.
RECORDED_BYTES = 64 * 1024


def main(path):
    methods = [method for name in DOCUMENTS for method in read_document(name)]
    checker = Checker(methods)
    for line in Path(path).open():
        checker.check(json.loads(line))
    problems = checker.problems()
    spoilt, missed = check_mutations(checker)
    print(f"{sum(checker.requests.values())} requests, {checker.responses} responses; {spoilt} spoilt ones, {spoilt - len(missed)} of them found")
    for name, count in sorted(checker.requests.items()):
        print(f"{count:7} {name}")
    print("deprecated:", *sorted(checker.deprecated))
    print(*problems, *missed, sep="\n")
    return 1 if problems or missed else 0


# ---- the documents


class Method:
    """A method of an API."""

    def __init__(self, document, description):
        self.schemas = document["schemas"]
        self.id, self.verb = description["id"], description["httpMethod"]
        self.request, self.response = description.get("request"), description.get("response")
        self.has_media = description.get("supportsMediaDownload", False)
        self.is_deprecated = description.get("deprecated", False)
        own = description.get("parameters", {})
        self.parameters = document["parameters"] | {name: it for name, it in own.items() if it["location"] == "query"}
        path = "/" + document["servicePath"] + description["path"]
        paths = [path] + [f"/download{path}"] * self.has_media
        self.paths = [re.compile(self.pattern(path, own)) for path in paths]
        uploads = [upload["path"] for upload in description.get("mediaUpload", {}).get("protocols", {}).values()]
        self.upload_paths = [re.compile(self.pattern(path, own)) for path in uploads]
        self.keys = {path_key(path) for path in paths + uploads}

    @staticmethod
    def pattern(path, parameters):
        """The regular expression of a path."""
        parts = re.split(r"(\{\+?\w+\})", path)
        for index in range(1, len(parts), 2):
            pattern = parameters[parts[index].strip("{+}")].get("pattern", "[^/]+")
            parts[index] = pattern.strip("^$").replace("[^/]+", "[^/:]+")
        return "".join(part if index % 2 else re.escape(part) for index, part in enumerate(parts))

    def is_upload(self, path):
        return any(pattern.fullmatch(path) for pattern in self.upload_paths)

    def serves(self, verb, path, query):
        if self.is_upload(path):
            return verb == "POST" or verb in ("PUT", "DELETE") and "upload_id" in query
        return verb == self.verb and any(pattern.fullmatch(path) for pattern in self.paths)


def path_key(path):
    """The first segment of a path, and what follows a colon in the last: they tell most methods apart."""
    return path.split("/")[1], path.rsplit("/", 1)[-1].partition(":")[2]


def read_document(name):
    package = Path(importlib.util.find_spec("googleapiclient").origin).parent
    document = json.loads((package / "discovery_cache/documents" / f"{name}.json").read_text())

    def methods(node):
        yield from (Method(document, description) for description in node.get("methods", {}).values())
        for resource in node.get("resources", {}).values():
            yield from methods(resource)

    return list(methods(document))


# ---- values and schemas


class Findings(list):
    """What is wrong with a request or response, and the deprecated names that it uses."""

    def __init__(self):
        self.deprecated = set()

    def value(self, method, schema, value, at, is_request):
        """Checks a value against a schema."""
        name = None
        if "$ref" in schema:
            name = schema["$ref"]
            schema = method.schemas[name]
        kind = schema.get("type", "object")
        if kind == "any":
            return
        if kind == "object":
            if not isinstance(value, dict):
                return self.append(f"{at}: not an object")
            for key, field in value.items():
                self.field(method, schema, name, key, field, f"{at}.{key}", is_request)
            self.required(method, schema, value, at, is_request)
        elif kind == "array":
            if not isinstance(value, list):
                return self.append(f"{at}: not a list")
            for index, element in enumerate(value):
                self.value(method, schema["items"], element, f"{at}[{index}]", is_request)
        else:
            problem = scalar_problem(schema, value)
            if problem:
                self.append(f"{at}: {problem}")
            elif any(dead and value == text for dead, text in zip(schema.get("enumDeprecated", []), schema.get("enum", []))):
                self.deprecated.add(f"{at.rsplit('.', 1)[-1]}={value}")

    def field(self, method, schema, name, key, value, at, is_request):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        if key in properties:
            described = properties[key]
            if described.get("deprecated"):
                self.deprecated.add(f"{re.sub('^GoogleCloudAiplatformV1(beta1)?', '', name or '')}.{key}")
            if is_request and described.get("readOnly"):
                self.append(f"{at}: may not be sent")
            self.value(method, described, value, at, is_request)
        elif others:
            self.value(method, others, value, at, is_request)
        else:
            self.append(f"{at}: unknown field")

    def required(self, method, schema, value, at, is_request):
        for key, described in schema.get("properties", {}).items():
            if is_request and method.id in described.get("annotations", {}).get("required", []) and key not in value:
                self.append(f"{at}.{key}: required")

    def parameter(self, name, schema, text):
        kind = schema.get("type")
        problem = None
        if kind == "boolean":
            problem = None if text in ("true", "false") else "not a boolean"
        elif kind in ("integer", "number"):
            try:
                problem = scalar_problem(schema, int(text) if kind == "integer" else float(text))
            except ValueError:
                problem = "not a number"
        else:
            problem = scalar_problem(schema, text)
        if problem:
            self.append(f"?{name}: {problem}")


def scalar_problem(schema, value):
    kind, form = schema["type"], schema.get("format")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string":
        if not isinstance(value, str):
            return "not a string"
        if schema.get("enum") and value not in schema["enum"]:
            return f"{value!r} is not in the enum"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return "does not match the pattern"
        return FORMATS.get(form, lambda text: None)(value)
    if kind == "boolean":
        return None if isinstance(value, bool) else "not a boolean"
    if kind == "integer":
        least, most = (0, 2**32 - 1) if form == "uint32" else (-(2**31), 2**31 - 1)
        return None if is_number and value == int(value) and least <= value <= most else f"not an {form or 'int32'}"
    return None if is_number else "not a number"


def whole(least, most):
    def problem(text):
        return None if re.fullmatch(r"-?\d{1,20}", text) and least <= int(text) <= most else "not a 64-bit integer"

    return problem


def time_problem(text):
    try:
        return None if datetime.fromisoformat(text).tzinfo else "a time without its zone"
    except ValueError:
        return "not a time"


def base64_problem(text):
    try:
        base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        return "not base64"


FORMATS = {
    "int64": whole(-(2**63), 2**63 - 1),
    "uint64": whole(0, 2**64 - 1),
    "byte": base64_problem,
    "date-time": time_problem,
    "google-datetime": time_problem,
    "google-duration": lambda text: None if re.fullmatch(r"-?\d+(\.\d{1,9})?s", text) else "not a duration",
}


# ---- requests and responses


def is_of_iga(record):
    return "user-agent" not in record["headers"] and WRONG_ON_PURPOSE not in record["query"]


class Checker:
    def __init__(self, methods):
        self.methods = {}
        for method in methods:
            for key in method.keys:
                self.methods.setdefault(key, []).append(method)
        self.requests, self.findings, self.deprecated = Counter(), Counter(), set()
        self.responses = 0
        # By method and status: records without findings, to be spoilt.
        self.examples = {}

    def find(self, verb, path, query):
        candidates = self.methods.get(path_key(path), [])
        found = (method for method in candidates if method.serves(verb, path, query))
        return next(found, None)

    def check(self, record):
        if not is_of_iga(record):
            method, of_request = self.find(record["method"], record["path"], record["query"]), Findings()
        else:
            method, name, of_request = self.request(record)
            self.requests[name] += 1
            self.deprecated |= of_request.deprecated
        of_response = Findings()
        if method and record["response"] and not record["response"]["scripted"]:
            self.responses += 1
            of_response = self.response(record, method)
        for finding in of_request + of_response:
            self.findings[re.sub(r"iga_req_\w+|[0-9a-f]{16,}", "…", f"{record['method']} {record['path']}: {finding}")] += 1
        if is_of_iga(record) and not of_request and not of_response:
            self.keep_example(record, method)

    def keep_example(self, record, method):
        status = (record["response"] or {}).get("status")
        kept = self.examples.setdefault((method and method.id, record["path"] if not method else "", status), record)
        if len(json.dumps(record["body"])) > len(json.dumps(kept["body"])):
            self.examples[(method and method.id, "", status)] = record

    def request(self, record):
        """The method of a request, its name, and what is wrong."""
        findings = Findings()
        method = self.find(record["method"], record["path"], record["query"])
        if not method:
            line = f"{record['method']} {record['path']}"
            for pattern, name, is_valid in UNDOCUMENTED:
                if re.fullmatch(pattern, line):
                    if not is_valid(record):
                        findings.append(f"not a valid request to {name}")
                    return None, f"(no document) {name}", findings
            findings.append("no method has this path")
            return None, "(unknown)", findings
        if method.is_deprecated:
            findings.deprecated.add(method.id)
        self.query(record, method, findings)
        self.body(record, method, findings)
        return method, method.id, findings

    def query(self, record, method, findings):
        given = parse_qsl(record["query"], keep_blank_values=True)
        is_upload = method.is_upload(record["path"])
        for name, count in Counter(name for name, _ in given).items():
            if count > 1 and not method.parameters.get(name, {}).get("repeated"):
                findings.append(f"?{name}: given {count} times")
        for name, value in given:
            if name == "alt":
                allowed = ["json"] + ["media"] * method.has_media + ["sse"] * ("stream" in method.id)
                if value not in allowed:
                    findings.append(f"?alt: {value!r} is not one of {allowed}")
            elif name == "uploadType" and is_upload:
                if value not in ("media", "multipart", "resumable"):
                    findings.append(f"?uploadType: {value!r} is not a type")
            elif name == "upload_id" and is_upload:
                pass
            elif name not in method.parameters:
                findings.append(f"?{name}: unknown parameter")
            else:
                findings.parameter(name, method.parameters[name], value)
        for name, described in method.parameters.items():
            if described.get("required") and name not in dict(given):
                findings.append(f"?{name}: required")
        if is_upload and "uploadType" not in dict(given) and "upload_id" not in dict(given):
            findings.append("?uploadType: required")

    def body(self, record, method, findings):
        body, kind = record["body"], record["headers"].get("content-type", "")
        is_upload = method.is_upload(record["path"])
        if body == "" and (record["response"] is None or is_upload and record["response"]["status"] >= 400):
            return  # It was broken off, or an upload was refused before it was read.
        if int(record["headers"].get("content-length", 0)) > RECORDED_BYTES and not is_upload:
            return
        if is_upload:
            upload = dict(parse_qsl(record["query"])).get("uploadType")
            if "upload_id" in record["query"] or upload == "media":
                return
            wanted = r"multipart/related; boundary=.+" if upload == "multipart" else r"application/json.*"
            if not re.fullmatch(wanted, kind) and body != "":
                findings.append(f"Content-Type: {kind!r} with {upload}")
            if upload == "resumable" and body == "":
                return
        elif method.request is None:
            if body != "":
                findings.append("a body where none belongs")
            return
        elif kind.startswith("application/x-www-form-urlencoded") and method.id == "sts.token" and isinstance(body, dict):
            body = names_of_json(body)
        elif not kind.startswith("application/json"):
            findings.append(f"Content-Type: {kind!r}")
        findings.value(method, method.request, body, "body", True)

    def response(self, record, method):
        findings, response = Findings(), record["response"]
        status, body, kind = response["status"], response["body"], response["content_type"] or ""
        if status in (204, 304, 308, 499) or record["method"] == "HEAD":
            if body != "":
                findings.append(f"response {status}: a body where none belongs")
        elif status >= 400:
            error_findings(method, status, body, kind, findings)
        elif "alt=media" in record["query"] or method.response is None:
            pass
        elif "alt=sse" in record["query"]:
            if kind != "text/event-stream":
                findings.append(f"response: {kind!r}")
        elif method.is_upload(record["path"]) and body == "" and "upload_id" not in record["query"]:
            pass  # A session has begun.
        else:
            if not kind.startswith("application/json"):
                findings.append(f"response: {kind!r}")
            for part in body if "stream" in method.id and isinstance(body, list) else [body]:
                findings.value(method, method.response, part, "response", False)
        return findings

    def problems(self):
        """Everything that fails the check, as lines."""
        lines = [f"{count} × {finding}" for finding, count in self.findings.most_common()]
        lines += [f"never requested: {name}" for name in sorted(REQUIRED - set(self.requests))]
        lines += [f"deprecated, and not in the list: {name}" for name in sorted(self.deprecated - set(DEPRECATED))]
        lines += [f"no longer in use, but in the list: {name}" for name in sorted(set(DEPRECATED) - self.deprecated)]
        count = sum(self.requests.values())
        if count < FEWEST_REQUESTS:
            lines.append(f"only {count} requests were recorded, fewer than {FEWEST_REQUESTS}")
        return lines


def names_of_json(form):
    return {re.sub("_([a-z])", lambda found: found[1].upper(), name): value for name, value in form.items()}


def error_findings(method, status, body, kind, findings):
    """The errors of the APIs: "Error responses" of Cloud Storage's JSON API, google.rpc.Status, RFC 6749 for STS."""
    if method.id.startswith("aiplatform.") and status == 404 and kind.startswith("text/html"):
        return  # The page of the front end, for a host or location that does not exist.
    if not isinstance(body, dict):
        return findings.append(f"response {status}: not JSON")
    error = body.get("error")
    if method.id == "sts.token":
        wanted = {"error": str, "error_description": str}
        error = body
    elif method.id.startswith("storage."):
        wanted = {"code": int, "message": str, "errors": list}
    else:
        wanted = {"code": int, "message": str, "status": str}
    if not isinstance(error, dict):
        return findings.append(f"response {status}: no error")
    for name, kind in wanted.items():
        if not isinstance(error.get(name), kind):
            findings.append(f"response {status}: error.{name} is not of type {kind.__name__}")
    if "code" in wanted and error.get("code") != status:
        findings.append(f"response {status}: error.code is {error.get('code')}")
    for cause in error.get("errors", []):
        if not {"message", "domain", "reason"} <= set(cause):
            findings.append(f"response {status}: a cause without message, domain or reason")
    for detail in error.get("details", []):
        if not str(detail.get("@type", "")).startswith("type.googleapis.com/google.rpc."):
            findings.append(f"response {status}: a detail without its type")


# ---- spoilt requests and responses


def check_mutations(checker):
    """How many records were spoilt, and those that were not found."""
    count, missed = 0, []
    for (identifier, _, _), example in sorted(checker.examples.items(), key=str):
        method = checker.find(example["method"], example["path"], example["query"])
        for what, spoilt in mutations(method, example):
            count += 1
            _, _, findings = checker.request(spoilt)
            if method and spoilt["response"] and not spoilt["response"]["scripted"]:
                findings += checker.response(spoilt, method)
            if not findings:
                missed.append(f"NOT FOUND: {identifier or example['path']}: {what}")
    return count, missed


def mutations(method, example):
    """The record, each time with one detail spoilt."""

    def changed(**parts):
        return copy.deepcopy(example) | parts

    yield "another method of HTTP", changed(method="TRACE")
    yield "a longer path", changed(path=example["path"] + "/more/still")
    if not method:
        if example["path"].startswith("/computeMetadata/"):
            yield "without Metadata-Flavor", changed(headers={})
        return
    parts = example["path"].split("/")
    for index, part in enumerate(parts):
        if re.fullmatch(r"projects|locations|publishers|models|serviceAccounts|storage|v1|b|o|iam|testPermissions|token", part):
            yield f"{part} misspelt in the path", changed(path="/".join([*parts[:index], part + "s", *parts[index + 1 :]]))
    query = parse_qsl(example["query"])
    yield "an unknown parameter", changed(query=urlencode([*query, ("unknownParameter", "1")]))
    for index, (name, _) in enumerate(query):
        described = method.parameters.get(name, {})
        if not described.get("repeated"):
            yield f"{name} twice", changed(query=urlencode([*query, query[index]]))
        if described.get("format") or described.get("enum") or name == "uploadType":
            wrong = [*query[:index], (name, "wrong"), *query[index + 1 :]]
            yield f"a wrong {name}", changed(query=urlencode(wrong))
    if isinstance(example["body"], dict):
        yield "no body", changed(body="", response=dict(status=200, body={}, content_type="application/json", scripted=True))
        yield "another Content-Type", changed(headers=example["headers"] | {"content-type": "text/plain"})
        if method.id == "sts.token":
            example = example | {"body": names_of_json(example["body"]), "headers": {"content-type": "application/json"}}
        for what, body in spoilt_values(method, method.request, example["body"], "body"):
            yield what, changed(body=body)
    response = example["response"]
    if not response or response["scripted"] or not isinstance(response["body"], dict):
        return
    if response["status"] < 300 and method.response and "alt=media" not in example["query"]:
        for what, body in spoilt_values(method, method.response, response["body"], "response"):
            yield what, changed(response=response | {"body": body})
    elif response["status"] >= 400:
        yield "an error that is not JSON", changed(response=response | {"body": "<html>", "content_type": "text/plain"})
        yield "another error", changed(response=response | {"body": {"error": {"code": 299}}})


def spoilt_values(method, schema, value, at):
    """The value, each time with one field spoilt."""
    schema = method.schemas[schema["$ref"]] if "$ref" in schema else schema
    if isinstance(value, dict) and schema.get("properties"):
        yield f"{at}: an unknown field", value | {"unknownField": 1}
        for name, field in value.items():
            for what, spoilt in spoilt_values(method, schema["properties"][name], field, f"{at}.{name}"):
                yield what, value | {name: spoilt}
    elif isinstance(value, dict) and schema.get("additionalProperties"):
        for name, field in list(value.items())[:1]:
            for what, spoilt in spoilt_values(method, schema["additionalProperties"], field, f"{at}.{name}"):
                yield what, value | {name: spoilt}
    elif isinstance(value, list) and value:
        yield f"{at}: a list of another type", {"0": value}
        for what, spoilt in spoilt_values(method, schema["items"], value[0], f"{at}[0]"):
            yield what, [spoilt, *value[1:]]
    elif schema.get("type") not in (None, "any", "object"):
        yield f"{at}: a scalar of another type", {"value": value}
        if schema.get("enum"):
            yield f"{at}: a wrong value of an enum", "WRONG"
        if schema.get("format") in FORMATS:
            yield f"{at}: a wrong {schema['format']}", "wrong!"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
