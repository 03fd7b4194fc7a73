"""MkDocs hook: the pages below reference/, made from the code at every build, so that they cannot be out of date."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

from mkdocs.structure.files import File, Files

from minirec.cli.main import TYPED
from minirec.cli.parser import parser
from minirec.experiment import config as configuration
from minirec.experiment import sections, sources
from minirec.experiment.commands import SECTIONS, STAGES, command, scalar
from minirec.experiment.section import Section
from minirec.selection.methods.registry import methods
from minirec.storage.columns import TABLES, Column

KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "minItems": "entries ≥"}
BOUNDS |= {"minLength": "characters ≥", "maxLength": "characters ≤"}
ENTRIES: dict[str, type[Section]] = {  # what stands under a name of the user's, or has no stage
    "main": configuration.Main,
    "compare": configuration.Compare,
    "variants.NAME": configuration.Variant,
    "datasets.NAME": sources.Dataset,
    "datasets.NAME.filter": sources.Filter,
    "models.NAME": sources.Model,
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages (an event of MkDocs)."""
    for make in (settings_page, tables_page, commands_page, methods_page):
        name = make.__name__.removesuffix("_page")
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(make())))
    return files


def settings_page() -> Iterator[str]:
    """Every setting: type, default, bounds and sentence, by section."""
    yield "# Settings\n"
    yield "Every setting below has a default, so a configuration names only what it changes. The paper's"
    yield "experiment is in [config/config.yaml](config.md), over which a file of yours is laid.\n"
    yield "Besides the sections, `results` is the top folder of everything that is computed (default:"
    yield f"{code(configuration.Config.model_fields['results'].default)}).\n"
    yield "A setting of a stage is also a flag of its command: `policy.lora_r` is `--lora-r`.\n"
    for name, section in ENTRIES.items():
        yield from section_table(name, section, "")
    for name in configuration.Config.model_fields:
        if name in SECTIONS:
            yield from section_table(name, SECTIONS[name], used_by(name))
    yield "\n## Resources\n"
    yield "They change memory and speed, not results. Set them in the [profile](../cluster.md#resources), or as flags."
    for name, section in SECTIONS.items():
        if issubclass(section, sections.Resources) and section is not sections.Resources:
            yield f"\n{about(section)} {used_by(name)}\n"
            yield from setting_rows(section)


def section_table(name: str, section: type[Section], users: str) -> Iterator[str]:
    """A section of the configuration: heading, sentence, who reads it, its settings."""
    yield f"\n## {name}\n"
    yield f"{about(section)} {users}".strip() + "\n"
    yield from setting_rows(section)


def about(section: type[Section]) -> str:
    """What a section is for."""
    return " ".join((section.__doc__ or "").split())


def used_by(name: str) -> str:
    """Which stages read a section."""
    stages = [f"[{stage}](commands.md#{stage})" for stage in STAGES if name in command(stage).sections]
    return f"Read by {', '.join(stages)}." if stages else ""


def setting_rows(section: type[Section]) -> Iterator[str]:
    """The table of a section's settings, by the JSON schema that pydantic makes of it."""
    schema = section.model_json_schema()
    rows = []
    for name, entry in schema["properties"].items():
        field = section.model_fields[name]
        default = "needed" if field.is_required() else code(plain(field.get_default(call_default_factory=True)))
        described = entry.get("description") or schema.get("$defs", {}).get(named(entry), {}).get("description", "")
        rows.append((code(name), described, kind(entry), default, ", ".join(bounds(entry))))
    yield from table(("setting", "meaning", "type", "default", "bounds"), rows)


def plain(value: Any) -> str:
    """A default as it is written in YAML."""
    return "see there" if isinstance(value, Section) else scalar(value)


def named(entry: dict[str, Any]) -> str:
    """The name of the section that a setting is; empty if it is a value."""
    return entry.get("$ref", "").rsplit("/", 1)[-1]


def kind(entry: dict[str, Any]) -> str:
    """The type of a setting in words, from its JSON schema."""
    if "anyOf" in entry:
        return " or ".join(kind(choice) for choice in entry["anyOf"])
    if choices := entry.get("enum") or [entry[key] for key in ("const",) if key in entry]:
        return ", ".join(code(str(choice)) for choice in choices)
    if entry.get("type") == "array":
        return f"list of: {kind(entry['items'])}"
    if entry.get("format") == "date":
        return "date"
    return KINDS.get(entry.get("type", ""), "settings" if named(entry) else "names and values")


def bounds(entry: dict[str, Any]) -> Iterator[str]:
    """The bounds of a setting and of the values in it, from its JSON schema."""
    yield from (f"{sign} {entry[key]}" for key, sign in BOUNDS.items() if key in entry)
    for choice in [*entry.get("anyOf", ()), *([entry["items"]] if "items" in entry else [])]:
        yield from bounds(choice)


def tables_page() -> Iterator[str]:
    """Every table: its columns with type, allowed values and meaning."""
    yield "# Tables\n"
    yield "Every table is a Parquet file of its name. [Stages and files](../files.md) says who writes it and where."
    yield "`minirec show FILE` prints its columns with their meaning. [Reading](../reading.md) opens it elsewhere.\n"
    for name, one in TABLES.items():
        yield f"\n## {name}\n"
        if one.key:
            yield f"A row is identified by {' and '.join(map(code, one.key))}.\n"
        rows = [(code(c), column.meaning, code(column.type), allowed(column)) for c, column in one.columns.items()]
        yield from table(("column", "meaning", "type", "values"), rows)


def allowed(column: Column) -> str:
    """The values that a column may have."""
    if column.values:
        span = ", ".join(map(code, column.values))
    elif column.low is not None and column.high is not None:
        span = f"{column.low:g} to {column.high:g}"
    else:
        span = f"≥ {column.low:g}" if column.low is not None else ""
    extra = "may be missing" if column.optional else "or null" if column.nullable else ""
    return ", ".join(part for part in (span, extra) if part)


def commands_page() -> Iterator[str]:
    """Every command with the help that it prints."""
    yield "# Commands\n"
    yield "What `minirec COMMAND --help` prints. The first commands are for people; the others are the stages, which"
    yield "the workflow runs, and which run by hand as well.\n"
    for name in (*TYPED, *STAGES):
        yield f"\n## {name}\n\n```text\n{help_of(name)}```\n"


def help_of(name: str) -> str:
    """What `minirec NAME --help` prints on a terminal of 80 columns without colours."""
    said, former = io.StringIO(), dict(os.environ)
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            parser([name]).parse_args([name, "--help"])
    finally:
        os.environ.clear()
        os.environ |= former
    return said.getvalue()


def methods_page() -> Iterator[str]:
    """Every selection method: what it does, which signals it reads, and its settings."""
    yield "# Selection methods\n"
    yield "`main.method`, `compare.methods` and `minirec select --method` take these names and your `variants`."
    yield "A method that reads `gradients` needs a proxy policy; one that reads nothing needs no proxy."
    yield "[Which selection is worth it](../evidence.md) compares them."
    yield "[Contributing](../contributing.md#a-selection-method) says how to add one.\n"
    rows = []
    for name, one in methods().items():
        given = [f"{code(f'select.{key}')} ({code(scalar(default))})" for key, (_, default) in one.settings.items()]
        rows.append((code(name), one.sentence, ", ".join(map(code, one.reads)), ", ".join(given)))
    yield from table(("method", "what it picks", "reads", "settings (default)"), rows)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Rows of text as a Markdown table."""
    head = list(head)
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def code(text: str) -> str:
    """Text in the type of code."""
    return f"`{text}`"
