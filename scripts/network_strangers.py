#!/usr/bin/env python3
"""Connects to every port that is listened at in this network namespace, again and again, and says what no rank says.

  scripts/network_strangers.py SECONDS

For scripts/network-check, which runs it in every host that it plays. Garbage, half a greeting, silence, a connection that is
cut off: each port gets them in turn. The last line is {"ports": N, "visits": N}.
"""
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import time

MOST_HELD = 400
GREETING = struct.pack("<I", 0x45504E54)  # that of src/group/net/doorman.cpp
WORDS = [lambda: os.urandom(512), lambda: b"", lambda: GREETING + os.urandom(60), lambda: b"\xff" * 65536, lambda: b"G",
         lambda: b"GET / HTTP/1.1\r\n\r\n", lambda: bytes(200)]


def listeners():
    """(address, port) of all, "*" being this host's loopback."""
    out = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=False).stdout
    for line in out.splitlines():
        host, _, port = line.split()[3].rpartition(":")
        host = host.strip("[]").split("%")[0]
        yield ("127.0.0.1" if host in ("*", "0.0.0.0", "::") else host), int(port)


def visit(where, word, breaks_off):
    stranger = socket.create_connection(where, timeout=0.2)
    try:
        stranger.sendall(word)
    except OSError:
        pass  # it was shown the door
    if breaks_off:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stranger.close()
        return None
    return stranger


def main():
    end = time.monotonic() + float(sys.argv[1])
    words = itertools.cycle(WORDS)
    held, ports, visits = [], set(), 0
    while time.monotonic() < end:
        for where in set(listeners()):
            try:
                stranger = visit(where, next(words)(), breaks_off=visits % 5 == 4)
            except OSError:
                continue  # closed meanwhile
            ports.add(where)
            visits += 1
            if stranger:
                held.append(stranger)
            if len(held) > MOST_HELD:
                held.pop(0).close()
        time.sleep(0.01)
    print(json.dumps({"ports": len(ports), "visits": visits}))


if __name__ == "__main__":
    main()
