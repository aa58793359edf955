#!/bin/sh
# Prints the licenses and notices of all code of others in the shipped binary, each text once, as their licenses require of a
# distribution: scripts/notices.sh > NOTICES. For iga-local: scripts/notices.sh --features local
set -eu
cd "$(dirname "$0")/.."
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
seen=$(mktemp -d)
trap 'rm -r "$seen"' EXIT
triple=$(uname -m)-unknown-linux-musl
cargo fetch --locked --quiet --target "$triple"
cat <<'END'
The text of a license that is named without one stands below, for other code.

==== musl: MIT
Copyright (c) 2005-2020 Rich Felker, et al.

==== The Rust standard library: MIT OR Apache-2.0
Copyright (c) The Rust Project Contributors
END
cargo tree --locked --package iga --no-default-features --edges normal,no-proc-macro --prefix none \
    --target "$triple" --format '{p} {l}' "$@" | sed 's/ (\*)$//' | sort -u |
    while read -r name version license; do
        case $name in iga | iga-emulator) continue ;; esac
        crate="$name ${version#v}"
        printf '\n==== %s: %s\n' "$crate" "$license"
        # Also those of the C code and the fonts that a crate brings.
        find "$registry"/*/"$name-${version#v}" -type f ! -name '*.rs' \( -iname '*licen[cs]e*' -o -iname 'copying*' \
            -o -iname 'notice*' -o -iname 'copyright*' -o -path '*/fonts/*.txt' \) | sort | while read -r file; do
            sum=$(cksum <"$file" | tr ' ' -)
            printf -- '---- %s' "$(basename "$file")"
            if [ -e "$seen/$sum" ]; then
                printf ': as for %s\n' "$(cat "$seen/$sum")"
            else
                echo "$crate" >"$seen/$sum"
                printf '\n'
                cat "$file"
            fi
        done
    done
