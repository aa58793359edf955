#!/usr/bin/env python3
"""Makes the tables and pictures of docs/performance.md of what benches/run.py has measured.

Usage: benches/report.py, with the packages of benches/requirements.txt
"""

import json
import re
import statistics
from pathlib import Path

import matplotlib

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, PICTURES = DOCS / "performance.md", DOCS / "performance"
MIB = 1 << 20
BUDGET_MIB = 128
LOOK = {
    "iga": {"color": "#c0392b", "marker": "o", "linewidth": 2},
    "pipe": {"color": "#2c3e50", "marker": "s"},
    "floor": {"color": "#2c3e50", "marker": "s"},
    "fastapi": {"color": "#16a085", "marker": "^"},
    "flask": {"color": "#7f8c8d", "marker": "v"},
}


def main():
    results = json.loads((PICTURES / "results.json").read_text())
    instructions = int((Path(__file__).parent / "instructions.txt").read_text())
    text = PAGE.read_text()
    text = between(text, "bars", bars(results, instructions))
    text = between(text, "programs", programs(results))
    PAGE.write_text(text)
    matplotlib.use("svg")
    # Letters stay letters, and the same figures make the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "iga", "font.family": "sans-serif"})
    from matplotlib import pyplot

    for name, draw in [("starts", draw_starts), ("by_size", draw_by_size), ("by_concurrency", draw_by_concurrency)]:
        figure = draw(pyplot, results)
        figure.tight_layout()
        figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})


def between(text, name, lines):
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    assert pattern.search(text), f"{PAGE} has no place for {name}"
    return pattern.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


# ---- tables


def bars(results, instructions):
    """One line for each bar: IGA, its baseline, the better peer, and what was to be reached."""
    starts, pictures, memory, disk = (results[name] for name in ["starts", "pictures", "memory", "sizes_on_disk"])
    head = ["figure", "IGA", "baseline", "ratio", "bar", "better peer", "ratio", "bar"]
    lines = [
        line("exec to first `/health`, ms", starts["health"], "floor", 1.5, 0.01),
        line("exec to first picture, ms", starts["picture"], None, None, 0.01),
    ]
    for callers in [1, 16, 80]:
        lines.append(line(f"CPU per picture, {callers} at once, ms", pictures[f"cpu_ms {callers}"], "pipe", 1.5, 0.1))
    for percentile in ["p50", "p99"]:
        name = f"latency added, {percentile}, ms"
        lines.append(line(name, pictures[f"{percentile}_ms 1"], "pipe", 1.5, None))
    for name, figures, bar in [
        ("memory, idle, MiB", pictures["idle_mib"], 12),
        ("memory, 80 × 8 MiB in transfer, MiB", memory["in_transfer mib"], BUDGET_MIB + 64),
        ("memory, 1,000 × 1.5 MiB in flight, MiB", memory["in_flight mib"], BUDGET_MIB + 96),
    ]:
        lines.append(absolute(name, figures, bar))
    sizes = {name: [size / MIB] for name, size in disk.items()}
    lines.append(absolute("binary, MiB", sizes, 5))
    lines.append(["instructions, 8 MiB picture", f"{instructions / 1e6:.1f} M", *[""] * 6])
    return [row(head), row(["---"] * len(head)), *map(row, lines)]


def line(name, figures, baseline, bar, peer_bar):
    peer = better_peer(figures)
    cells = [name, shown(figures["iga"])]
    if baseline:
        cells += [f"{shown(figures[baseline])} {baseline}", *judged(figures, baseline, bar)]
    else:
        cells += ["", "", ""]
    return cells + ([f"{shown(figures[peer])} {peer}", *judged(figures, peer, peer_bar)] if peer else [""] * 3)


def absolute(name, figures, bar):
    peer, reached = better_peer(figures), statistics.median(figures["iga"]) <= bar
    cells = [name, shown(figures["iga"]), f"{shown(figures['pipe'])} pipe" if "pipe" in figures else ""]
    cells += ["", f"≤ {bar} {verdict(reached)}"]
    return cells + ([f"{shown(figures[peer])} {peer}", *judged(figures, peer, None)] if peer else [""] * 3)


def judged(figures, other, bar):
    ratio = statistics.median(figures["iga"]) / statistics.median(figures[other])
    said = f"{ratio:.2f}" if ratio >= 0.1 else f"1/{1 / ratio:.0f}"
    if bar is None:
        return [said, ""]
    wanted = f"≤ {bar}" if bar >= 0.5 else f"≤ 1/{1 / bar:.0f}"
    return [said, f"{wanted} {verdict(ratio <= bar)}"]


def verdict(reached):
    return "✓" if reached else "**missed**"


def better_peer(figures):
    present = [name for name in ["flask", "fastapi"] if name in figures]
    return min(present, key=lambda name: statistics.median(figures[name]), default=None)


def shown(figures):
    """The median, and the least and the most."""
    middle, least, most = (number(f(figures)) for f in [statistics.median, min, max])
    return middle if least == most else f"{middle} ({least}–{most})"


def number(figure):
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}" if figure >= 1 else f"{figure:.2f}"


def programs(results):
    """What each program did at 16 callers, and what the callers and the upstream could do."""
    pictures, machine = results["pictures"], results["machine"]
    most, _ = results["ceiling"]["16"]
    cells = [["program", "pictures a second, 16 at once", "of the ceiling", "failed of 1,000 at once"]]
    for name in results["programs"]:
        speed = pictures["per_second 16"][name]
        failed = results["memory"]["in_flight failed"][name]
        share = f"{statistics.median(speed) / most:.0%}"
        cells.append([name, shown(speed), share, number(statistics.median(failed)) if any(failed) else "none"])
    cells.insert(1, ["---"] * 4)
    where = f"{machine['cpu'].strip()}, {machine['cores']} cores, Linux {machine['kernel'].split('-')[0]}"
    return [f"Measured on: {where}. Ceiling: {number(most)} pictures of 1.5 MiB a second.", "", *map(row, cells)]


def row(cells):
    return "| " + " | ".join(cells) + " |"


# ---- pictures


def draw_starts(pyplot, results):
    figure, axes = pyplot.subplots(figsize=(8, 2.6))
    bars = [(what, name) for what in ["picture", "health"] for name in ["flask", "fastapi", "iga", "floor"]]
    bars = [(what, name) for what, name in bars if name in results["starts"][what] and (what, name) != ("picture", "floor")]
    for place, (what, name) in enumerate(bars):
        took = statistics.median(results["starts"][what][name])
        axes.barh(place, took, color=LOOK[name]["color"])
        axes.text(took * 1.1, place, f"{number(took)} ms", va="center")
    labels = {"picture": "first picture", "health": "first /health"}
    axes.set_yticks(range(len(bars)), [f"{name}, {labels[what]}" for what, name in bars])
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    axes.set_xlabel("ms from exec")
    return figure


def draw_by_size(pyplot, results):
    figure, (cpu, memory) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    curves(cpu, results["by_size"], "cpu_ms", MIB)
    curves(memory, results["by_size"], "mib", MIB)
    for axes, label in [(cpu, "CPU, ms a picture"), (memory, "peak RSS, MiB")]:
        axes.set_xlabel("picture, MiB (16 at once)")
        axes.set_ylabel(label)
        axes.set_yscale("log")
    memory.axhline(BUDGET_MIB, color="#bbbbbb", linestyle=":", label="budget")
    cpu.legend()
    memory.legend()
    return figure


def draw_by_concurrency(pyplot, results):
    figure, (cpu, memory) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    curves(cpu, results["by_concurrency"], "cpu_ms", 1)
    curves(memory, results["by_concurrency"], "mib", 1)
    for axes, label in [(cpu, "CPU, ms a picture"), (memory, "peak RSS, MiB")]:
        axes.set_xlabel("at once (1.5 MiB, 200 ms of latency)")
        axes.set_ylabel(label)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
    memory.axhline(BUDGET_MIB, color="#bbbbbb", linestyle=":", label="budget")
    cpu.legend()
    memory.legend()
    return figure


def curves(axes, table, figure_name, unit):
    """A line for each program through the medians, and a band from the least to the most."""
    lines = {}
    for key, by_program in table.items():
        name, _, at = key.partition(" ")
        if name == figure_name:
            for program, figures in by_program.items():
                lines.setdefault(program, []).append((int(at) / unit, statistics.median(figures), min(figures), max(figures)))
    for program, points in lines.items():
        at, middle, least, most = zip(*sorted(points))
        axes.plot(at, middle, label=program, markersize=4, **LOOK[program])
        axes.fill_between(at, least, most, color=LOOK[program]["color"], alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
