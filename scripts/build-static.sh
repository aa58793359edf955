#!/usr/bin/env bash
# Builds the shipped binary, `iga` as one static file for Linux without the emulator; or `iga-local`, with it; or a
# program of benches/. Usage: scripts/build-static.sh [x86_64|aarch64 [PROGRAM]]. The last line on stdout is its path.
# With cargo-auditable installed the file carries the list of its dependencies, which scanners of images read.
set -euo pipefail
cd "$(dirname "$0")/.."

arch=${1:-x86_64}
triple=$arch-unknown-linux-musl
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
binary=${2:-iga}
build=(build --release --locked --bin "$binary" --target "$triple")
case $binary in
    # Without the package's name Cargo would add the features that the emulator needs of shared dependencies.
    iga) build+=(--package iga --no-default-features) ;;
    iga-local) build+=(--package iga) ;;
    *) build+=(--package iga-benches) ;;
esac
if command -v cargo-auditable >/dev/null; then
    build=(auditable "${build[@]}")
else
    echo 'Without a list of its dependencies in the file: cargo install --locked cargo-auditable' >&2
fi

main() {
    case $arch in
        x86_64 | aarch64) ;;
        *) give_up "$arch is not supported: use x86_64 or aarch64." ;;
    esac
    local flags=CFLAGS_${triple//-/_}
    export "$flags=${!flags:-} $allocator"
    if has_std; then
        choose_c_compiler
        pack_relocations
        cargo "${build[@]}"
    elif [ "$arch" = x86_64 ] && has_debian_sources; then
        echo 'FOR CHECKING ONLY: built with the compiler and the musl of Debian, not with those of the shipped binary.' >&2
        build_with_debian
    else
        give_up "The standard library for $triple is missing. Install it: rustup target add $triple"
    fi
    local file=$target/$triple/release/$binary
    [ "${build[0]}" != auditable ] || grep -q '\.dep-v0' "$file" || give_up "$file has no list of its dependencies."
    echo "$file"
}

has_std() {
    command -v cargo rustc >/dev/null && compgen -G "$(rustc --print target-libdir --target "$triple")/libstd-*.rlib" >/dev/null
}

# By default mimalloc reserves 1 GiB at start-up, and tracking that costs 40 page faults. This makes it reserve
# smaller parts on demand.
allocator=-DMI_DEFAULT_ARENA_RESERVE=65536 # KiB

# The C parts of `ring` and mimalloc use only what glibc and musl both provide, so a compiler for glibc works too.
choose_c_compiler() {
    local name=${triple//-/_} candidates=("$arch-linux-musl-gcc" "$arch-linux-gnu-gcc") candidate
    local cc=CC_$name linker=CARGO_TARGET_${name^^}_LINKER
    [ -z "${!cc:-}" ] || return 0
    [ "$(uname -m)" != "$arch" ] || candidates=(musl-gcc gcc)
    for candidate in "${candidates[@]}"; do
        if command -v "$candidate" >/dev/null; then
            export "$cc=$candidate"
            # The linker of this machine links for this machine only; rustc includes one for every target.
            [ "$(uname -m)" = "$arch" ] || export "$linker=rust-lld"
            return 0
        fi
    done
    give_up "A C compiler for $arch is missing: one of ${candidates[*]}. On Debian: apt-get install ${debian_compiler[$arch]}"
}

# Packs the relocations of a position-independent file, 24 bytes each, into a few bits. Rust's musl reads them from
# 1.93 on; an older one would crash at the start.
pack_relocations() {
    local name=${triple//-/_} minor
    minor=$(rustc --version | sed -E 's/^rustc [0-9]+\.([0-9]+).*/\1/')
    [ "$minor" -ge 93 ] || return 0
    local flags=CARGO_TARGET_${name^^}_RUSTFLAGS linker=CARGO_TARGET_${name^^}_LINKER prefix=-Wl,
    [ "${!linker:-}" != rust-lld ] || prefix=
    export "$flags=${!flags:-} -C link-arg=$prefix-z${prefix:+,}pack-relative-relocs"
}

declare -A debian_compiler=([x86_64]=gcc-x86-64-linux-gnu [aarch64]=gcc-aarch64-linux-gnu)

has_debian_sources() {
    [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && [ -e "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std" ] &&
        [ -e "$musl/libc.a" ] && [ -e "$libunwind" ] && command -v musl-gcc >/dev/null
}

musl=/usr/lib/x86_64-linux-musl
libunwind=/usr/lib/llvm-19/lib/libunwind.a

# Debian packages the standard library as sources only. This collects the files that link it to musl.
build_with_debian() {
    local parts=$target/debian-musl object
    mkdir -p "$parts"
    cp "$musl"/{crt1.o,rcrt1.o,crti.o,crtn.o,libc.a} "$parts"
    for object in crtbegin.o crtbeginS.o crtend.o crtendS.o; do
        cp "$(gcc -print-file-name="$object")" "$parts"
    done
    # Debian's libunwind is built for glibc; this is the one symbol that musl lacks.
    printf '%s\n' '#include <stdarg.h>' '#include <stdio.h>' 'int __fprintf_chk(FILE *file, int flag, const char *format, ...) {' \
        'va_list list; va_start(list, format); int n = vfprintf(file, format, list); va_end(list); return n; }' |
        musl-gcc -O2 -fPIC -x c -c - -o "$parts/fprintf_chk.o"
    cp "$libunwind" "$parts/libunwind.a"
    ar rs "$parts/libunwind.a" "$parts/fprintf_chk.o"
    # Name its path, because cargo would otherwise use the rustc on the PATH, which may be rustup's.
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CC_x86_64_unknown_linux_musl=musl-gcc \
        RUSTFLAGS="-L native=$parts -C link-arg=-lgcc" /usr/bin/cargo "${build[@]}" -Z build-std=std,panic_abort
}

give_up() {
    echo "$1" >&2
    exit 1
}

main
