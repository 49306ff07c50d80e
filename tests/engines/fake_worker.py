"""A worker without a model that speaks the wire and misbehaves as its last argument says.

Run as ``python fake_worker.py MODE FD CONFIG``. It answers every request with the tokens 1, 2.
"""

import json
import socket
import sys
import time

import numpy as np

from toolgym.engines.wire import Frames, frame


def main():
    mode, link, config = sys.argv[1], socket.socket(fileno=int(sys.argv[2])), json.loads(sys.argv[3])
    version, frames, paused = config["version"], Frames(), False
    if mode == "never ready":
        time.sleep(3600)
    if mode == "fatal":
        link.sendall(frame(["fatal", "no such model"]))
        return
    if mode == "crash at start":
        print("this is why", file=sys.stderr)
        sys.exit(3)
    link.sendall(frame(["ready", {"model_type": "fake", "vocabulary": 10}]))
    while data := link.recv(1 << 16):
        for kind, *payload in frames.feed(data):
            call = payload[0]
            if kind == "generate" and mode == "silent":
                continue
            if kind == "generate" and mode == "busy":
                for _ in range(20):  # alive, but longer at work than the deadline
                    link.sendall(frame(["beat"]))
                    time.sleep(0.05)
            if kind == "generate" and mode == "crash":
                sys.exit(4)
            if kind == "generate":
                arrays = [np.array([1, 2], np.int32), np.array([-1, -2], np.float32), np.full(2, version, np.int32)]
                done = [call, *(array.tobytes() for array in arrays), "length"]
                link.sendall(frame(["done", [done]]))
            if kind == "publish" and mode != "lost publish":
                said = version if mode == "old acknowledged" else payload[1]
                if mode != "swap forgotten":
                    version = said
                canary = np.zeros(len(payload[3]) // 4, np.float32).tobytes()
                link.sendall(frame(["reply", call, [said, "right" if mode != "flipped" else "wrong", canary]]))
            if kind in ("pause", "resume", "stats"):
                link.sendall(frame(["reply", call, {"paused": paused}]))


main()
