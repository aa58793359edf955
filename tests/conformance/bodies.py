"""Sends each request of standard input with google-genai, in order, and ignores the response.

Usage: bodies.py URL, with a JSON list of {"model", "location", "prompt", "config"} on standard input
"""

import json
import os
import sys

url = sys.argv[1]
os.environ |= {"GCE_METADATA_HOST": url.removeprefix("http://"), "GCE_METADATA_IP": url.removeprefix("http://"), "NO_PROXY": "127.0.0.1"}

from google import genai  # noqa: E402

for row in json.load(sys.stdin):
    client = genai.Client(vertexai=True, project="test-project", location=row["location"], http_options={"base_url": url})
    options = {"model": row["model"], "config": row["config"]}
    if row["model"].startswith("imagen"):
        client.models.generate_images(prompt=row["prompt"], **options)
    else:
        client.models.generate_content(contents=row["prompt"], **options)
