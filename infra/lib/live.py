"""Asks a real Prometheus every expression of rules and dashboards, while a real cluster is well and while it is not.

live.py INFRA BINARY PROMETHEUS SCRATCH PORT; uses 30 ports of loopback from PORT on. Ends with status 1 if an expression
can't be evaluated, a series that it asks for never shows, an alert is raised though all is well, or one is not raised
though it should be.
"""

import json
import signal
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import promql
from cluster import Cluster, claim, request, until

NODES = ["node-a", "node-b", "node-c", "node-d", "node-e"]
# These have to be raised by what is done below (their conditions, not the time that they must hold).
FAULTS = [
    ("node-e is killed", ["node-e"], signal.SIGKILL, ["CartwheelProcessDown", "CartwheelMemberDead"]),
    ("node-d hangs too", ["node-d"], signal.SIGSTOP, ["CartwheelQuorumUnreachable", "CartwheelFallbackAnswers"]),
    ("every storage node hangs", ["node-a", "node-b", "node-c"], signal.SIGSTOP,
     ["CartwheelDegradedAnswers", "CartwheelErrorBudgetBurnFast", "CartwheelOverloaded"]),
]
# Raised when all is well, because of what is done on purpose.
ON_PURPOSE = {"CartwheelTooManySiblings": "the load writes blindly where two siblings are the most"}
# May be raised when all is well: a machine that is busy with other things is slow.
MACHINE = "CartwheelLatencyBudgetBurn"
# Series that no fault below brings about, each with its reason.
NEVER = {}


class Load:
    """A little of everything, some twenty rounds a second at most, until it is told to end."""

    def __init__(self, port):
        self.port, self.ends, self.calm, self.rounds = port, threading.Event(), threading.Event(), 0
        self.calm.set()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        both = (self.port + 11, self.port + 12)
        with ThreadPoolExecutor(8) as pool:
            while not self.ends.is_set() and self.rounds < 5000:
                self.rounds += 1
                n, gateway = self.rounds, both[self.rounds % 2]
                # When all is well, all must be answered well; then some may fail.
                tail = "deadline=5s" if self.calm.is_set() else "deadline=500ms"
                carts = "/v1/kv/carts/k"
                work = [
                    (gateway, "PUT", f"{carts}{n % 50}?{tail}", b"x" * 200),
                    (both[0], "GET", f"{carts}{n % 50}?{tail}", None),
                    (both[0], "PUT", f"{carts}{n % 50}?sloppy=false&{tail}", b"y"),
                    (both[0], "PUT", f"/v1/kv/few/one?{tail}", b"z"),
                    (both[0], "DELETE", f"{carts}{n % 49}?{tail}", None),
                ]
                # More than the second gateway works on at once.
                work += [] if self.calm.is_set() else [(both[1], "GET", f"{carts}{n % m}?{tail}", None) for m in (5, 7, 9, 11)]
                list(pool.map(lambda w: request(*w), work))
                self.ends.wait(0.05)

    def stop(self):
        self.ends.set()
        self.thread.join(timeout=20)


class Prometheus:
    def __init__(self, port):
        self.port = port

    def ask(self, expression):
        """The result, or an error as a string."""
        body = urllib.parse.urlencode({"query": expression})
        status, text = request(self.port, "POST", "/api/v1/query", body, {"Content-Type": "application/x-www-form-urlencoded"})
        if not status:
            return "Prometheus does not answer"
        answer = json.loads(text)
        return answer["data"]["result"] if answer["status"] == "success" else answer["error"]

    def is_true(self, expression):
        result = self.ask(expression)
        return isinstance(result, list) and len(result) > 0

    def rules(self):
        status, text = request(self.port, "GET", "/api/v1/rules")
        return [rule for group in json.loads(text)["data"]["groups"] for rule in group["rules"]] if status == 200 else []

    def evaluated_since(self, moment):
        """Have all rules been evaluated since then, in seconds since 1970?"""
        times = [rule["lastEvaluation"][:19] for rule in self.rules()]
        return bool(times) and min(times) > time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))

    def configure(self, infra, scratch, port):
        targets = [f"127.0.0.1:{port + n}" for n in (1, 2, 3, 4, 5, 11, 12)]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(f) for f in promql.rule_files(infra)],
            "scrape_configs": [{"job_name": "cartwheel", "static_configs": [{"targets": targets}]}],
        }
        # JSON is YAML too.
        (scratch / "prometheus.yml").write_text(json.dumps(config))


def main():
    infra, binary, program, scratch, port = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5])
    claim(port)
    alerts = {r["alert"]: r["expr"] for _, r in promql.rules(infra) if "alert" in r}
    asked = [(f"record {r['record']}", r["expr"]) for _, r in promql.rules(infra) if "record" in r]
    asked += [(f"alert {name}", expression) for name, expression in alerts.items()]
    for file, dashboard in promql.dashboards(infra):
        asked += [(f"{file.name}, {title}", promql.filled_in(e)) for title, e in promql.dashboard_expressions(dashboard)]
    cluster, load, prometheus = Cluster(binary, scratch, port, NODES), Load(port), Prometheus(port + 20)
    # Ends what was started also if the check is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bad = []
    try:
        begun = time.monotonic()
        say = lambda text: print(f"{text} ({time.monotonic() - begun:.0f} s)", flush=True)
        cluster.start_all()
        request(port + 11, "PUT", "/v1/namespaces/few", json.dumps({"max_siblings": 2}))
        prometheus.configure(infra, scratch, port)
        cluster.start("prometheus", program, f"--config.file={scratch}/prometheus.yml", f"--storage.tsdb.path={scratch}/tsdb",
                      f"--web.listen-address=127.0.0.1:{port + 20}", "--log.level=warn")
        until("Prometheus is ready", lambda: request(port + 20, "GET", "/-/ready")[0] == 200)
        load.began = time.time()
        load.thread.start()
        until("everything was scraped five times", lambda: prometheus.is_true("count(count_over_time(up[1m]) >= 5) >= 7"))
        until("rules were evaluated twice", lambda: prometheus.evaluated_since(load.began + 5))
        say("the cluster is whole")

        raised = [name for name, expression in alerts.items() if name not in ON_PURPOSE and not name.startswith(MACHINE) and prometheus.is_true(expression)]
        bad += [f"{name} would be raised though all is well: {alerts[name]}" for name in raised]
        for name, why in ON_PURPOSE.items():
            try:
                until("", lambda: prometheus.is_true(alerts[name]), 15)
            except SystemExit:
                bad.append(f"{name} is not raised though {why}")

        load.calm.clear()
        for fault, whom, how, expected in FAULTS:
            cluster.signal(whom, how)
            left = set(expected)
            ends = time.monotonic() + 45
            while left and time.monotonic() < ends:
                left -= {name for name in left if prometheus.is_true(alerts[name])}
                time.sleep(0.5)
            bad += [f"{fault}, and {name} would not be raised: {alerts[name]}" for name in sorted(left)]
            say(f"{fault}: {len(expected) - len(left)} of {len(expected)} alerts would be raised")
        cluster.signal(NODES[:4], signal.SIGCONT)

        # Two scrapes after they go on.
        now = time.time()
        until("nodes are scraped again", lambda: prometheus.is_true(f'count(min_over_time(timestamp(up{{job="cartwheel"}} == 1)[3s:1s]) > {now}) >= 6'))
        missing = {}
        for where, expression in asked:
            result = prometheus.ask(expression)
            if isinstance(result, str):
                bad.append(f"{where}: {result}: {expression}")
                continue
            for selector in promql.read_expression(expression)[0]:
                if selector.name in NEVER or selector.name.startswith("ALERTS"):
                    continue
                # Said once of a name that nothing was seen of, else of the selector.
                for text in (selector.name, selector.text):
                    if not prometheus.is_true(f"last_over_time({text}[10m])"):
                        missing.setdefault(text, []).append(where)
                        break
        bad += [f"nothing was ever seen of {text}, asked for by {where[0]}" + (f" and {len(where) - 1} more" if where[1:] else "")
                for text, where in sorted(missing.items())]
        bad += [f"rule {r['name']} is {r['health']}: {r.get('lastError')}" for r in prometheus.rules() if r["health"] != "ok"]
        say(f"{len(asked)} expressions were asked, {load.rounds} rounds of load")
        load.stop()
    finally:
        load.ends.set()
        cluster.stop()
    for what in bad:
        print(f"FAILED: {what}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
