"""A pass-key question: a number told once in long text, asked for at its end.

python -m tools.demo.pass_key [--tokens 1000] > question.txt
"""

from __future__ import annotations

import click

from ctx_export import demo

ANSWER = "48213"
TOLD = f"\nThe pass key is {ANSWER}. Remember it. {ANSWER} is the pass key.\n"
ASKED = "\nWhat is the pass key? The pass key is"


def prompt(tokens: int, depth: float = 0.25) -> str:
    """A question of about `tokens` tokens of the demo's tokenizer, in text it was not trained on.

    `depth` says where the key is told, 0 at the beginning and 1 at the end.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo.path() / "tokenizer.json"))
    fixed = len(tokenizer.encode(TOLD).ids) + len(tokenizer.encode(ASKED).ids)
    filler = tokenizer.encode(demo.heldout_text()[: 16 * tokens]).ids[: max(0, tokens - fixed)]
    at = int(depth * len(filler))
    before, after = tokenizer.decode(filler[:at]), tokenizer.decode(filler[at:])
    return f"{before}{TOLD}{after}{ASKED}"


@click.command()
@click.option("--tokens", type=click.IntRange(min=100), default=1000, show_default=True)
def main(tokens: int) -> None:
    """Print a pass-key question of about so many tokens of the demo model."""
    click.echo(prompt(tokens), nl=False)


if __name__ == "__main__":
    main()
