#!/usr/bin/env python3
"""Turns the results of benches/run.py into the tables and charts of the pages in docs.

Usage: benches/report.py, with the packages of benches/requirements.txt
"""

import json
import re
import statistics
from math import ceil
from pathlib import Path

import matplotlib
from matplotlib import ticker

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, CHARTS, SCALE = DOCS / "performance.md", DOCS / "performance", DOCS / "scale.md"
MIB = 1 << 20
BUDGET_MIB = 128
LEVELS = [1, 16, 80]
START_RTT_MS = 30
LOOK = {
    "iga": {"color": "#c0392b", "marker": "o", "linewidth": 2},
    "pass-through": {"color": "#2c3e50", "marker": "s"},
    "minimal server": {"color": "#2c3e50", "marker": "s"},
    "fastapi": {"color": "#16a085", "marker": "^"},
    "flask": {"color": "#7f8c8d", "marker": "v"},
}


def main():
    results = json.loads((CHARTS / "results.json").read_text())
    instructions = int((Path(__file__).parent / "instructions.txt").read_text())
    text = PAGE.read_text()
    text = between(text, "targets", targets(results, instructions))
    text = between(text, "production", production(results))
    text = between(text, "away", away(results))
    text = between(text, "machine", measured_on(results["machine"]))
    PAGE.write_text(text)
    SCALE.write_text(
        between(between(SCALE.read_text(), "load", scale_load(results)), "cost", scale_cost())
    )
    matplotlib.use("svg")
    # Text stays text in the file, and equal results give an equal file.
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "iga", "font.family": "sans-serif"}
    )
    from matplotlib import pyplot

    for name, draw in [
        ("starts", draw_starts),
        ("by_size", draw_by_size),
        ("by_concurrency", draw_by_concurrency),
    ]:
        figure = draw(pyplot, results)
        figure.tight_layout()
        figure.savefig(CHARTS / f"{name}.svg", metadata={"Date": None})


def between(text, name, lines):
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    assert pattern.search(text), f"{PAGE.name} has no section {name}"
    return pattern.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


# ---- tables


def targets(results, instructions):
    """One row for each target: IGA, its baseline, the better peer."""
    images, starts, memory = results["images"], results["starts"], results["memory"]
    head = ["figure", "IGA", "baseline", "ratio", "target", "better peer", "ratio", "target"]
    lines = [
        line("exec to first `/health`, ms", starts["health"], "minimal server", 1.5, 0.01),
        line("the same", starts["health"], "minimal server, one thread", 1.5, 0.01),
        line("exec to first image, ms", starts["image"], None, None, 0.01),
    ]
    for callers in LEVELS:
        name = f"CPU per image, {callers} at once, ms"
        lines.append(line(name, images[f"cpu_ms {callers}"], "pass-through", 1.5, 0.1))
    for percentile in ["p50", "p99"]:
        name = f"latency added, {percentile}, ms"
        lines.append(line(name, images[f"{percentile}_ms 1"], "pass-through", 1.5, None))
    speed = images["per_second 80"]
    lines.append(
        line("images per second, 80 at once", speed, "pass-through", 0.9, None, at_least=True)
    )
    for name, figures, target in [
        ("memory, idle, MiB", images["idle_mib"], 12),
        ("memory, 80 × 8 MiB in transfer, MiB", memory["in_transfer mib"], BUDGET_MIB + 64),
        ("memory, 1,000 × 1.5 MiB in flight, MiB", memory["in_flight mib"], BUDGET_MIB + 96),
    ]:
        lines.append(absolute(name, figures, target))
    lines.append(lost("requests failed", memory, "in_flight failed"))
    sizes = {name: [size / MIB] for name, size in results["sizes_on_disk"].items()}
    lines.append(absolute("binary, MiB", sizes, 5))
    lines.append(["instructions, 8 MiB image", f"{instructions / 1e6:.1f} M", *[""] * 6])
    return [row(head), row(["---"] * len(head)), *map(row, lines)]


def production(results):
    """The same over TLS, with chunked responses, at a distance and in little memory."""
    head = ["figure", "IGA", "baseline", "ratio", "target", "better peer", "ratio", "target"]
    lines = []
    if images := results.get("images_tls"):
        for callers in LEVELS:
            name = f"CPU per image over TLS, {callers} at once, ms"
            lines.append(line(name, images[f"cpu_ms {callers}"], "pass-through", 1.2, 0.1))
    if chunked := results.get("images_chunked"):
        name = "CPU per image, chunked, 80 at once, ms"
        figures = {
            "iga": chunked["cpu_ms 80"]["iga"],
            "with a length": results["images"]["cpu_ms 80"]["iga"],
        }
        lines.append(line(name, figures, "with a length", None, None))
    if found := results.get("starts_tls"):
        limit = first_image_limit(results)
        name = "exec to first image over TLS, ms"
        cells = [name, shown(found["image"]["iga"]), f"{number(limit)} limit"]
        cells += judged({"iga": found["image"]["iga"], "limit": [limit]}, "limit", 1)
        lines.append(cells + against_peer(found["image"], None))
    if found := results.get("distance"):
        trips = round_trips_to_first_image(results)
        cells = [f"the same, {START_RTT_MS} ms away: round trips", *map(str, trips)]
        lines.append([*cells[:2], f"{cells[2]} pass-through", *[""] * 5])
    if found := results.get("convoy"):
        name = "80 × 8 MiB, uploads at 50 Mbit/s, chunked, s"
        figures = {
            "iga": found["chunked seconds"]["iga"],
            "with a length": found["length seconds"]["iga"],
        }
        lines.append(line(name, figures, "with a length", 1.3, None))
        lines.append(lost("images lost", found, "chunked lost"))
        lines.append(lost("images refused, unpaid", found, "chunked refused"))
        figures = {"iga": found["chunked mib"]["iga"], "with a length": found["length mib"]["iga"]}
        lines.append(line("peak memory, MiB", figures, "with a length", None, None))
    if found := results.get("limited_memory"):
        for key, what in [
            ("prompts", "80 × (prompt of 1 MiB + image of 8 MiB)"),
            ("in_flight", "1,000 × 1.5 MiB in flight"),
        ]:
            limited = all(found[f"{key} limited"]["iga"])
            where = "in 256 MiB" if limited else "without a limit"
            name = f"{what}, {where}: peak, MiB"
            peak = shown(found[f"{key} mib"]["iga"])
            if not all(found[f"{key} alive"]["iga"]):
                peak += ", killed"
            lines.append([name, peak, *[""] * 6])
            lines.append(lost("images lost", found, f"{key} lost"))
            lines.append(lost("images refused, unpaid", found, f"{key} refused"))
    if found := results.get("log"):
        spent = {name: statistics.median(figures) for name, figures in found["cpu_ms"].items()}
        image = statistics.median(results["images"]["cpu_ms 1"]["iga"])
        share = (spent["iga"] - spent["iga_without_log"]) / image
        size = statistics.median(found["bytes"]["iga"])
        cells = ["log of a request: share of an image's CPU", f"{share:.1%}", f"{number(image)} ms"]
        lines.append([*cells, "", f"≤ 5 % {verdict(share <= 0.05)}", "", "", ""])
        cells = ["log of a request: bytes", number(size), "", ""]
        lines.append([*cells, f"≤ 1,500 {verdict(size <= 1500)}", "", "", ""])
    return [row(head), row(["---"] * len(head)), *map(row, lines)]


def first_image_limit(results):
    """Three times IGA's exec to /health, plus the pass-through's time from there to an image."""
    found = results["starts_tls"]
    health = statistics.median(results["starts"]["health"]["iga"])
    handshakes = statistics.median(found["image"]["pass-through"])
    handshakes -= statistics.median(found["health"]["pass-through"])
    return 3 * health + handshakes


def round_trips_to_first_image(results):
    far, near = results["distance"][f"start {START_RTT_MS}"], results["starts_tls"]["image"]
    differences = [
        statistics.median(far[name]) - statistics.median(near[name])
        for name in ["iga", "pass-through"]
    ]
    return [round(difference / START_RTT_MS) for difference in differences]


def lost(name, found, key):
    worst = max(found[key]["iga"])
    return [f"… {name}", number(worst), "", "", f"0 {verdict(worst == 0)}", "", "", ""]


def away(results):
    """The time that a service adds to the model's response, warm and after idleness."""
    head = ["round trip, ms", "image, MiB", "model alone, ms", "IGA adds, ms", "target"]
    head += [
        "pass-through adds",
        "IGA adds after idleness",
        "pass-through adds after idleness",
        "target",
    ]
    lines = [head, ["---"] * len(head)]
    found = results.get("distance", {})
    for key in found:
        state, rtt, *size = key.split()
        if state == "warm":
            idle = found[key.replace("warm", "idle")]
            model = statistics.median(found[key]["upstream"])
            warm_iga, warm_baseline, idle_iga, idle_baseline = (
                statistics.median(figures) - model
                for table in [found[key], idle]
                for figures in [table["iga"], table["pass-through"]]
            )
            # An upload has three quarters of the bytes of the response.
            limit = 2 * int(rtt) + max(0, model - int(rtt)) * 3 / 4
            cells = [rtt, number(int(size[0]) / MIB), number(model), number(warm_iga)]
            cells += [f"≤ {number(limit)} {verdict(warm_iga <= limit)}", number(warm_baseline)]
            cells += [number(idle_iga), number(idle_baseline)]
            lines.append([*cells, f"≤ pass-through {verdict(idle_iga <= idle_baseline)}"])
    return list(map(row, lines))


def line(name, figures, baseline, target, peer_target, at_least=False):
    cells = [name, shown(figures["iga"])]
    if baseline:
        cells += [
            f"{shown(figures[baseline])} {baseline}",
            *judged(figures, baseline, target, at_least),
        ]
    else:
        cells += ["", "", ""]
    return cells + against_peer(figures, peer_target, at_least)


def absolute(name, figures, target):
    baseline = f"{shown(figures['pass-through'])} pass-through" if "pass-through" in figures else ""
    reached = statistics.median(figures["iga"]) <= target
    cells = [name, shown(figures["iga"]), baseline, "", f"≤ {target} {verdict(reached)}"]
    return cells + against_peer(figures, None)


def against_peer(figures, target, at_least=False):
    peer = better_peer(figures, at_least)
    return [f"{shown(figures[peer])} {peer}", *judged(figures, peer, target)] if peer else [""] * 3


def judged(figures, other, target, at_least=False):
    ratio = statistics.median(figures["iga"]) / statistics.median(figures[other])
    ratio_text = fraction(ratio)
    if target is None:
        return [ratio_text, ""]
    target_text = f"{target}" if target >= 0.5 else f"1/{1 / target:.0f}"
    reached = ratio >= target if at_least else ratio <= target
    return [ratio_text, f"{'≥' if at_least else '≤'} {target_text} {verdict(reached)}"]


def fraction(ratio):
    if ratio >= 0.2:
        return number(ratio)
    return f"1/{1 / ratio:.1f}" if ratio > 0.05 else f"1/{1 / ratio:.0f}"


def verdict(reached):
    return "✓" if reached else "**missed**"


def better_peer(figures, at_least=False):
    better = max if at_least else min
    present = [name for name in ["flask", "fastapi"] if name in figures]
    return better(present, key=lambda name: statistics.median(figures[name]), default=None)


def shown(figures):
    """The median, with the minimum and the maximum in brackets."""
    middle, least, most = (number(f(figures)) for f in [statistics.median, min, max])
    return middle if least == most else f"{middle} ({least}–{most})"


def number(figure):
    return (
        f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}" if figure >= 1 else f"{figure:.2f}"
    )


def measured_on(machine):
    kernel = machine["kernel"].split("-")[0]
    parts = [machine["cpu"].strip(), f"{machine['cores']} cores", f"Linux {kernel}"]
    if "congestion_control" in machine:
        parts.append(f"TCP with {machine['congestion_control']}")
    return [f"Measured on: {', '.join(parts)}."]


def row(cells):
    return "| " + " | ".join(cells) + " |"


# ---- a million images a day

A_DAY, DAY_SECONDS = 1_000_000, 86_400
MODEL_SECONDS, PEAK, IMAGE_MIB = 8, 3, 1.5
# Cloud Run keeps the concurrency of an instance at this share of its maximum.
CONCURRENCY, AIM = 80, 0.6


def scale_load(results):
    memory = results["memory"]
    in_transfer = statistics.median(memory["in_transfer mib"]["iga"])
    in_flight = statistics.median(memory["in_flight mib"]["iga"])
    lines = [["figure", "mean", "peak"], ["---", "---", "---"]]
    mean = A_DAY / DAY_SECONDS
    rates = [mean, mean * PEAK]
    running = [rate * MODEL_SECONDS for rate in rates]
    lines.append(["images per second", *(f"{rate:.1f}" for rate in rates)])
    lines.append([f"in flight, {MODEL_SECONDS} s each", *(f"{flights:.0f}" for flights in running)])
    name = f"instances, concurrency {CONCURRENCY}"
    lines.append([name, *(f"{ceil(flights / (CONCURRENCY * AIM))}" for flights in running)])
    if images := results.get("images_tls"):
        cpu_ms = statistics.median(images["cpu_ms 80"]["iga"])
        name = f"cores busy, {number(cpu_ms)} ms per image over TLS"
        lines.append([name, *(f"{rate * cpu_ms / 1e3:.3f}" for rate in rates)])
    lines.append(
        ["network, in and out, MiB/s", *(f"{rate * IMAGE_MIB * (4 / 3 + 1):.0f}" for rate in rates)]
    )
    lines.append(["peak memory of an instance, MiB: 80 × 8 MiB at once", "", number(in_transfer)])
    lines.append(["the same: 1,000 × 1.5 MiB in flight", "", number(in_flight)])
    return list(map(row, lines))


def scale_cost():
    """In USD for a day, without the free monthly quotas."""
    seconds = A_DAY * MODEL_SECONDS
    instance_seconds = seconds / (CONCURRENCY * AIM)
    writes_with_key = 3 + MODEL_SECONDS // 4
    kept_gib = A_DAY * IMAGE_MIB / 1024
    lines = [
        ["item", "quantity", "price", "USD a day"],
        ["---"] * 4,
        priced(
            "Cloud Run, 1 vCPU and 512 MiB while busy",
            instance_seconds,
            "instance-seconds",
            0.000024 + 0.5 * 0.0000025,
        ),
        priced("Cloud Run, requests", A_DAY, "requests", 0.40e-6),
        priced("or Lambda, arm64 with 256 MiB", seconds / 4, "GB-seconds", 0.0000133334),
        priced("and its requests", A_DAY, "requests", 0.20e-6),
        priced("Cloud Storage, without keys", A_DAY, "class A operations", 0.005e-3),
        priced("or with keys", A_DAY * writes_with_key, "class A operations", 0.005e-3),
        priced("the images of one day, for each day in storage", kept_gib, "GiB", 0.020 / 30),
        priced("the model, `gemini-nano-banana-2.1`, 1K", A_DAY, "images", 0.0336),
    ]
    return list(map(row, lines))


def priced(what, quantity, unit, price):
    return [what, f"{quantity:,.0f} {unit}", f"{price:.9f}".rstrip("0"), f"{quantity * price:,.2f}"]


# ---- charts


def draw_starts(pyplot, results):
    figure, axes = pyplot.subplots(figsize=(8, 2.6))
    bars = [
        (what, name)
        for what in ["image", "health"]
        for name in ["flask", "fastapi", "iga", "minimal server"]
    ]
    bars = [
        (what, name)
        for what, name in bars
        if name in results["starts"][what] and (what, name) != ("image", "minimal server")
    ]
    for place, (what, name) in enumerate(bars):
        took = statistics.median(results["starts"][what][name])
        axes.barh(place, took, color=LOOK[name]["color"])
        axes.text(took * 1.1, place, f"{number(took)} ms", va="center")
    labels = {"image": "first image", "health": "first /health"}
    axes.set_yticks(range(len(bars)), [f"{name}, {labels[what]}" for what, name in bars])
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    plain_numbers(axes.xaxis)
    axes.set_xlabel("ms from exec")
    return figure


def draw_by_size(pyplot, results):
    figure, (cpu, memory) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    curves(cpu, results["by_size"], "cpu_ms", MIB)
    curves(memory, results["by_size"], "mib", MIB)
    for axes, label in [(cpu, "CPU, ms per image"), (memory, "peak RSS, MiB")]:
        axes.set_xlabel("image, MiB (16 at once)")
        axes.set_ylabel(label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_numbers(axes.xaxis)
        plain_numbers(axes.yaxis)
    mark_the_budget(memory)
    cpu.legend()
    return figure


def draw_by_concurrency(pyplot, results):
    figure, (cpu, memory) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    curves(cpu, results["by_concurrency"], "cpu_ms", 1)
    curves(memory, results["by_concurrency"], "mib", 1)
    for axes, label in [(cpu, "CPU, ms per image"), (memory, "peak RSS, MiB")]:
        axes.set_xlabel("at once (1.5 MiB, model latency 200 ms)")
        axes.set_ylabel(label)
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        axes.set_ylim(bottom=0)
    mark_the_budget(memory)
    cpu.legend()
    return figure


def plain_numbers(axis):
    axis.set_major_locator(ticker.LogLocator(subs=[1, 2, 5]))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def mark_the_budget(axes):
    axes.axhline(BUDGET_MIB, color="#999999", linestyle=":")
    axes.annotate(
        "budget",
        (0.02, BUDGET_MIB),
        xycoords=("axes fraction", "data"),
        va="bottom",
        color="#999999",
    )


def curves(axes, table, figure_name, unit):
    """A line for each program through the medians, and a band from the minimum to the maximum."""
    lines = {}
    for key, by_program in table.items():
        name, _, at = key.partition(" ")
        if name == figure_name:
            for program, figures in by_program.items():
                lines.setdefault(program, []).append(
                    (int(at) / unit, statistics.median(figures), min(figures), max(figures))
                )
    for program, points in lines.items():
        at, middle, least, most = zip(*sorted(points))
        axes.plot(at, middle, label=program, markersize=4, **LOOK[program])
        axes.fill_between(at, least, most, color=LOOK[program]["color"], alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
