"""The frozen prompt lists."""

from collections import Counter
from pathlib import Path

import pytest

from unimm.scenes import SKILLS, load_prompts, prompts, split_of
from unimm.scenes.frozen import FROZEN_LISTS, GENEVAL_PROMPTS, GRAMMARS, write_prompts

LISTS = [(grammar, split) for grammar, splits in FROZEN_LISTS.items() for split in splits]


def test_writing_them_again_changes_nothing(tmp_path: Path) -> None:
    committed = Path(__file__).resolve().parents[4] / "unimm" / "scenes" / "prompts"
    written = write_prompts(tmp_path)
    assert sorted(path.name for path in written) == sorted(p.name for p in committed.iterdir())
    for path in written:
        assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("grammar", "split"), LISTS)
def test_a_list_has_553_prompts_of_its_split(grammar: str, split: str) -> None:
    chosen = load_prompts(grammar, split)
    assert len(chosen) == 553
    assert {split_of(prompt) for prompt in chosen} == {split}


@pytest.mark.parametrize("grammar", FROZEN_LISTS)
def test_the_train_list_has_genevals_proportions(grammar: str) -> None:
    chosen = load_prompts(grammar)
    assert Counter(prompt.skill for prompt in chosen) == GENEVAL_PROMPTS
    positions = [p for p in chosen if p.skill == "position"]
    assert sum(p.spec.objects[0].colour is None for p in positions) == 50


@pytest.mark.parametrize(("grammar", "split"), LISTS)
def test_a_held_out_list_spreads_over_the_skills_it_has(grammar: str, split: str) -> None:
    counts = Counter(prompt.skill for prompt in load_prompts(grammar, split))
    skills = [skill for skill in SKILLS if prompts(GRAMMARS[grammar], skill, split)]
    total = sum(GENEVAL_PROMPTS[skill] for skill in skills)
    assert set(counts) == set(skills)
    assert all(abs(counts[s] - 553 * GENEVAL_PROMPTS[s] / total) < 1 for s in skills)


@pytest.mark.parametrize(("grammar", "split"), LISTS)
def test_prompts_repeat_as_evenly_as_possible(grammar: str, split: str) -> None:
    chosen = load_prompts(grammar, split)
    for skill in SKILLS:
        for is_plain in (True, False):
            counts = Counter(
                prompt.text
                for prompt in chosen
                if prompt.skill == skill
                and (skill != "position" or (prompt.spec.objects[0].colour is None) is is_plain)
            )
            assert not counts or max(counts.values()) - min(counts.values()) <= 1


def test_a_part_of_a_list_is_a_fair_sample() -> None:
    """The lists are shuffled: every skill is among the first 60 prompts, no order by skill."""
    first = Counter(prompt.skill for prompt in load_prompts("full")[:60])
    assert set(first) == set(SKILLS)


@pytest.mark.parametrize(("grammar", "split"), [("small", "count_five"), ("tiny", "train")])
def test_an_unknown_list_is_refused(grammar: str, split: str) -> None:
    with pytest.raises(ValueError, match="choose one of full/train, full/pair"):
        load_prompts(grammar, split)
