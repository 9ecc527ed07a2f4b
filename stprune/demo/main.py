"""The demo from options to report."""

from __future__ import annotations

import importlib.util
import json
import shutil
import textwrap
import time
from dataclasses import asdict
from typing import Any

import torch

from stprune.demo import machine
from stprune.demo.data import DemoSeries, load, repeated_nodes
from stprune.demo.delivery import ROUNDS, DeliveryTimes, compare_deliveries
from stprune.demo.options import QUICK_DAYS, QUICK_NODES, DemoOptions
from stprune.demo.records import RunRecord, summarize
from stprune.demo.runs import Group, label
from stprune.demo.table import as_text, columns, legend
from stprune.demo.train import Trainer
from stprune.demo.verdict import delivery_sentence, sentences
from stprune.demo.windows import Problem, prepare


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Train all runs, print the table, write report.html and results.json.

    Args:
        options: settings; resolved here.

    Returns:
        What results.json holds.

    Raises:
        ValueError: a setting or the data is not usable.
        OSError: the data cannot be read or the output not written.
        ModuleNotFoundError: tqdm, matplotlib or the data's package is not installed.
    """
    options = options.resolve()
    for module in ("tqdm", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"stprune demo: needs {module}; install it with `pip install 'stprune[demo]'`")
    # Before minutes of training, not after.
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    series = load(options.data, steps_per_day=options.steps_per_day)
    if options.quick:
        series = series.cut(QUICK_DAYS * series.steps_per_day, QUICK_NODES)
    device = torch.device(options.device)
    problem = prepare(series, device=device, null_value=options.null_value)
    print(_introduction(options, series, problem), flush=True)
    trainer = Trainer.of(problem, options.model, steps_per_day=series.steps_per_day)
    records = _train(options, trainer)
    delivery = _compare_deliveries(options, trainer)
    result = _result(options, series, problem, records, delivery, total_seconds=time.perf_counter() - started)
    _write(result, records, series, problem, options)
    print(_conclusion(result, options), flush=True)
    return result


def _introduction(options: DemoOptions, series: DemoSeries, problem: Problem) -> str:
    train, test = problem.split.train, problem.split.test
    return (
        f"{series.name}: {series.values.shape[0]:,} steps x {problem.num_nodes} nodes, {len(train):,} training windows "
        f"({'all' if train.stride == 1 else f'one every {train.stride} steps'}), {len(test):,} test windows.\n"
        f"{options.model} on {machine.device_name(problem.device)}, {machine.cores()} cores, {options.epochs} epochs, "
        f"{len(options.runs)} runs taking turns" + (f", {options.seeds} seeds." if options.seeds > 1 else ".")
    )


def _train(options: DemoOptions, trainer: Trainer) -> list[RunRecord]:
    from stprune.demo.progress import Progress

    records: list[RunRecord] = []
    for seed in range(options.seeds):
        group = Group(options, trainer, seed)
        group.start()
        with Progress(options, seed, group.planned) as progress:
            for name, record, epochs in group.turns():
                progress.add(name, epochs)
                progress.advance(name, record)
        records += group.finish()
    return records


def _compare_deliveries(options: DemoOptions, trainer: Trainer) -> dict[str, DeliveryTimes]:
    from stprune.demo.progress import bar

    with bar("full training by DataLoader", 2 * (1 + ROUNDS)) as ticks:
        return compare_deliveries(trainer, batch_size=options.batch_size, seed=0, tick=ticks.update)


def _result(
    options: DemoOptions,
    series: DemoSeries,
    problem: Problem,
    records: list[RunRecord],
    delivery: dict[str, DeliveryTimes],
    *,
    total_seconds: float,
) -> dict[str, Any]:
    rows = summarize(records)
    labels = {name: label(name, keep_ratio=options.keep_ratio, node_ratio=options.node_ratio) for name in options.runs}
    layout = columns(rows, labels, series.unit)
    constant, copies = repeated_nodes(series.values[: problem.split.train.stop])
    findings = sentences(rows, labels, num_seeds=options.seeds, num_nodes=problem.num_nodes, repeated_nodes=constant + copies)
    findings.append(delivery_sentence(delivery))
    if options.quick:
        findings.insert(0, "A quick run on a cut series: it shows that everything works; its numbers mean nothing.")
    settings = {key: str(value) if key == "output" else value for key, value in vars(options).items()}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": settings,
        "data": {
            "name": series.name,
            "source": series.source,
            "unit": series.unit,
            "steps": series.values.shape[0],
            "nodes": problem.num_nodes,
            "constant_nodes": constant,
            "copied_nodes": copies,
            "train_windows": len(problem.split.train),
            "stride": problem.split.train.stride,
            "validation_windows": len(problem.split.validation),
            "test_windows": len(problem.split.test),
            "mape_floor": problem.mape_floor,
        },
        "machine": machine.describe(problem.device),
        "total_seconds": total_seconds,
        "peak_memory_mib": machine.peak_memory(),
        "labels": labels,
        "rows": [asdict(row) for row in rows],
        "legend": legend(layout),
        "findings": findings,
        "table": as_text(rows, layout),
        "delivery": {name: asdict(times) for name, times in delivery.items()},
        "runs": [record.as_json() for record in records],
    }


def _write(
    result: dict[str, Any], records: list[RunRecord], series: DemoSeries, problem: Problem, options: DemoOptions
) -> None:
    from stprune.demo.report import render

    (options.output / "results.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    page = render(result, records, series, problem, options)
    (options.output / "report.html").write_text(page, encoding="utf-8")


def _conclusion(result: dict[str, Any], options: DemoOptions) -> str:
    width = min(110, shutil.get_terminal_size().columns)
    findings = [textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  ") for text in result["findings"]]
    closing = (
        f"{result['total_seconds']:.0f} s and at most {result['peak_memory_mib']:,.0f} MiB of memory, all runs in one process. "
        f"Report: {options.output / 'report.html'}"
    )
    parts = [result["table"], textwrap.fill(result["legend"], width), "\n".join(findings), closing]
    return "\n" + "\n\n".join(parts)
