"""The strange cat: a child opens each file and passes it with its name; the parent prints it.

python examples/strange_cat.py [FILE...]
"""

import os
import sys

from fdpass_c import Channel

ours, theirs = Channel.pair()
if os.fork() == 0:
    ours.close()
    for name in sys.argv[1:] or [__file__]:
        try:
            with open(name, "rb") as file:
                theirs.send(os.fsencode(name), [file])
        except OSError as error:
            theirs.send(os.fsencode(f"{name}: {error.strerror}"))
    os._exit(0)
theirs.close()
status = 0
for payload, fds in ours:
    with fds:
        if not fds:
            print(os.fsdecode(payload), file=sys.stderr)
            status = 1
            continue
        with fds.as_file() as file:
            sys.stdout.buffer.write(file.read())
ours.close()
os.wait()
sys.exit(status)
