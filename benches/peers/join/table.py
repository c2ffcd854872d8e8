"""The measurements as a Markdown table: medians, and where there are several their range. The whole is the process from its
start to its end, the steps are as the program itself tells them."""

import json
import statistics
import sys

figures = {}
with open(sys.argv[1]) as lines:
    for line in map(json.loads, lines):
        figures.setdefault(line["peer"], {}).setdefault(line["part"], []).append(line)


def spread(taken, digits=0):
    if not taken:
        return "–"
    middle = f"{statistics.median(taken):.{digits}f}"
    return middle if len(taken) == 1 else f"{middle} ({min(taken):.{digits}f} to {max(taken):.{digits}f})"


def steps(own):
    """Seconds of the three steps; lianbo calls them by the names of its stages."""
    said = own["said"] or {}
    told = said.get("steps") or {stage["name"]: stage["seconds"] for stage in said.get("stages", [])}
    return [told.get("identities"), told.get("coverage"), told.get("set", told.get("audience"))]


def whole(measured):
    stopped = [own["stopped"] for own in measured if own["stopped"]]
    return f"{stopped[0]}, stopped" if stopped else spread([own["seconds"] for own in measured])


def peak(measured):
    return spread([own["peak"] / 1e9 for own in measured], 1)


print("| program | import, s | join, s | coverage, s | set, s | whole job, s | CPU s | peak, GB (import) |")
print("|---|---|---|---|---|---|---|---|")
for peer, parts in figures.items():
    imported, job = parts.get("import", []), parts.get("job", [])
    version = next((own["said"]["version"] for own in imported + job if own["said"] and "version" in own["said"]), "")
    each = zip(*(steps(own) for own in job))
    cells = [
        f"{peer} {version}".strip(),
        whole(imported) if imported else "–",
        *(spread([seconds for seconds in step if seconds is not None]) for step in each),
        whole(job) if job else "–",
        spread([own["cpu"] for own in job]),
        peak(job) + (f" ({peak(imported)})" if imported else ""),
    ]
    print("| " + " | ".join(cells) + " |")
