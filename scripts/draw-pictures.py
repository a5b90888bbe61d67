#!/usr/bin/env python3
"""Draws the pictures of README.md and docs/ as SVG.

Usage: draw-pictures.py                  life.svg, mesh.svg and request.svg, into docs/pictures
       make run ONCE=1 2>&1 | draw-pictures.py tour
                                         tour.svg, of what the tour printed and nothing else
"""

import html
import os
import re
import sys

PICTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs", "pictures")
INK, QUIET, PAPER = "#102027", "#546e7a", "#ffffff"
BLUE, GREEN, ORANGE, GREY = "#e3f2fd", "#e8f5e9", "#ffe0b2", "#eceff1"


class Picture:
    """A white sheet with boxes, arrows and words on it. Lengths are in pixels."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.parts = []

    def text(self, x, y, words, size=13, colour=INK, anchor="middle", bold=False, over_lines=False):
        weight = ' font-weight="bold"' if bold else ""
        halo = f' stroke="{PAPER}" stroke-width="5" paint-order="stroke"' if over_lines else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}{halo}>'
            f"{html.escape(words)}</text>"
        )

    def box(self, x, y, width, height, name, lines=(), fill=PAPER, dashed=False):
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" '
            f'stroke="{INK}" stroke-width="1.2"{dash}/>'
        )
        top = y + (height - 18 * len(lines)) / 2 + 5
        self.text(x + width / 2, top, name, 15, bold=True)
        for number, line in enumerate(lines, 1):
            self.text(x + width / 2, top + 18 * number, line, 12, QUIET)

    def arrow(self, *points, dashed=False):
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"{dash}/>'
        )

    def line(self, x1, y1, x2, y2):
        self.parts.append(f'<path d="M{x1} {y1} L{x2} {y2}" stroke="#b0bec5" stroke-width="1.2"/>')

    def save(self, name: str):
        body = "\n".join(self.parts)
        text = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" font-family="system-ui, sans-serif" role="img">\n'
            f"<title>{html.escape(self.title)}</title>\n"
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="10" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )
        with open(os.path.join(PICTURES, name), "w", encoding="utf-8") as file:
            file.write(text)


def mesh() -> Picture:
    """Two machines behind NATs, the ways between them, and who knows what."""
    picture = Picture(900, 380, "Ways in the mesh: over a relay at once, directly once that is proven")
    picture.box(20, 220, 190, 130, "db-1", ["node, 100.64.0.2", "PostgreSQL listens there", "no open port"], BLUE)
    picture.box(690, 220, 190, 130, "db-2", ["node, 100.64.0.3", "PostgreSQL listens there", "no open port"], BLUE)
    picture.box(250, 250, 90, 70, "NAT", ["provider 1"], GREY, dashed=True)
    picture.box(560, 250, 90, 70, "NAT", ["provider 2"], GREY, dashed=True)
    picture.box(250, 20, 190, 100, "coordinator", ["who is in, what may pass;", "not asked by packets"], ORANGE)
    picture.box(480, 20, 190, 100, "relay", ["UDP, or TLS at port 443;", "sees ciphertext alone"], GREEN)
    picture.arrow((342, 285), (558, 285))
    picture.arrow((558, 300), (342, 300))
    picture.line(210, 285, 250, 285)
    picture.line(650, 285, 690, 285)
    picture.text(450, 272, "direct, once proven", 13, bold=True)
    picture.text(450, 325, "WireGuard, or QUIC", 12, QUIET)
    picture.arrow((115, 218), (115, 165), (520, 165), (520, 122))
    picture.arrow((785, 218), (785, 165), (630, 165), (630, 122))
    picture.text(325, 157, "first packets, and where no direct way is", 12, QUIET, over_lines=True)
    picture.arrow((60, 218), (60, 70), (248, 70), dashed=True)
    picture.arrow((840, 218), (840, 140), (460, 140), (345, 140), (345, 122), dashed=True)
    picture.text(130, 62, "signed changes", 12, QUIET, over_lines=True)
    return picture


def life() -> Picture:
    """The states of a sandbox, and what leads from one to the next."""
    picture = Picture(900, 330, "The life of a sandbox")
    picture.box(20, 50, 160, 84, "prepared", ["nobody's yet: network,", "disk, limits, guest"], GREY, dashed=True)
    picture.box(290, 50, 140, 84, "starting", ["gets its name, root", "and tokens"], BLUE)
    picture.box(560, 50, 140, 84, "running", ["serves until", "its deadline"], GREEN)
    picture.box(425, 220, 140, 64, "stopping", ["all is taken down"], ORANGE)
    picture.box(730, 220, 150, 64, "ended", ["reason and time, kept"], GREY)
    picture.arrow((180, 92), (288, 92))
    picture.text(234, 82, "create", 13, bold=True)
    picture.arrow((430, 92), (558, 92))
    picture.text(494, 82, "guest answers", 12, QUIET)
    picture.arrow((620, 134), (540, 218))
    picture.text(570, 163, "killed · time up", 12, QUIET, "end")
    picture.text(558, 180, "out of memory · crashed", 12, QUIET, "end")
    picture.arrow((345, 134), (423, 236))
    picture.text(370, 150, "killed while", 12, QUIET, "start")
    picture.text(383, 167, "it starts", 12, QUIET, "start")
    picture.arrow((565, 252), (728, 252))
    picture.text(646, 242, "nothing is left", 12, QUIET)
    picture.arrow((700, 92), (815, 92), (815, 218), dashed=True)
    picture.text(808, 150, "was gone when Atoll", 12, QUIET, "end")
    picture.text(808, 167, "started again", 12, QUIET, "end")
    picture.arrow((310, 134), (310, 310), (805, 310), (805, 286), dashed=True)
    picture.text(302, 225, "it did not come up", 12, QUIET, "end")
    picture.arrow((610, 50), (610, 26), (650, 26), (650, 48))
    picture.text(664, 32, "set_timeout, connect: a new deadline", 12, QUIET, "start")
    return picture


def request() -> Picture:
    """Who does what when a client creates a sandbox and then uses it."""
    picture = Picture(900, 480, "How a request reaches a sandbox")
    rooms = [
        (80, "client", "SDK, curl, browser", PAPER),
        (260, "gateway", "the one address", BLUE),
        (440, "control", "API, keys", GREEN),
        (620, "agent", "owns the sandboxes", ORANGE),
        (805, "sandbox", "guest and your code", GREY),
    ]
    for x, name, what, fill in rooms:
        picture.line(x, 74, x, 465)
        picture.box(x - 74, 16, 148, 56, name, [what], fill)

    def message(y, start, end, words, size=12, dashed=False):
        step = -2 if end < start else 2
        picture.arrow((start + step, y), (end - step, y), dashed=dashed)
        picture.text((start + end) / 2, y - 7, words, size, INK, over_lines=True)

    def group(y, words):
        picture.text(14, y, words, 13, QUIET, "start", bold=True, over_lines=True)

    group(100, "Create a sandbox")
    message(126, 80, 260, "POST /v2/sandboxes")
    message(150, 260, 440, "no sandbox is named: API")
    message(174, 440, 620, "key, template, node: ok")
    message(198, 620, 805, "one message: be this")
    message(222, 805, 620, "ready", dashed=True)
    message(246, 620, 80, "id and access token; no program was started, nothing written to the store", dashed=True)

    group(290, "Run code, read a file, open a terminal")
    message(316, 80, 260, "host 49983-ID.domain")
    message(340, 260, 620, "where is ID? (a look-up in memory)")
    message(364, 260, 805, "straight to its own address: port 49983, the guest; it checks the access token")
    group(408, "Reach a server in it")
    message(434, 80, 260, "host 3000-ID.domain")
    message(458, 260, 805, "port 3000, as a stream both ways: HTTP, WebSocket")
    return picture


INDENT = "     "
PROMPT = "# make run ONCE=1"
# Lines of the log tell when something happened; here only what.
TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z +")
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def tour(printed: str) -> None:
    """A terminal with what was printed, long lines broken."""
    lines = [PROMPT]
    for line in printed.splitlines():
        # Of a line that was written over and over, the last.
        line = TIME.sub("", COLOUR.sub("", line.rstrip("\r").rsplit("\r", 1)[-1])).rstrip()
        while len(line) > 96:
            cut = line.rfind(" ", 60, 96)
            cut = cut if cut > 0 else 96
            lines.append(line[:cut])
            line = INDENT + line[cut:].strip()
        lines.append(line)
    while lines and not lines[-1]:
        lines.pop()
    height = 62 + 20 * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" width="860" role="img">',
        "<title>make run ONCE=1, in a terminal</title>",
        f'<rect width="860" height="{height}" rx="10" fill="#1c2529"/>',
        *(f'<circle cx="{22 + 20 * n}" cy="20" r="6" fill="{colour}"/>'
          for n, colour in enumerate(("#ef5350", "#ffca28", "#66bb6a"))),
        '<g font-family="ui-monospace, DejaVu Sans Mono, Menlo, monospace" font-size="13.5" fill="#cfd8dc" '
        'xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        colour = "#ffffff" if line == PROMPT or line.startswith("A tour") else None
        if line.startswith("  ") and not line.startswith(INDENT):
            colour = "#a5d6a7"
        fill = f' fill="{colour}"' if colour else ""
        parts.append(f'<text x="20" y="{56 + 20 * number}"{fill} xml:space="preserve">{html.escape(line)}</text>')
    parts.append("</g>\n</svg>\n")
    with open(os.path.join(PICTURES, "tour.svg"), "w", encoding="utf-8") as file:
        file.write("\n".join(parts))


if __name__ == "__main__":
    if sys.argv[1:] == ["tour"]:
        tour(sys.stdin.read())
    elif not sys.argv[1:]:
        life().save("life.svg")
        mesh().save("mesh.svg")
        request().save("request.svg")
    else:
        sys.exit(__doc__)
