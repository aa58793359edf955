#!/usr/bin/env python3
"""Generates an image with IGA and prints its gs:// URI.

Usage: generate_image.py [--id-token] PROMPT [KEY]

IGA_URL is the service's address, http://localhost:5007 by default. With KEY, an idempotency key, a repeated request always
gets the same image. A private Cloud Run service requires an ID token: --id-token gets one for the service account of this
machine or of GOOGLE_APPLICATION_CREDENTIALS; otherwise IGA_ID_TOKEN is sent, if it is set.
Install first: pip install requests google-auth
"""

import argparse
import os
import sys
import time

import google.auth.exceptions
import google.auth.transport.requests
import google.oauth2.id_token
import requests

TIMEOUT_SECONDS = float(os.environ.get("IGA_TIMEOUT_SECONDS", 20))
# Without a key, IGA takes equal requests within 0.4 s for variants, each with an image of its own.
WAITS_SECONDS = [0.5, 1]
LONGEST_WAIT_SECONDS = 60


def generate_image(url, prompt, key=None, id_token=None):
    """The last response after at most three tries."""
    headers = {"Idempotency-Key": key, "Authorization": id_token and f"Bearer {id_token}"}
    for wait in [*WAITS_SECONDS, None]:
        try:
            response = requests.post(
                f"{url}/generate_image", json={"prompt": prompt}, headers=headers, timeout=TIMEOUT_SECONDS
            )
        except (requests.Timeout, requests.ConnectionError):
            if wait is None:
                raise
        else:
            may_pass = response.status_code == 429 or response.status_code >= 500
            asked = float(response.headers.get("Retry-After", 0))
            if wait is None or not may_pass or asked > LONGEST_WAIT_SECONDS:
                return response
            wait = max(wait, asked)
        time.sleep(wait)


def main():
    parser = argparse.ArgumentParser(description="Generates an image with IGA and prints its gs:// URI.")
    parser.add_argument("prompt")
    parser.add_argument("key", nargs="?", help="idempotency key: the same key gets the same image")
    parser.add_argument("--id-token", action="store_true", help="for a private Cloud Run service")
    options = parser.parse_args()
    url = os.environ.get("IGA_URL", "http://localhost:5007").rstrip("/")
    id_token = os.environ.get("IGA_ID_TOKEN")
    try:
        if options.id_token:
            id_token = google.oauth2.id_token.fetch_id_token(google.auth.transport.requests.Request(), url)
        response = generate_image(url, options.prompt, options.key, id_token)
    except google.auth.exceptions.GoogleAuthError as error:
        sys.exit(f"no ID token: {error}")
    except requests.RequestException as error:
        sys.exit(f"no response: {error}")
    if response.status_code != 200:
        sys.exit(f"{response.status_code} {response.text}")
    print(response.json()["image_url"])


if __name__ == "__main__":
    main()
