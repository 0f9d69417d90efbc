"""Peak memory of a command, for tests that want it constant."""

import os
import subprocess
import sys
from pathlib import Path


def peak_memory(arguments: list[str], folder: Path) -> int:
    """Run `python ARGUMENTS` in `folder`; returns the peak resident bytes of that process (its children apart).

    Raises AssertionError with what it printed when it fails.
    """
    code = (
        "import re, resource, runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        # ru_maxrss survives exec on Linux: it would be the peak of pytest itself, which hides any growth below
        "    status = open('/proc/self/status').read() if sys.platform == 'linux' else ''\n"
        "    peak = re.search(r'VmHWM:\\s+(\\d+)', status)\n"
        "    print('peak', peak[1] if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return int(result.stdout.rsplit("peak ", 1)[1]) * 1024
