"""The tiny policy: the induction circuit of its initialisation, the copy warm-up, the tokenizer's pieces."""

import pytest
import torch

from toolgym.errors import TrainingError
from toolgym.trainer.tiny.model import TinyModelConfig, build
from toolgym.trainer.tiny.tokenizer import train_tokenizer
from toolgym.trainer.tiny.warmup import WarmupConfig, copy_batch, copy_warmup

VOCAB = 300


def repeated(seed: int = 0) -> torch.Tensor:
    half = torch.randint(8, VOCAB, (8, 32), generator=torch.Generator().manual_seed(seed))
    return torch.cat([half, half], dim=1)


def test_first_layer_heads_attend_to_the_previous_token() -> None:
    model = build(TinyModelConfig(), vocab_size=VOCAB, seed=0, eos=1, pad=0)
    model.set_attn_implementation("eager")
    attention = model(repeated(), output_attentions=True).attentions[0]
    previous = attention[:, :2].diagonal(offset=-1, dim1=-2, dim2=-1)
    assert float(previous.detach().mean()) > 0.9


def test_induction_gives_the_repeated_token_a_head_start() -> None:
    tokens = repeated()
    for induction, low, high in ((True, 0.0, 5.2), (False, 5.4, 7.0)):
        model = build(TinyModelConfig(induction=induction), vocab_size=VOCAB, seed=0, eos=1, pad=0)
        logits = model(tokens).logits[:, 32:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 33:].flatten())
        assert low < float(loss.detach()) < high


def test_copy_batch_masks_exactly_what_a_repetition_foretells() -> None:
    tokens, mask = copy_batch((8, VOCAB), batch=16, length=64, generator=torch.Generator().manual_seed(0))
    assert 0.3 < float(mask.float().mean()) < 0.8
    rows, places = mask.nonzero(as_tuple=True)
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        pair = tokens[row, place - 1 : place + 1].tolist()
        earlier = tokens[row, :place].tolist()
        assert any(earlier[i : i + 2] == pair for i in range(place - 1)), "the pair has been seen before"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_copy_warmup_learns_to_copy_by_content() -> None:
    model = build(TinyModelConfig(), vocab_size=VOCAB, seed=1, eos=1, pad=0)
    loss = copy_warmup(model, WarmupConfig(until_loss=1.0, max_steps=200), first_token=8, seed=1)
    assert loss < 1.0
    tokens = repeated(seed=5)
    choice = model(tokens).logits[:, 32:-1].argmax(-1)
    assert float((choice == tokens[:, 33:]).float().mean()) > 0.6


def test_copy_warmup_that_does_not_arrive_says_so() -> None:
    model = build(TinyModelConfig(), vocab_size=VOCAB, seed=1, eos=1, pad=0)
    with pytest.raises(TrainingError, match=r"copy warm-up ended at loss .* after 2 steps"):
        copy_warmup(model, WarmupConfig(until_loss=0.1, max_steps=2, batch=2), first_token=8, seed=1)


def test_tokenizer_gives_a_name_the_same_tokens_wherever_it_stands() -> None:
    texts = ["Zaka lives in Miru.", "Where does Zaka live?", "12345 and 67"] * 20
    tokenizer = train_tokenizer(
        texts, vocab_size=300, specials=("<pad>", "<end>"), end="<end>", pad="<pad>", chat_template="x"
    )
    name = tokenizer.encode("Zaka")
    inside = tokenizer.encode("Where does Zaka live?")
    assert any(inside[i : i + len(name)] == name for i in range(len(inside)))
    assert tokenizer.decode(tokenizer.encode("sum of 12345, é\n<x>")) == "sum of 12345, é\n<x>"
    assert tokenizer.tokenize("12345") == ["12", "34", "5"]
    assert tokenizer.encode("<pad>", split_special_tokens=True) != [0]
