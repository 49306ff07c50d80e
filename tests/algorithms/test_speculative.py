"""Speculative knowledge distillation on deterministic table models over a few tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.speculative import filtered_probabilities, skd_acceptable, skd_generate

DOUBLE = torch.float64
V, EOS = 4, 3
GREEDY = {"teacher_temperature": 0.0, "eos": EOS, "max_new": 12}


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


class Table:
    """A model whose logits depend on the last token: row [last] of a table; counts its calls."""

    def __init__(self, rows):
        self.rows = torch.tensor(rows, dtype=DOUBLE)
        self.calls = 0

    def draft(self, tokens, n):
        self.calls += 1
        out = []
        while len(out) < n and EOS not in out:
            out.append(int(self.rows[(*tokens, *out)[-1]].argmax()))
        return out

    def score(self, tokens, draft):
        self.calls += 1
        seen = (*tokens, *draft)
        return torch.stack([self.rows[seen[len(tokens) - 1 + i]] for i in range(len(draft))])

    def greedy(self, tokens, n):
        return tuple(self.draft(tokens, n))


# student: 0 -> 1 -> 2 -> 0 ...; teacher: 0 -> 1 -> 0 after ranks [1, 0, 2, 3], and so on
STUDENT = [[0, 9, 1, 2], [0, 1, 9, 2], [9, 0, 1, 2], [9, 0, 0, 0]]
TEACHER = [[2, 3, 1, 0], [3, 0, 1, 2], [2, 1, 0, 3], [0, 0, 0, 3]]


def generate(student=STUDENT, teacher=TEACHER, prompt=(0,), **options):
    a, b = Table(student), Table(teacher)
    return skd_generate(prompt, a.draft, b.score, **(GREEDY | options)), a, b


def test_skd_accepting_everything_is_on_policy_distillation():
    sample, student, teacher = generate(k=V)
    assert sample.tokens == Table(STUDENT).greedy((0,), 12)
    assert set(sample.source) == {0}
    assert sample.accept_rate == 1.0
    assert student.calls == teacher.calls == 3 == sample.teacher_calls == sample.student_calls  # 5 + 5 + 2 tokens


def test_skd_accepting_nothing_samples_from_the_teacher():
    sample, _, _ = generate(k=0)
    assert sample.tokens == Table(TEACHER).greedy((0,), 12)
    assert set(sample.source) == {1}
    assert sample.accept_rate == 0.0


@given(st.lists(st.lists(st.integers(0, 99), min_size=V, max_size=V, unique=True), min_size=V, max_size=V))
def test_skd_with_rank_one_and_greedy_samplers_is_the_teachers_greedy_output(student):
    sample, _, _ = generate(student=student, k=1)
    assert sample.tokens == Table(TEACHER).greedy((0,), 12)


def test_skd_discards_the_draft_after_a_rejection():
    """From 0 the student drafts 1, 2, 0. The teacher rejects 2 after 1 (rank 2) but would take 0 after 2 (rank 1)."""
    sample, _, _ = generate(k=2, max_new=3)
    assert sample.tokens[:2] == (1, 0)
    assert sample.source[:2] == (0, 1)


def test_skd_ends_at_an_accepted_end_and_drops_what_was_drafted_after_it():
    def student(tokens, n):
        return [1, EOS, 0, 0, 0][:n]

    sample = skd_generate((0,), student, Table(TEACHER).score, k=V, **GREEDY)
    assert sample.tokens == (1, EOS)
    assert sample.proposed == 2


def test_skd_ends_at_the_teachers_end():
    sample, _, _ = generate(prompt=(2,), k=0)  # after 2 the teacher says eos
    assert sample.tokens == (EOS,)
    assert sample.source == (1,)


def test_skd_truncates_drafts_to_the_budget():
    sample, _, _ = generate(k=V, max_new=7)
    assert len(sample.tokens) == 7


def test_skd_checks_the_proposed_ids():
    """A sampling student may draft what its logits rank low: that very token must be judged."""
    judged = []

    def teacher(tokens, draft):
        judged.append(draft)
        return Table(TEACHER).score(tokens, draft)

    skd_generate((0,), lambda tokens, n: [2] * n, teacher, k=V, **(GREEDY | {"max_new": 3}))
    assert judged == [(2, 2, 2)]


def test_skd_replaces_the_wrong_sign():
    """'How many apples are left?': the student drafts "2 - 1"; the teacher puts "+", and the rest follows."""
    words = ["2", "-", "1", "+", "=", "3", "<end>"]
    then = {
        "2": ("-", "+"),
        "-": ("1", "1"),
        "+": ("1", "1"),
        "1": ("=", "="),
        "=": ("3", "3"),
        "3": ("<end>", "<end>"),
    }

    def logits(last, who):
        row = torch.zeros(len(words), dtype=DOUBLE)
        row[words.index(then[last][who] if last else "2")] = 9.0
        return row

    def last(tokens):
        return words[tokens[-1]] if tokens else ""

    def student(tokens, n):
        out = []
        while len(out) < n and 6 not in out:
            out.append(int(logits(last((*tokens, *out)), 0).argmax()))
        return out

    def teacher(tokens, draft):
        return torch.stack([logits(last((*tokens, *draft[:i])), 1) for i in range(len(draft))])

    sample = skd_generate((), student, teacher, k=1, eos=6, max_new=9, teacher_temperature=0.0)
    assert "".join(words[i] for i in sample.tokens) == "2+1=3<end>"
    assert sample.source == (0, 1, 0, 0, 0, 0)


@pytest.mark.parametrize("draft", [[], [0] * 6])
def test_skd_refuses_a_draft_of_another_length(draft):
    with pytest.raises(ValueError, match="asked the student for 1 to 5"):
        skd_generate((0,), lambda tokens, n: draft, Table(TEACHER).score, k=V, **GREEDY)


def test_skd_acceptable_counts_strictly_larger_logits():
    logits = t([3.0, 1.0, 1.0, 0.0]).expand(4, 4)
    drafts = torch.arange(4)
    assert skd_acceptable(drafts, logits, k=1).tolist() == [True, False, False, False]
    assert skd_acceptable(drafts, logits, k=2).tolist() == [True, True, True, False]  # both ones rank 1
    assert skd_acceptable(drafts, logits, k=3).tolist() == [True, True, True, False]
    assert skd_acceptable(drafts, logits, k=0).any().item() is False


def test_skd_acceptable_by_nucleus():
    logits = t([0.5, 0.3, 0.15, 0.05]).log().expand(4, 4)
    got = [skd_acceptable(torch.arange(4), logits, top_p=p).tolist() for p in (0.5, 0.81, 1.0)]
    assert got == [[True, False, False, False], [True, True, True, False], [True] * 4]


def test_filtered_probabilities_worked_values():
    logits = t(0.5, 0.3, 0.15, 0.05).log()
    assert filtered_probabilities(logits).tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=1e-12)
    assert filtered_probabilities(logits, top_p=0.6).tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=1e-12)
    assert filtered_probabilities(logits, top_p=0.01).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert filtered_probabilities(logits, temperature=0.0).tolist() == [1.0, 0.0, 0.0, 0.0]
    squared = [x / 0.365 for x in (0.25, 0.09, 0.0225, 0.0025)]
    assert filtered_probabilities(logits, temperature=0.5).tolist() == pytest.approx(squared, abs=1e-12)
    with pytest.raises(ValueError, match="top_p 0"):
        filtered_probabilities(logits, top_p=0.0)
    with pytest.raises(ValueError, match="temperature -1"):
        filtered_probabilities(logits, temperature=-1.0)


def test_skd_draws_replacements_from_the_filtered_teacher():
    generator = torch.Generator().manual_seed(0)
    rows = [t(0.5, 0.3, 0.15, 0.05).log().tolist()] * 4
    drawn = [
        skd_generate(
            (0,), lambda tokens, n: [0], Table(rows).score, k=0, eos=9, max_new=1, teacher_temperature=1.0,
            teacher_top_p=0.6, generator=generator,
        ).tokens[0]
        for _ in range(600)
    ]  # fmt: skip
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 600 == pytest.approx(0.625, abs=0.06)


def test_skd_acceptable_by_nucleus_of_each_position_of_a_batch():
    logits = t([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]).log().expand(4, 2, 3)
    drafts = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 2]])
    got = skd_acceptable(drafts, logits, top_p=0.6)
    assert got.tolist() == [[True, False], [True, True], [False, True], [True, True]]


def test_skd_generate_draws_from_the_generator_it_is_given():
    def drawn(seed):
        return skd_generate(
            (0,),
            lambda _, n: [1] * n,
            lambda _, draft: torch.zeros(len(draft), 50),
            generator=torch.Generator().manual_seed(seed),
            eos=-1,
            max_new=8,
            k=0,
            teacher_temperature=1.0,
            teacher_top_p=1.0,
        ).tokens

    assert drawn(0) == drawn(0) != drawn(1)
