"""What is in `base`: the list that users of the SDKs rely on."""

import pytest
from e2b import Sandbox

from harness.atoll import SLOWNESS


@pytest.fixture(scope="module")
def box(atoll):
    box = Sandbox.create(timeout=300)
    yield box
    box.kill()


PROGRAMS = {
    "bash": "bash --version",
    "python3": "python3 --version",
    "python": "python --version",
    "pip": "pip --version",
    "pip of python3": "python3 -m pip --version",
    "venv": "python3 -m venv /tmp/venv && /tmp/venv/bin/python -m pip --version",
    "node": "node --version",
    "git": "git --version",
    "curl": "curl --version",
    "certificates": "test -s /etc/ssl/certs/ca-certificates.crt",
    "ip": "ip -Version",
    "ss": "ss -Hltn",
    "ps": "ps -e",
    "less": "less --version",
    "sudo": "sudo --version",
    "time zones": "test -e /usr/share/zoneinfo/Europe/Paris",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(box, name):
    assert box.commands.run(PROGRAMS[name], timeout=60 * SLOWNESS).exit_code == 0


def test_programs_do_their_work(box):
    """Not only there, but of use: each does something that a broken installation cannot."""
    assert box.commands.run("python -c 'import ssl, sqlite3, ctypes, zlib; print(6 * 7)'").stdout == "42\n"
    assert box.commands.run("node -e 'console.log(6 * 7)'").stdout == "42\n"
    script = (
        "git init -q /tmp/repository && cd /tmp/repository && echo text > file && git add file && "
        "git -c user.name=me -c user.email=me@localhost commit -q -m first && git log --format=%s"
    )
    assert box.commands.run(script).stdout == "first\n"


def test_a_package_can_be_installed_without_questions(box):
    """pip writes where the user may, although the system's Python is Debian's own."""
    box.files.write("/tmp/package/pyproject.toml", '[project]\nname = "small"\nversion = "1"\n')
    box.files.write("/tmp/package/small.py", "answer = 42\n")
    box.commands.run("pip install --no-build-isolation --no-index /tmp/package", timeout=120)
    assert box.commands.run("python -c 'import small; print(small.answer)'").stdout == "42\n"


def test_the_user(box):
    assert box.commands.run("id -un; id -u; pwd; echo $HOME; echo $SHELL").stdout.split()[:4] == [
        "user", "1000", "/home/user", "/home/user",
    ]
    assert box.commands.run("stat -c '%U %G' /home/user").stdout == "user user\n"
    assert box.commands.run("getent passwd user").stdout.strip().endswith(":/home/user:/bin/bash")


def test_sudo_asks_for_no_password(box):
    assert box.commands.run("sudo -n id -u").stdout == "0\n"
    box.commands.run("sudo -n touch /etc/written-as-root")
    assert box.commands.run("stat -c %U /etc/written-as-root").stdout == "root\n"


def test_texts_are_utf_8(box):
    assert box.commands.run("python3 -c 'import locale; print(locale.getpreferredencoding())'").stdout == "UTF-8\n"


def test_temporary_folders_are_everybodys(box):
    assert box.commands.run("stat -c %a /tmp /var/tmp /dev/shm").stdout.split() == ["1777"] * 3
