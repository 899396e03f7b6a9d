"""A cluster of real processes on this machine, and how to talk to it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time


def claim(port):
    """Ends the program if one of the 30 ports from this one on is taken."""
    for number in range(port, port + 30):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)) == 0:
                sys.exit(f"FAILED: port {number} is taken; ports {port} to {port + 29} must be free")


class Cluster:
    """Processes of this machine; only they are ever signalled."""

    def __init__(self, binary, scratch, port, nodes, words=(), environment=None):
        """`words` are given to every storage node and gateway; the object store is at `port`, nodes begin at the next one,
        gateways are at `port + 11` and `port + 12`."""
        self.binary, self.scratch, self.port, self.nodes, self.words = binary, scratch, port, nodes, words
        self.processes = {}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CARTWHEEL_", "OTEL_"))}
        self.environment.update(AWS_ACCESS_KEY_ID="live", AWS_SECRET_ACCESS_KEY="live-secret", AWS_REGION="us-east-1",
                                AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{port}", AWS_EC2_METADATA_DISABLED="true", **(environment or {}))

    def start(self, name, *words):
        log = open(self.scratch / f"{name}.log", "ab")
        self.processes[name] = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment)

    def start_all(self):
        start, at = self.start, lambda n: f"127.0.0.1:{self.port + n}"
        start("s3", self.binary, "s3-server", "--listen", at(0), "--data-dir", str(self.scratch / "s3"), "--no-sync")
        until("the object store answers", lambda: self.make_bucket())
        for node in self.nodes:
            self.start_node(node)
        # The second one gives way early, so that it can be overloaded.
        start("gateway-1", self.binary, "gateway", "--bucket", "s3://live/run", "--listen", at(11), *self.words)
        start("gateway-2", self.binary, "gateway", "--bucket", "s3://live/run", "--listen", at(12), "--in-flight", "2", *self.words)
        for number in (11, 12):
            until(f"gateway {at(number)} is ready", lambda: request(self.port + number, "GET", "/readyz")[0] == 200)
        until("all storage nodes are in reach", lambda: self.reachable() == len(self.nodes))
        self.wait_counting()

    def start_node(self, node):
        number = 1 + self.nodes.index(node)
        self.start(node, self.binary, "storage-node", "--id", node, "--bucket", "s3://live/run",
                   "--listen", f"127.0.0.1:{self.port + number}", "--data-dir", str(self.scratch / node),
                   "--zone", f"zone-{number % 3}", "--memory", "64MiB", "--flush-interval", "1s", "--repair-every", "2s",
                   "--partitions", "64", *self.words)

    def make_bucket(self):
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        words = ["curl", "--silent", "--fail", "--max-time", "5", "--output", "/dev/null", "--request", "PUT",
                 "--header", f"x-amz-content-sha256: {empty}", "--aws-sigv4", "aws:amz:us-east-1:s3",
                 "--user", "live:live-secret", f"http://127.0.0.1:{self.port}/live"]
        return subprocess.run(words, check=False).returncode == 0

    def reachable(self):
        status, body = request(self.port + 11, "GET", "/v1/cluster")
        return sum(bool(m.get("reachable")) for m in json.loads(body)["members"]) if status == 200 else 0

    def signal(self, names, what):
        for name in names:
            self.processes[name].send_signal(what)

    def restart_nodes(self):
        """Ends all storage nodes in an orderly way, and starts them with nothing in memory."""
        self.signal(self.nodes, signal.SIGTERM)
        for node in self.nodes:
            self.processes[node].wait(60)
            self.start_node(node)
        self.wait_counting()

    def wait_counting(self):
        counts = lambda n: request(self.port + n, "GET", "/readyz")[0] == 200
        until("all storage nodes count", lambda: all(counts(1 + n) for n in range(len(self.nodes))))

    def stop(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def request(port, method, path, body=None, headers=None, timeout=8):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def until(what, is_so, seconds=60):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if is_so():
            return
        time.sleep(0.2)
    sys.exit(f"FAILED: not within {seconds} s: {what}")
