#!/usr/bin/env bash
# Checks that every promise in SPECIFICATION.md names a test, and that every test it names exists.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 - "${1:-SPECIFICATION.md}" <<'END'
import pathlib
import re
import sys

specification = pathlib.Path(sys.argv[1])
problems = []


def exists(path, name):
    file = pathlib.Path(path)
    if not file.is_file():
        return False
    text = file.read_text()
    if name is None:
        return "fuzz_target!" in text
    if path.endswith(".py"):
        return re.search(rf"^(async )?def {name}\(", text, re.M) is not None
    # A suite that several drivers pass names its tests in a macro.
    suite = re.search(r"^conformance! \{(.*?)^\}", text, re.M | re.S)
    if suite and re.search(rf"\b{name}\b", suite[1]) and re.search(rf"^async fn {name}\(", text, re.M):
        return True
    # The attribute stands above the function, maybe with others between.
    return re.search(rf"#\[(tokio::)?test\b[^\n]*\n(\s*(#\[|//)[^\n]*\n)*\s*(async )?fn {name}\b", text) is not None


promises = re.split(r"^\*\*(?=\d+\.\d+\*\*)", specification.read_text(), flags=re.M)[1:]
seen = set()
named = 0
for promise in promises:
    number = promise.split("*", 1)[0]
    if number in seen:
        problems.append(f"{number} is there twice")
    seen.add(number)
    tests = re.findall(r"`((?:crates|tests|fuzz)/[^`:]+)(?:::([A-Za-z0-9_]+))?`", promise)
    if not tests:
        problems.append(f"{number} names no test")
    for path, name in tests:
        named += 1
        if not exists(path, name or None):
            problems.append(f"{number} names a test that does not exist: {path}{'::' + name if name else ''}")
if not promises:
    problems.append("there is no promise")
for problem in problems:
    print(f"error: {specification}: {problem}", file=sys.stderr)
if problems:
    sys.exit(1)
print(f"{specification}: {len(promises)} promises, {named} references to tests, all exist")
END
