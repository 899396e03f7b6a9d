"""Sends what a cluster does to a collector that is none of ours, and reads back the trace of a write and of a read.

traced.py BINARY AGENT SCRATCH PORT DOCUMENT; AGENT is the program of the collector Rotel, DOCUMENT docs/telemetry.md; uses
30 ports of loopback from PORT on. Ends with status 1 if a span is missing, has another parent or kind than documented,
comes from another process than it should, or if a metric that is pushed does not arrive.
"""

import re
import signal
import sys
from pathlib import Path

from cluster import Cluster, claim, request, until

NODES = ["node-a", "node-b", "node-c"]
# The client's span, of which the requests below are part.
CLIENT = "00f067aa0ba902b7"
WRITE, READ = "4bf92f3577b34da6a3ce929d0e0e4736", "7a085853722dc6d2a13ff3ee8aa7c0de"
CALLS = ("read", "mint", "replicate", "confirm")
STORAGE = [f"storage {call}" for call in CALLS]
# Which spans may be below which: kind, service, and the names of parents; None is the client.
RULES = {
    "request": ("SERVER", "cartwheel-gateway", [None]),
    **{call: ("CLIENT", "cartwheel-gateway", ["request"]) for call in CALLS},
    **{f"storage {call}": ("SERVER", "cartwheel-storage-node", [call]) for call in CALLS},
    "log sync": ("INTERNAL", "cartwheel-storage-node", STORAGE),
    "flush": ("INTERNAL", "cartwheel-storage-node", STORAGE),
    "bucket GET_RANGE": ("CLIENT", "cartwheel-storage-node", STORAGE),
    "bucket GET": ("CLIENT", "cartwheel-storage-node", STORAGE),
}
# What must be in each trace: a write that waits for the bucket, and a read of what is in no memory.
NEEDED = {
    WRITE: {"request", "mint", "storage mint", "replicate", "storage replicate", "flush"},
    READ: {"request", "read", "storage read", "bucket GET_RANGE"},
}
METRICS = ["cartwheel.ring.version", "cartwheel.operation.duration", "cartwheel.call.duration", "http.server.request.duration"]


def spans(said):
    """All spans that the collector wrote down."""
    found, service, span = [], None, None
    for line in said.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if line.startswith("ResourceSpans"):
            service = None
        elif span is None and line.strip().startswith("-> service.name:"):
            service = re.search(r"Str\((.*)\)", line).group(1)
        elif line.startswith("Span #"):
            span = {"service": service}
            found.append(span)
        elif line.startswith(("ScopeSpans", "InstrumentationScope")) or name == "Attributes":
            span = None
        elif span is not None and name in ("Trace ID", "Parent ID", "ID", "Name", "Kind"):
            span[name] = value
    return [span for span in found if "Kind" in span]


def short(name):
    """A span's name without the node, the method and the route."""
    first = name.split(" ")[0]
    return "request" if first.isupper() else first if first in CALLS else name


def amiss(trace, found):
    """What is not as documented in the spans of one trace."""
    by_id = {span["ID"]: span for span in found}
    for missing in sorted(NEEDED[trace] - {short(span["Name"]) for span in found}):
        yield f"there is no span '{missing}'"
    for span in found:
        name = span["Name"]
        if short(name) not in RULES:
            yield f"span '{name}' is not known here"
            continue
        kind, service, parents = RULES[short(name)]
        parent = span["Parent ID"]
        if parent != CLIENT and parent not in by_id:
            yield f"the parent of '{name}' did not come"
            continue
        of = None if parent == CLIENT else short(by_id[parent]["Name"])
        if of not in parents:
            yield f"'{name}' is below {of or 'the client'}, not below {parents}"
        if span["Kind"] != f"SPAN_KIND_{kind}" or span["service"] != service:
            yield f"'{name}' is {span['Kind']} of {span['service']}, not {kind} of {service}"


def tree(found, parent=CLIENT, depth=0):
    for span in sorted((s for s in found if s["Parent ID"] == parent), key=lambda s: s["Name"]):
        print(f"  {'  ' * depth}{span['Name']} ({span['service']})")
        tree(found, span["ID"], depth + 1)


def main():
    binary, agent, scratch, port, document = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    claim(port)
    documented = document.read_text().partition("## Spans")[2]
    strange = [name for name in RULES if name != "request" and f"`{name}" not in documented]
    if strange:
        sys.exit(f"FAILED: {document} knows no spans {strange}")
    words = ("--otlp", f"http://127.0.0.1:{port + 20}", "--trace-ratio", "0")
    cluster = Cluster(binary, scratch, port, NODES, words, {"OTEL_METRIC_EXPORT_INTERVAL": "1000"})
    said = lambda: (scratch / "collector.log").read_text(errors="replace")
    of = lambda trace: [span for span in spans(said()) if span["Trace ID"] == trace]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bad = []
    try:
        cluster.start("collector", agent, "start", "--otlp-http-endpoint", f"127.0.0.1:{port + 20}",
                      "--otlp-grpc-endpoint", f"127.0.0.1:{port + 21}", "--exporter", "blackhole", "--batch-timeout", "200ms",
                      "--debug-log", "traces", "--debug-log", "metrics", "--debug-log-verbosity", "detailed",
                      "--pid-file", str(scratch / "collector.pid"), "--log-file", str(scratch / "collector.out"))
        cluster.start_all()
        part_of = lambda trace: {"traceparent": f"00-{trace}-{CLIENT}-01"}
        path = "/v1/kv/carts/alice"
        status, body = request(port + 11, "PUT", f"{path}?durability=bucket&w=3&sloppy=false&deadline=10s", b"milk", part_of(WRITE))
        if status != 204:
            sys.exit(f"FAILED: PUT was answered {status}: {body[:300]}")
        cluster.restart_nodes()
        read = lambda trace: request(port + 11, "GET", f"{path}?r=3&sloppy=false&deadline=10s", None, part_of(trace))
        until("the gateway reaches all nodes", lambda: cluster.reachable() == len(NODES))
        status, body = read(READ)
        if (status, body) != (200, b"milk"):
            sys.exit(f"FAILED: GET was answered {status}: {body[:300]}")
        for what, trace in [("PUT", WRITE), ("GET", READ)]:
            try:
                until("", lambda: not list(amiss(trace, of(trace))), 20)
            except SystemExit:
                bad += [f"{what}: {why}" for why in amiss(trace, of(trace))]
            print(f"{what} {path}, as the collector has it:", flush=True)
            tree(of(trace))
        try:
            until("", lambda: all(f"Name: {metric}\n" in said() for metric in METRICS), 20)
        except SystemExit:
            bad += [f"metric {metric} did not arrive" for metric in METRICS if f"Name: {metric}\n" not in said()]
    finally:
        cluster.stop()
    for what in bad:
        print(f"FAILED: {what}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
