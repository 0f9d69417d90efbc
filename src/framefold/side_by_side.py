"""`framefold repro`: `dvc repro` with stages side by side that do not wait for each other.

One training of a small model keeps one core busy, or one GPU. The stages that may have to run are sorted into waves: a
stage comes after all that it depends on. A wave is dealt out to as many runs of `dvc --wait-for-lock repro
--single-item` as there are slots (plain parallel `dvc repro` fails on a parent that both want to run). A last `dvc
repro` joins: it runs what is left and ends as if it had run alone.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from itertools import chain

from framefold.errors import UserError
from framefold.lockfile import mend_lock

EDGE = re.compile(r'^\s*"(?P<before>[^"]+)"(?:\s*->\s*"(?P<after>[^"]+)")?;?$')  # of `dvc dag --dot`
Graph = dict[str, set[str]]  # stage -> the stages it depends on


def repro(jobs: int, gpus: Sequence[str] = ()) -> None:
    """Reproduce the pipeline with `jobs` stages at a time, or with one on each of `gpus`.

    UserError: a stage failed (DVC has said why), or DVC cannot read the pipeline.
    """
    if shutil.which("dvc") is None:
        raise UserError("repro: no `dvc` in PATH; activate the environment that framefold is installed in")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    mend_lock()
    slots = list(gpus) or [""] * jobs
    if len(slots) > 1:
        graph = read_graph(_dvc_output("dag", "--dot"))
        changed = set(json.loads(_dvc_output("status", "--json")))
        for wave in joined(waves(graph, with_descendants(graph, changed))):
            _run(deal(wave, len(slots)), slots)
    _run([[]], slots)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def read_graph(dot: str) -> Graph:
    """The stages of `dvc dag --dot` and what each depends on directly."""
    graph: Graph = {}
    for match in filter(None, map(EDGE.match, dot.splitlines())):
        graph.setdefault(match["before"], set())
        if match["after"]:
            graph.setdefault(match["after"], set()).add(match["before"])
    return graph


def with_descendants(graph: Graph, stages: set[str]) -> set[str]:
    """`stages` and all that depend on them, directly or not."""
    found = stages & graph.keys()
    while more := {stage for stage, parents in graph.items() if parents & found} - found:
        found |= more
    return found


def waves(graph: Graph, stages: set[str]) -> list[list[str]]:
    """`stages` in waves: each after all of `stages` that it depends on, as early as it can. The graph has no circle.

    Within a wave they stand in the order of the graph, which is that of dvc.yaml and of the lists in params.yaml.
    """
    left, found = set(stages), list[list[str]]()
    while left:
        found.append([stage for stage in graph if stage in left and not graph[stage] & left])
        left -= set(found[-1])
    return found


def joined(waves: list[list[str]]) -> list[list[list[str]]]:
    """Waves of one stage that follow each other become one chain, which one run of DVC works off."""
    chains: list[list[list[str]]] = []
    alone = False
    for wave in waves:
        if alone and len(wave) == 1:
            chains[-1][0] += wave
        else:
            chains.append([[stage] for stage in wave])
        alone = len(wave) == 1
    return chains


def deal(chains: list[list[str]], hands: int) -> list[list[str]]:
    """The chains dealt out in turn, at most `hands` lists of stages."""
    return [list(chain.from_iterable(chains[start::hands])) for start in range(min(hands, len(chains)))]


def _run(lists: list[list[str]], slots: list[str]) -> None:
    """Run each list of stages by a `dvc repro` of its own, side by side; an empty list means all that is left."""
    runs: list[subprocess.Popen] = []
    try:
        for stages, gpu in zip(lists, slots, strict=False):
            command = ["dvc", "--wait-for-lock", "repro", *(["--single-item", *stages] if stages else [])]
            runs.append(subprocess.Popen(command, env=_environment(gpu, len(lists))))
        failed = [run for run in runs if run.wait()]
    finally:
        for run in runs:
            run.terminate()  # a formality unless this process ends early; then the training stages save and stop
        for run in runs:
            run.wait()
    if failed:
        raise UserError("repro: a stage failed, see above; what is finished is kept, mend it and run this again")


def _environment(gpu: str, runs: int) -> dict[str, str]:
    """Each run has its share of the cores: threads of two runs on one core wait for each other at every step."""
    shared = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // runs))} if runs > 1 else {}
    return shared | os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})


def _dvc_output(*arguments: str) -> str:
    command = ["dvc", "--wait-for-lock", *arguments]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    except subprocess.CalledProcessError:
        raise UserError("repro: DVC cannot read the pipeline, see above") from None
