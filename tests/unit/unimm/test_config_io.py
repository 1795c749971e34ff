from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimm.config_io import apply_override, dump_config, from_dict, load_config, read_tree, to_dict
from unimm.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    kind: Literal["constant"] = "constant"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    kind: Literal["cosine"]
    warmup_steps: int = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    name: str
    steps: int = 5
    compile: bool = False
    resume: Path | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Constant | Cosine = field(default_factory=Constant)
    sources: tuple[Source, ...] = ()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "run.yaml", "name: test\noptimizer: {lr: 1e-4}\n")


def test_defaults_give_way_to_the_file_and_the_file_to_overrides(base: Path) -> None:
    config = load_config(Run, base, ["steps=7", "optimizer.betas=[0.8, 0.9]"])
    assert config == Run(name="test", steps=7, optimizer=Optimizer(lr=1e-4, betas=(0.8, 0.9)))


def test_without_a_file_the_defaults_are_the_base() -> None:
    assert load_config(Optimizer, overrides=["lr=2e-3"]) == Optimizer(lr=2e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", r"unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'\?"),
        ("lr=1", r"unknown key 'lr'; did you mean 'optimizer.lr'\?"),
        ("sources=[{path: a}, {paht: b}]", r"unknown key 'sources.1.paht'.*'sources.1.path'"),
        ("zzz=1", "unknown key 'zzz'; known keys: compile, name"),
        ("optimizer.lr=fast", "optimizer.lr: .*number, got 'fast'"),
        ("optimizer=3", "optimizer: .*got 3"),
        ("optimizer.betas=[1]", "optimizer.betas.1 is missing"),
        ("optimizer.lr=-1", "optimizer: lr must be above 0, got -1"),
        ("steps=1.5", "steps: .*integer"),
        ("steps='5'", "steps: .*integer, got '5'"),
        ("steps=true", "steps: .*integer, got True"),
        ("compile=no", "compile: .*boolean, got 'no'"),
        ("compile=1", "compile: .*boolean, got 1"),
        ("name=null", "name: .*string, got None"),
        ("name=1e-4", "name: .*string, got 0.0001"),
        ("schedule.kind=linear", "schedule.kind: .*got 'linear'"),
        ("optimizer.lr.x=1", "optimizer.lr is 0.0001, not a section"),
        ("steps", "must look like section.key=value"),
        (".steps=1", "must look like section.key=value"),
        ("name=[1", "no valid YAML"),
    ],
)
def test_a_wrong_override_is_named(base: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Run, base, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\n", "name is missing"),
        ("name: a\nname: b\n", "given twice"),
        ("- a\n", "must hold a mapping"),
        ("name: [\n", "no valid YAML"),
        ("name: a\n? [x]\n: 1\n", "no valid YAML"),
        ("name: 2020-01-01\nsteps: 010\n", "steps: .*integer"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Run, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(Run, tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(Run, tmp_path / "binary.yaml")


def test_a_configuration_error_is_the_users_mistake() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)


def test_a_union_member_is_chosen_by_its_kind(base: Path) -> None:
    config = load_config(Run, base, ["schedule={kind: cosine, warmup_steps: 3}"])
    assert config.schedule == Cosine(kind="cosine", warmup_steps=3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x10", 16),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("-.inf", float("-inf")),
    ],
)
def test_plain_values_are_read_as_yaml_1_2(text: str, value: object) -> None:
    tree: dict[str, object] = {}
    apply_override(tree, f"key={text}")
    assert tree == {"key": value}
    assert type(tree["key"]) is type(value)


plain = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
texts = st.one_of(plain, st.sampled_from(["1e-4", "no", "null", "~", "0x1", "1_0", ".inf", "007"]))
runs = st.builds(
    Run,
    name=texts,
    steps=st.integers(),
    compile=st.booleans(),
    optimizer=st.builds(
        Optimizer,
        lr=st.floats(min_value=0, exclude_min=True, allow_nan=False),
        betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    ),
    schedule=st.one_of(
        st.builds(Constant), st.builds(Cosine, kind=st.just("cosine"), warmup_steps=st.integers())
    ),
    sources=st.lists(st.builds(Source, path=texts.map(Path), weight=st.floats(-9, 9))).map(tuple),
)


@given(config=runs)
def test_a_dumped_configuration_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, config: Run
) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    dump_config(config, path)
    assert load_config(Run, path) == config
    assert from_dict(Run, to_dict(config)) == config
    assert read_tree(path) == to_dict(config)


def test_values_that_are_no_plain_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a configuration"):
        from_dict(Run, {"name": object()})
