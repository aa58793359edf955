"""The caller: requests an image from IGA and tries again, exactly as CPOA does.

Usage: cpoa.py URL[,URL...] PROMPT FACTOR

Prints the image's URI. With several services each try goes to the next one, as behind a load balancer. CPOA's times
are divided by FACTOR to keep the tests short.
"""

import itertools
import sys
import time

import requests

TIMEOUT_SECONDS = 20
WAITS_SECONDS = [0.5, 1]


def image_url(urls, prompt, factor):
    for url, wait in zip(itertools.cycle(urls), [*WAITS_SECONDS, None]):
        try:
            response = requests.post(
                f"{url}/generate_image", json={"prompt": prompt}, timeout=TIMEOUT_SECONDS / factor
            )
            if response.status_code < 400:
                return response.json()["image_url"]
            if response.status_code < 500:
                sys.exit(f"gives up: {response.status_code} {response.text}")
            problem = f"{response.status_code} {response.text}"
        except (requests.Timeout, requests.ConnectionError) as error:
            problem = error
        print(f"failed: {problem}", file=sys.stderr)
        if wait is not None:
            time.sleep(wait / factor)
    sys.exit("gives up: no try is left")


if __name__ == "__main__":
    print(image_url(sys.argv[1].split(","), sys.argv[2], float(sys.argv[3])))
