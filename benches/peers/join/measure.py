"""Runs a command and says what it took: `python measure.py [--server PID] -- COMMAND …`.

Prints one JSON document: whole seconds of the process from its start to its end, processor seconds, peak memory, what the
rest of the machine took of the processors meanwhile, how far the free space of the disk fell (others write too), and what
the command said on stdout (JSON). Stopped at LIMIT seconds, at MEMORY bytes or with under SPARE bytes left on the disk, it
says so in `stopped`.

Memory is the kernel's own peak of the resident set. Where a server does the work (`--server`: its first process) it is the
sum over the command, that process and all below them, looked at twenty times a second; pages that they share are counted
once (PSS).
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LIMIT = float(os.environ.get("LIMIT", 600))
MEMORY = float(os.environ.get("MEMORY", 14e9))
SPARE = float(os.environ.get("SPARE", 2e9))
FOLDER = os.environ.get("FOLDER", ".")
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")


def fields(pid):
    """Of /proc/PID/stat what follows the name: the state first."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def below(pid):
    """A process and its descendants."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents.setdefault(int(fields(name)[1]), []).append(int(name))
            except (OSError, IndexError):
                pass
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def proportional(pid):
    total = 0
    for one in below(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def resident(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def busy():
    """Processor seconds that the whole machine was not idle."""
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + soft) / TICK


def used(pid):
    """Processor seconds of a process and of those of its children that ended."""
    return sum(map(int, fields(pid)[11:15])) / TICK


def free():
    disk = os.statvfs(FOLDER)
    return disk.f_bavail * disk.f_frsize


def main():
    server = None
    arguments = sys.argv[1:]
    if arguments[0] == "--server":
        server = int(arguments[1])
        arguments = arguments[2:]
    assert arguments[0] == "--", "measure.py [--server PID] -- COMMAND …"
    server_before = used(server) if server else 0
    busy_before = busy()
    began = time.monotonic()
    output = tempfile.TemporaryFile()
    # Should the machine run out of memory after all, it is this process that goes.
    child = subprocess.Popen(arguments[1:], stdout=output, preexec_fn=lambda: Path("/proc/self/oom_score_adj").write_text("1000"))
    peak, stopped, ended = 0, None, threading.Event()
    free_before = free_least = free()

    def watch():
        nonlocal peak, stopped, free_least
        while not ended.wait(0.05):
            now = proportional(server) + proportional(child.pid) if server else resident(child.pid)
            peak, free_least = max(peak, now), min(free_least, free())
            over = {
                f"over {LIMIT:.0f} s": time.monotonic() - began > LIMIT,
                f"over {MEMORY / 1e9:.0f} GB": now > MEMORY,
                "disk full": free_least < SPARE,
            }
            stopped = next((what for what, is_over in over.items() if is_over), None)
            if stopped:
                child.kill()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    ended.set()
    watcher.join()
    cpu = usage.ru_utime + usage.ru_stime + (used(server) - server_before if server else 0)
    output.seek(0)
    said = output.read()
    figures = {
        "seconds": round(seconds, 2),
        "cpu": round(cpu, 2),
        "others": round(busy() - busy_before - cpu, 1),
        "peak": peak if server else max(peak, usage.ru_maxrss * 1024),
        "disk": free_before - free_least,
        "stopped": stopped,
        "said": json.loads(said) if status == 0 else None,
    }
    print(json.dumps(figures))
    if status and not stopped:
        sys.exit(f"measure.py: {' '.join(arguments[1:4])} … failed ({status})")


main()
