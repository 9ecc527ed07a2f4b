"""The `stprune` command: `stprune demo`, `stprune study`, `stprune headroom` and `stprune info`."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import torch

import stprune
from stprune.study import machine, presets
from stprune.study.command import run_study
from stprune.study.families import FAMILIES
from stprune.study.grid import Grid
from stprune.study.headroom import HeadroomOptions, run_headroom
from stprune.study.spec import MODELS
from stprune.study.terminated import EXIT_STATUS, Terminated, raised_when_terminated

_DATA = (
    "simbench (pip install --no-deps simbench), demand, traffic?nodes=900&r=0.1, or a file or folder that stprune.read_series "
    "reads; ?nodes=..., ?steps=... cut it"
)

_FAILED = 1
_BAD_INPUT = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None takes the process's own.

    Returns:
        Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 ended by SIGTERM. A failure prints one line on standard
        error.

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
    if options.command in ("demo", "study", "headroom") and arguments is None:
        _restart_with_waiting_threads()
    try:
        with raised_when_terminated():
            _run(options)
    except Terminated:
        print(f"stprune {options.command}: terminated{_how_to_go_on(options)}", file=sys.stderr)
        return EXIT_STATUS
    except KeyboardInterrupt:
        print(f"stprune {options.command}: interrupted{_how_to_go_on(options)}", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _report(options.command, error, _BAD_INPUT)
    except RuntimeError as error:
        return _report(options.command, error, _FAILED)
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "info":
        print(info())
    elif options.command == "headroom":
        _headroom(options)
    elif options.command == "study":
        _study(options)
    else:
        _demo(options)


def _how_to_go_on(options: argparse.Namespace) -> str:
    if options.command not in ("demo", "study"):
        return ""
    return (
        f"; finished runs are kept in {options.output}: the same command goes on, and with --minutes 0 it only writes the "
        "report of what is there"
    )


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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are values: of None the help says in words what it means."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="stprune", description="Dynamic sample pruning for spatio-temporal training.")
    parser.add_argument("--version", action="version", version=f"stprune {stprune.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="versions, devices, and which kernels are loaded and why not")
    _add_demo(commands)
    _add_study(commands)
    _add_headroom(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="a small study: full training at several batches against pruned training on a real series",
        description="Train one model on one series, in full and pruned, each kind at several batch sizes; print a table, write "
        "a report. A stopped demo goes on where it was.",
        formatter_class=_Help,
    )
    defaults = presets.DEMO
    demo.add_argument("--data", default=defaults.data[0], metavar="NAME|PATH", help=_DATA)
    demo.add_argument("--model", default=defaults.models[0], choices=MODELS, help="model to train")
    demo.add_argument(
        "--family",
        action="append",
        choices=tuple(FAMILIES),
        metavar="NAME",
        help=f"what to compare with full training; may be given several times. Default: {', '.join(defaults.families[1:])}. "
        f"All: {', '.join(FAMILIES)}",
    )
    demo.add_argument(
        "--cost", type=float, metavar="X", help="passes over the training part that a run may cost (default: by the model)"
    )
    demo.add_argument("--seeds", type=int, default=defaults.seeds, metavar="N", help="runs of each best setting")
    demo.add_argument("--quick", action="store_true", help="cut data and training to a few seconds, to see that it works")
    _add_running(demo, pathlib.Path("stprune-demo"))


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    study = commands.add_parser(
        "study",
        help="trains a grid of series, models, families and settings; rows, tables and a report",
        description="Make every run of a grid, tuned with equal care; finished runs are rows on disk, and a stopped study goes "
        "on where it was. GRID is a JSON file; benchmarks/README.md lists its keys, benchmarks/studies has some.",
        formatter_class=_Help,
    )
    study.add_argument("grid", type=pathlib.Path, metavar="GRID", help="JSON file of the grid")
    _add_running(study, pathlib.Path("stprune-study"))


def _add_running(parser: argparse.ArgumentParser, output: pathlib.Path) -> None:
    parser.add_argument("--processes", type=int, metavar="N", help="runs side by side (default: one per core, at most 8)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="begin no run after so many; 0 only writes the report (default: no limit)"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where present), cpu, cuda, ...")
    parser.add_argument("--output", type=pathlib.Path, default=output, metavar="DIR", help="folder of rows and report")


def _add_headroom(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = HeadroomOptions()
    headroom = commands.add_parser(
        "headroom",
        help="predicts what a smaller batch, and drawing nodes, would save",
        description="Train a little, measure gradients and step times, and print the best batch of full training, the best "
        "batch and number of nodes of node draws, and the ratio of times. For your model: stprune.headroom(model, loader).",
        formatter_class=_Help,
    )
    headroom.add_argument("--data", default=defaults.data, metavar="NAME|PATH", help=_DATA)
    headroom.add_argument("--model", default=defaults.model, choices=MODELS, help="model to train and measure")
    headroom.add_argument("--dim", type=int, default=defaults.dim, metavar="D", help="width of the model")
    headroom.add_argument(
        "--epochs",
        type=int,
        default=defaults.epochs,
        metavar="N",
        help="passes over the training windows that full training is to make; a fifth is trained before measuring",
    )
    headroom.add_argument(
        "--seconds", type=float, default=defaults.seconds, metavar="S", help="that the measurement may take, after training"
    )
    headroom.add_argument("--device", default=defaults.device, help="auto (CUDA where present), cpu, cuda, ...")
    headroom.add_argument("--batch-size", type=int, default=defaults.batch_size, metavar="N", help="windows per step")
    headroom.add_argument("--seed", type=int, default=defaults.seed, metavar="N", help="of weights, orders and draws")
    headroom.add_argument("--quick", action="store_true", help="cut the series, to see that it works")


def _headroom(options: argparse.Namespace) -> None:
    settings = {name: value for name, value in vars(options).items() if name != "command"}
    run_headroom(HeadroomOptions(**settings))


def _running(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("processes", "minutes", "device", "command")}


def _demo(options: argparse.Namespace) -> None:
    grid = presets.demo(
        data=options.data,
        model=options.model,
        families=tuple(options.family or ()),
        cost=options.cost,
        seeds=options.seeds,
        quick=options.quick,
    )
    run_study(grid, options.output, **_running(options))


def _study(options: argparse.Namespace) -> None:
    run_study(Grid.read(options.grid), options.output, **_running(options))


def info() -> str:
    """Versions, devices, which kernels are in use or why not, and what runs each op on the devices that are there.

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
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        ops = stprune.implementations(device)
        for way in sorted(set(ops.values())):
            lines.append(f"ops on {device}, {way}: {', '.join(op for op in ops if ops[op] == way)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
