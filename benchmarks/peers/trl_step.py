"""TRL's GRPO step on given shapes, for `benchmarks/step.py`: prints one JSON object with CPU seconds by phase.

``python trl_step.py MODEL_FOLDER PROMPTS GROUP PROMPT_TOKENS NEW_TOKENS STEPS``, in an environment that has TRL. The
setting is the fastest that was found: weights in bfloat16, one micro-batch of all completions, default loss and no KL.
"""

import itertools
import json
import random
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """One token per word: ``w7`` is token 7; ids 0 and 1 are padding and end."""
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocab)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left")


class TimedTrainer(GRPOTrainer):
    """Adds up the CPU seconds of generation; the rest of a step is training."""

    generation_s = 0.0

    def _generate(self, prompts):
        start = time.process_time()
        try:
            return super()._generate(prompts)
        finally:
            type(self).generation_s += time.process_time() - start


def main(folder: str, prompts: int, group: int, prompt_tokens: int, new_tokens: int, steps: int) -> None:
    """Run ``steps`` measured steps after one that is not, and print the cheapest by phase."""
    torch.set_num_threads(1)
    rng = random.Random(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    vocab = model.config.vocab_size
    rows = [" ".join(f"w{rng.randrange(2, vocab)}" for _ in range(prompt_tokens)) for _ in range(prompts * (steps + 1))]
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=prompts * group,
            num_generations=group,
            max_completion_length=new_tokens,
            generation_kwargs={"min_new_tokens": new_tokens},
            max_steps=steps + 1,
            gradient_checkpointing=False,
            learning_rate=1e-6,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = TimedTrainer(
            model=model,
            reward_funcs=lambda completions, **kwargs: [rng.random() for _ in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=word_tokenizer(vocab),
        )
        marks = [(time.process_time(), 0.0)]
        step = trainer.training_step

        def timed(*args, **kwargs):
            result = step(*args, **kwargs)
            marks.append((time.process_time(), TimedTrainer.generation_s))
            return result

        trainer.training_step = timed
        trainer.train()
    phases = []
    for (t0, g0), (t1, g1) in itertools.pairwise(marks[1:]):
        phases.append({"generation": g1 - g0, "training": (t1 - t0) - (g1 - g0)})
    print(json.dumps({name: min(p[name] for p in phases) for name in ("generation", "training")}))


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:]))
