"""The `stprune` command: `stprune demo`, `stprune headroom` and `stprune info`."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import torch

import stprune
from stprune.demo import machine
from stprune.demo.headroom import HeadroomOptions
from stprune.demo.options import MODELS, RUNS, DemoOptions

_FAILED = 1
_BAD_INPUT = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None takes the process's own.

    Returns:
        Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted. A failure prints one line on standard error.

    Example:
        >>> from stprune.cli import main
        >>> main(["info"])  # doctest: +ELLIPSIS
        stprune ...
        0
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    if options.command in ("demo", "headroom") and arguments is None:
        _restart_with_waiting_threads()
    try:
        if options.command == "info":
            print(info())
        elif options.command == "headroom":
            _headroom(options)
        else:
            _demo(options)
    except KeyboardInterrupt:
        print(f"stprune {options.command}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _report(options.command, error, _BAD_INPUT)
    except RuntimeError as error:
        return _report(options.command, error, _FAILED)
    return 0


def _restart_with_waiting_threads() -> None:
    """Start this program again with OpenMP threads that sleep while they wait, unless the caller has chosen.

    By default they spin, and on a machine with one busy neighbour every parallel region of a small model then waits for a
    time slice: training was 10 times slower. The setting is read when torch is loaded, so it must be there before.
    """
    if os.name == "posix" and "OMP_WAIT_POLICY" not in os.environ:
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _report(command: str, error: Exception, status: int) -> int:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    print(f"stprune {command}: error: {text}", file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    defaults = DemoOptions()
    parser = argparse.ArgumentParser(prog="stprune", description="Dynamic sample pruning for spatio-temporal training.")
    parser.add_argument("--version", action="version", version=f"stprune {stprune.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="versions, devices, and which kernels are loaded and why not")
    demo = commands.add_parser(
        "demo",
        help="train with and without pruning on a real series; prints a table and writes a report",
        description="Train one model on one series with full and with pruned training, taking turns on this machine; print one "
        "table, write report.html and results.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--data",
        default=defaults.data,
        metavar="NAME|PATH",
        help="simbench (pip install --no-deps simbench), synthetic, or a file or folder that stprune.read_series reads",
    )
    demo.add_argument("--model", default=defaults.model, choices=MODELS, help="model to train")
    demo.add_argument("--epochs", type=int, metavar="N", help="epochs of the full run (default: by the model)")
    demo.add_argument(
        "--keep-ratio", type=float, default=defaults.keep_ratio, metavar="R", help="share of the windows an epoch keeps"
    )
    demo.add_argument(
        "--node-ratio", type=float, default=defaults.node_ratio, metavar="R", help="share of the nodes drawn per window"
    )
    demo.add_argument(
        "--method",
        action="append",
        choices=RUNS,
        metavar="RUN",
        help=f"a run to make, beside full training; may be given several times. Default: {', '.join(defaults.runs)}. "
        f"All: {', '.join(RUNS)}",
    )
    demo.add_argument("--device", default=defaults.device, help="auto (CUDA where present), cpu, cuda, ...")
    demo.add_argument("--seeds", type=int, default=defaults.seeds, metavar="N", help="repeat with N seeds, show the spread")
    demo.add_argument("--batch-size", type=int, default=defaults.batch_size, metavar="N", help="windows per step")
    demo.add_argument("--null-value", type=float, metavar="X", help="value that means missing, e.g. 0 for traffic data")
    demo.add_argument("--steps-per-day", type=int, metavar="N", help="of a series read from a path (default: from the file)")
    demo.add_argument("--output", type=pathlib.Path, default=defaults.output, metavar="DIR", help="folder for the report")
    demo.add_argument("--quick", action="store_true", help="cut data and training to a few seconds, to see that it works")
    _add_headroom(commands)
    return parser


def _add_headroom(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = HeadroomOptions()
    headroom = commands.add_parser(
        "headroom",
        help="estimates what drawing nodes or windows would save, and says when it cannot pay",
        description="Train a little, measure gradients and step times, and print the share of nodes and windows that gives "
        "full training's gradient variance at the least cost. For a model of yours: stprune.headroom(model, loader).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    headroom.add_argument("--data", default=defaults.data, metavar="NAME|PATH", help="as for demo")
    headroom.add_argument("--model", default=defaults.model, choices=MODELS, help="model to train and measure")
    headroom.add_argument(
        "--epochs",
        type=int,
        default=defaults.epochs,
        metavar="N",
        help="epochs of full training before measuring: the answer changes while the model learns",
    )
    headroom.add_argument(
        "--seconds", type=float, default=defaults.seconds, metavar="S", help="that the measurement may take, after training"
    )
    headroom.add_argument("--device", default=defaults.device, help="auto (CUDA where present), cpu, cuda, ...")
    headroom.add_argument("--batch-size", type=int, default=defaults.batch_size, metavar="N", help="windows per step")
    headroom.add_argument("--seed", type=int, default=defaults.seed, metavar="N", help="of weights, orders and draws")
    headroom.add_argument("--null-value", type=float, metavar="X", help="value that means missing, e.g. 0 for traffic data")
    headroom.add_argument(
        "--steps-per-day", type=int, metavar="N", help="of a series read from a path (default: from the file)"
    )
    headroom.add_argument("--quick", action="store_true", help="cut the series, to see that it works")


def _headroom(options: argparse.Namespace) -> None:
    from stprune.demo import headroom

    settings = {name: value for name, value in vars(options).items() if name != "command"}
    headroom.run_headroom(HeadroomOptions(**settings))


def _demo(options: argparse.Namespace) -> None:
    from stprune.demo.main import run_demo

    run_demo(
        DemoOptions(
            data=options.data,
            model=options.model,
            epochs=options.epochs,
            keep_ratio=options.keep_ratio,
            node_ratio=options.node_ratio,
            runs=tuple(options.method) if options.method else DemoOptions().runs,
            device=options.device,
            seeds=options.seeds,
            output=options.output,
            batch_size=options.batch_size,
            quick=options.quick,
            steps_per_day=options.steps_per_day,
            null_value=options.null_value,
        )
    )


def info() -> str:
    """Versions, devices, and which kernels are in use or why not.

    Returns:
        Text of several lines.
    """
    lines = [f"{name} {version}" for name, version in machine.versions().items()]
    lines.append(f"cpu: {machine.processor()}, {machine.cores()} cores, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            lines.append(f"cuda:{number}: {found.name}, {found.total_memory / 2**30:.0f} GiB, sm_{found.major}{found.minor}")
    else:
        reason = "torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        lines.append(f"cuda: none ({reason})")
    for name, status in stprune.library_status().items():
        lines.append(f"{name}: loaded from {status.path}" if status.loaded else f"{name}: not loaded, {status.reason}")
    return "\n".join(lines)
