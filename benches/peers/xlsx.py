"""Makes a workbook of users, and times who reads it: see xlsx.sh."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

ROUNDS = 3


def make(path, rows):
    import xlsxwriter

    book = xlsxwriter.Workbook(path, {"constant_memory": True, "default_date_format": "yyyy-mm-dd hh:mm:ss"})
    sheet = book.add_worksheet("users")
    sheet.write_row(0, 0, ["openid", "unionid", "nickname", "city", "last_login", "points"])
    began = datetime.datetime(2026, 1, 1)
    for row in range(rows):
        digest = hashlib.sha256(str(row).encode()).hexdigest()
        sheet.write_string(row + 1, 0, "o" + digest[:27])
        sheet.write_string(row + 1, 1, "u" + digest[27:54])
        sheet.write_string(row + 1, 2, f"用户{row}")
        sheet.write_string(row + 1, 3, f"city {row % 40}")
        sheet.write_datetime(row + 1, 4, began + datetime.timedelta(minutes=row % 400_000))
        sheet.write_number(row + 1, 5, row % 1000)
    book.close()


def openpyxl_reads(path):
    import openpyxl

    sheet = openpyxl.load_workbook(path, read_only=True).active
    return sum(1 for _ in sheet.iter_rows(values_only=True)) - 1


def calamine_reads(path):
    import python_calamine

    sheet = python_calamine.CalamineWorkbook.from_path(path).get_sheet_by_index(0)
    return len(sheet.to_python()) - 1


def measured(command, **more):
    """Seconds, peak MB and output of a process of its own."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, f"{command} failed: {output}"
    return time.monotonic() - began, usage.ru_maxrss / 1000, output


def lianbo(binary, shop, rows):
    shutil.rmtree(f"{shop}/data/lake", ignore_errors=True)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        if os.path.exists(f"{shop}/data/{name}"):
            os.remove(f"{shop}/data/{name}")
    seconds, peak, output = measured([binary, "--workspace", shop, "run", "load", "--json", "-q"])
    run = json.loads(output)
    assert run["status"] == "succeeded" and run["stages"][0]["rows_out"] == rows, run
    return seconds, peak


def python(what, shop, rows):
    seconds, peak, output = measured([sys.executable, __file__, what, f"{shop}/data/exports/users.xlsx"])
    assert int(output) == rows, output
    return seconds, peak


def compare(binary, shop, rows):
    of = importlib.metadata.version
    peers = {
        "lianbo": lambda: lianbo(binary, shop, rows),
        f"python-calamine {of('python-calamine')}": lambda: python("calamine", shop, rows),
        f"openpyxl {of('openpyxl')}": lambda: python("openpyxl", shop, rows),
    }
    taken = {name: [] for name in peers}
    for _ in range(ROUNDS):
        for name, run in peers.items():
            taken[name].append(run())
    ours = statistics.median(seconds for seconds, _ in taken["lianbo"])
    print(f"{rows} rows\n| program | seconds | peak memory | × lianbo's time |\n|---|---|---|---|")
    for name, rounds in taken.items():
        seconds = statistics.median(seconds for seconds, _ in rounds)
        peak = statistics.median(peak for _, peak in rounds)
        print(f"| {name} | {seconds:.1f} | {peak:.0f} MB | {seconds / ours:.1f} |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", path, rows]:
            make(path, int(rows))
        case ["compare", binary, shop, rows]:
            compare(binary, shop, int(rows))
        case ["openpyxl", path]:
            print(openpyxl_reads(path))
        case ["calamine", path]:
            print(calamine_reads(path))
        case other:
            sys.exit(f"see xlsx.sh; not understood: {other}")
