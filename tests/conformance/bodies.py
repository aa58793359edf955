"""Sends each request of bodies.json with google-genai, in order, and ignores the response.

Usage: bodies.py URL PROMPT
"""

import json
import os
import sys
from pathlib import Path

url, prompt = sys.argv[1:]
os.environ |= {"GCE_METADATA_HOST": url.removeprefix("http://"), "GCE_METADATA_IP": url.removeprefix("http://"), "NO_PROXY": "127.0.0.1"}

from google import genai  # noqa: E402

for pair in json.loads(Path(__file__).with_suffix(".json").read_text())["pairs"]:
    client = genai.Client(vertexai=True, project="test-project", location=pair["location"], http_options={"base_url": url})
    options = {"model": pair["model"], "config": pair["google_genai"]}
    if pair["model"].startswith("imagen"):
        client.models.generate_images(prompt=prompt, **options)
    else:
        client.models.generate_content(contents=prompt, **options)
