"""Checks what starts processes: compose file, settings in it and in units' environment files, collector, Grafana's files.

deployment.py INFRA BINARY; BINARY tells which settings and commands there are.
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN|MC_HOST")
# Settings of others than the program.
OTHERS = re.compile(r"^(AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|REGION|ENDPOINT_URL_S3)|MINIO_ROOT_(USER|PASSWORD)|MC_\w+|GF_\w+|OTLP_LISTEN|DEPLOYMENT)$")

# The parts of the collector that are used here, and the settings of each. A part that is not listed must be added with
# what its documentation says, so that a misspelt setting is found without the collector.
COLLECTOR = {
    "receivers": {"otlp": {"protocols"}},
    "processors": {
        "memory_limiter": {"check_interval", "limit_percentage", "spike_limit_percentage", "limit_mib", "spike_limit_mib"},
        "resource": {"attributes"},
        "tail_sampling": {"decision_wait", "num_traces", "expected_new_traces_per_sec", "policies"},
        "batch": {"send_batch_size", "send_batch_max_size", "timeout"},
    },
    "exporters": {
        "otlp": {"endpoint", "compression", "retry_on_failure", "sending_queue", "tls", "headers", "timeout"},
        "prometheusremotewrite": {"endpoint", "add_metric_suffixes", "resource_to_telemetry_conversion", "tls", "headers"},
        "debug": {"verbosity"},
        "nop": set(),
    },
    "extensions": {"health_check": {"endpoint", "path"}},
}
POLICIES = {"status_code": {"status_codes"}, "latency": {"threshold_ms"}, "probabilistic": {"sampling_percentage"}}


def help_of(binary, *words):
    done = subprocess.run([binary, *words, "--help"], capture_output=True, text=True, timeout=20)
    return done.stdout if done.returncode == 0 else None


def known_settings(binary):
    texts = [help_of(binary, command) or "" for command in ("storage-node", "gateway")]
    return [set(re.findall(r"\[env: (\w+)", text)) for text in texts]


def check_compose(infra, known):
    bad = []
    folder = infra / "container"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    services = compose["services"]
    example = set(re.findall(r"^(\w+)=", (folder / ".env.example").read_text(), re.M))
    if re.search(r"^\w+=\S", (folder / ".env.example").read_text(), re.M):
        bad.append(".env.example has a value; it must be filled in by who runs it")
    for variable, rest in re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", (folder / "compose.yaml").read_text()):
        if variable not in example:
            bad.append(f"{variable} is not in .env.example")
        if not rest.startswith(":?"):
            bad.append(f"{variable}: nothing is said if it is not set; write ${{{variable}:?...}}")
    for name, service in services.items():
        say = lambda what: bad.append(f"compose: {name}: {what}")
        if not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service.get("image", "")) or service["image"].endswith(":latest"):
            say(f"the image {service.get('image')} has no version")
        if service.get("read_only") is not True:
            say("its file system is not read-only")
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            say("it keeps capabilities or may get new ones")
        for limit in ("mem_limit", "cpus", "pids_limit"):
            if limit not in service:
                say(f"it has no {limit}")
        if service.get("restart") != "no" and "healthcheck" not in service:
            say("nothing says how healthy it is")
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                say(f"port {port} is open to everybody")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                if not (folder / source).resolve().exists():
                    say(f"there is no {source}")
                if not volume.endswith(":ro"):
                    say(f"{source} can be written")
            elif source not in compose["volumes"]:
                say(f"there is no volume {source}")
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key) and "${" not in str(value):
                say(f"{key} has a value in the file")
            allowed = known[1 if service.get("command") == ["gateway"] else 0]
            if not OTHERS.match(key) and key not in allowed:
                say(f"the program has no setting {key}")
    nodes = {n: s for n, s in services.items() if s.get("command") == ["storage-node"]}
    gateways = [n for n, s in services.items() if s.get("command") == ["gateway"]]
    zones = {s["environment"]["CARTWHEEL_ZONE"] for s in nodes.values()}
    if (len(nodes), len(zones), len(gateways)) != (5, 3, 2):
        bad.append(f"compose: {len(nodes)} storage nodes in {len(zones)} zones, {len(gateways)} gateways; not 5, 3 and 2")
    for name, service in nodes.items():
        own = service["environment"]
        if own["CARTWHEEL_ID"] != name or own["CARTWHEEL_ADVERTISE"] != f"{name}:7101" or service["volumes"][0].split(":")[0] != name:
            bad.append(f"compose: {name}: id, address and volume must have its name")
    prometheus = yaml.safe_load((infra / "prometheus/prometheus.yml").read_text())
    for job in prometheus["scrape_configs"]:
        targets = {t for static in job["static_configs"] for t in static["targets"]}
        strange = {t for t in targets if t.split(":")[0] not in services}
        bad += [f"prometheus.yml: compose has no {t}" for t in sorted(strange)]
        if job["job_name"] == "cartwheel":
            missing = ({f"{n}:7101" for n in nodes} | {f"{g}:8080" for g in gateways}) - targets
            bad += [f"prometheus.yml does not scrape {t}" for t in sorted(missing)]
    return bad


def check_settings(infra, known):
    """Environment files and units name settings that the program has, and have no secret."""
    bad = []
    for file in sorted((infra / "systemd").iterdir()):
        kinds = known[1] if "gateway" in file.name else known[0] if "storage" in file.name else known[0] | known[1]
        for name, value in re.findall(r"^(?:#|Environment=)?([A-Z][A-Z0-9_]+)=(.*)$", file.read_text(), re.M):
            if not OTHERS.match(name) and name not in kinds:
                bad.append(f"systemd/{file.name}: the program has no setting {name}")
            if SECRET.search(name) and value.strip('"') != "...":
                bad.append(f"systemd/{file.name}: {name} has a value")
    for name in re.findall(r"^ENV (\w+)=", (infra / "container/Containerfile").read_text(), re.M):
        if name not in known[0]:
            bad.append(f"Containerfile: the program has no setting {name}")
    return bad


def merged(under, over):
    if isinstance(under, dict) and isinstance(over, dict):
        return {k: merged(under[k], over[k]) if k in under and k in over else over.get(k, under.get(k)) for k in {**under, **over}}
    return over


def check_collector(name, config):
    bad = []
    say = lambda what: bad.append(f"{name}: {what}")
    for key in set(config) - {*COLLECTOR, "service"}:
        say(f"there is no section {key}")
    for section, kinds in COLLECTOR.items():
        for part, settings in config.get(section, {}).items():
            kind = part.split("/")[0]
            if kind not in kinds:
                say(f"{section} has no kind {kind}")
                continue
            for key in set(settings or {}) - kinds[kind]:
                say(f"{part} has no setting {key}")
    receiver = config["receivers"]["otlp"]["protocols"]
    if set(receiver) != {"grpc", "http"}:
        say("otlp must be received by grpc and by http")
    for policy in config["processors"].get("tail_sampling", {}).get("policies", []):
        kind = policy.get("type")
        if kind not in POLICIES or set(policy) != {"name", "type", kind} or not set(policy[kind]) <= POLICIES[kind]:
            say(f"odd policy {policy}")
    service = config["service"]
    if set(service["extensions"]) != set(config.get("extensions", {})):
        say("extensions are not those of the service")
    used = {section: set() for section in ("receivers", "processors", "exporters")}
    for pipeline, parts in service["pipelines"].items():
        if pipeline.split("/")[0] not in ("traces", "metrics", "logs"):
            say(f"there is no kind of pipeline {pipeline}")
        for section in used:
            if not parts.get(section):
                say(f"{pipeline} has no {section}")
            missing = set(parts.get(section, [])) - set(config[section])
            bad.extend(f"{name}: {pipeline} uses {part}, which is not there" for part in sorted(missing))
            used[section] |= set(parts.get(section, []))
        order = parts.get("processors") or ["none"]
        if order[0] != "memory_limiter" or order[-1] != "batch":
            say(f"{pipeline}: memory_limiter must come first and batch last")
    for section in ("receivers", "processors"):
        for part in sorted(set(config[section]) - used[section]):
            say(f"nothing uses {part}")
    return bad


def check_collectors(infra):
    file = infra / "otel/collector.yaml"
    text = file.read_text()
    config = yaml.safe_load(text)
    bad = check_collector("collector.yaml", config)
    unused = set(config["exporters"]) - {e for p in config["service"]["pipelines"].values() for e in p["exporters"]}
    bad += [f"collector.yaml: nothing uses {part}" for part in sorted(unused)]
    for name in set(re.findall(r"\$\{env:(\w+)", text)):
        if not re.search(rf"^#   {name} ", text, re.M):
            bad.append(f"collector.yaml: {name} is not explained at its top")
    for whole in re.findall(r"\$\{[^}]*\}", text):
        if not re.fullmatch(r"\$\{env:\w+:-[^}]+\}", whole):
            bad.append(f"collector.yaml: {whole} has no default")
    over = yaml.safe_load((infra / "container/collector.yaml").read_text())
    return bad + check_collector("container/collector.yaml over it", merged(config, over))


def check_grafana(infra):
    bad = []
    sources = yaml.safe_load((infra / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    for source in sources["datasources"]:
        missing = {"name", "uid", "type", "access", "url"} - set(source)
        bad += [f"data source {source.get('name')} has no {key}" for key in sorted(missing)]
    providers = yaml.safe_load((infra / "grafana/provisioning/dashboards/cartwheel.yaml").read_text())
    compose = (infra / "container/compose.yaml").read_text()
    for provider in providers["providers"]:
        if f"../grafana/dashboards:{provider['options']['path']}:ro" not in compose:
            bad.append(f"compose does not put dashboards where provider {provider['name']} looks")
    return bad


def check_commands(infra, binary):
    """Commands in runbooks exist, and take the options that are given to them."""
    bad, count, helps = [], 0, {}
    for page in sorted((infra / "runbooks").glob("*.md")):
        text = page.read_text()
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        commands = [line for block in blocks for line in block.splitlines()]
        commands += re.findall(r"`(cartwheel [^`]+)`", text)
        for command in commands:
            words = command.split()
            if words[0] != "cartwheel":
                continue
            count += 1
            path = []
            for word in words[1:]:
                if not re.fullmatch(r"[a-z]+", word):
                    break
                key = (*path, word)
                if key not in helps:
                    helps[key] = help_of(binary, *key)
                # An argument, such as a key, is no subcommand; the first word always is one.
                if helps[key] is None or path and "<COMMAND>" not in helps[tuple(path)]:
                    break
                path.append(word)
            if not path or "<COMMAND>" in helps[tuple(path)]:
                bad.append(f"runbooks/{page.name}: there is no command '{command}'")
                continue
            for option in re.findall(r"--[a-z-]+", command):
                if option not in helps[tuple(path)]:
                    bad.append(f"runbooks/{page.name}: '{command}': there is no {option}")
    if count < 40:
        bad.append(f"only {count} commands found in runbooks: the search is broken")
    return bad, count


def main():
    infra, binary = Path(sys.argv[1]), sys.argv[2]
    known = known_settings(binary)
    if min(len(k) for k in known) < 5:
        sys.exit(f"FAILED: {binary} shows no settings in its --help")
    bad = check_compose(infra, known) + check_settings(infra, known) + check_collectors(infra) + check_grafana(infra)
    wrong, count = check_commands(infra, binary)
    bad += wrong
    for what in bad:
        print(f"FAILED: {what}")
    print(f"compose file, settings, collector, Grafana's files and {count} commands of runbooks were looked at")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
