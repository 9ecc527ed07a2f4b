"""Draw time against the number of keys, or print the tables of the READMEs, from the committed rows.

python benchmarks/plot.py                 # benchmarks/results/selection-cpu.svg
python benchmarks/plot.py --table         # markdown: the selection, a table for each kind of machine
python benchmarks/plot.py --table loss    # the same of the loss
python benchmarks/plot.py --table short   # the README's few lines of both
python benchmarks/plot.py --table gpu     # targets on a GPU and what was measured there; `gpu-short`: the README's
python benchmarks/plot.py --device cuda --rows FILE --out PICTURE
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import gpu_targets
import records

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
PANELS = (
    ("select k=n/2", "Select the larger half"),
    ("draw_weighted k=n/2 priority", "Weighted draw of half, no replacement"),
    ("threshold draw (mean, Bernoulli, ids, weights)", "Threshold draw with weights"),
    ("InfoBatch plan with order", "Epoch plan with its shuffled order"),
)
OURS = ("stprune, out=", "stprune")
"""The contenders that stand for us, best known first: with buffers of the caller's where the call takes them."""
INK, OWN, LIMIT = "#3b3b3b", "#c2410c", "#94a3b8"
OTHERS = ("#1d4ed8", "#0f766e", "#7c3aed", "#a16207", "#64748b")


def main() -> int:
    """Print or draw; 1 when there are no rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="?", const="selection", choices=TABLES, help="print it, draw nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=pathlib.Path, help="file of rows; results/selection-DEVICE.jsonl")
    parser.add_argument("--out", type=pathlib.Path, help="picture to write; beside the rows")
    parser.add_argument("--allocator", default="default")
    options = parser.parse_args()
    if options.table in ("gpu", "gpu-short"):
        print(gpu_targets.table(RESULTS, short=options.table == "gpu-short"))
        return 0
    names = {None: ["selection"], "short": ["selection", "loss"]}.get(options.table, [options.table])
    sources = [options.rows] if options.rows else [RESULTS / f"{name}-{options.device}.jsonl" for name in names]
    source = sources[0]
    rows = [row for file in sources for row in records.read(file) if row["allocator"] == options.allocator]
    if not rows:
        print(f"{source} has no rows of the {options.allocator} allocator: run benchmarks/run.py", file=sys.stderr)
        return 1
    machines = [[row for row in rows if row["device"] == name] for name in dict.fromkeys(row["device"] for row in rows)]
    if options.table == "short":
        print("\n".join([*SHORT_HEAD, *(line for own in machines for line in short_lines(own))]))
    elif options.table:
        print("\n\n".join(map(loss_table if options.table == "loss" else table, machines)))
    else:
        target = options.out or source.with_suffix(".svg")
        draw(machines[0], target)
        print(target)
    return 0


TABLES = ("selection", "loss", "short", "gpu", "gpu-short")
SHORT_HEAD = ("| one thread | passes | time | times as fast as | machine |", "| --- | ---: | ---: | --- | --- |")
SHORT_JOBS = {
    "select k=n/2": "the larger half of 10^7 keys",
    "draw_weighted k=n/2 priority": "a weighted draw of half of 10^7",
    "threshold draw (mean, Bernoulli, ids, weights)": "InfoBatch's draw from 10^7, with weights",
    "InfoBatch plan with order": "InfoBatch's whole plan of 10^7, with its order",
    "PrunedLoss masked + backward (64, 12, 8600) float32": "masked loss and gradient, 64 x 12 x 8,600",
}
"""Jobs of the README's table, and what they are called there."""
LOSS_RIVALS = {
    "field's eager masked MAE": "eager masked MAE",
    "torch.compile of eq. 1-4": "torch.compile of eq. 1-4",
    "(prediction - target).abs().mean()": "plain `(p - t).abs().mean()`",
}


def loss_table(rows: list[records.Row]) -> str:
    """The loss, float32, as markdown: our time, and each rival's as a multiple of it."""
    threads = sorted({row["threads"] for row in rows})
    lines = [
        "| job, float32 | threads | ours | " + " | ".join(LOSS_RIVALS.values()) + " | passes |",
        "| --- | ---: | ---: |" + " ---: |" * (len(LOSS_RIVALS) + 1),
    ]
    for job in dict.fromkeys(row["job"] for row in rows if row["job"].endswith("float32")):
        for count in threads:
            here = {row["contender"]: row for row in rows if row["job"] == job and row["threads"] == count}
            ours = here["stprune"]["median_ms"]
            ratios = [f"{here[name]['median_ms'] / ours:.1f}x" if name in here else "" for name in LOSS_RIVALS]
            name = job.removesuffix(" float32")
            lines.append(f"| {name} | {count} | {ours:.2f} ms | {' | '.join(ratios)} | {here['stprune']['passes']:.1f} |")
    return "\n".join(lines)


def best(rows: list[records.Row], job: object, threads: int, sizes: tuple[int, ...]) -> tuple[records.Row, ...] | None:
    """Our row of a job, with the caller's buffers where there is one, and that of its fastest rival."""
    here = {row["contender"]: row for row in rows if row["job"] == job and row["threads"] == threads and row["n"] in sizes}
    rivals = [row for name, row in here.items() if not str(name).startswith("stprune") and name != "one pass"]
    ours = next((here[name] for name in OURS if name in here), None)
    return (ours, min(rivals, key=lambda row: row["median_ms"])) if ours and rivals else None


def largest(rows: list[records.Row]) -> int:
    """The largest number of keys that most rivals were timed on."""
    return max((row["n"] for row in rows if row["job"] == "select k=n/2" and row["contender"] == "torch.sort"), default=0)


def short_lines(rows: list[records.Row]) -> list[str]:
    """A machine's lines of the README's table."""
    lines = []
    size = largest(rows)
    for job, name in SHORT_JOBS.items():
        sizes = (size, size // 2, *(row["n"] for row in rows if row["job"] == job and "PrunedLoss" in job))
        if pair := best(rows, job, 1, sizes):
            ours, rival = pair
            ratio = f"{rival['median_ms'] / ours['median_ms']:.1f}x {rival['contender']}"
            lines.append(f"| {name} | {ours['passes']:.1f} | {ours['median_ms']:.1f} ms | {ratio} | {ours['device']} |")
    return lines


def table(rows: list[records.Row]) -> str:
    """The jobs that have rivals, at the largest size that has most of them, as markdown."""
    size = largest(rows)
    sizes = (size, size // 2)
    lines = [
        f"| job, n = 10^{len(str(size)) - 1} | threads | passes | ours | fastest rival | ratio |",
        "| --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for job in dict.fromkeys(row["job"] for row in rows if row["n"] in sizes):
        for count in sorted({row["threads"] for row in rows}):
            if pair := best(rows, job, count, sizes):
                ours, rival = pair
                lines.append(
                    f"| {job} | {count} | {ours['passes']:.1f} | {ours['median_ms']:.2f} ms "
                    f"| {rival['contender']}, {rival['median_ms']:.1f} ms | {rival['median_ms'] / ours['median_ms']:.1f}x |"
                )
    about = rows[-1]
    lines += [
        "",
        f"{about['device']}, {about['cores']} cores, torch {about['torch']}, NumPy {about['numpy']}, {about['date']}"
        + ("." if about["allocator"] == "default" else f"; {about['allocator']} allocator."),
    ]
    return "\n".join(lines)


def draw(rows: list[records.Row], target: pathlib.Path) -> None:
    """A panel a job: milliseconds against n on one thread, with the time of one pass over the input as the limit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "0"})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13.5, 3.9), sharey=True)
    for axis, (job, title) in zip(axes, PANELS, strict=True):
        own = [row for row in rows if row["job"] == job and row["threads"] == 1]
        names = list(dict.fromkeys(row["contender"] for row in own))
        rivals = [name for name in names if not str(name).startswith("stprune") and name != "one pass"]
        right = max((row["n"] for row in own), default=1)
        end = []
        for name, colour in [("one pass", LIMIT), *zip(rivals, OTHERS, strict=False), ("stprune", OWN)]:
            ours = name == "stprune"
            # At each size ours as it is used best; what was not timed there leaves the next best.
            line = {
                row["n"]: row["median_ms"]
                for one in (reversed(OURS) if ours else [name])
                for row in own
                if row["contender"] == one
            }
            if not line:
                continue
            style = {"lw": 2.4, "marker": "o", "ms": 4} if ours else {"lw": 1.2, "marker": "o", "ms": 2.5}
            if name == "one pass":
                style = {"lw": 1.2, "ls": (0, (4, 3))}
            axis.plot(*zip(*sorted(line.items()), strict=True), color=colour, **style)
            last = max(line)
            label = "one read of the keys" if name == "one pass" else str(name)
            if last < right:
                # A rival that larger sizes leave out: named above its own end, where nothing else begins.
                axis.annotate(
                    label, (last, line[last]), (-2, 5), textcoords="offset points", color=colour, ha="right", fontsize=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
                )  # fmt: skip
            else:
                end.append((line[last], label, colour, ours))
        _label_lines(axis, end, right)
        axis.set(xscale="log", yscale="log", xlabel="number of keys n")
        axis.set_title(title, loc="left", fontweight="bold", fontsize=9.5)
        axis.grid(True, which="major", color="#e5e7eb", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.minorticks_off()
        axis.set_xlim(right=right * 30)
    axes[0].set_ylabel("milliseconds, one thread")
    figure.tight_layout(w_pad=1.2)
    figure.savefig(target, dpi=160, metadata={"Date": None} if target.suffix == ".svg" else None)


def _label_lines(axis: object, ends: list[tuple[float, str, str, bool]], right: float) -> None:
    """Name every line at its end; names that would lie over each other are pushed apart."""
    place = 0.0
    for height, label, colour, bold in sorted(ends):
        place = max(height, place * 1.75)
        axis.annotate(  # type: ignore[attr-defined]
            label, (right, place), (5, 0), textcoords="offset points", color=colour, va="center", fontsize=7,
            fontweight="bold" if bold else "normal",
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
