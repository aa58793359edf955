#!/bin/sh
# Prints the licenses and notices of every crate in the shipped binary, each text once, as their licenses require of a
# distribution: scripts/notices.sh > NOTICES
set -eu
cd "$(dirname "$0")/.."
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
seen=$(mktemp -d)
trap 'rm -r "$seen"' EXIT
triple=$(uname -m)-unknown-linux-musl
cargo fetch --locked --quiet --target "$triple"
cargo tree --locked --package iga --no-default-features --edges normal,no-proc-macro --prefix none \
    --target "$triple" --format '{p} {l}' | sed 's/ (\*)$//' | sort -u |
    while read -r name version license; do
        [ "$name" = iga ] && continue
        crate="$name ${version#v}"
        printf '\n==== %s: %s\n' "$crate" "$license"
        for file in "$registry"/*/"$name-${version#v}"/*; do
            case $(basename "$file" | tr '[:lower:]' '[:upper:]') in
            LICENSE* | LICENCE* | COPYING* | NOTICE* | COPYRIGHT*) [ -f "$file" ] || continue ;;
            *) continue ;;
            esac
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
