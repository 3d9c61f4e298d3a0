"""The package's commands, as benchmarks call them: in a process of their own, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys


def command(name, *options, may_fail=False):
    """The last line of a command, as a dict. Ends the benchmark unless the command succeeds, or `may_fail`."""
    done = subprocess.run([sys.executable, "-m", f"vla_runtime.{name}", *options], stdout=subprocess.PIPE, text=True)
    if done.returncode and not may_fail:
        sys.exit(f"{name} {' '.join(options)}: {done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])
