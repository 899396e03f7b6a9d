"""Checks a Terraform folder as far as that goes without its providers.

Parses every file, and looks up what is referred to: variables, locals, modules and their outputs, resources and data
sources; the arguments of modules of ours; the variables that examples set. It does not know what arguments a provider's
resources take.

Usage: parse.py FOLDER    (needs python-hcl2)
"""

import os
import re
import sys

import hcl2

BLOCK = re.compile(r'^(variable|module|output|resource|data)\s+"([^"]+)"(?:\s+"([^"]+)")?', re.M)


def read(folder):
    """The text of the folder's .tf files without comments; each is parsed on the way."""
    texts = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".tf"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                text = file.read()
            hcl2.parses_to_tree(text)
            texts.append(re.sub(r"^\s*#.*$", "", text, flags=re.M))
    return "\n".join(texts)


def body(text, start):
    """What is between the braces that open after `start`."""
    begin = text.index("{", start)
    depth = 0
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin + 1 : at]
    raise ValueError("a brace is not closed")


def arguments(block):
    """The names that are set at the top of a block's body."""
    names, depth = set(), 0
    for line in block.splitlines():
        found = re.match(r"\s*([a-z_0-9]+)\s*=(?!=)", line)
        if depth == 0 and found:
            names.add(found.group(1))
        depth += sum(line.count(c) for c in "{[(") - sum(line.count(c) for c in "}])")
    return names


def declared(text):
    """Blocks by kind: name (or type.name) to body."""
    blocks = {kind: {} for kind in ("variable", "module", "output", "resource", "data")}
    for found in BLOCK.finditer(text):
        kind, first, second = found.groups()
        blocks[kind][f"{first}.{second}" if second else first] = body(text, found.start())
    local = set()
    for found in re.finditer(r"^locals\s*\{", text, re.M):
        local |= arguments(body(text, found.start()))
    return blocks, local


def check(folder):
    """The folder's faults, one line each."""
    faults = []
    text = read(folder)
    blocks, local = declared(text)
    names = {
        "var": set(blocks["variable"]),
        "local": local,
        "module": set(blocks["module"]),
    }
    for kind, known in names.items():
        used = set(re.findall(rf"\b{kind}\.([a-z_0-9]+)", text))
        faults += [f"{kind}.{name} is used and not declared" for name in sorted(used - known)]
        faults += [f"{kind}.{name} is declared and not used" for name in sorted(known - used) if kind != "module"]
    types = {name.split(".")[0].split("_")[0] for name in blocks["resource"]}
    for prefix in types:
        for data, name in re.findall(rf"\b(data\.)?({prefix}_[a-z0-9_]+\.[a-z_0-9]+)\b", text):
            if name not in blocks["data" if data else "resource"]:
                faults.append(f"{data}{name} is used and not declared")
    for name, block in blocks["module"].items():
        source = re.search(r'source\s*=\s*"([^"]+)"', block).group(1)
        inner, _ = declared(read(os.path.join(folder, source)))
        given = arguments(block) - {"source", "count", "for_each", "depends_on", "providers"}
        required = {v for v, b in inner["variable"].items() if "default" not in arguments(b)}
        faults += [f"module.{name} has no argument {v}" for v in sorted(given - set(inner["variable"]))]
        faults += [f"module.{name} lacks {v}" for v in sorted(required - given)]
        used = set(re.findall(rf"\bmodule\.{name}(?:\[[^\]]*\])?\.([a-z_0-9]+)", text))
        faults += [f"module.{name} has no output {v}" for v in sorted(used - set(inner["output"]))]
    examples = os.path.join(folder, "examples")
    required = {v for v, b in blocks["variable"].items() if "default" not in arguments(b)}
    for name in sorted(os.listdir(examples)):
        with open(os.path.join(examples, name), encoding="utf-8") as file:
            example = file.read()
        hcl2.parses_to_tree(example)
        given = arguments(re.sub(r"^\s*#.*$", "", example, flags=re.M))
        faults += [f"examples/{name}: there is no variable {v}" for v in sorted(given - set(blocks["variable"]))]
        faults += [f"examples/{name}: {v} is not given" for v in sorted(required - given)]
    return faults


def main():
    folder = sys.argv[1]
    faults = check(folder)
    for fault in faults:
        print(f"{folder}: {fault}")
    if not faults:
        print(f"parsed: {folder}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
