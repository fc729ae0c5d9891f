"""The configuration: what each fault of a YAML says, what a hash sees, which columns an expression reads."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerec import session
from lakerec.config import load_config, referenced_columns
from lakerec.errors import ConfigError, UsageError
from lakerec.job import window_of
from lakerec.models import version_of

ROOT = Path(__file__).parents[2]
YAML = """\
lake: lake
timezone: Europe/London
sources:
  events:
    path: events/{date}.csv
    columns:
      event_id: id
      user_id: user
      item_id: item
      event_type: "'view'"
      event_time: to_timestamp(time)
    rules:
      bot: {when: "agent like '%bot%'", severity: expected}
  items:
    path: items.csv
    columns: {item_id: item, title: name, text: name}
event_types: {view: 1}
late_days: 2
"""
IMPRESSIONS = (
    "scorer.training.impressions: {} is a choice (in targets, or of a weight above 0 in event_types); expected are "
    "types that say that an item was shown, and no more, or []"
)
FAULTS = {
    "unknown key": ("late_days: 2", "late_day: 2", 18, "late_day: unknown key; did you mean 'late_days'?"),
    "unknown key, nothing near": ("late_days: 2", "colour: 2", 18, "colour: unknown key"),
    "unknown key of a section": (
        "path: items.csv",
        "path: items.csv\n    fromat: csv",
        16,
        "sources.items.fromat: unknown key; did you mean 'format'?",
    ),
    "unknown key of a rule": (
        "severity: expected",
        "severty: expected",
        13,
        "sources.events.rules.bot.severty: unknown key; did you mean 'severity'?",
    ),
    "missing key": ("event_types: {view: 1}\n", "", 1, "event_types: this key is missing"),
    "missing key of a section": (
        "    columns: {item_id: item, title: name, text: name}\n",
        "",
        14,
        "sources.items.columns: this key is missing",
    ),
    "missing event column": (
        "      item_id: item\n",
        "",
        4,
        "sources.events: events.columns: the mapping lacks item_id",
    ),
    "missing item column": ("text: name", "note: name", 3, "sources: items.columns: the mapping lacks text"),
    "unknown event column": (
        "user_id: user",
        "user_id: user\n      colour: red",
        4,
        "sources.events: events.columns: unknown colour; known: event_id, user_id, item_id, event_type, event_time, "
        "value, position, query, list_id",
    ),
    "path and from": (
        "path: items.csv",
        "path: items.csv\n    from: events",
        14,
        "sources.items: exactly one of 'path' and 'from' is expected",
    ),
    "neither path nor from": (
        "    path: items.csv\n",
        "",
        14,
        "sources.items: exactly one of 'path' and 'from' is expected",
    ),
    "time zone": (
        "Europe/London",
        "Europe/Lundon",
        2,
        "timezone: unknown time zone 'Europe/Lundon'; did you mean 'Europe/London'?",
    ),
    "no event types": (
        "{view: 1}",
        "{}",
        17,
        "event_types: at least one event type with its weight is expected, e.g. purchase: 5",
    ),
    "an impression that is a target": (
        "late_days: 2",
        "late_days: 2\nscorer:\n  training:\n    targets: [cart]\n    impressions: [seen, cart]",
        22,
        IMPRESSIONS.format("cart"),
    ),
    "an impression of a weight above 0": (
        "event_types: {view: 1}",
        "scorer: {training: {targets: [buy], impressions: [view]}}\nevent_types: {view: 1, buy: 5}",
        17,
        IMPRESSIONS.format("view"),
    ),
    "a number too small": (
        "late_days: 2",
        "late_days: -2",
        18,
        "late_days: Input should be greater than or equal to 0",
    ),
    "a quote of two characters": (
        "path: items.csv",
        "path: items.csv\n    options:\n      sep: ';'\n      quote: '||'",
        18,
        "sources.items.options.quote: quote: one character is expected, or none where the files have no quotes",
    ),
    "no separator": (
        "path: items.csv",
        "path: items.csv\n    options: {sep: ''}",
        16,
        "sources.items.options.sep: sep: one or several characters are expected, and no backslash but in \\t",
    ),
    "a separator that Spark has not": (
        "path: items.csv",
        "path: items.csv\n    options: {sep: '\\|'}",
        16,
        "sources.items.options.sep: sep: one or several characters are expected, and no backslash but in \\t",
    ),
    "a statement": (
        "user_id: user",
        "user_id: select 1",
        8,
        "sources.events.columns.user_id: user_id: a column expression is expected, not a statement: 'select 1'",
    ),
}


@pytest.fixture()
def yaml_file(tmp_path):
    """Writes a YAML of the given text."""

    def write(text: str = YAML) -> Path:
        file = tmp_path / "shop.yaml"
        file.write_text(text)
        return file

    return write


def message(file: Path) -> str:
    """What load_config says of a file."""
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    return str(caught.value)


@pytest.mark.parametrize("old, new, line, told", FAULTS.values(), ids=FAULTS)
def test_a_fault_names_file_line_key_and_what_was_expected(yaml_file, old, new, line, told):
    assert old in YAML
    file = yaml_file(YAML.replace(old, new))
    assert message(file) == f"{file}, line {line}: {told}"


@pytest.mark.parametrize(
    "old, new, line, key",
    [
        ("to_timestamp(time)", "to_timestamp(time", 11, "sources.events.columns.event_time"),
        ("title: name", "title: concat(name", 16, "sources.items.columns"),
        ("agent like '%bot%'", "agent like (", 13, "sources.events.rules.bot.when"),
    ],
)
def test_sql_that_does_not_parse_is_shown_with_its_key_and_line(yaml_file, old, new, line, key):
    file = yaml_file(YAML.replace(old, new))
    found = message(file)
    assert found.startswith(f"{file}, line {line}: {key}")
    assert f"not a Spark SQL expression: {new.removeprefix('title: ').split(',')[0]!r}"[:-1] in found


def test_every_fault_is_told_at_once(yaml_file):
    text = YAML.replace("late_days: 2", "late_day: 2").replace("London", "Lundon")
    assert len(message(yaml_file(text)).splitlines()) == 2


@pytest.mark.parametrize(
    "text, told",
    [
        ("lake: [1\nsources: x", ", line 2: not YAML: "),
        ("lake: x\n\tsources: x", ", line 2: not YAML: "),
        ("lake: x\nsources: !!python/name:os.system x", ", line 2: not YAML: "),
        ("lake: 2024-13-45", ": not YAML: "),
        ("- lake", ": a mapping of keys is expected at the top"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused(yaml_file, text, told):
    file = yaml_file(text)
    assert message(file).startswith(f"{file}{told}")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    file = tmp_path / "shop.yaml"
    file.write_bytes("lake: Café".encode("latin-1"))
    assert message(file).startswith(f"{file}: not YAML: ")


def test_a_missing_file_is_named_with_the_way_out(tmp_path):
    file = tmp_path / "none.yaml"
    assert message(file) == f"{file}: cannot be read (No such file or directory); give a YAML with --config"


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_deployments_of_conf_load_with_a_lake_beside_the_code(file):
    config = load_config(file)
    assert config.file == file
    assert Path(config.lake).parent == ROOT / "lake"


def test_paths_are_relative_to_the_yaml_and_uris_stay(yaml_file):
    config = load_config(yaml_file())
    assert config.lake == str(config.file.parent / "lake")
    assert config.resolve("../a/{date}.csv") == str(config.file.parent.parent / "a" / "{date}.csv")
    assert [config.resolve(path) for path in ("s3a://b/c", "/a/b")] == ["s3a://b/c", "/a/b"]


def test_another_lake_can_be_named_and_changes_no_hash(yaml_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = yaml_file()
    places = {lake: load_config(file, lake) for lake in (None, "elsewhere", "s3a://bucket/lake")}
    assert [config.lake for config in places.values()] == [
        str(tmp_path / "lake"),
        str(tmp_path / "elsewhere"),
        "s3a://bucket/lake",
    ]
    assert len({config.hash() for config in places.values()}) == 1


def test_the_settings_that_a_run_has_kept_need_a_lake_and_no_more(yaml_file, tmp_path):
    config = load_config(yaml_file())
    kept = tmp_path / "elsewhere" / f"{config.hash()}.json"
    kept.parent.mkdir()
    kept.write_text(config.shown)
    again = load_config(kept, str(tmp_path / "copy"))
    assert (again.lake, again.hash()) == (str(tmp_path / "copy"), config.hash())
    assert again.resolve("events.csv") == config.resolve("events.csv") == str(tmp_path / "events.csv")
    with pytest.raises(ConfigError, match="lake: this key is missing"):
        load_config(kept)


@pytest.mark.parametrize(
    ("plain", "others"),
    [
        ("{tmp}/lake", ("{tmp}/lake/", "{tmp}//lake", "{tmp}/x/../lake", "{tmp}/link", "file://{tmp}/lake")),
        ("s3a://bucket/a/shop", ("s3a://bucket/a/shop/", "s3a://bucket//a//shop", "s3a://bucket/b/../a/./shop//")),
        ("s3a://bucket", ("s3a://bucket/", "s3a://bucket//")),
    ],
)
def test_a_lake_has_one_name_however_it_is_spelled(yaml_file, tmp_path, plain: str, others: tuple[str, ...]):
    (tmp_path / "lake").mkdir()
    (tmp_path / "link").symlink_to("lake")
    plain, *others = (one.format(tmp=tmp_path) for one in (plain, *others))
    known = []
    for one in (*others, plain):
        file = yaml_file(YAML.replace("lake: lake", f"lake: {one}") + "files: of\n")
        known += [load_config(file), *(load_config(file, another) for another in (plain, *others))]
    assert {config.lake for config in known} == {plain}
    assert {config.local_folder("_models") for config in known} == {tmp_path / "of/_models"}


def test_files_have_a_folder_of_their_own_where_the_lake_is_on_no_disk(yaml_file):
    on_disk = load_config(yaml_file())
    assert on_disk.local_folder("_models/v") == on_disk.file.parent / "lake/_models/v" and not on_disk.on_s3
    distant = YAML.replace("lake: lake", "timezone: UTC\nlake: s3a://bucket/shop").replace(
        "timezone: Europe/London\n", ""
    )
    with pytest.raises(
        ConfigError, match=r"shop.yaml, line 2: lake: s3a://bucket/shop is no folder on a disk; set 'fil"
    ):
        load_config(yaml_file(distant)).local_folder("_models")
    config = load_config(yaml_file(distant + "files: of/the/shop\n"))
    assert config.local_folder("_models") == config.file.parent / "of/the/shop/_models"
    again, trial = (load_config(config.file, lake) for lake in ("s3a://bucket/shop", "s3a://bucket/trial"))
    assert again.local_folder("_models") == config.local_folder("_models")
    # Another lake's upkeep must not remove this one's models, nor its lists replace this one's.
    assert trial.local_folder("_models").is_relative_to(config.file.parent / "of/the/shop/_lakes")
    assert trial.local_folder("_serving") != load_config(config.file, "s3a://bucket/trial2").local_folder("_serving")
    assert config.on_s3 and config.hash() == load_config(yaml_file(distant)).hash()
    with pytest.raises(ConfigError, match=r"line 19: files: s3a://b/c is no folder"):
        load_config(yaml_file(distant + "files: s3a://b/c\n")).local_folder("_models")


@pytest.mark.parametrize("source", ["events/{date}.csv", "items.csv"])
def test_a_source_on_s3_needs_its_client_too(yaml_file, source):
    assert load_config(yaml_file(YAML.replace(source, f"s3a://bucket/{source}"))).on_s3


@pytest.mark.parametrize("key", ["access.key", "secret.key", "session.token", "bucket.shop.secret.key"])
def test_credentials_of_s3_are_refused(yaml_file, key):
    file = yaml_file(YAML + f"spark:\n  properties:\n    spark.hadoop.fs.s3a.{key}: x\n")
    assert "credentials of S3 come from the environment or the instance" in message(file)
    endpoint = YAML + "spark:\n  properties:\n    spark.hadoop.fs.s3a.endpoint: http://x\n"
    assert load_config(yaml_file(endpoint)).spark.properties


@pytest.mark.parametrize(
    "old, new", [("late_days: 2", "late_days: 3"), ("item_id: item", "item_id: upper(item)"), ("view: 1", "view: 2")]
)
def test_a_setting_changes_the_hash(yaml_file, old, new):
    before = load_config(yaml_file()).hash()
    assert len(before) == 12
    assert load_config(yaml_file(YAML.replace(old, new))).hash() != before


def test_the_order_of_top_level_keys_and_comments_change_no_hash(yaml_file):
    before = load_config(yaml_file()).hash()
    lines = YAML.splitlines()
    assert load_config(yaml_file("\n".join(["# a comment", *lines[1:], lines[0]]))).hash() == before


def test_columns_of_row_rules_are_read_and_optional_ones_not_required(yaml_file):
    text = YAML.replace("    rules:", "    optional: [user]\n    rules:")
    events = load_config(yaml_file(text)).sources.events
    assert events.source_columns() == ["id", "user", "item", "time", "agent"]
    assert events.required_columns() == ["id", "item", "time", "agent"]


plain = st.from_regex(r"c_[a-z0-9_]{1,6}", fullmatch=True)
quoted = st.text("abcXYZ019 :-.%'é", min_size=1, max_size=8).map(lambda name: (f"`{name}`", {name}))
LEAVES = st.one_of(
    plain.map(lambda name: (name, {name})),
    quoted,
    st.sampled_from(["1", "-2.5", "'c_text'", "null", "true", "current_timestamp()", "date'2024-03-01'"]).map(
        lambda literal: (literal, set())
    ),
)
FORMS = [
    "upper({})",
    "cast({} as double)",
    "({} + {})",
    "if({} > {}, {}, 'none')",
    "case when {} = 1 then {} else {} end",
    "case {} when 'c_a' then {} end",
    "concat_ws('|', {}, {}, {})",
    "({} in ({}, 'c_b'))",
    "({} is null)",
    "({} between {} and {})",
    "({} like '%c_d%')",
    "to_timestamp({}, 'yyyy-MM-dd')",
    "date_trunc('day', {})",
    "date_add({}, 3)",
    "extract(year from {})",
    "transform(split({}, ','), x -> concat(x, {}))",
    "get_json_object({}, '$.c_e')",
    "from_json({}, 'c_f string').c_f",
    "named_struct('c_g', {}).c_g",
    "sha2(concat({}, {}), 256)",
    "instr({}, {})",
    "regexp_extract({}, '(c_h)', 1)",
    "{}::string",
    "timestampdiff(day, {}, {})",
    "({} - interval 1 day)",
]


def _fill(form: str, parts: list[tuple[str, set[str]]]) -> tuple[str, set[str]]:
    return form.format(*[text for text, _ in parts]), set().union(*[names for _, names in parts])


def _grow(inner):
    shapes = st.sampled_from(FORMS).flatmap(
        lambda form: st.tuples(st.just(form), st.lists(inner, min_size=form.count("{}"), max_size=form.count("{}")))
    )
    return shapes.map(lambda shape: _fill(*shape))


@given(st.recursive(LEAVES, _grow, max_leaves=12))
def test_the_columns_an_expression_reads_are_found_exactly(case):
    expression, names = case
    found = referenced_columns(expression)
    assert set(found) == names
    assert len(found) == len(names)


@pytest.mark.parametrize("targets", ["", "\nscorer: {training: {targets: [impression]}}"])
def test_the_default_for_impressions_refuses_no_deployment(yaml_file, targets):
    file = yaml_file(YAML.replace("{view: 1}", "{impression: 0.1}") + targets)
    assert load_config(file).scorer.training.impressions == ["impression"]


def test_a_models_version_is_of_all_that_decides_it(yaml_file):
    changes = {
        "candidates: {per_user: 30}": True,
        "candidates: {popular_days: 9}": True,
        "candidates: {generators: {popular: {}}}": True,
        "policy: {filter_types: [view]}": True,
        "scorer: {ranker: {depth: 7}}": True,
        "scorer: {training: {impressions: [shown]}}": True,
        "policy: {k: 5}": False,
        "policy: {k: 50}": True,  # more than per_user: as many are scored
        "scorer: {training: {processes: 2}}": False,
        "scorer: {training: {max_minutes: 60}}": True,
        "scorer: {training: {max_minutes: null}}": False,
        "promotion: {min_users: 7}": True,  # the language model stays or goes by it
        "promotion: {tolerance: 0.5}": False,
        "late_days: 9": False,
    }
    known = version_of("snapshot1", date(2026, 3, 1), load_config(yaml_file()))
    for text, other in changes.items():
        lines = "".join(line for line in YAML.splitlines(True) if not line.startswith(text.split(":")[0] + ":"))
        found = version_of("snapshot1", date(2026, 3, 1), load_config(yaml_file(lines + text + "\n")))
        assert (found != known) is other, text


@pytest.mark.parametrize(
    ("master", "cores"), [("local", 1), ("local[3]", 3), ("local[5,2]", 5), ("local[*]", 0), ("spark://m:7077", 0)]
)
def test_a_local_driver_has_the_cores_of_its_master(yaml_file, monkeypatch, master, cores):
    monkeypatch.setattr("lakerec.session.jars_of", lambda config: [])
    config = load_config(yaml_file(YAML + f"spark: {{master: '{master}'}}\n"))
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert session.driver_cores(config) == (cores or here)
    known = session.properties(config)
    assert known.get("spark.default.parallelism") == (str(cores or here) if master.startswith("local") else None)
    if master.startswith("local"):
        assert int(known["spark.sql.shuffle.partitions"]) == max(8, 2 * (cores or here))


@pytest.mark.parametrize(
    ("executor", "task", "reused"),
    [(None, None, True), (1, 1, True), (1, 0.5, True), (2, 2, True), (4, 1, False), (2, 0.5, False)],
)
def test_a_worker_that_may_be_given_another_gpu_takes_one_task(yaml_file, monkeypatch, executor, task, reused):
    """CUDA stays with the GPU that it was shown first."""
    monkeypatch.setattr("lakerec.session.jars_of", lambda config: [])
    amounts = {"executor": executor, "task": task}
    told = {f"spark.{part}.resource.gpu.amount": str(n) for part, n in amounts.items() if n}

    def reuse(**more):
        spark = {"master": "spark://m:7077", "properties": told | more}
        config = load_config(yaml_file(YAML + f"spark: {json.dumps(spark)}\n"))
        return session.properties(config)["spark.python.worker.reuse"]

    assert reuse() == str(reused).lower()
    assert reuse(**{"spark.python.worker.reuse": "true"}) == "true"  # the YAML has the last word


def test_an_option_of_the_jvm_may_name_a_folder_with_blanks():
    assert session._option("-Da=", Path("/a/b c")) == '-Da="/a/b c"'
    assert session._option("-Da=", Path("/a/b")) == "-Da=/a/b"


def test_what_may_be_secret_is_hashed_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    properties = {
        "spark.hadoop.fs.azure.account.key.shop.dfs.core.windows.net": "hidden-1",
        "spark.ssl.keyStorePassword": "hidden-2",
        "spark.yarn.appMasterEnv.LAKEREC_SERVING_URI": "postgresql://lakerec:hidden-3@db/serving",
        "spark.executorEnv.LAKEREC_USER_KEY": "hidden-5",
        "spark.openlineage.transport.auth.apiKey": "hidden-6",
        "spark.driver.extraJavaOptions": "-Dpassword=hidden-7",
        "spark.sql.catalog.other.token": "hidden-8",
        "spark.sql.warehouse.dir": "jdbc:x://u:hidden-9/a@b@host/db?user=u&password=hidden-10",
        "spark.sql.shuffle.partitions": "8",
    }
    text = YAML + f"spark: {{properties: {properties}}}\n"
    file.write_text(text)
    config = load_config(file)
    assert "hidden" not in config.shown and '"spark.sql.shuffle.partitions":"8"' in config.shown
    assert "jdbc:x://(not shown)@host/db?user=u&password=(not shown)" in config.shown
    file.write_text(text.replace("hidden-2", "hidden-4"))
    assert load_config(file).hash() != config.hash()
    file.write_text(YAML)
    plain = load_config(file)
    assert json.loads(plain.shown) == {"folder": str(file.parent), **json.loads(plain.told)}


def test_relative_paths_are_those_of_the_folder_and_the_hash_knows_none(yaml_file, tmp_path):
    config = load_config(yaml_file())
    moved = load_config(yaml_file(YAML + "folder: ../data\n"))
    assert moved.resolve("events.csv") == str(tmp_path.parent / "data" / "events.csv")
    assert moved.lake == str(tmp_path.parent / "data" / "lake") and config.lake == str(tmp_path / "lake")
    assert moved.hash() == config.hash()


def test_a_day_that_has_not_begun_is_refused_in_the_shops_timezone(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(YAML)
    config = load_config(file)
    today = datetime.now(config.zone).date()
    behind = today + timedelta(days=1)
    assert window_of(config, Namespace(start=str(today), end=str(behind))).end == behind
    with pytest.raises(UsageError, match=f"--end {behind + timedelta(days=1)} lies behind {behind}"):
        window_of(config, Namespace(start="2024-01-01", end=str(behind + timedelta(days=1))))
