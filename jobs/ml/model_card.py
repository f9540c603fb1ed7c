"""README.md of the small language model, rendered from its training.json and a few samples."""

from collections.abc import Mapping
from typing import Any

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
language: en
license: mit
---
# miStudio demo model

A Llama with {layers} layers of width {width}, {heads} heads, a byte-level BPE vocabulary of {vocabulary:,}
tokens, a context of {context_length} tokens and {parameters:,} parameters, stored in half precision.
It is small enough to come with miStudio, so that every page can be tried without a network. It writes
something like Python and something like the English of Python's documentation; it knows nothing and is of no
other use.

## Data

The documentation topics, docstrings and library sources of CPython {python}, as
`mistudio/demo/corpus.py` collects them: {training_documents:,} documents to train on
({training_bytes:,} bytes, {training_tokens:,} tokens). Titles chosen by a hash are held out with all their
text ({held_out_documents:,} documents, {held_out_bytes:,} bytes): {titles}.

## Figures

| what | measured |
| --- | --- |
| training | {steps_done:,} steps of {rows} × {context_length} tokens |
| text seen | {tokens_seen:,} tokens, {epochs:.1f} times the corpus |
| time | {seconds:,} s of wall time on {threads} thread(s) of {processor} |
| held-out loss | {loss:.4f} nats per token, over {tokens:,} tokens |
| held-out perplexity | {perplexity:.2f} per token, over {tokens:,} tokens |
| held-out bits per byte | {bits_per_byte:.4f}, over {bytes:,} bytes ({tokens:,} tokens) |

Measured on the half-precision weights in this folder. Every held-out token is predicted once, from at most
{window} tokens before it; boundaries between documents count as tokens. `training.json` has the recipe, the
versions and the held-out loss along the way.

## Made with

```
{command}
```

The same Python, the same versions of torch ({torch}), transformers ({transformers}) and tokenizers
({tokenizers}), the same number of threads and the same kind of processor give the same weights. Another
Python has another library and so another corpus; other threads or another processor add in another order,
and the weights differ from the first steps on.

## Samples

Drawn at temperature 0.7 from the 40 likeliest tokens with a fixed seed; nothing was selected. Prompts:
{prompts}.

{samples}
"""


def render(facts: dict[str, Any], samples: Mapping[str, str]) -> str:
    recipe, training, held_out = facts["recipe"], facts["training"], facts["held_out"]
    return TEMPLATE.format(
        **{key: recipe[key] for key in ("layers", "width", "heads", "rows", "threads", "context_length")},
        **{
            key: facts[key] for key in ("vocabulary", "parameters", "steps_done", "tokens_seen", "seconds", "processor")
        },
        **facts["versions"],
        **facts["measured_on_held_out"],
        **{f"training_{key}": training[key] for key in ("documents", "bytes", "tokens")},
        **{f"held_out_{key}": held_out[key] for key in ("documents", "bytes")},
        titles=", ".join(f"`{title}`" for title in held_out["titles"]),
        epochs=facts["tokens_seen"] / training["tokens"],
        window=recipe["context_length"] - 1,
        command=facts["command"],
        prompts=", ".join(f"`{prompt}`" for prompt in samples),
        samples="\n".join(f"~~~text\n{sample}\n~~~\n" for sample in samples.values()).rstrip(),
    )
