"""A client for process_pool.py: it makes many connections and counts which worker answered them.

python examples/pool_client.py [ADDRESS CONNECTIONS]
"""

import socket
import sys
from collections import Counter

address, connections = sys.argv[1:] or ["127.0.0.1:8000", "1000"]
host, _, port = address.rpartition(":")
answers: Counter[str] = Counter()
for number in range(int(connections)):
    try:
        sock = socket.create_connection((host, int(port)))
    except OSError as error:
        sys.exit(f"{address}: {error.strerror}. Start process_pool.py first.")
    with sock, sock.makefile("rwb") as stream:
        stream.write(b"request %d\n" % number)
        stream.flush()
        pid, answer = stream.readline().decode().split(maxsplit=1)
        if answer != f"REQUEST {number}\n":
            sys.exit(f"wrong answer: {answer!r}")
        answers[pid] += 1
for pid, count in answers.most_common():
    print(f"worker {pid} answered {count}")
