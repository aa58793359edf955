#!/bin/sh
# Writes beside each pin of a requirements file the hashes of that release's files, as pip demands them:
# scripts/hash-requirements.sh .ci/requirements*.txt. It needs uv: pip install uv
set -eu
for file in "$@"; do
    pins=$(sed -n 's/^\([A-Za-z][^ ;]*==[^ ;]*\).*/\1/p' "$file")
    {
        grep '^#' "$file" || true
        echo "$pins" | uv pip compile --quiet --no-deps --no-header --no-annotate --generate-hashes -
    } >"$file.new"
    mv "$file.new" "$file"
done
