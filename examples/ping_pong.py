"""A counter bounces between parent and child over a socket pair: what a round trip costs.

python examples/ping_pong.py 10000
"""

import os
import sys
import time

from fdpass_c.channel import Channel

trips = int(sys.argv[1])
ours, theirs = Channel.pair()
if os.fork() == 0:
    ours.close()
    for payload, _ in theirs:
        theirs.send(b"%d" % (int(payload) + 1))
    os._exit(0)
theirs.close()
counter = 0
start = time.perf_counter()
with ours:
    while counter < trips:
        ours.send(b"%d" % counter)
        payload, _ = ours.recv()
        counter = int(payload)
elapsed = time.perf_counter() - start
os.wait()
print(f"counted to {counter}: {counter / elapsed:,.0f} round trips a second")
