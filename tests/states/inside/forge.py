"""Sends frames that the machine's own kernel would not: forged sources, forged hardware addresses, IPv6.

Arguments: JSON of {"targets": [[address, port], …], "sources": [address, …]}. Prints "sent N".
"""

import json
import socket
import struct
import sys

DEVICE = "eth0"


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp4(source, target, port):
    text = b"forged"
    udp = struct.pack("!HHHH", 4444, port, 8 + len(text), 0) + text
    source, target = socket.inet_aton(source), socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source, target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def udp6(source, target, port):
    text = b"forged"
    source, target = socket.inet_pton(socket.AF_INET6, source), socket.inet_pton(socket.AF_INET6, target)
    udp = struct.pack("!HHHH", 4444, port, 8 + len(text), 0) + text
    pseudo = source + target + struct.pack("!IHBB", len(udp), 0, 0, 17)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp)) + udp[8:]
    return struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + source + target + udp


def neighbour(gateway):
    """The hardware address of the next hop."""
    for line in open("/proc/net/arp").read().splitlines()[1:]:
        fields = line.split()
        if fields[0] == gateway:
            return bytes.fromhex(fields[3].replace(":", ""))
    raise SystemExit(f"no neighbour {gateway}")


def main():
    plan = json.loads(sys.argv[1])
    mine = bytes.fromhex(open(f"/sys/class/net/{DEVICE}/address").read().strip().replace(":", ""))
    gateway = neighbour(plan["gateway"])
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind((DEVICE, 0))
    sent = 0
    for hardware in (mine, bytes.fromhex("020000000099")):
        for target, port in plan["targets"]:
            for receiver in (gateway, b"\xff" * 6):
                if ":" in target:
                    packets = [(0x86DD, udp6(source, target, port)) for source in ("fe80::99", "fd00::99")]
                else:
                    packets = [(0x0800, udp4(source, target, port)) for source in plan["sources"]]
                for kind, packet in packets:
                    wire.send(receiver + hardware + struct.pack("!H", kind) + packet)
                    sent += 1
    print("sent", sent)


main()
