"""The pool's client: many connections, and which worker answered how many of them.

python examples/pool_client.py 127.0.0.1:8000 1000
"""

import socket
import sys
from collections import Counter

host, _, port = sys.argv[1].rpartition(":")
answers: Counter[str] = Counter()
for number in range(int(sys.argv[2])):
    with socket.create_connection((host, int(port))) as sock, sock.makefile("rwb") as stream:
        stream.write(b"request %d\n" % number)
        stream.flush()
        pid, answer = stream.readline().decode().split(maxsplit=1)
        if answer != f"REQUEST {number}\n":
            sys.exit(f"wrong answer: {answer!r}")
        answers[pid] += 1
for pid, count in answers.most_common():
    print(f"worker {pid} answered {count}")
