#!/usr/bin/env python3
"""Measures IGA beside its baselines, in one run, and writes docs/performance/results.json.

Usage: benches/run.py               all measurements, about 20 minutes on two otherwise idle cores
       benches/run.py --only NAME   repeats one measurement and keeps the results of the others
       benches/run.py --quick FILE  runs each measurement once and small, without peers, into FILE

The quick run checks that the harness works. benches/report.py turns the results into the tables
and charts of docs/performance.md.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

from harness import (
    KIB,
    MIB,
    REPOSITORY,
    Iga,
    IgaWithoutLog,
    MemoryLimit,
    MinimalServer,
    MinimalServerOneThread,
    PassThrough,
    Peer,
    Upstream,
    build,
    enter_network,
    load,
    machine,
    peers,
    program,
    stopwatch,
)

USUAL = 3 * MIB // 2
LEVELS = [1, 16, 80]


class Plan:
    """How often and how much each measurement runs."""

    rounds, peer_rounds = 5, 3
    starts, peer_starts = 41, 5
    images, peer_images = 1000, 200
    sizes = [64 * KIB, 512 * KIB, USUAL, 4 * MIB, 8 * MIB, 14 * MIB, 20 * MIB]
    # Callers, bytes of an image, latency of the model in ms, number of images.
    in_transfer, in_flight = (80, 8 * MIB, 0, 240), (1000, USUAL, 2000, 2000)
    concurrencies, fewest_requests = [1, 4, 16, 80, 250, 1000], 50
    # Callers, bytes of an image, Mbit/s of an upload.
    convoy = 80, 8 * MIB, 50
    # Callers, bytes of a prompt, bytes of an image, latency of the model in ms.
    limit_mib = 256
    limited = {"prompts": (80, MIB - KIB, 8 * MIB, 0), "in_flight": (1000, 0, USUAL, 2000)}
    round_trips_ms, distance_sizes, distance_starts = [30, 100], [USUAL, 8 * MIB], 5
    warm_requests, idle_rounds, idle_seconds = 15, 3, 60
    log_requests = 2000


class Quick(Plan):
    rounds = peer_rounds = 1
    starts = 2
    images = 20
    sizes = [64 * KIB, USUAL]
    in_transfer, in_flight = (8, 8 * MIB, 0, 16), (40, USUAL, 100, 40)
    concurrencies, fewest_requests = [1, 40], 5
    convoy = 24, 8 * MIB, 400
    limited = {"prompts": (8, MIB - KIB, 8 * MIB, 0), "in_flight": (40, 0, USUAL, 100)}
    round_trips_ms, distance_sizes, distance_starts = [30], [USUAL], 1
    warm_requests, idle_rounds, idle_seconds = 3, 1, 1
    log_requests = 20


def main(arguments):
    plan, file, results = Plan, REPOSITORY / "docs/performance/results.json", {}
    measures = {measure.__name__: measure for measure in MEASURES}
    match arguments:
        case []:
            pass
        case ["--only", name] if name in measures:
            results = json.loads(file.read_text())
            measures = {name: measures[name]}
        case ["--quick", path]:
            plan, file = Quick, Path(path)
        case _:
            sys.exit(__doc__)
    build()
    subjects = [Iga(), PassThrough(), *(peers() if plan is Plan else [])]
    results["machine"] = machine()
    problem = enter_network()
    if problem:
        print(f"NOT MEASURED: distance. This machine has {problem}", flush=True)
        measures.pop("distance", None)
    for name, measure in measures.items():
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        results[name] = measure(plan, subjects)
        print(f"== {name} took {time.monotonic() - begin:.0f} s", flush=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(file)


# ---- the measurements


def sizes_on_disk(plan, subjects):
    sizes = {"iga": program("iga"), "minimal server": program("minimal_server")}
    sizes = {name: path.stat().st_size for name, path in sizes.items()}
    for subject in subjects:
        if isinstance(subject, Peer):
            files = [file for file in subject.packages().rglob("*") if file.is_file()]
            sizes[subject.name] = sum(file.lstat().st_size for file in files)
    return sizes


def starts(plan, subjects):
    """Milliseconds from exec to the first 200: for /health and for an image."""
    found = Table()
    subjects = [MinimalServer(), MinimalServerOneThread(), *without_pass_through(subjects)]
    with Upstream(64 * KIB) as upstream:
        for number in range(plan.starts):
            for subject in taking_part(subjects, number, plan.peer_starts):
                for what in ["health", "image"]:
                    found.add(subject, what, stopwatch(subject, what, upstream))
    return found.rows


def starts_tls(plan, subjects):
    """The same over TLS, with an access token from the token endpoint."""
    found = Table()
    with Upstream(64 * KIB, tls=True, chunked=True) as upstream:
        for number in range(plan.starts):
            for subject in taking_part(subjects, number, plan.peer_starts):
                found.add(subject, "image", stopwatch(subject, "image", upstream))
                if isinstance(subject, PassThrough):
                    found.add(subject, "health", stopwatch(subject, "health", upstream))
    return found.rows


def images(plan, subjects):
    """Idle memory; then CPU for each image, latency and speed at each level of concurrency."""
    return at_all_levels(plan, subjects, Upstream(USUAL))


def images_chunked(plan, subjects):
    """The same with chunked responses of the model."""
    return at_all_levels(plan, without_peers(subjects), Upstream(USUAL, chunked=True))


def images_tls(plan, subjects):
    """The same over TLS, with chunked responses of the model."""
    return at_all_levels(plan, subjects, Upstream(USUAL, tls=True, chunked=True))


def at_all_levels(plan, subjects, upstream):
    found = Table()
    with upstream:
        for number in range(plan.rounds):
            for subject in taking_part(subjects, number, plan.peer_rounds):
                with subject.running(upstream) as process:
                    found.add(subject, "idle_mib", process.peak_mib())
                    process.load(20, 4)
                    for callers in LEVELS:
                        requests = plan.peer_images if isinstance(subject, Peer) else plan.images
                        done = process.load(requests, callers)
                        for name in ["cpu_ms", "p50_ms", "p99_ms", "per_second"]:
                            found.add(subject, f"{name} {callers}", done[name])
    return found.rows


def memory(plan, subjects):
    """Peak memory of a fresh process under load, and the number of images that it lost."""
    found = Table()
    for row in ["in_transfer", "in_flight"]:
        callers, image_bytes, latency_ms, requests = getattr(plan, row)
        with Upstream(image_bytes, latency_ms=latency_ms) as upstream:
            for number in range(plan.peer_rounds):
                for subject in taking_part(subjects, number, 1):
                    asked = callers if isinstance(subject, Peer) else requests
                    with subject.running(upstream, IGA_MAX_GENERATIONS=str(callers)) as process:
                        done = load("images", process.url, asked, callers)
                        found.add(subject, f"{row} mib", process.peak_mib())
                        found.add(subject, f"{row} failed", asked - done["ok"])
    return found.rows


def limited_memory(plan, subjects):
    """IGA over TLS in a control group with little memory: its peak, lost and refused images."""
    found = Table()
    for row, (callers, prompt_bytes, image_bytes, latency_ms) in plan.limited.items():
        with Upstream(image_bytes, tls=True, chunked=True, latency_ms=latency_ms) as upstream:
            for _ in range(plan.peer_rounds):
                with contextlib.ExitStack() as stack:
                    try:
                        limit = stack.enter_context(MemoryLimit(plan.limit_mib))
                    except OSError as error:
                        print(f"NOT LIMITED: no control group can be made: {error}", flush=True)
                        limit = None
                    settings = {"memory_limit": limit, "IGA_MAX_GENERATIONS": str(callers)}
                    process = stack.enter_context(Iga().running(upstream, **settings))
                    options = {"prompt_bytes": prompt_bytes}
                    done = process.load_to_the_limit(callers, callers, upstream, **options)
                    found.add(Iga, f"{row} limited", int(limit is not None))
                    found.add(Iga, f"{row} alive", int(process.process.poll() is None))
                    found.add(Iga, f"{row} mib", limit.peak_mib() if limit else process.peak_mib())
                    for name in ["lost", "refused"]:
                        found.add(Iga, f"{row} {name}", done[name])
    return found.rows


def convoy(plan, subjects):
    """IGA with large images and slow uploads: chunked responses against those with a length."""
    found = Table()
    callers, image_bytes, upload_mbit = plan.convoy
    for row, chunked in [("length", False), ("chunked", True)]:
        with Upstream(image_bytes, chunked=chunked, upload_mbit=upload_mbit) as upstream:
            for _ in range(plan.peer_rounds):
                with Iga().running(upstream) as process:
                    done = process.load_to_the_limit(callers, callers, upstream)
                    found.add(Iga, f"{row} mib", process.peak_mib())
                    for name, figure in done.items():
                        found.add(Iga, f"{row} {name}", figure)
    return found.rows


def distance(plan, subjects):
    """One caller, with the upstream at a distance, over TLS and with chunked responses.

    Milliseconds of the model's response alone, of an image on warm connections and after idleness,
    and from exec to the first image.
    """
    found = Table()
    with contextlib.ExitStack() as stack:
        runs = []
        cases = [(rtt, size) for rtt in plan.round_trips_ms for size in plan.distance_sizes]
        for link, (rtt, size) in enumerate(cases):
            upstream = stack.enter_context(Upstream(size, link=(link, rtt), tls=True, chunked=True))
            alone = load("model", upstream.model, plan.warm_requests, 1)
            found.add(Upstream, f"warm {rtt} {size}", alone["p50_ms"])
            for subject in [Iga(), PassThrough()]:
                process = stack.enter_context(subject.running(upstream))
                process.load(plan.warm_requests, 1)
                warm = process.load(plan.warm_requests, 1)
                found.add(subject, f"warm {rtt} {size}", warm["p50_ms"])
                runs.append((process, subject, f"idle {rtt} {size}"))
        for _ in range(plan.idle_rounds):
            time.sleep(plan.idle_seconds)
            for process, subject, name in runs:
                found.add(subject, name, process.load(1, 1)["p50_ms"])
    rtt = plan.round_trips_ms[0]
    with Upstream(64 * KIB, link=(0, rtt), tls=True, chunked=True) as upstream:
        for _ in range(plan.distance_starts):
            for subject in [Iga(), PassThrough()]:
                found.add(subject, f"start {rtt}", stopwatch(subject, "image", upstream))
    return found.rows


def by_size(plan, subjects):
    """CPU and peak memory against the size of the image, with 16 callers."""
    found = Table()
    for image_bytes in plan.sizes:
        with Upstream(image_bytes) as upstream:
            for number in range(plan.peer_rounds):
                for subject in taking_part(subjects, number, 1):
                    with subject.running(upstream) as process:
                        process.load(16, 16)
                        done = process.load(48 if isinstance(subject, Peer) else 160, 16)
                        found.add(subject, f"cpu_ms {image_bytes}", done["cpu_ms"])
                        found.add(subject, f"mib {image_bytes}", process.peak_mib())
    return found.rows


def by_concurrency(plan, subjects):
    """CPU and peak memory against the number of callers; the model takes 200 ms."""
    found = Table()
    with Upstream(USUAL, latency_ms=200) as upstream:
        for callers in plan.concurrencies:
            for _ in range(plan.peer_rounds):
                for subject in without_peers(subjects):
                    with subject.running(upstream, IGA_MAX_GENERATIONS="1000") as process:
                        requests = max(plan.fewest_requests, 3 * callers)
                        done = process.load(requests, callers)
                        found.add(subject, f"cpu_ms {callers}", done["cpu_ms"])
                        found.add(subject, f"mib {callers}", process.peak_mib())
    return found.rows


def log(plan, subjects):
    """Bytes of log for each request at info level, and the CPU of IGA with and without a log."""
    found = Table()
    with Upstream(64 * KIB) as upstream:
        for _ in range(plan.rounds):
            for subject in [Iga(), IgaWithoutLog()]:
                with subject.running(upstream) as process:
                    process.load(20, 4)
                    before = process.log_bytes()
                    done = process.load(plan.log_requests, 16)
                    found.add(subject, "cpu_ms", done["cpu_ms"])
                    found.add(subject, "bytes", (process.log_bytes() - before) / plan.log_requests)
    return found.rows


MEASURES = [
    sizes_on_disk,
    starts,
    starts_tls,
    images,
    images_chunked,
    images_tls,
    memory,
    limited_memory,
    convoy,
    distance,
    by_size,
    by_concurrency,
    log,
]


class Table:
    """Figures by name and program, one for each round."""

    def __init__(self):
        self.rows = {}

    def add(self, subject, name, figure):
        figures = self.rows.setdefault(name, {}).setdefault(subject.name, [])
        figures.append(figure)
        print(f"{subject.name:26} {name:20} {figure:10.2f}", flush=True)


def taking_part(subjects, number, peer_rounds):
    """The subjects of this round: the peers are slow and take part in the first rounds only."""
    return [
        subject for subject in subjects if number < peer_rounds or not isinstance(subject, Peer)
    ]


def without_peers(subjects):
    return [subject for subject in subjects if not isinstance(subject, Peer)]


def without_pass_through(subjects):
    return [subject for subject in subjects if not isinstance(subject, PassThrough)]


if __name__ == "__main__":
    main(sys.argv[1:])
