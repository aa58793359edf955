# The shipped image is the last stage: `docker build .`. The emulator's, for trying things out: `docker build --target local .`
FROM rust:1.95-slim-trixie AS build
WORKDIR /build
RUN rustup target add "$(uname -m)-unknown-linux-musl" && cargo install --locked cargo-auditable@0.7.7

# The dependencies, in a layer that only the manifests change: empty sources stand in for ours.
COPY Cargo.toml Cargo.lock ./
COPY benches/Cargo.toml benches/
COPY emulator/Cargo.toml emulator/
COPY model/Cargo.toml model/
COPY scripts/build-static.sh scripts/notices.sh scripts/
RUN mkdir -p src/bin/iga-local benches/src emulator/src model/src \
    && touch src/lib.rs benches/src/lib.rs emulator/src/lib.rs model/src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cp src/main.rs src/bin/iga-local/main.rs \
    && scripts/build-static.sh "$(uname -m)" \
    && scripts/notices.sh >third-party-notices.txt && gzip --best --no-name third-party-notices.txt

COPY src src
# Cargo goes by times, and a file that is copied keeps its own, which is older than that of its stand-in.
RUN touch src/lib.rs src/main.rs && scripts/build-static.sh "$(uname -m)"

FROM build AS build-local
COPY emulator/src emulator/src
COPY events/generate_image.json events/
RUN mkdir images && scripts/build-static.sh "$(uname -m)" iga-local \
    && scripts/notices.sh --features local >third-party-notices.txt && gzip --force --best --no-name third-party-notices.txt

FROM gcr.io/distroless/static-debian13:nonroot AS local
COPY --from=build-local /build/target/*-musl/release/iga-local /
COPY --from=build-local /build/third-party-notices.txt.gz /
COPY --from=build-local --chown=65532:65532 /build/images /images
ENTRYPOINT ["/iga-local"]

FROM gcr.io/distroless/static-debian13:nonroot
COPY --from=build /build/target/*-musl/release/iga /
COPY --from=build /build/third-party-notices.txt.gz /
LABEL org.opencontainers.image.title="IGA" org.opencontainers.image.licenses="Apache-2.0"
LABEL org.opencontainers.image.description="HTTP function: an image by Vertex AI, stored in Cloud Storage"
EXPOSE 5007
ENTRYPOINT ["/iga"]
