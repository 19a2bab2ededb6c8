"""Train a small transformer under HF Trainer, with nbopt's AdamW and with PyTorch's: a class differs.

The model is one of the transformers library, with weights made at random, so nothing is downloaded. The text
is what Python's ``help()`` says about the language::

    pip install transformers accelerate
    python examples/finetune.py                  # a minute on two cores
    python examples/finetune.py --steps 300      # five
    python examples/finetune.py --quick          # a run of seconds
    python examples/finetune.py --width 512      # a larger model, whose steps take longer

The picture has the losses, which lie on each other, and the time that each step of the optimizer took.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from charlm import load_text
from matplotlib.figure import Figure
from tqdm import tqdm

import nbopt.torch

KINDS = {
    "nbopt.torch.AdamW": (nbopt.torch.AdamW, {}),
    "torch.optim.AdamW(fused=True)": (torch.optim.AdamW, {"fused": True}),
    "torch.optim.AdamW": (torch.optim.AdamW, {}),
}


def make_model(letters, width, depth, length):
    """Return a transformer that guesses the next letter, with random weights."""
    torch.manual_seed(0)
    heads = max(1, width // 32)
    config = transformers.GPT2Config(
        vocab_size=len(letters), n_positions=length, n_embd=width, n_layer=depth, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


class Watch(transformers.TrainerCallback):
    """Notes the loss of each step, and the seconds that the optimizer's step took."""

    def __init__(self, name, steps):
        self.losses, self.seconds = [], []
        self._progress = tqdm(total=steps, desc=name, unit="step")

    def on_pre_optimizer_step(self, args, state, control, **more):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_optimizer_step(self, args, state, control, **more):
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)
        self._progress.update()

    def on_log(self, args, state, control, logs=None, **more):
        """Note the loss."""
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_train_end(self, args, state, control, **more):
        """End the line of the progress bar."""
        self._progress.close()


def train(kind, options, model, pieces, steps):
    """Train a model in place by HF Trainer; return what was noted.

    Parameters
    ----------
    kind : type
        The optimizer's class.
    options : dict
        Further arguments of it.
    model : torch.nn.Module
    pieces : list of torch.Tensor
        Of the text, of equal length.
    steps : int

    Returns
    -------
    Watch
    """
    watch = Watch(f"{kind.__module__.split('.')[0]}'s {kind.__name__} {options or ''}", steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3,
            warmup_steps=steps // 10,
            weight_decay=0.1, max_grad_norm=1.0, logging_steps=1,  save_strategy="no", report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=[{"input_ids": piece, "labels": piece} for piece in pieces],
            optimizer_cls_and_kwargs=(kind, {"lr": 1e-3, **options}),  # the line that differs
            callbacks=[watch],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return watch


def draw(found, path):
    """Draw the losses, and the time of each step but the first ones, into a PNG file."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")  # without pyplot: Agg, no window
    left, right = figure.subplots(1, 2)
    for (name, watch), style in zip(found.items(), ("C0-", "C1--", "C2:")):
        left.plot(watch.losses, style, label=name)
        right.plot([1e3 * seconds for seconds in watch.seconds[3:]], style[:2] + ".", label=name, alpha=0.5)
    left.set(title="Loss per letter", xlabel="step")
    right.set(title="Time of the optimizer's step, ms", xlabel="step", ylim=(0, None))
    left.legend()
    right.legend()
    figure.savefig(path, dpi=120)


def main(argv=None):
    """Train with all these optimizers, draw the picture and print a table; return what was noted, by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=50)
    add("--width", type=int, default=192)
    add("--depth", type=int, default=4)
    add("--length", type=int, default=64, help="of the pieces of text, in letters")
    add("--quick", action="store_true", help="a small model and few steps")
    add("--plot", type=Path, default=Path("finetune.png"), help="file for the picture")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.width, args.depth, args.length = 12, 32, 2, 32
        torch.set_num_threads(1)  # matrices this small are multiplied faster by one thread than by several

    text, letters = load_text()
    pieces = [*text[: len(text) // args.length * args.length].view(-1, args.length)]
    found = {}
    for name, (kind, options) in KINDS.items():
        model = make_model(letters, args.width, args.depth, args.length)
        found[name] = train(kind, options, model, pieces, args.steps)
    draw(found, args.plot)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.1f} M parameters in {len([*model.parameters()])} tensors, {args.steps} steps")
    for name, watch in found.items():
        last, usual = statistics.mean(watch.losses[-10:]), statistics.median(watch.seconds)
        print(
            f"{name}: loss {watch.losses[0]:.2f} to {last:.2f}; a step of the optimizer {1e3 * usual:.2f} ms,"
            f" the first {watch.seconds[0]:.2f} s"
        )
    print(f"The picture is in {args.plot}.")
    return found


if __name__ == "__main__":
    main()
