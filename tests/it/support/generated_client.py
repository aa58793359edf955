"""A caller with the client `iga_client`, which is generated from openapi.yaml: one image, then a typed error.

Usage: generated_client.py URL

Prints the image's URI.
"""

import sys

from iga_client import Client
from iga_client.api.images import generate_image
from iga_client.models import AspectRatio, Error, ErrorCode, GenerateRequest, GenerateResponse

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
request = GenerateRequest(prompt="A red fox in fresh snow", aspect_ratio=AspectRatio("16:9"))
image = generate_image.sync(client=client, body=request, idempotency_key="cover-7d3f")
assert isinstance(image, GenerateResponse), image
assert generate_image.sync(client=client, body=request, idempotency_key="cover-7d3f") == image

refused = generate_image.sync(client=client, body=GenerateRequest(prompt="[blocked]"))
assert isinstance(refused, Error), refused
assert refused.error_code is ErrorCode.IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY, refused
assert refused.message == "Prompt blocked by safety filters.", refused
print(image.image_url)
