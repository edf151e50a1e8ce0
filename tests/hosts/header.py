"""Reads facegrad.h, as cbindgen writes it, and makes from it what depends on the list of functions.

    header.py calls HEADER OUT WORLD     writes C code that calls every function: see calls.c
    header.py freeze HEADER FOLDER       keeps HEADER as FOLDER/v<ABI version>/facegrad.h, if it breaks no earlier promise
    header.py compare OLD NEW            fails with a line for every promise of OLD that NEW breaks

`make freeze` runs the second command.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Parameter:
    name: str
    type: str  # without the name: `const struct facegrad_tensor *`

    @property
    def is_pointer(self) -> bool:
        return self.type.endswith("*") or self.is_function

    @property
    def is_function(self) -> bool:
        return self.type.startswith("facegrad_") and self.type.endswith(("_callback", "_function"))


@dataclass
class Function:
    name: str
    result: str
    parameters: list[Parameter]
    docs: dict[str, str]  # parameter → its text

    def prototype(self) -> str:
        return f"{self.result} {self.name}({', '.join(f'{p.type} {p.name}' for p in self.parameters)})"


@dataclass
class Header:
    functions: dict[str, Function] = field(default_factory=dict)
    structs: dict[str, list[Parameter]] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)


def declarator(text: str) -> Parameter:
    """`const char *const *names` → names; a field may also be an array or a pointer to a function."""
    text = " ".join(text.split())
    pointer = re.fullmatch(r"(.*)\(\*(\w+)\)(\(.*\))", text)
    if pointer:
        return Parameter(pointer[2], f"{pointer[1]}(*){pointer[3]}")
    match = re.fullmatch(r"(.*?)(\w+)((?:\[\d+\])?)", text)
    assert match, text
    return Parameter(match[2], match[1].strip() + match[3])


def parameters(text: str) -> list[Parameter]:
    text = text.strip()
    return [] if text in ("", "void") else [declarator(part) for part in text.split(",")]


def doc_texts(comment: str, names: list[str]) -> dict[str, str]:
    """The text of every `@param`, which may speak of several: `targets, samples and result as in …`."""
    texts: dict[str, str] = {}
    flat = " ".join(line.strip().lstrip("*").strip() for line in comment.splitlines())
    for entry in re.split(r"@param(?:\[\w+\])?", flat)[1:]:
        entry = re.split(r"Errors:|@return", entry)[0].strip()
        spoken = re.match(r"(\w+(?:(?:, | and )\w+)*)", entry)
        for name in re.split(r", | and ", spoken[1]) if spoken else []:
            if name in names:
                texts[name] = entry
    return texts


def read(path: Path) -> Header:
    text, header = path.read_text(), Header()
    for name, value in re.findall(r"^#define (FACEGRAD_\w+) (\S+)$", text, re.M):
        header.constants[name] = value
    for name, body in re.findall(r"^typedef struct (\w+) \{\n(.*?)^\}", text, re.M | re.S):
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        header.structs[name] = [declarator(part) for part in body.split(";") if part.strip()]
    code = text[text.index('extern "C" {') :]
    pattern = r"(/\*\*(?:(?!\*/).)*?\*/)\s*((?:const )?(?:struct )?\w+ ?\*?) ?\b(facegrad_\w+)\(([^)]*)\);"
    for comment, result, name, inside in re.findall(pattern, code, re.S):
        found = parameters(inside)
        header.functions[name] = Function(name, result.strip(), found, doc_texts(comment, [p.name for p in found]))
    everything = set(re.findall(r"\b(facegrad_\w+)\([^)]*\);", code))
    assert everything == set(header.functions), everything ^ set(header.functions)
    return header


def optional(header: Header, function: Function, parameter: Parameter) -> bool:
    """Whether the documentation allows NULL. `void *` is the host's own (a stream, user data)."""
    if parameter.type == "void *":
        return True
    text = function.docs.get(parameter.name, "").replace("NULL on failure", "")
    if "NULL" in text:
        return True
    elsewhere = re.search(r"as in `(facegrad_\w+)`", text)
    other = header.functions.get(elsewhere[1]) if elsewhere else None
    return other is not None and any(p.name == parameter.name and optional(header, other, p) for p in other.parameters)


def bare(type: str) -> str:
    """`const struct facegrad_face *` → `facegrad_face`"""
    return re.sub(r"\b(const|struct)\b|\*", "", type).strip()


def calls(header: Header, world: str) -> str:
    """A table of cases. A case calls one function, with the pointer number `which` replaced by `other`. What is not
    replaced is the macro ARG_<function>__<parameter> of the world, or ARG_<parameter>: a function with a new parameter
    does not compile before the world gives it a value."""
    table = {p.name for p in header.structs["facegrad_api"] if "(*)" in p.type}
    without = {name for name in header.functions if name.removeprefix("facegrad_") not in table}
    assert without == {"facegrad_abi_version", "facegrad_get_api"}, f"not in the table: {without}"
    opaque = {bare(p.type) for f in header.functions.values() for p in f.parameters if f.name.endswith("_free")}
    defined = set(re.findall(r"#define (\w+)", world))
    code, rows = [], []
    for function in header.functions.values():
        short = function.name.removeprefix("facegrad_")
        lines, kinds = [], []
        for at, p in enumerate(function.parameters):
            special = f"ARG_{short}__{p.name}"
            value = special if special in defined else f"ARG_{p.name}"
            if not p.is_pointer:
                lines.append(f"    const {p.type} p{at} = {value};")
                kinds.append("VALUE")
                continue
            replaced = "0" if p.is_function else f"({p.type})other"
            gap = "" if p.type.endswith("*") else " "
            lines.append(f"    {p.type}{gap}p{at} = which == {at} ? {replaced} : {value};")
            if bare(p.type) in opaque and not p.type.endswith("**"):
                kinds.append("HANDLE_OR_NULL" if optional(header, function, p) else "HANDLE")
            else:
                kinds.append("OPTIONAL" if optional(header, function, p) else "REQUIRED")
        arguments = ", ".join(f"p{at}" for at in range(len(function.parameters)))
        call = f"CALL({short})({arguments})" if short in table else f"DIRECT({short})({arguments})"
        match function.result:
            case "facegrad_status":
                last = f"return {call};"
            case "void":
                last = f"{call};\n    return FACEGRAD_OK;"
            case _:
                last = f"return {call} ? FACEGRAD_OK : -1;"
        code.append(
            f"static facegrad_status call_{short}(int which, const void *other) {{\n"
            + "\n".join([*lines, "    (void)which;", "    (void)other;", f"    {last}", "}"])
        )
        wants = f"STATUS_{short}" if f"STATUS_{short}" in defined else "FACEGRAD_OK"
        names = ", ".join(f'"{p.name}"' for p in function.parameters) or "0"
        structs = ", ".join(struct_of(header, p) for p in function.parameters) or "-1"
        values = ", ".join(structure_value(header, function, p, short, defined) for p in function.parameters) or "0"
        code.append(f"static const void *value_{short}(int at) {{\n    const void *values[] = {{{values}}};\n    return values[at];\n}}")
        constant = ", ".join(str(int(p.type.startswith("const"))) for p in function.parameters) or "0"
        fallible = int(function.result == "facegrad_status")
        rows.append(
            f'    {{"{function.name}", call_{short}, value_{short}, {wants}, {fallible}, {len(function.parameters)}, {{{names}}}, {{{", ".join(kinds) or "VALUE"}}}, {{{structs}}}, {{{constant}}}}},'
        )
    shapes = []
    for name, fields in header.structs.items():
        offsets = [f"offsetof({name}, {f.name})" for f in fields if f.type.endswith("*")]
        versioned = int(fields[0].name == "struct_size")
        shapes.append(f'    {{"{name}", sizeof({name}), {versioned}, {len(offsets)}, {{{", ".join(offsets) or "0"}}}}},')
    most = max(len(f.parameters) for f in header.functions.values())
    return "\n\n".join([
        "/* Made by header.py; do not edit. */",
        f"#define MOST_PARAMETERS {most}",
        "enum kind { VALUE, OPTIONAL, REQUIRED, HANDLE, HANDLE_OR_NULL };",
        "typedef struct {\n    const char *name;\n    size_t size;\n    int versioned;\n    int pointers;\n    size_t offset[32];\n} structure;",
        "static const structure STRUCTURES[] = {\n" + "\n".join(shapes) + "\n};",
        "typedef struct {\n    const char *name;\n    facegrad_status (*call)(int which, const void *other);\n    const void *(*value)(int at);\n    facegrad_status wants;\n    int fallible;\n"
        "    int parameters;\n    const char *names[MOST_PARAMETERS];\n    enum kind kinds[MOST_PARAMETERS];\n    int structures[MOST_PARAMETERS];\n    int constant[MOST_PARAMETERS];\n} test_case;",
        *code,
        "static const test_case CASES[] = {\n" + "\n".join(rows) + "\n};\n",
    ])  # fmt: skip


def struct_of(header: Header, p: Parameter) -> str:
    """The number of the struct that a parameter points to, or -1."""
    names = list(header.structs)
    return str(names.index(bare(p.type))) if p.type.count("*") == 1 and bare(p.type) in names else "-1"


def structure_value(header: Header, function: Function, p: Parameter, short: str, defined: set[str]) -> str:
    """The struct that a parameter usually points to."""
    if struct_of(header, p) == "-1":
        return "0"
    special = f"ARG_{short}__{p.name}"
    return special if special in defined else f"ARG_{p.name}"


def broken(old: Header, new: Header) -> list[str]:
    """The promises of `old` that `new` breaks: nothing removed, nothing re-typed, structs grow at their ends."""
    found = []
    for name, function in old.functions.items():
        now = new.functions.get(name)
        if now is None or now.prototype() != function.prototype():
            found.append(f"{function.prototype()}: now {now.prototype() if now else 'gone'}")
    for name, fields in old.structs.items():
        now_fields = new.structs.get(name, [])
        if now_fields[: len(fields)] != fields:
            found.append(f"{name}: a field was removed, moved or re-typed")
    growing = {name for name, fields in new.structs.items() if fields[0].name == "struct_size"}
    for name in old.structs.keys() - growing:
        if new.structs.get(name) != old.structs[name]:
            found.append(f"{name}: it has no struct_size and cannot grow")
    for name, value in old.constants.items():
        if new.constants.get(name) != value:
            found.append(f"{name}: {value}, now {new.constants.get(name, 'gone')}")
    return found


def compare(old: Path, new: Path) -> None:
    """Exits with a line for every promise that is broken."""
    problems = broken(read(old), read(new))
    if problems:
        sys.exit(
            f"{new} breaks what {old} promised:\n" + "\n".join(problems) + "\nRestore it, or raise FACEGRAD_ABI_VERSION (docs/abi.md)."
        )


def freeze(path: Path, folder: Path) -> None:
    version = read(path).constants["FACEGRAD_ABI_VERSION"]
    kept = folder / f"v{version}" / "facegrad.h"
    if kept.exists():
        compare(kept, path)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(path.read_text())
    print(f"{kept} is {path}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["calls", source, out, world]:
            Path(out).write_text(calls(read(Path(source)), Path(world).read_text()))
        case ["freeze", source, folder]:
            freeze(Path(source), Path(folder))
        case ["compare", old, new]:
            compare(Path(old), Path(new))
        case _:
            sys.exit(__doc__)
