"""Every wrong setting stops the run with one sentence that names it."""

import copy
import math
import re
import shlex

import pytest
import yaml
from conftest import ROOT
from pydantic_core import to_jsonable_python

from minirec.cli import parser
from minirec.errors import InputError
from minirec.experiment import commands, config, sources
from minirec.experiment.rules import Rules
from minirec.experiment.section import Section
from minirec.experiment.sections import Processes, Resources

PAPER, QUICKSTART = ROOT / "config" / "config.yaml", ROOT / "config" / "quickstart.yaml"


@pytest.fixture
def raw():
    return yaml.safe_load(PAPER.read_text(encoding="utf-8"))


def changed(raw, key: str, value):
    """A copy with the value at a dotted key."""
    found = copy.deepcopy(raw)
    *way, last = key.split("/")
    node = found
    for part in way:
        node = node[part]
    node[last] = value
    return found


def complaint(raw) -> str:
    with pytest.raises(InputError) as caught:
        config.validate(raw)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("scores", "score"),
        ("score/muu", "mu"),
        ("train/learning_rat", "learning_rate"),
        ("main/modell", "model"),
        ("datasets/cds/filter/cores", "core"),
        ("datasets/cds/soruce", "source"),
        ("models/gemma/revison", "revision"),
        ("variants/no_diversity/selct", "select"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(raw, key, nearest):
    sentence = complaint(changed(raw, key, 1))
    assert sentence.startswith(f"{key.replace('/', '.')} is not a setting")
    assert f"(did you mean {nearest}?)" in sentence


def test_a_key_like_no_other_gets_no_suggestion(raw):
    assert "did you mean" not in complaint(changed(raw, "score/zzzzzz", 1))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("score/mu", "high", "valid number"),
        ("score/mu", [0.5], "valid number"),
        ("score/mu", None, "valid number"),
        ("score/mu", True, "true or false"),
        ("score/mu", 1.5, "less than or equal to 1"),
        ("score/mu", -0.1, "greater than or equal to 0"),
        ("score/mu", math.nan, "finite"),
        ("score/sigma", math.nan, "finite"),
        ("score/sigma", math.inf, "finite"),
        ("score/sigma", 0, "greater than 0"),
        ("score/direction", "hpv", "'hvp', 'grad' or 'lookahead'"),
        ("main/budget", -1, "greater than or equal to 1"),
        ("main/budget", 0, "greater than or equal to 1"),
        ("main/budget", 2.5, "integer"),
        ("main/budget", True, "true or false"),
        ("main/budget", "al", "'all'"),
        ("main/seeds", [], "at least 1 item"),
        ("main/seeds", 3, "list"),
        ("main/seeds", [True], "true or false"),
        ("policy/lora_r", 2.5, "integer"),
        ("policy/lora_layers", 0, "greater than or equal to 1"),
        ("policy/marker", "", "at least 1 character"),
        ("policy/tau", 0, "greater than 0"),
        ("sampling/top_k", -1, "greater than or equal to 0"),
        ("embed/keep_frozen_states", "perhaps", "boolean"),
        ("train/epsilon_low", 1, "less than 1"),
        ("measure/cutoffs", [], "at least 1 item"),
        ("proxy/seed", 2**31, "less than 2147483648"),
        ("policy", None, "dictionary"),
        ("datasets", [], "dictionary"),
        ("datasets/cds/filter/start", "yesterday", "date"),
        ("results", "~/somewhere", "should be a folder, relative or absolute"),
        ("results", "$(id)", "make a link"),
        ("main/model", "../gemma", "a name of at most 64 characters"),
        ("datasets/cds/category", "CDs & Vinyl", "letters, digits and _ only"),
        ("datasets/cds/url", "ftp://host", "begins with http"),
        ("datasets/movielens/wheel", "recbole", "like name==1.2.3"),
        ("models/smollm/sha256", "b179", "64 of the characters"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_the_reason(raw, key, value, reason):
    sentence = complaint(changed(raw, key, value))
    assert sentence.startswith(f"{key.replace('/', '.')} is {value!r}, but ")
    assert reason in sentence


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("compare/budgets", [256, -4], "compare.budgets.1 is -4"),
        ("main/seeds", [0, -1], "main.seeds.1 is -1"),
        ("main/seeds", [0, 2**32], "main.seeds.1 is 4294967296, but input should be less than"),
        ("compare/seeds", [2**32], "compare.seeds.0 is 4294967296"),
        ("measure/cutoffs", [5, 20], "measure.cutoffs: the summary shows NDCG@10 and HR@10; add 10"),
    ],
)
def test_a_wrong_value_in_a_list_is_named_with_its_place(raw, key, value, place):
    assert complaint(changed(raw, key, value)).startswith(place)


@pytest.mark.parametrize("key", ["main/seeds", "compare/seeds"])
def test_a_seed_that_is_named_twice_is_refused_as_its_run_would_count_as_two(raw, key):
    where = key.replace("/", ".")
    assert complaint(changed(raw, key, [3, 0, 3])) == f"{where} has 3 twice; a seed is one run, so name each once"


@pytest.mark.parametrize("key", ["datasets", "main", "main/model", "models/gemma/source"])
def test_a_missing_setting_is_named(raw, key):
    found = changed(raw, key, None)
    *way, last = key.split("/")
    node = found
    for part in way:
        node = node[part]
    del node[last]
    assert complaint(found) == f"{key.replace('/', '.')} is missing; set it in the configuration"


@pytest.mark.parametrize("kind", ["datasets", "models", "variants"])
@pytest.mark.parametrize("name", ["../x", "..", "a b", "$(id)", "a/b", "A", "a-b", "-x", "x\n", "", "a" * 65, "ä"])
def test_a_name_that_is_unsafe_in_a_path_is_refused(raw, kind, name):
    entry = next(iter(raw[kind].values()))
    sentence = complaint(changed(raw, kind, raw[kind] | {name: entry}))
    assert sentence.startswith(f"{kind} has the name {name!r};")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("datasets", "models"),
        ("datasets", "logs"),
        ("models", "none"),
        ("variants", "full"),
    ],
)
def test_a_name_that_would_collide_with_a_path_of_ours_is_refused(raw, kind, name):
    entry = next(iter(raw[kind].values()))
    assert complaint(changed(raw, f"{kind}/{name}", entry)).startswith(f"{kind}.{name} has a name that")


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("main/model", "gema", "gemma"),
        ("main/selector", "qwn", "qwen"),
        ("main/method", "minirek", "minirec"),
        ("main/method", "no_diversty", "no_diversity"),
        ("compare/models", ["gemma", "smolm"], "smollm"),
        ("compare/methods", ["rando"], "random"),
        ("compare/selectors", ["gema"], "gemma"),
    ],
)
def test_a_name_that_is_not_defined_is_named_with_the_nearest(raw, key, value, nearest):
    sentence = complaint(changed(raw, key, value))
    assert sentence.startswith(f"{key.replace('/', '.')} is {value if isinstance(value, str) else value[-1]}, ")
    assert f"(did you mean {nearest}?)" in sentence


def test_a_tiny_model_must_name_a_data_set_of_the_configuration(raw):
    tiny = {"source": "tiny", "dataset": "movielen"}
    sentence = complaint(changed(raw, "models/tiny", tiny))
    assert sentence.startswith("models.tiny.dataset is movielen")
    assert "(did you mean movielens?)" in sentence


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        ("select", {"alfa": 1}, "variants.v.select.alfa is not a setting (did you mean alpha?)"),
        ("select", {"alpha": -1}, "variants.v.select.alpha is -1, but"),
        ("select", {"terms": ["novelty"]}, "variants.v.select.terms.0 is 'novelty', but"),
        ("curriculum", {"group_size": "x"}, "variants.v.curriculum.group_size is 'x', but"),
        ("curriculum", {"seed": True}, "variants.v.curriculum.seed is True, but"),
        ("train", {"epoch": 2}, "variants.v.train.epoch is not a setting (did you mean epochs?)"),
    ],
)
def test_a_variant_is_checked_like_the_section_it_changes(raw, section, values, sentence):
    assert complaint(changed(raw, "variants/v", {section: values})).startswith(sentence)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("prepare/train_share", 0.95, "prepare: train_share + valid_share must leave a share for test"),
        ("models/m", {"source": "hub"}, "models.m: source hub needs id"),
        ("models/m", {"source": "wheel", "file": "x.gguf"}, "models.m: source wheel needs wheel and sha256"),
        ("datasets/d", {"source": "amazon2023"}, "datasets.d: source amazon2023 needs both category and url"),
        ("datasets/d", {"source": "movielens"}, "datasets.d: source movielens needs url or wheel"),
        ("datasets/cds/filter/end", "2022-10-01", "datasets.cds.filter: end is 2022-10-01, but must be later"),
        ("main/selector", "none", "main.selector is none, but minirec needs one"),
        ("main/control", "rnadom", "main.control is rnadom, which is not among"),
        ("results", "a/../b", "results must not contain '..'"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(raw, key, value, sentence):
    assert complaint(changed(raw, key, value)).startswith(sentence)


def test_a_method_without_signals_needs_no_selector(raw):
    given = config.validate(changed(raw, "main", raw["main"] | {"method": "random", "selector": "none"}))
    assert given.method("random").reads == ()


@pytest.mark.parametrize(("files", "method"), [((PAPER,), "minirec"), ((PAPER, QUICKSTART), "learnable")])
def test_our_own_configurations_load(files, method):
    assert config.load(*files).main.method == method


def test_the_quickstart_lies_over_the_paper_and_leaves_the_rest():
    paper, quickstart = config.load(PAPER), config.load(PAPER, QUICKSTART)
    assert (paper.sampling.max_new_tokens, quickstart.sampling.max_new_tokens) == (256, 8)
    assert paper.gradient == quickstart.gradient
    assert set(paper.models) == set(quickstart.models)


def test_the_configuration_shows_every_setting_with_its_default(raw):
    assert set(raw) == set(config.Config.model_fields)
    for name in set(commands.SECTIONS) & set(raw):
        declared = {setting: to_jsonable_python(value) for setting, value in commands.SECTIONS[name]()}
        assert raw[name] == declared, name


def test_the_configuration_shows_no_resource_and_no_default_of_a_resource_is_missing(raw):
    for name, kind in commands.SECTIONS.items():
        assert not (issubclass(kind, Resources) and name in raw)
        kind()


def test_every_setting_of_a_stage_has_a_sentence():
    for stage in commands.STAGES:
        for section, name, field in commands.command(stage).settings():
            assert len((field.description or "").split()) >= 2, f"{section}.{name}"


def test_every_flag_of_a_stage_that_is_no_setting_has_a_meaning():
    for stage in commands.STAGES:
        for flag in commands.command(stage).flags:
            assert parser.FILES.get(flag.name) or parser.VALUES[flag.name]


def test_no_flag_of_a_stage_is_taken_twice():
    for stage in commands.STAGES:
        settings = [name for _, name, _ in commands.command(stage).settings()]
        names = [*settings, *[flag.name for flag in commands.command(stage).flags]]
        assert len(names) == len(set(names)), stage


@pytest.mark.parametrize("content", [b"score: [", b"- a\n- b\n", b"\xff\xfe\x00", b"", b"just text"], ids=str)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        config.load(PAPER, file)
    assert str(caught.value).startswith(f"{file} ")
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.yaml cannot be read"):
        config.load(tmp_path / "missing.yaml")


def test_overlay_goes_into_sections_and_replaces_everything_else():
    base = {"a": {"b": 1, "c": {"d": 2}}, "list": [1, 2], "kept": 0}
    top = {"a": {"c": {"e": 3}}, "list": [9], "new": {"x": None}}
    assert config.overlay(base, top) == {
        "a": {"b": 1, "c": {"d": 2, "e": 3}},
        "list": [9],
        "kept": 0,
        "new": {"x": None},
    }
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "list": [1, 2], "kept": 0}


@pytest.mark.parametrize(("base", "top"), [({"a": {"b": 1}}, {"a": 5}), ({"a": 5}, {"a": {"b": 1}})])
def test_overlay_lets_the_top_win_where_a_section_meets_a_value(base, top):
    assert config.overlay(base, top) == top


def through_the_shell(given: config.Config, stage: str, method: str | None = None) -> dict[str, Section]:
    """The sections of a stage after its command went through a shell's words and the command line."""
    job = Rules(given).job(stage)
    wildcards = {"method": method or given.main.method}
    text = job["command"](wildcards, {}, {}, {})
    words = shlex.split(text.replace("\\\n", " "))[3:]
    for flag in commands.command(stage).flags:
        if flag.required and commands.flag(flag.name) not in words:
            words += [commands.flag(flag.name), "0" if flag.kind == "int" else "x"]
    found = vars(parser.parser(words).parse_args(words))
    found = {name: value for name, value in found.items() if name not in Processes.model_fields}  # as main leaves them
    return {name: section for name, section in parser.with_sections(stage, found).items() if name in SECTIONS_OF[stage]}


SECTIONS_OF = {
    stage: [s for s in commands.command(stage).sections if not issubclass(commands.SECTIONS[s], Resources)]
    for stage in commands.STAGES
}


@pytest.mark.parametrize("stage", [stage for stage, sections in SECTIONS_OF.items() if sections])
@pytest.mark.parametrize("files", [(PAPER,), (PAPER, QUICKSTART)], ids=["paper", "quickstart"])
def test_the_flags_of_a_stage_mean_what_the_configuration_says(stage, files):
    given = config.load(*files)
    assert through_the_shell(given, stage) == {section: getattr(given, section) for section in SECTIONS_OF[stage]}


def test_a_command_names_the_settings_that_differ_from_their_defaults_and_no_others(raw):
    given = config.validate(changed(raw, "score/mu", 0.25))
    command = Rules(given).job("score")["command"]({}, {"rollouts": "r"}, {"scores": "s"}, {})
    *lines, made_by = command.split(" \\\n    ")
    assert lines == ["python -m minirec score --mu 0.25", "--rollouts r", "--scores s"]
    assert re.fullmatch("--made-by [0-9a-f]{16}", made_by)


@pytest.mark.parametrize("stage", ["train", "rollout"])
def test_a_resource_is_in_the_command_but_no_reason_to_run_again(raw, stage):
    job = Rules(config.validate(raw)).job(stage)
    less, more = (job["command"]({}, {}, {}, {"batch_tokens": tokens}) for tokens in (64, 128))
    assert ("--batch-tokens 64" in less, "--batch-tokens 128" in more) == (True, True)
    assert "batch_tokens" not in job["settings"]({})


def test_a_configuration_file_is_laid_over_the_defaults_and_flags_over_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("score: {mu: 0.25, eta: 2.0}")
    words = ["score", "--rollouts", "r", "--gradients", "g", "--scores", "s", "--eta", "3"]
    words += ["--configfile", str(tmp_path / "mine.yaml")]
    score = parser.with_sections("score", vars(parser.parser(words).parse_args(words)))["score"]
    assert (score.mu, score.eta, score.direction) == (0.25, 3.0, "hvp")


@pytest.mark.parametrize(
    "text",
    [
        "$(id) `id` ${HOME} && echo; # * ? ~ \\ !",
        'it\'s "quoted"',
        "two\nlines\r\nand\ttabs",
        " spaces around ",
        "a: b: c",
        "[unclosed",
        "'unclosed",
        "{braces} {{twice}}",
        "-->",
        "--marker",
        "-",
        "null",
        "true",
        "007",
        "1e-5",
        "%percent",
        "@at",
        "&anchor *alias !tag |",
        "Grüße 日本 😀",
        "😀\n",
        "bell \x07 delete \x7f",
    ],
)
def test_any_text_reaches_a_stage_unchanged(raw, text):
    given = config.validate(changed(changed(raw, "policy/marker", text), "policy/system", text * 2))
    found = through_the_shell(given, "embed")["policy"]
    assert (found.marker, found.system) == (text, text * 2)


def test_a_variant_changes_the_flags_of_its_method_alone(raw):
    given = config.load(PAPER)
    plain, varied = through_the_shell(given, "select"), through_the_shell(given, "select", "no_diversity")
    assert plain["select"].terms == ["learnability", "representativeness", "diversity"]
    assert varied["select"].terms == ["learnability", "representativeness"]
    assert through_the_shell(given, "curriculum", "no_diversity")["curriculum"] == given.curriculum


def test_a_part_of_the_configuration_that_is_not_json_is_refused():
    with pytest.raises(InputError, match="--source is not JSON"):
        config.parse(sources.Model, "{", "--source")


def test_of_several_files_the_one_that_has_what_is_wrong_is_named(tmp_path):
    files = [ROOT / "config" / "config.yaml", *(tmp_path / name for name in ("half.yaml", "wrong.yaml", "right.yaml"))]
    files[1].write_text("{datasets: {shop: {}}}")  # incomplete, until a later file says the source
    files[2].write_text("{rollout: {engine: vllm}}")
    files[3].write_text("{datasets: {shop: {source: own}}}")
    with pytest.raises(InputError, match=r"wrong\.yaml: rollout: engine is not a setting"):
        config.load(*files)
    config.load(*files[:2], files[3])


def test_a_variant_that_nobody_asks_for_may_teach_nothing(raw):
    quiet = changed(changed(raw, "sampling", {"max_new_tokens": 0}), "train/item_advantage", "one")
    quiet = changed(quiet, "proxy/item_advantage", "one")
    quiet = changed(quiet, "variants", {"token_loss": {"method": "full", "train": {"losses": ["token"]}}})
    quiet = changed(quiet, "compare/methods", [])
    config.validate(quiet)
    assert "variants.token_loss: sampling.max_new_tokens is 0" in complaint(changed(quiet, "main/method", "token_loss"))
