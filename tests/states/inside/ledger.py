"""Keeps memory, a file and a TCP stream busy, and proves on request that nothing of it was lost.

Runs in a sandbox: `python3 ledger.py PORT`. A GET looks at everything that was ever written and
answers with counters, digests, and a list of what is wrong.
"""

import hashlib
import http.server
import json
import os
import random
import socket
import struct
import sys
import threading
import time

PAGE = 4096
MEMORY_PAGES = 1024
FILE_PAGES = 256
STILL = 2 << 20
# So long between two writes, or there would be no time left for anything else.
PAUSE = 0.005


def content(page, version):
    """What a page holds: no two pages and no two versions are alike."""
    return struct.pack("<QQ", page, version) * (PAGE // 16)


class Pages:
    """Pages of which it is known how often each was written."""

    def __init__(self, count):
        self.versions = [0] * count
        self.writes = 0
        self.lock = threading.Lock()
        for page in range(count):
            self.put(page, content(page, 0))

    def work(self):
        draw = random.Random()
        while True:
            with self.lock:
                for _ in range(8):
                    page = draw.randrange(len(self.versions))
                    self.versions[page] += 1
                    self.put(page, content(page, self.versions[page]))
                    self.writes += 1
            time.sleep(PAUSE)

    def wrong(self):
        with self.lock:
            self.before_look()
            return [p for p, version in enumerate(self.versions) if self.get(p) != content(p, version)]

    def before_look(self):
        pass


class Memory(Pages):
    def __init__(self):
        self.bytes = bytearray(MEMORY_PAGES * PAGE)
        super().__init__(MEMORY_PAGES)

    def put(self, page, data):
        self.bytes[page * PAGE : (page + 1) * PAGE] = data

    def get(self, page):
        return self.bytes[page * PAGE : (page + 1) * PAGE]


class File(Pages):
    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        super().__init__(FILE_PAGES)

    def put(self, page, data):
        os.pwrite(self.descriptor, data, page * PAGE)

    def get(self, page):
        return os.pread(self.descriptor, PAGE, page * PAGE)

    def before_look(self):
        """What is read next comes from the disk, not from memory."""
        os.fsync(self.descriptor)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


class Stream:
    """A TCP connection whose two ends are here, on which numbers follow each other."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.near = socket.create_connection(server.getsockname())
            self.far, _ = server.accept()
        self.received = 0
        self.error = None
        self.hash = hashlib.sha256()

    def send(self):
        number = 0
        while True:
            self.near.sendall(b"".join(struct.pack("<Q", n) for n in range(number, number + 512)))
            number += 512
            time.sleep(PAUSE)

    def receive(self):
        rest = b""
        while self.error is None:
            data = self.far.recv(1 << 16)
            if not data:
                self.error = "closed"
            self.hash.update(data)
            rest += data
            while len(rest) >= 8:
                (number,) = struct.unpack_from("<Q", rest)
                if number != self.received:
                    self.error = f"{number} after {self.received}"
                    break
                self.received += 1
                rest = rest[8:] if len(rest) < 64 else self.skim(rest)

    def skim(self, rest):
        """Takes as many numbers at once as are there; leaves the first odd one."""
        whole = len(rest) // 8
        numbers = struct.unpack_from(f"<{whole}Q", rest)
        for at, number in enumerate(numbers[1:], 1):
            if number != self.received:
                return rest[at * 8 :]
            self.received += 1
        return rest[whole * 8 :]


def main():
    memory, file, stream = Memory(), File("/home/user/ledger"), Stream()
    still = os.urandom(STILL)
    with open("/home/user/still", "wb") as kept:
        kept.write(still)
        os.fsync(kept.fileno())
    for work in [memory.work, file.work, stream.send, stream.receive]:
        threading.Thread(target=work, daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with open("/home/user/still", "rb") as kept:
                os.posix_fadvise(kept.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                on_disk = kept.read()
            wrong = [f"page {p} of memory" for p in memory.wrong()]
            wrong += [f"page {p} of the file" for p in file.wrong()]
            wrong += [f"stream: {stream.error}"] if stream.error else []
            body = json.dumps(
                {
                    "wrong": wrong,
                    "still": [hashlib.sha256(still).hexdigest(), hashlib.sha256(on_disk).hexdigest()],
                    "counts": {"memory": memory.writes, "file": file.writes, "stream": stream.received},
                    "boot": open("/proc/sys/kernel/random/boot_id").read().strip(),
                    "pid": os.getpid(),
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
