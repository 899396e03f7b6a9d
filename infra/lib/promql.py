"""What expressions ask for, and what docs/telemetry.md says there is. No full parser: promtool judges the grammar."""

import json
import re
from pathlib import Path

import yaml

AGGREGATIONS = {"sum", "min", "max", "avg", "count", "group", "stddev", "stdvar", "topk", "bottomk", "quantile", "count_values"}
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"} | AGGREGATIONS
# What Prometheus makes by itself, and the labels that it puts on everything.
OWN_SERIES = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
OWN_LABELS = {"job", "instance"}

TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      |(?P<range>\[[^\]]*\])
      |(?P<brace>\{(?:"(?:\\.|[^"\\])*"|[^}"])*\})
      |(?P<number>\d[\w.]*)
      |(?P<variable>\$\w+)
      |(?P<name>[A-Za-z_:][\w:]*)
      |(?P<open>\()
      |(?P<other>\S)""",
    re.X,
)
MATCHER = re.compile(r'\s*([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*"((?:\\.|[^"\\])*)"\s*(?:,|$)')


class Selector:
    """One selector of an expression: a name, and its matchers as (label, operator, value)."""

    def __init__(self, name, matchers, text):
        self.name, self.matchers, self.text = name, matchers, text


def read_expression(expression):
    """The selectors of an expression, and the labels that it groups by."""
    tokens = [(m.lastgroup, m.group()) for m in TOKEN.finditer(expression)]
    selectors, grouped = [], set()
    at = 0
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1] if at + 1 < len(tokens) else ("end", "")
        if kind == "name" and text in GROUPINGS:
            at += 1
            if following[0] == "open":
                at += 1
                while at < len(tokens) and tokens[at][1] != ")":
                    if tokens[at][0] == "name":
                        grouped.add(tokens[at][1])
                    at += 1
        elif kind == "name" and text not in WORDS and following[0] != "open":
            matchers, whole = [], text
            if following[0] == "brace":
                whole += following[1]
                matchers = read_matchers(following[1])
                at += 1
            selectors.append(Selector(text, matchers, whole))
        elif kind == "brace":
            raise ValueError(f"a selector without a name: {text}")
        at += 1
    return selectors, grouped


def read_matchers(brace):
    inner, matchers, at = brace[1:-1], [], 0
    while at < len(inner):
        found = MATCHER.match(inner, at)
        if not found:
            raise ValueError(f"odd matchers: {brace}")
        matchers.append(found.groups())
        at = found.end()
    return matchers


class Telemetry:
    """The tables of docs/telemetry.md: which series there are, with which labels and bounds."""

    def __init__(self, path):
        text = Path(path).read_text()
        self.series, self.bounds = {}, {}
        shared = re.search(r"histograms of seconds have the bounds ([\d., and]+\d)", text)
        if not shared:
            raise ValueError(f"{path}: no sentence says which bounds histograms of seconds have")
        numbers = lambda found: {float(n) for n in re.findall(r"\d+(?:\.\d+)?", found)}
        for line in text.splitlines():
            row = re.match(r"\| `([a-z_:]+)` \| (counter|gauge|histogram) \|[^|]*\|([^|]*)\|(.*)\|$", line)
            if not row:
                continue
            name, kind, labels, meaning = row.groups()
            labels = set(re.findall(r"`(\w+)`", labels))
            if kind == "histogram":
                own = re.search(r"Bounds ([\d., and]+\d)", meaning)
                self.bounds[name + "_bucket"] = numbers(own.group(1) if own else shared.group(1))
                self.series.update({name + "_bucket": labels | {"le"}, name + "_sum": labels, name + "_count": labels})
            else:
                self.series[name] = labels
        if len(self.series) < 30:
            raise ValueError(f"{path}: only {len(self.series)} series found: the tables have another shape")
        # Values of labels stand in backquotes.
        self.words = set(re.findall(r"`([^`]+)`", text))

    def judge(self, expression, recorded):
        """What is wrong with an expression; `recorded`: series that rules make, with their labels."""
        selectors, grouped = read_expression(expression)
        if not selectors:
            return ["it asks for no series"]
        bad, known_labels = [], set(OWN_LABELS)
        for s in selectors:
            labels = self.series.get(s.name, recorded.get(s.name, OWN_SERIES.get(s.name)))
            if labels is None:
                bad.append(f"there is no series {s.name}")
                continue
            known_labels |= labels
            for label, operator, value in s.matchers:
                if label not in labels | OWN_LABELS:
                    bad.append(f"{s.name} has no label {label}")
                elif label == "le":
                    wanted = {float(v.replace("[.]", ".")) for v in value.split("|")}
                    if not wanted <= self.bounds.get(s.name, set()):
                        bad.append(f"{s.name} has no bound {value}")
                elif label not in OWN_LABELS and s.name in self.series:
                    # With wildcards or variables nothing can be said.
                    values = value.split("|") if operator in ("=~", "!~") else [value]
                    strange = [v for v in values if not re.search(r"[.*+$]", v) and v not in self.words]
                    bad += [f"{s.name}: no {label} is called {v}" for v in strange]
        bad += [f"it groups by {label}, which none of its series has" for label in sorted(grouped - known_labels)]
        return bad


def rule_files(infra):
    return sorted((infra / "prometheus/rules").glob("*.yml"))


def rules(infra):
    for file in rule_files(infra):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                yield file, rule


def recorded_series(infra):
    """What rules record, with the labels that are left."""
    return {r["record"]: read_expression(r["expr"])[1] - {"le"} for _, r in rules(infra) if "record" in r}


def dashboards(infra):
    for file in sorted((infra / "grafana/dashboards").glob("*.json")):
        yield file, json.loads(file.read_text())


def dashboard_expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"]


# What Grafana puts in place of its variables before it asks Prometheus.
STAND_INS = {"$__rate_interval": "1m", "$job": "cartwheel", "$node": ".*", "$gb_month": "0.023"}


def filled_in(expression):
    for variable, value in STAND_INS.items():
        expression = expression.replace(variable, value)
    return expression
