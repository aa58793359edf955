"""The caller: asks IGA for a picture and tries again, exactly as CPOA does.

Usage: cpoa.py URL[,URL...] PROMPT FACTOR

Prints the picture's URI. Of several services each try asks the next one, as behind a load balancer. CPOA's times
are divided by FACTOR, so that nobody has to wait for them.
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
            answer = requests.post(
                f"{url}/generate_image", json={"prompt": prompt}, timeout=TIMEOUT_SECONDS / factor
            )
            if answer.status_code < 400:
                return answer.json()["image_url"]
            if answer.status_code < 500:
                sys.exit(f"gives up: {answer.status_code} {answer.text}")
            problem = f"{answer.status_code} {answer.text}"
        except (requests.Timeout, requests.ConnectionError) as error:
            problem = error
        print(f"failed: {problem}", file=sys.stderr)
        if wait is not None:
            time.sleep(wait / factor)
    sys.exit("gives up: no try is left")


if __name__ == "__main__":
    print(image_url(sys.argv[1].split(","), sys.argv[2], float(sys.argv[3])))
