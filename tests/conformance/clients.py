"""Google's own clients for Python against the emulator: each call is a row with its expected result.

Usage: clients.py URL

The emulator at URL must accept anonymous requests, have the bucket of BUCKET, serve imagen-4.0-generate-001 and not limit
the changes of an object.
"""

import io
import os
import sys

URL = sys.argv[1]
HOST = URL.removeprefix("http://")
BUCKET = "iga-images"
os.environ |= {"STORAGE_EMULATOR_HOST": URL, "GCE_METADATA_HOST": HOST, "GCE_METADATA_IP": HOST, "NO_PROXY": "127.0.0.1"}

import google.auth  # noqa: E402
from google import genai  # noqa: E402
from google.api_core import exceptions  # noqa: E402
from google.cloud import storage  # noqa: E402
from google.genai import errors, types  # noqa: E402
from google.resumable_media import DataCorruption  # noqa: E402

GEMINI, IMAGEN = "gemini-3.1-flash-image", "imagen-4.0-generate-001"
ROWS = []


def main():
    failures = []
    for name, call in ROWS:
        try:
            call()
        except Exception as error:  # Every failure is a row of the report.
            failures.append(f"FAIL {name}: {type(error).__name__}: {error}")
    print(*failures, f"{len(ROWS) - len(failures)} of {len(ROWS)} calls as expected", sep="\n")
    return 1 if failures else 0


def row(name):
    def add(call):
        ROWS.append((name, call))
        return call

    return add


def same(actual, expected):
    if actual != expected:
        raise AssertionError(f"{actual!r} is not {expected!r}")


def raises(kind, call, **expected):
    try:
        call()
    except kind as error:
        for name, value in expected.items():
            same(getattr(error, name), value)
        return error
    raise AssertionError(f"no {kind.__name__}")


# ---- google-auth


@row("the default credentials are the metadata server's")
def _():
    credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    same((type(credentials).__name__, project), ("Credentials", "iga-local"))
    credentials.refresh(google.auth.transport.requests.Request())
    assert credentials.token.startswith("ya29.")


# ---- google-genai


def client(location):
    return genai.Client(vertexai=True, project="p1", location=location, http_options=types.HttpOptions(base_url=URL))


WORLD, IOWA = client("global"), client("us-central1")
SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}


def gemini(prompt, **config):
    return WORLD.models.generate_content(model=GEMINI, contents=prompt, config=config or None)


def imagen(prompt, **config):
    return IOWA.models.generate_images(model=IMAGEN, prompt=prompt, config=config or None)


def images(response):
    parts = response.candidates[0].content.parts
    return [part.inline_data for part in parts if part.inline_data and not part.thought]


def is_image(data, mime_type):
    assert data.startswith(SIGNATURES[mime_type]), data[:12]


def png_size(data):
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@row("generate_content makes a PNG and a text")
def _():
    response = gemini("a fox")
    (image,) = images(response)
    same(image.mime_type, "image/png")
    is_image(image.data, "image/png")
    same(response.text, "Here is your image: a fox")
    same((response.candidates[0].finish_reason.name, response.model_version), ("STOP", GEMINI))
    assert response.usage_metadata.total_token_count > 0


@row("generate_content with every parameter")
def _():
    response = gemini(
        "a fox",
        response_modalities=["IMAGE"],
        image_config={"aspect_ratio": "16:9", "image_size": "512", "output_mime_type": "image/png", "person_generation": "ALLOW_ADULT"},
        seed=3,
        temperature=0.5,
        top_p=0.9,
        safety_settings=[{"category": "HARM_CATEGORY_CIVIC_INTEGRITY", "threshold": "BLOCK_NONE"}],
        labels={"team": "podcast"},
        thinking_config={"thinking_level": "MINIMAL"},
        system_instruction="Paint in oil.",
    )
    (image,) = images(response)
    same(png_size(image.data), (688, 384))


@row("generate_content makes a real JPEG")
def _():
    (image,) = images(gemini("a fox", image_config={"output_mime_type": "image/jpeg", "output_compression_quality": 80}))
    same(image.mime_type, "image/jpeg")
    is_image(image.data, "image/jpeg")


@row("generate_content as a stream")
def _():
    events = list(WORLD.models.generate_content_stream(model=GEMINI, contents="a fox"))
    same(len(events), 3)
    same(len(images(events[-1])), 1)


@row("a chat of two turns")
def _():
    chat = WORLD.chats.create(model=GEMINI)
    same([len(images(chat.send_message(text))) for text in ("a fox", "now in blue")], [1, 1])


@row("an image as input")
def _():
    (image,) = images(gemini("a fox"))
    edited = gemini([types.Part.from_bytes(data=image.data, mime_type="image/png"), "make it blue"])
    same(len(images(edited)), 1)


@row("count_tokens")
def _():
    same(WORLD.models.count_tokens(model=GEMINI, contents="a red fox").total_tokens, 4)


@row("models.list and models.get")
def _():
    names = [model.name for model in WORLD.models.list(config={"query_base": True})]
    assert f"publishers/google/models/{GEMINI}" in names, names
    same(WORLD.models.get(model=GEMINI).name, f"publishers/google/models/{GEMINI}")


@row("generate_images makes two JPEGs with every parameter")
def _():
    response = imagen(
        "a fox",
        number_of_images=2,
        aspect_ratio="9:16",
        person_generation="ALLOW_ADULT",
        output_mime_type="image/jpeg",
        output_compression_quality=75,
        include_rai_reason=True,
        add_watermark=True,
        image_size="1K",
        safety_filter_level="BLOCK_ONLY_HIGH",
        language="en",
        enhance_prompt=False,
    )
    made = [generated.image for generated in response.generated_images]
    same([image.mime_type for image in made], ["image/jpeg"] * 2)
    for image in made:
        is_image(image.image_bytes, "image/jpeg")


@row("generate_images makes a PNG")
def _():
    (generated,) = imagen("a fox").generated_images[:1]
    is_image(generated.image.image_bytes, "image/png")


@row("[blocked]: a prompt feedback")
def _():
    response = gemini("[blocked]")
    same((response.prompt_feedback.block_reason.name, response.candidates), ("PROHIBITED_CONTENT", None))


for word, reason in [("filtered", "IMAGE_SAFETY"), ("empty", "NO_IMAGE"), ("refuse", "STOP")]:

    @row(f"[{word}]: no image, {reason}")
    def _(word=word, reason=reason):
        response = gemini(f"[{word}]")
        candidate = response.candidates[0]
        same(candidate.finish_reason.name, reason)
        assert not [part for part in candidate.content.parts or [] if part.inline_data]


for word, code, status in [("quota", 429, "RESOURCE_EXHAUSTED"), ("overloaded", 503, "UNAVAILABLE"), ("denied", 403, "PERMISSION_DENIED")]:

    @row(f"[{word}]: {code}, from both families")
    def _(word=word, code=code, status=status):
        for generate in (gemini, imagen):
            raises(errors.APIError, lambda generate=generate: generate(f"[{word}]"), code=code, status=status)


@row("[blocked]: Imagen's 400")
def _():
    error = raises(errors.ClientError, lambda: imagen("[blocked]"), code=400, status="INVALID_ARGUMENT")
    assert "Responsible AI" in error.message


@row("[filtered]: Imagen's reason")
def _():
    (generated,) = imagen("[filtered]", include_rai_reason=True).generated_images
    assert "Support codes" in generated.rai_filtered_reason


for word in ("empty", "refuse"):

    @row(f"[{word}]: Imagen sends no image")
    def _(word=word):
        same(imagen(f"[{word}]").generated_images or [], [])


@row("a retired model: 404")
def _():
    retired = "imagen-3.0-generate-001"
    error = raises(errors.ClientError, lambda: IOWA.models.generate_images(model=retired, prompt="a fox"), code=404, status="NOT_FOUND")
    assert retired in error.message


@row("a model that the location does not serve: 404")
def _():
    raises(errors.ClientError, lambda: IOWA.models.generate_content(model=GEMINI, contents="a fox"), code=404)


for name, config, words in [
    ("ratio", {"image_config": {"aspect_ratio": "7:5"}}, "Aspect ratio"),
    ("size", {"image_config": {"image_size": "8K"}}, "Image size 8K"),
    ("modality", {"response_modalities": ["AUDIO"]}, "response modalities"),
]:

    @row(f"a wrong {name}: 400")
    def _(config=config, words=words):
        error = raises(errors.ClientError, lambda: gemini("a fox", **config), code=400)
        assert words in error.message, error.message


# ---- google-cloud-storage

CLOUD = storage.Client(project="p1")
IMAGES = CLOUD.bucket(BUCKET)


def put(name, data=b"hello world", **options):
    blob = IMAGES.blob(name)
    blob.upload_from_string(data, **options)
    return blob


def names(**options):
    return [blob.name for blob in CLOUD.list_blobs(BUCKET, **options)]


@row("upload and download")
def _():
    blob = put("up/a.txt", content_type="text/plain")
    same((blob.size, blob.content_type, blob.metageneration), (11, "text/plain", 1))
    same(IMAGES.blob("up/a.txt").download_as_bytes(), b"hello world")


@row("upload of an empty object")
def _():
    same((put("up/empty", b"").size, IMAGES.blob("up/empty").download_as_bytes()), (0, b""))


@row("upload of a media body")
def _():
    from google.resumable_media.requests import SimpleUpload

    url = f"{URL}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=up%2Fmedia.bin"
    response = SimpleUpload(url).transmit(CLOUD._http, b"media", "application/octet-stream")
    same((response.json()["name"], response.json()["size"]), ("up/media.bin", "5"))


@row("upload with metadata, headers and a checksum")
def _():
    blob = IMAGES.blob("up/m.txt")
    blob.metadata, blob.cache_control = {"k": "v"}, "no-store"
    blob.upload_from_string(b"abc", checksum="crc32c")
    same((blob.metadata, blob.cache_control, blob.crc32c), ({"k": "v"}, "no-store", "Nks/tw=="))


@row("resumable upload in chunks, of an unknown length")
def _():
    blob = IMAGES.blob("big/chunks.bin", chunk_size=256 * 1024)
    blob.upload_from_file(io.BytesIO(b"x" * 700_000))
    same(blob.size, 700_000)


@row("resumable upload in one request")
def _():
    blob = IMAGES.blob("big/one.bin")
    blob.upload_from_file(io.BytesIO(b"y" * 9_000_000), size=9_000_000, checksum="md5")
    same(blob.size, 9_000_000)


@row("resumable upload with a precondition that fails")
def _():
    blob = IMAGES.blob("big/one.bin")
    raises(exceptions.PreconditionFailed, lambda: blob.upload_from_file(io.BytesIO(b"y" * 9_000_000), size=9_000_000, if_generation_match=0))


@row("a file object for writing and reading")
def _():
    with IMAGES.blob("big/file.txt").open("w") as file:
        file.write("text" * 100_000)
    with IMAGES.blob("big/file.txt").open("r") as file:
        same(len(file.read()), 400_000)


@row("a signed upload session")
def _():
    session = IMAGES.blob("up/session.txt").create_resumable_upload_session(content_type="text/plain", size=3)
    same(CLOUD._http.put(session, data=b"abc").status_code, 200)


@row("download of ranges")
def _():
    blob = IMAGES.blob("up/a.txt")
    same([blob.download_as_bytes(start=6, end=8), blob.download_as_bytes(start=6)], [b"wor", b"world"])
    same(blob.download_as_bytes(start=0, end=100), b"hello world")


@row("download of a range beyond the end: 416")
def _():
    raises(exceptions.RequestRangeNotSatisfiable, lambda: IMAGES.blob("up/a.txt").download_as_bytes(start=100, end=200))


@row("download in chunks, with its checksum")
def _():
    same(len(IMAGES.blob("big/chunks.bin", chunk_size=256 * 1024).download_as_bytes(checksum="crc32c")), 700_000)


@row("download of a generation")
def _():
    blob = put("up/g.txt")
    same(IMAGES.blob("up/g.txt", generation=blob.generation).download_as_bytes(), b"hello world")
    raises(exceptions.NotFound, lambda: IMAGES.blob("up/g.txt", generation=1).download_as_bytes())


@row("a wrong checksum is refused: 400")
def _():
    blob = IMAGES.blob("up/wrong.txt")
    blob.md5_hash = "AAAAAAAAAAAAAAAAAAAAAA=="
    raises((exceptions.BadRequest, DataCorruption), lambda: blob.upload_from_string(b"abc"))
    same(IMAGES.blob("up/wrong.txt").exists(), False)


@row("preconditions on a write")
def _():
    blob = put("pre/a.txt", if_generation_match=0)
    raises(exceptions.PreconditionFailed, lambda: put("pre/a.txt", if_generation_match=0))
    raises(exceptions.PreconditionFailed, lambda: put("pre/a.txt", if_generation_match=blob.generation + 1))
    raises(exceptions.PreconditionFailed, lambda: put("pre/a.txt", if_metageneration_match=7))
    assert put("pre/a.txt", b"new", if_generation_match=blob.generation).generation > blob.generation


@row("preconditions on a read and a delete")
def _():
    blob = IMAGES.blob("pre/a.txt")
    blob.reload()
    raises(exceptions.PreconditionFailed, lambda: blob.reload(if_generation_match=1))
    raises(exceptions.NotModified, lambda: blob.reload(if_generation_not_match=blob.generation))
    raises(exceptions.PreconditionFailed, lambda: blob.delete(if_generation_match=1))
    blob.delete(if_generation_match=blob.generation)


@row("list with a prefix")
def _():
    same(names(prefix="up/m"), ["up/m.txt", "up/media.bin"])


@row("list with a delimiter")
def _():
    listed = CLOUD.list_blobs(BUCKET, delimiter="/")
    same(([blob.name for blob in listed], sorted(listed.prefixes)), ([], ["big/", "up/"]))


@row("list in pages")
def _():
    pages = CLOUD.list_blobs(BUCKET, prefix="big/", page_size=2).pages
    same([[blob.name for blob in page] for page in pages], [["big/chunks.bin", "big/file.txt"], ["big/one.bin"]])


@row("list with a limit")
def _():
    same(names(prefix="big/", max_results=1), ["big/chunks.bin"])


@row("list with a glob, offsets and fields")
def _():
    same(names(match_glob="big/*.bin", fields="items(name),nextPageToken"), ["big/chunks.bin", "big/one.bin"])
    same(names(start_offset="big/d", end_offset="big/p"), ["big/file.txt", "big/one.bin"])


@row("exists")
def _():
    same([IMAGES.blob(name).exists() for name in ("up/a.txt", "none")], [True, False])


@row("patch of the metadata")
def _():
    blob = IMAGES.blob("up/a.txt")
    blob.metadata, blob.content_language = {"n": "1"}, "en"
    blob.patch()
    blob.reload()
    same((blob.metadata, blob.content_language, blob.metageneration), ({"n": "1"}, "en", 2))


@row("patch with a precondition that fails")
def _():
    blob = IMAGES.blob("up/a.txt")
    blob.metadata = {"n": "2"}
    raises(exceptions.PreconditionFailed, lambda: blob.patch(if_metageneration_match=1))


@row("update of all metadata")
def _():
    blob = IMAGES.blob("up/a.txt")
    blob.reload()
    blob.metadata = {"only": "this"}
    blob.update()
    same(IMAGES.get_blob("up/a.txt").metadata["only"], "this")


@row("copy")
def _():
    copied = IMAGES.copy_blob(IMAGES.blob("up/a.txt"), IMAGES, "copy/a.txt")
    same((copied.size, IMAGES.blob("copy/a.txt").download_as_bytes()), (11, b"hello world"))


@row("rewrite")
def _():
    token, written, total = IMAGES.blob("copy/b.txt").rewrite(IMAGES.blob("up/a.txt"))
    same((token, written, total), (None, 11, 11))


@row("compose")
def _():
    composed = IMAGES.blob("copy/composed.txt")
    composed.content_type = "text/plain"
    composed.compose([IMAGES.blob("copy/a.txt"), IMAGES.blob("copy/b.txt")])
    same((composed.download_as_bytes(), composed.component_count, composed.md5_hash), (b"hello world" * 2, 2, None))


@row("rename")
def _():
    IMAGES.rename_blob(IMAGES.blob("copy/b.txt"), "copy/c.txt")
    same([IMAGES.blob(f"copy/{name}.txt").exists() for name in "bc"], [False, True])


@row("another storage class")
def _():
    blob = IMAGES.blob("copy/c.txt")
    blob.update_storage_class("NEARLINE")
    same(blob.storage_class, "NEARLINE")


@row("copy of what does not exist: 404")
def _():
    raises(exceptions.NotFound, lambda: IMAGES.copy_blob(IMAGES.blob("none"), IMAGES, "copy/none"))


@row("delete, and 404 afterwards")
def _():
    IMAGES.blob("copy/c.txt").delete()
    raises(exceptions.NotFound, lambda: IMAGES.blob("copy/c.txt").delete())


@row("delete of several, one of which does not exist")
def _():
    missing = []
    IMAGES.delete_blobs(["copy/a.txt", "none"], on_error=lambda blob: missing.append(blob))
    same(missing, ["none"])


@row("a batch of deletes")
def _():
    for name in ("batch/1", "batch/2"):
        put(name)
    with CLOUD.batch():
        for name in ("batch/1", "batch/2"):
            IMAGES.blob(name).delete()
    same(names(prefix="batch/"), [])


@row("a batch with a failure")
def _():
    def delete():
        with CLOUD.batch():
            IMAGES.blob("none").delete()
            IMAGES.blob("none/2").delete()

    raises(exceptions.NotFound, delete)


@row("buckets: get, exists, list, create, delete")
def _():
    same(CLOUD.get_bucket(BUCKET).name, BUCKET)
    CLOUD.create_bucket("another-bucket", location="EU")
    same(CLOUD.get_bucket("another-bucket").location, "EU")
    same([bucket.name for bucket in CLOUD.list_buckets(prefix="another")], ["another-bucket"])
    raises(exceptions.Conflict, lambda: CLOUD.create_bucket("another-bucket"))
    same([CLOUD.bucket(name).exists() for name in ("another-bucket", "none-bucket")], [True, False])
    CLOUD.bucket("another-bucket").delete()
    raises(exceptions.NotFound, lambda: CLOUD.get_bucket("another-bucket"))


@row("bucket with objects: not deleted")
def _():
    raises(exceptions.Conflict, lambda: IMAGES.delete())


@row("bucket patch")
def _():
    bucket = CLOUD.get_bucket(BUCKET)
    bucket.labels = {"team": "podcast"}
    bucket.patch()
    same((bucket.labels, bucket.metageneration), ({"team": "podcast"}, 2))
    bucket.labels = {"team": "news"}
    raises(exceptions.PreconditionFailed, lambda: bucket.patch(if_metageneration_match=1))


@row("bucket setting that is not emulated: 501")
def _():
    bucket = CLOUD.get_bucket(BUCKET)
    bucket.versioning_enabled = True
    raises(exceptions.MethodNotImplemented, lambda: bucket.patch(retry=None))


@row("permissions and the policy of a bucket")
def _():
    same(IMAGES.test_iam_permissions(["storage.objects.create"]), ["storage.objects.create"])
    same(list(IMAGES.get_iam_policy()), [])


@row("a bucket that does not exist: 404")
def _():
    raises(exceptions.NotFound, lambda: CLOUD.bucket("none-bucket").blob("a").upload_from_string(b"a"))
    raises(exceptions.NotFound, lambda: list(CLOUD.list_blobs("none-bucket")))


@row("what is not emulated: 501 as JSON")
def _():
    raises(exceptions.MethodNotImplemented, lambda: CLOUD.get_service_account_email(retry=None))
    raises(exceptions.MethodNotImplemented, lambda: IMAGES.blob("up/a.txt").acl.reload())


if __name__ == "__main__":
    sys.exit(main())
