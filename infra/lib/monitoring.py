"""Checks rules, runbooks and dashboards against each other and against docs/telemetry.md.

monitoring.py INFRA TELEMETRY_DOC RULES_OUT; writes the dashboards' expressions into RULES_OUT for promtool to parse.
"""

import json
import re
import sys
from pathlib import Path

import yaml

import promql

UNITS = {"none", "short", "s", "bytes", "Bps", "reqps", "ops", "percentunit", "currencyUSD"}
GRAFANA_VARIABLES = {"__rate_interval", "__interval", "__range"}


def check_rules(infra, telemetry, recorded):
    bad, alerts = [], {}
    for file, rule in promql.rules(infra):
        name = rule.get("alert") or rule["record"]
        bad += [f"{file.name}: {name}: {what}" for what in telemetry.judge(rule["expr"], recorded)]
        if "alert" not in rule:
            continue
        if name in alerts:
            bad.append(f"{file.name}: {name} is there twice")
        alerts[name] = rule
        if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
            bad.append(f"{file.name}: {name}: severity must be critical or warning")
        notes = rule.get("annotations", {})
        bad += [f"{file.name}: {name} has no {key}" for key in ("summary", "description", "runbook") if not notes.get(key)]
    return bad, alerts


def check_runbooks(infra, alerts):
    bad, used = [], set()
    for name, rule in alerts.items():
        path = rule["annotations"].get("runbook", "")
        page = infra.parent / path
        if not re.fullmatch(r"infra/runbooks/[a-z-]+\.md", path) or not (infra / "runbooks" / page.name).is_file():
            bad.append(f"{name}: there is no runbook {path}")
            continue
        used.add(page.name)
        text = (infra / "runbooks" / page.name).read_text()
        if f"`{name}`" not in text:
            bad.append(f"{path} does not name its alert {name}")
        for heading in ("## What it means", "## What to look at", "## What to do"):
            if heading not in text:
                bad.append(f"{path} has no '{heading}'")
    for page in sorted((infra / "runbooks").glob("*.md")):
        if page.name not in used:
            bad.append(f"no alert leads to runbooks/{page.name}")
        strange = set(re.findall(r"`(Cartwheel[A-Z]\w+)`", page.read_text())) - set(alerts)
        bad += [f"runbooks/{page.name} names {name}, which is no alert" for name in sorted(strange)]
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        bad += [f"runbooks/{page.name}: the link {l} leads nowhere" for l in links if not (page.parent / l).is_file()]
    return bad


def check_tested(infra, alerts):
    """Every alert fires in some unit test."""
    fired = set()
    for file in sorted((infra / "prometheus/tests").glob("*.yml")):
        for case in yaml.safe_load(file.read_text())["tests"]:
            for test in case.get("promql_expr_test", []):
                for sample in test.get("exp_samples") or []:
                    fired |= set(re.findall(r'alertname="(\w+)"', sample["labels"]))
            fired |= {t["alertname"] for t in case.get("alert_rule_test", []) if t.get("exp_alerts")}
    return [f"no unit test has {name} fire" for name in sorted(set(alerts) - fired)]


def overlaps(panels):
    taken = {}
    for panel in panels:
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            yield f"panel {panel['title']} is wider than the page"
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                if (x, y) in taken:
                    yield f"panels {taken[x, y]} and {panel['title']} lie on each other"
                    return
                taken[x, y] = panel["title"]


def check_dashboard(file, dashboard, telemetry, recorded):
    bad = [key for key in ("uid", "title", "description", "schemaVersion", "templating", "panels", "time") if not dashboard.get(key)]
    if bad:
        return [f"it has no {key}" for key in bad]
    variables = {v["name"] for v in dashboard["templating"]["list"]}
    ids = [p["id"] for p in dashboard["panels"]]
    bad += ["two panels have one id"] if len(ids) != len(set(ids)) else []
    bad += list(overlaps(dashboard["panels"]))
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        say = lambda what: bad.append(f"panel {panel.get('title')}: {what}")
        for key in ("title", "description", "targets", "options"):
            if not panel.get(key):
                say(f"no {key}")
        unit = panel["fieldConfig"]["defaults"].get("unit")
        if unit not in UNITS:
            say(f"its unit is {unit}")
        if panel["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
            say("its source is not the variable")
        refs = [t["refId"] for t in panel["targets"]]
        if len(refs) != len(set(refs)):
            say("two queries have one refId")
        for target in panel["targets"]:
            if 'job="$job"' not in target["expr"]:
                say("a query does not keep to one cluster")
    for title, expression in promql.dashboard_expressions(dashboard):
        bad += [f"{title}: {what}" for what in telemetry.judge(expression, recorded)]
        strange = set(re.findall(r"\$(\w+)", expression)) - variables - GRAFANA_VARIABLES
        bad += [f"{title}: there is no variable ${name}" for name in sorted(strange)]
        if "$" in promql.filled_in(expression):
            bad.append(f"{title}: give its variable a stand-in in promql.py")
        for found in re.findall(r"rate\([^[]*\[([^\]]+)\]", expression):
            if found != "$__rate_interval":
                bad.append(f"{title}: rate over {found}, not over $__rate_interval")
    text = json.dumps(dashboard["panels"]) + json.dumps(dashboard["annotations"]) + json.dumps(dashboard["templating"])
    bad += [f"nothing uses the variable ${v}" for v in sorted(variables) if not re.search(rf"\$\{{?{v}\b", text)]
    return bad


def main():
    infra, document, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    telemetry = promql.Telemetry(document)
    recorded = promql.recorded_series(infra)
    bad, alerts = check_rules(infra, telemetry, recorded)
    bad += check_runbooks(infra, alerts)
    bad += check_tested(infra, alerts)
    uids, count, as_rules = set(), 0, []
    for file, dashboard in promql.dashboards(infra):
        bad += [f"{file.name}: {what}" for what in check_dashboard(file, dashboard, telemetry, recorded)]
        if dashboard["uid"] in uids:
            bad.append(f"{file.name}: its uid is taken")
        uids.add(dashboard["uid"])
        for _, expression in promql.dashboard_expressions(dashboard):
            count += 1
            as_rules.append({"record": f"dashboard:{count}", "expr": promql.filled_in(expression)})
    out.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": as_rules}]}))
    used = {s.name for _, r in promql.rules(infra) for s in promql.read_expression(r["expr"])[0]}
    for _, dashboard in promql.dashboards(infra):
        used |= {s.name for _, e in promql.dashboard_expressions(dashboard) for s in promql.read_expression(e)[0]}
    unused = sorted(set(recorded) - used)
    bad += [f"nothing uses the recorded series {name}" for name in unused]
    for what in bad:
        print(f"FAILED: {what}")
    print(f"{len(alerts)} alerts, {len(recorded)} recorded series, {len(uids)} dashboards with {count} expressions: "
          f"{len(used & set(telemetry.series))} of the {len(telemetry.series)} series of {document} are in use")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
