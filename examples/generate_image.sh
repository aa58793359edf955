#!/bin/sh
# Generates an image with IGA and prints its gs:// URI. It needs curl 7.71 or later.
#
# Usage: generate_image.sh PROMPT [KEY]
#
# IGA_URL is the service's address, http://localhost:5007 by default. With KEY, an idempotency key, a repeated request
# always gets the same image. A private Cloud Run service requires IGA_ID_TOKEN, an ID token for its URL.
set -eu

prompt=${1:?Usage: generate_image.sh PROMPT [KEY]}
key=${2-}
url=${IGA_URL:-http://localhost:5007}
response=$(mktemp)
trap 'rm -f "$response"' EXIT

# The headers come from standard input, because other users of this machine can read a command's arguments.
headers() {
    echo 'Content-Type: application/json'
    [ -z "$key" ] || printf 'Idempotency-Key: %s\n' "$key"
    [ -z "${IGA_ID_TOKEN-}" ] || printf 'Authorization: Bearer %s\n' "$IGA_ID_TOKEN"
}

# A prompt with a line break or a tab needs a tool for JSON, such as jq.
body=$(printf '{"prompt": "%s"}' "$(printf %s "$prompt" | sed 's/["\\]/\\&/g')")

# Without --fail, --retry-all-errors does not repeat a refused request: curl tries again after 429, 5xx and errors of
# the connection, at least 1 s later or when Retry-After says.
status=$(headers | curl --silent --show-error --header @- --data "$body" --max-time "${IGA_TIMEOUT_SECONDS:-20}" \
    --retry 2 --retry-all-errors --retry-max-time 120 --output "$response" --write-out '%{http_code}' "$url/generate_image")

if [ "$status" != 200 ]; then
    echo "$status $(cat "$response")" >&2
    exit 1
fi
image_url=$(sed 's/.*"image_url" *: *"\([^"]*\)".*/\1/' "$response")
echo "$image_url"
