"""Lists the crates that are linked into the program, with their licences and notices: third_party.py TARGET FILE.

What is written depends on Cargo.lock and the crates' own files only, in a fixed order, so two runs write the same
bytes. Crates that only run while another one compiles are left out: nothing of them is in the program.
"""

import json
import pathlib
import re
import subprocess
import sys

target, output = sys.argv[1], pathlib.Path(sys.argv[2])
# A notice larger than this is not one.
NOTICE_BYTES_MAX = 1 << 18
NOTICE = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def linked():
    """The packages that the program links, from its own package along normal dependencies."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, waiting = {root}, [root]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            package = packages[dependency["pkg"]]
            is_macro = any("proc-macro" in kind for kind in (target["kind"] for target in package["targets"]))
            is_normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if is_normal and not is_macro and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    seen.remove(root)
    return sorted((packages[id] for id in seen), key=lambda package: (package["name"], package["version"]))


def notices(package):
    """Texts of the licence files in the crate, by name."""
    folder = pathlib.Path(package["manifest_path"]).parent
    found = {path.name: path for path in folder.iterdir() if path.is_file() and NOTICE.match(path.name)}
    if package["license_file"]:
        path = (folder / package["license_file"]).resolve()
        found[path.name] = path
    for name in sorted(found):
        if found[name].stat().st_size <= NOTICE_BYTES_MAX:
            text = found[name].read_text("utf-8", "replace").replace("\r\n", "\n")
            yield name, "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))


def spdx(package):
    licence = package["license"] or sys.exit(f"{package['name']} {package['version']} names no licence")
    return re.sub(r"\s*/\s*", " OR ", licence)


def source(package):
    return package["repository"] or package["homepage"] or f"the crate {package['name']}"


def third_party(crates):
    texts, users = {}, {}
    for package in crates:
        for name, text in notices(package):
            key = " ".join(text.split())
            texts.setdefault(key, text)
            users.setdefault(key, []).append(f"{package['name']} {package['version']} ({name})")
    out = ["Crates that are linked into tidegate, their licences, and where their source is.", ""]
    width = max(len(f"{package['name']} {package['version']}") for package in crates)
    for package in crates:
        out.append(f"{package['name'] + ' ' + package['version']:<{width}}  {spdx(package)}  {source(package)}")
    bare = [package["name"] for package in crates if not any(True for _ in notices(package))]
    if bare:
        out += ["", "These come without a text; the one of their licence stands below with others: " + ", ".join(bare) + "."]
    out += ["", "SQLite (https://sqlite.org), which libsqlite3-sys brings, is in the public domain."]
    for key in sorted(texts, key=lambda key: (users[key][0], key)):
        out += ["", "=" * 100, *users[key], "-" * 100, texts[key]]
    return "\n".join(out) + "\n"


crates = linked()
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text(third_party(crates))
