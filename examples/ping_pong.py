"""Parent and child send a counter back and forth, and measure round trips per second.

python examples/ping_pong.py [TRIPS]
"""

import os
import sys
import time

from fdpass_c import Channel

trips = int(sys.argv[1]) if sys.argv[1:] else 10_000
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
