"""Every benchmark, or some, into metrics/benchmarks.json and docs/benchmarks.md: python -m benchmarks.run [NAME ...]

Each runs as a process of its own, whose last line on stdout is a JSON object of figures. One that fails leaves its
figures out and ends this command with an error. Figures of another machine are not mixed in: those that need a GPU
have a machine of their own, the others another.
"""

import argparse
import logging
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from benchmarks.figures import Figures, figures_of, rounded
from benchmarks.names import ALWAYS, needs_gpu
from benchmarks.projection import projected
from framefold.errors import UserError, command
from framefold.storage import read_json, write_aside, write_json

log = logging.getLogger(__name__)

BENCHMARKS = ("training", "extraction", "predict", "mfu", "overhead", "million")
RESULTS, PAGE = Path("metrics/benchmarks.json"), Path("docs/benchmarks.md")
MACHINES = {False: "machine", True: "machine_gpu"}  # of the figures that need a GPU, and of the others
BEGIN, END = "<!-- figures: written by benchmarks/run.py -->", "<!-- end of figures -->"

Results = dict[str, Any]


# The file


def merge(recorded: Results, found: Figures, machine: str, anew: bool) -> Results:
    """`recorded` with what was found on `machine`; figures of another machine are dropped.

    A null that was found says that this machine cannot measure it: it replaces only a figure of this machine. `anew`:
    figures of this machine that were not found are dropped too.
    """
    results: Results = {}
    for gpu, key in MACHINES.items():
        old = {name: value for name, value in figures_in(recorded).items() if needs_gpu(name) == gpu}
        new = {name: value for name, value in found.items() if needs_gpu(name) == gpu}
        measured, same = any(value is not None for value in new.values()), recorded.get(key) == machine
        if measured:
            results |= {key: machine} | ({} if anew or not same else old) | new
        else:
            results |= {key: recorded.get(key)} | old | (new if same else {})
    return dict.fromkeys((*MACHINES.values(), *ALWAYS)) | results


def figures_in(results: Results) -> Figures:
    return {name: value for name, value in results.items() if name not in MACHINES.values()}


def with_projection(results: Results) -> Results:
    hours = projected(figures_in(results))
    return results | {name: rounded(value) for name, value in hours.items()}


# The page


def page_with(text: str, results: Results) -> str:
    """The page with its tables replaced. UserError: it has lost their marks."""
    before, found, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found or not found_end:
        raise UserError(f"{PAGE}: the lines {BEGIN!r} and {END!r} are missing; restore them")
    return f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}"


def tables(results: Results) -> str:
    parts = []
    for gpu, key in MACHINES.items():
        rows = {name: value for name, value in sorted(figures_in(results).items()) if needs_gpu(name) == gpu}
        machine = results[key] or ("no machine with a GPU yet" if gpu else "no machine yet")
        lines = [f"Measured on: {machine}.", "", "| figure | value |", "|---|---|"]
        lines += [f"| `{name}` | {shown(value)} |" for name, value in rows.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def shown(value: float | int | None) -> str:
    return "not measured" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


# The machine


def describe_machine() -> str:
    """Processor, cores, memory, GPU, versions: no names of hosts or places."""
    import os

    import psutil
    import torch

    from framefold.runtime import has_bf16

    cpu = torch.device("cpu")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    parts = [
        f"{processor()} ({'with' if has_bf16(cpu) else 'without'} bf16)",
        f"{len(os.sched_getaffinity(0))} cores",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB memory",
        gpu,
        f"Python {python_version()}",
        f"torch {metadata.version('torch')}",
    ]
    return ", ".join(parts)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


# Running


def run(name: str) -> Figures:
    """The figures of one benchmark, whose output is passed on. UserError: it failed, or its last line is no figures."""
    log.info("== %s", name)
    arguments = [sys.executable, "-u", "-m", f"benchmarks.{name}"]
    lines = []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise UserError(f"benchmark {name}: ended with exit code {process.returncode}; see its output above")
    try:
        return figures_of("".join(lines))
    except ValueError as error:
        raise UserError(f"benchmark {name}: {error}; see its output above") from None


def run_all(names: list[str]) -> tuple[Figures, list[str]]:
    """Figures of all that succeeded, and the errors of the others."""
    figures: Figures = {}
    errors = []
    for name in names:
        try:
            figures |= run(name)
        except UserError as error:
            errors.append(str(error))
    return figures, errors


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all of them")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        raise UserError(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    page = PAGE.read_text(encoding="utf-8")
    recorded = read_json(RESULTS) if RESULTS.is_file() else {}
    figures, errors = run_all(names or list(BENCHMARKS))
    results = with_projection(merge(recorded, figures, describe_machine(), anew=not names))
    page = page_with(page, results)
    write_json(RESULTS, results)
    with write_aside(PAGE) as aside:
        aside.write_text(page, encoding="utf-8")
    if errors:
        raise UserError("; ".join(errors))


if __name__ == "__main__":
    main()
