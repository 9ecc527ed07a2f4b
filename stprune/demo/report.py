"""report.html: one file, no outside resources."""

from __future__ import annotations

import base64
import html
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stprune.demo import figures
from stprune.demo.data import DemoSeries
from stprune.demo.delivery import ROUNDS
from stprune.demo.options import DemoOptions
from stprune.demo.records import Row, RunRecord, summarize
from stprune.demo.runs import NUM_STRATA
from stprune.demo.table import cells, columns
from stprune.demo.train import GRADIENT_CLIP, LEARNING_RATE, WEIGHT_DECAY
from stprune.demo.windows import HISTORY, HORIZON, Problem

_STYLE = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e1e6eb; --paper: #ffffff; --tint: #f5f7f9; --best: #e6f4ef; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
p { margin: .5rem 0; max-width: 50rem; }
.lead { color: var(--soft); font-size: 1.05rem; }
ul { padding-left: 1.2rem; max-width: 50rem; }
li { margin: .4rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; margin: 1.6rem 0;
  max-width: 58rem; }
.card { background: var(--tint); border-radius: .5rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .88rem; line-height: 1.35; display: block; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.result { width: 100%; font-size: .8rem; }
.result th, .result td { padding: .38rem .3rem; }
.result th:first-child, .result td:first-child { padding-left: 0; white-space: normal; min-width: 9.5rem; }
.result small { display: block; color: var(--soft); }
th, td { padding: .38rem .55rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.best { background: var(--best); font-weight: 600; }
.plain td { text-align: left; white-space: normal; vertical-align: top; }
.plain td:first-child { color: var(--soft); white-space: nowrap; padding-right: 1.5rem; }
figure { margin: .8rem 0 0; overflow-x: auto; max-width: 58rem; }
figure img { width: 100%; min-width: 36rem; height: auto; display: block; }
.note { color: var(--soft); font-size: .9rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


def render(result: dict[str, Any], records: list[RunRecord], series: DemoSeries, problem: Problem, options: DemoOptions) -> str:
    """Build the page.

    Args:
        result: what results.json holds.
        records: all runs of all seeds; the figures show the first seed.
        series: the series that was trained on.
        problem: its split.
        options: resolved options.

    Returns:
        HTML text that refers to nothing outside itself.
    """
    rows = summarize(records)
    labels: dict[str, str] = result["labels"]
    first = [record for record in records if record.seed == records[0].seed]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>stprune demo: {html.escape(series.name)}</title><style>{_STYLE}</style></head><body><main>",
        "<h1>Full training against pruned training</h1>",
        f'<p class="lead">{_lead(result, options)}</p>',
        _cards(rows, labels),
        "<h2>Result</h2>",
        _table(rows, labels, series.unit),
        "<h2>What the loader is worth</h2>",
        _delivery(result["delivery"]),
        "<h2>What it says</h2>",
        "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in result["findings"]) + "</ul>",
        _pictures(first, labels, series, problem, options),
        "<h2>Conditions</h2>",
        _conditions(result, options),
        f"<footer>Made by stprune {html.escape(result['machine']['versions']['stprune'])}, {result['date']}. "
        f"Data: {html.escape(series.source)}.</footer>",
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _lead(result: dict[str, Any], options: DemoOptions) -> str:
    data = result["data"]
    seeds = "one seed" if options.seeds == 1 else f"{options.seeds} seeds (mean ± standard deviation)"
    text = (
        f"{data['name']}, {data['steps']:,} steps x {data['nodes']} nodes. {options.model.upper()} forecasts {HORIZON} steps "
        f"from {HISTORY}. All runs start from the same weights and take turns on the same machine, epoch by epoch; {seeds}."
    )
    return html.escape(text)


def _cards(rows: list[Row], labels: dict[str, str]) -> str:
    """The headline numbers of the node-pruned runs, or of whatever pruned runs there are."""
    shown = [row for row in rows if row.name in ("nodes", "nodes-long", "st-prune")] or rows[1:]
    cards = []
    for row in shown[:3]:
        time = f"{row.speedup[0]:.1f}x as fast" if row.speedup[0] >= 1.05 else f"{1 / row.speedup[0]:.2f}x the time"
        cards.append(
            f'<div class="card"><b>{time}</b><b>{row.mae_change[0]:+.1f}% MAE</b>'
            f"<span>{html.escape(labels[row.name])}, against full training</span></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _table(rows: list[Row], labels: dict[str, str], unit: str) -> str:
    layout = columns(rows, labels, unit)
    heading, *lines = cells(rows, layout)
    best = min(range(len(rows)), key=lambda i: rows[i].mae[0])
    head = "".join(
        f'<th title="{html.escape(column.meaning)}">{html.escape(text)}</th>'
        for column, text in zip(layout, heading, strict=True)
    )
    body = []
    for i, line in enumerate(lines):
        marked = [
            f'<td class="best">{_cell(text)}</td>' if i == best and column.title == "MAE" else f"<td>{_cell(text)}</td>"
            for column, text in zip(layout, line, strict=True)
        ]
        body.append(f"<tr>{''.join(marked)}</tr>")
    legend = "; ".join(f"<b>{html.escape(c.title)}</b> {html.escape(c.meaning)}" for c in layout if c.meaning)
    return (
        f'<div class="wide"><table class="result"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'<p class="note">{legend}. Time, speed-up and overhead are measured; sampler and scoring are inside the time.</p>'
    )


def _cell(text: str) -> str:
    """A cell's text, its spread on a line of its own."""
    mean, sign, spread = html.escape(text).partition(" ±")
    return f"{mean}<small>±{spread}</small>" if sign else mean


def _delivery(delivery: dict[str, dict[str, float]]) -> str:
    head = "<tr><th>batches by</th><th>an epoch of full training</th><th>its batches alone</th><th>validation MAE</th></tr>"
    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{times['training']:.2f} s</td><td>{1e3 * times['alone']:.0f} ms</td>"
        f"<td>{times['validation_mae']:.5g}</td></tr>"
        for name, times in delivery.items()
    )
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _figure(svg: str, alt: str) -> str:
    # As an image, the ids inside each SVG stay apart from those of the others.
    data = base64.b64encode(svg.encode()).decode()
    return f'<figure><img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}"></figure>'


def _pictures(
    records: list[RunRecord], labels: dict[str, str], series: DemoSeries, problem: Problem, options: DemoOptions
) -> str:
    parts = [
        "<h2>Validation MAE against wall time</h2>",
        "<p>Dots mark the epoch whose weights were tested.</p>",
        _figure(
            figures.validation_curves(records, labels, series.unit),
            "Validation MAE of every run against its wall time of training",
        ),
        "<h2>How much of the data an epoch uses</h2>",
        "<p>The first epoch of a method that needs scores is full, since nothing is known yet; the last eighth of the epochs "
        "is full again (annealing), which takes the bias out of the end of the training. Drawing nodes keeps every window "
        "and takes a fresh part of its nodes each time.</p>",
        _figure(figures.data_shares(records, labels), "Share of the training pairs used in each epoch, per run"),
    ]
    scored = next((r for r in records if r.name == "st-prune" and len(r.scores)), None)
    scored = scored or next((r for r in records if len(r.scores) and r.pruned_epochs), None)
    if scored is not None:
        parts += [
            "<h2>Scores over the epochs</h2>",
            f"<p>{html.escape(labels[scored.name])}: what the sampler knows of each window, after the given epochs. Dotted "
            "lines are medians.</p>",
            _figure(figures.score_histograms(scored.scores, series.unit), "Histogram of the windows' scores over epochs"),
        ]
        if scored.pruned_epochs:
            parts.append(_when(scored, labels[scored.name], series, problem))
    # Draws by error say more than uniform ones.
    drawing = next((r for name in ("nodes-priority", "nodes") for r in records if r.name == name), None)
    where = drawing or scored or records[0]
    parts.append(_where(where, labels[where.name], series))
    return "\n".join(parts)


def _when(run: RunRecord, label: str, series: DemoSeries, problem: Problem) -> str:
    """The calendar of the windows that a run kept."""
    train = problem.split.train
    calendar = figures.Calendar(
        share=(run.kept / run.pruned_epochs).astype(np.float32),
        first_step=train.first_rows + HISTORY,
        stride=train.stride,
        steps_per_day=series.steps_per_day,
        time_of_day=series.time_of_day,
        day_of_week=series.day_of_week,
        first_day=series.first_day,
    )
    return "\n".join(
        [
            "<h2>When does the model still learn?</h2>",
            f"<p>{html.escape(label)}: how often each window was kept in the {run.pruned_epochs} pruned epochs. A window's "
            "place is the first step it forecasts. With purely random pruning every field would tend to the same value, "
            f"{100 * float(calendar.share.mean()):.0f}%.</p>",
            _figure(figures.kept_calendar(calendar), "Calendar of how often each window was kept"),
            f"<p>{html.escape(_hours(calendar))}</p>",
        ]
    )


def _where(run: RunRecord, label: str, series: DemoSeries) -> str:
    """The nodes whose error still falls, and those that are drawn."""
    share = (run.drawn / run.windows).astype(np.float32)
    # Uniform draws give no picture.
    uneven = bool(share.max() > 1.5 * share.min())
    draws = ""
    if share.any():
        how = "nodes" if uneven else "every node about equally often,"
        draws = f" It drew {how} in {share.min():.1%} to {share.max():.1%} of the windows."
    return "\n".join(
        [
            "<h2>Where does the model still learn?</h2>",
            f"<p>{html.escape(label)}: the error of every node on the validation windows, while training goes on.{draws}</p>",
            _figure(
                figures.node_errors(run.node_mae, share if uneven else None, series.unit),
                "Error of every node after the first epoch and at the end, and what the second half of the run changed",
            ),
            f"<p>{html.escape(_nodes(run.node_mae, series.node_names))}</p>",
        ]
    )


def _nodes(node_mae: NDArray[np.float32], names: tuple[str, ...]) -> str:
    """Which nodes the second half of a run improved, in words."""
    half = len(node_mae) // 2
    fall = np.nan_to_num(node_mae[half] - node_mae[-1], nan=0.0)
    gained = np.maximum(fall, 0.0)
    better = int((fall > 0.02 * np.nan_to_num(node_mae[half], nan=0.0)).sum())
    text = f"After epoch {half + 1} the error of {better} of {len(names)} nodes still fell by more than 2%."
    if gained.sum() > 0:
        order = np.argsort(-gained, kind="stable")
        top = order[: max(1, len(names) // 10)]
        text += (
            f" The tenth of the nodes where it fell most holds {gained[top].sum() / gained.sum():.0%} of the gain; first among "
            f"them: {', '.join(names[node] for node in top[:5])}."
        )
    return text


def _hours(calendar: figures.Calendar) -> str:
    """The most and least kept hours, in words."""
    hour = (calendar.time_of_day[calendar.first_step] * 24).astype(np.int64)
    count = np.bincount(hour, minlength=24)
    mean = np.bincount(hour, weights=calendar.share, minlength=24) / np.maximum(count, 1)
    order = [int(h) for h in np.argsort(-mean, kind="stable") if count[h]]
    weekend = calendar.day_of_week[calendar.first_step] >= 5
    text = (
        f"Kept most: forecasts that begin in the hour from {order[0]}:00 ({mean[order[0]]:.0%} of the pruned epochs); "
        f"least: from {order[-1]}:00 ({mean[order[-1]]:.0%})."
    )
    if weekend.any() and not weekend.all():
        text += f" Weekends: {calendar.share[weekend].mean():.0%}, Monday to Friday: {calendar.share[~weekend].mean():.0%}."
    return text


def _beginnings(data: dict[str, Any]) -> str:
    return (
        "A training window begins at every step" if data["stride"] == 1 else f"One training window every {data['stride']} steps"
    )


def _conditions(result: dict[str, Any], options: DemoOptions) -> str:
    data, machine = result["data"], result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    kernels = ", ".join(f"{name} {'in use' if used else 'not in use'}" for name, used in machine["libraries"].items())
    unit = f" {data['unit']}" if data["unit"] else ""
    lines = [
        (
            "Machine",
            f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; trained on {machine['device']}",
        ),
        ("Memory", f"at most {result['peak_memory_mib']:,.0f} MiB in RAM, for all runs together, which share one process"),
        ("Versions", versions),
        ("Compiled kernels", kernels),
        (
            "Data",
            f"{data['source']}. Chronological split 6:2:2; z-score by the training part. Of {data['nodes']} nodes, "
            f"{data['constant_nodes']} are constant in the training part and {data['copied_nodes']} copy another up "
            f"to scale. {_beginnings(data)} "
            f"({data['train_windows']:,}, all times of day occur); validation after every "
            f"epoch on {data['validation_windows']:,} fixed windows; test on all {data['test_windows']:,} windows of the "
            "last fifth. Evaluation always uses all nodes.",
        ),
        (
            "Training",
            f"{options.model}, Adam, learning rate {LEARNING_RATE[options.model]:g} falling along a cosine of the "
            f"run's own optimizer steps to a hundredth, weight decay {WEIGHT_DECAY:g}, gradient clip "
            f"{GRADIENT_CLIP:g}, batches of {options.batch_size} windows, masked MAE in the data's unit, weights of "
            "the best validation epoch are tested.",
        ),
        (
            "Pruning",
            f"keep ratio {options.keep_ratio:g} up to 7/8 of the epochs, then everything; ST-Prune calibrates its "
            f"weights in {NUM_STRATA} strata of stationarity; InfoBatch drops {1 - options.keep_ratio:.0%} of the "
            f"windows that score below the mean and takes its weights as they are; node runs keep every window and draw "
            f"{options.node_ratio:.0%} of its nodes afresh in every epoch, uniformly or, where it says so, by their last error "
            "and weighted back.",
        ),
        ("Equal steps", "Full training whose epochs are cut so that it takes as many optimizer steps as ST-Prune on windows."),
        (
            "Clock",
            "Runs take turns epoch by epoch, so that a change in the machine's speed hits all alike; each has its own "
            "clock, which counts planning, scoring, waiting for batches and training, and stands still during evaluation.",
        ),
        (
            "Batches",
            "WindowLoader cuts every batch of every run, of training and evaluation, from the series in memory, in a thread a "
            "few batches ahead; the windows of node runs are cut at the drawn nodes only. For comparison, fresh models were "
            f"trained for {ROUNDS} epochs (after one that warms up) with batches of a DataLoader over a data set that slices "
            "one window at a time from the normalised series, and with those of WindowLoader, epoch by epoch in turns: same "
            "batches, same validation MAE.",
        ),
        (
            "Overhead",
            "Measured: time to plan epochs; to give out ids and draw nodes, which happens in the loader's thread and is "
            "done once more for every epoch while the clock stands; and, on one batch per epoch, forward and backward of the "
            "pruned loss less the plain one, times the number of steps. Measuring stationarity is in it.",
        ),
        (
            "MAPE",
            f"over targets of at least {data['mape_floor']:.3g}{unit} (a tenth of the standard deviation), as smaller "
            "ones would blow it up",
        ),
    ]
    body = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in lines)
    return f'<div class="wide"><table class="plain"><tbody>{body}</tbody></table></div>'
