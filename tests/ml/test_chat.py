"""Conversations by a chat template, and whose words are counted."""

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds import tokenize
from jobs.ml import store
from jobs.ml.chat import BadConversation, ChatTemplate
from jobs.ml.documents import read_documents
from jobs.ml.errors import Unusable
from jobs.ml.packing import pack
from jobs.ml.prepare import Preparation
from jobs.ml.preview import preview
from jobs.ml.token_config import TokenConfig
from jobs.ml.tokens import TokenShards
from tests.ml.tiny import decoder_tokenizer, documents, save_model, tiny_model

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
FORGETFUL = "{% for m in messages %}[{{ m.role if loop.last else '-' }}] {{ m.content }} {% endfor %}"
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}" + PLAIN


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def talker(template: str = PLAIN):
    tokenizer = decoder_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def said_by(role: str, template: str, messages) -> list[str]:
    text, spans = ChatTemplate(talker(template), role).render(messages)
    return [text[start:end] for start, end in spans]


def test_a_conversation_is_rendered_as_transformers_does_and_without_the_bos_that_rows_have() -> None:
    messages = talk("the cat", "sat on a mat", "why", "rain fell")
    tokenizer = talker()
    wanted = tokenizer.apply_chat_template(messages, tokenize=False)
    assert wanted.startswith("<s>")
    assert ChatTemplate(tokenizer).render(messages) == (wanted.removeprefix("<s>"), None)


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_an_answer_is_what_comes_after_the_prompt_for_it_with_its_end(template) -> None:
    messages = talk("the cat", "sat on a mat", "the cat", "rain fell")
    assert said_by("assistant", template, messages) == ["sat on a mat</s>", "rain fell</s>"]


def test_what_the_user_says_is_told_too() -> None:
    assert said_by("user", PLAIN, talk("cat", "dog", "cat")) == ["<|user|>cat</s>", "<|user|>cat</s>"]


def test_words_are_found_where_a_template_renders_the_past_in_another_way() -> None:
    messages = talk("cat", "dog", "cat", "rain")
    assert said_by("user", FORGETFUL, messages) == ["cat", "cat"]


def packed(conversations, folder: Path, tokenizer=None, **settings):
    tokenizer = tokenizer or talker()
    settings = {"context_length": 64, "held_out": 0.0, "layout": "padded"} | settings
    prepare = Preparation(TokenConfig(**settings), tokenizer, conversations=True)
    return pack(lambda start: conversations[start:], tokenizer, folder, prepare=prepare, **settings)


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_the_tokens_of_the_assistant_are_counted(tmp_path, template) -> None:
    packed([talk("the cat", "sat on a mat", "why", "rain fell")] * 3, tmp_path, talker(template), train_on="assistant")
    shards = TokenShards(tmp_path)
    ids, special = shards.rows(range(3))
    assert [talker().decode(row[~mask].tolist()) for row, mask in zip(ids, special, strict=True)] == [
        "sat on a matrain fell"
    ] * 3
    read = shards.read([0], skip_special=False)  # the special token that ends an answer is the assistant's own
    assert talker().decode(read.ids[0][~read.skipped[0]].tolist()) == "<s>sat on a mat</s>rain fell</s>"


def test_roles_hold_across_the_pieces_of_a_long_conversation(tmp_path, monkeypatch) -> None:
    messages = talk(*(text for text in documents(12)))
    packed([messages], tmp_path / "whole", context_length=64, stride=0, train_on="assistant")
    monkeypatch.setattr("jobs.ml.pieces.PIECE", 90)
    packed([messages], tmp_path / "cut", context_length=64, stride=0, train_on="assistant")
    whole, cut = (
        shards.rows(range(shards.n_sequences)) for shards in (TokenShards(tmp_path / n) for n in ("whole", "cut"))
    )
    assert (whole[0] == cut[0]).all() and (whole[1] == cut[1]).all()
    spoken = "".join(m["content"] for m in messages if m["role"] == "assistant")
    assert decoder_tokenizer().decode(whole[0][~whole[1]].tolist()) == spoken


def test_what_the_template_refuses_is_left_out_and_counted(tmp_path) -> None:
    with pytest.raises(BadConversation, match="users first"):
        ChatTemplate(talker(STRICT)).render(talk("a", "b")[1:])
    result = packed([talk("cat", "dog"), talk("cat", "dog")[1:]], tmp_path, talker(STRICT))
    assert result["dropped_documents"] == {"the chat template refuses it": 1}
    assert result["sequences"] == 1


def test_without_a_template_conversations_are_plain_text_unless_the_template_was_asked_for() -> None:
    prepare = partial(Preparation, tokenizer=decoder_tokenizer(), conversations=True)
    found = prepare(TokenConfig(8))
    assert found.column == "text" and "no chat template" in found.note
    for settings in ({"chat": "template"}, {"train_on": "user"}):
        with pytest.raises(Unusable, match="no chat template"):
            prepare(TokenConfig(8, **settings))
    assert Preparation(TokenConfig(8, chat="transcript"), talker(), conversations=True).column == "text"


def test_a_filter_reads_the_words_of_messages_and_leaves_the_marks_of_the_template(tmp_path) -> None:
    messages = talk("the cat\x00 sat", "=" * 40 + " dog")
    result = packed([messages], tmp_path, junk="moderate")
    ids, _ = TokenShards(tmp_path).rows([0])
    assert "<|user|>the cat sat</s><|assistant|>=== dog</s>" in talker().decode(ids[0].tolist())
    assert result["removed_characters"] == {"control characters": 1, "runs of punctuation": 37}


@pytest.fixture
def conversations(tmp_path) -> Path:
    """A dataset as adding one of conversations leaves it."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    messages = [talk(f"{text} ?", "a dog", "why", text[:40]) for text in documents(60)]
    texts = ["\n".join(m["content"] for m in said) for said in messages]
    table = pa.table({"index": range(60), "text": texts, "messages": messages})
    parquet.write_table(table, folder / "documents-00000.parquet")
    store.write_manifest(folder, ["documents-00000.parquet"], kind="dataset", conversations=True)
    return folder


def params(tmp_path: Path, dataset: Path, template: str | None, **settings):
    save_model(tiny_model("llama"), tmp_path / "model")
    tokenizer = decoder_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    return tokenize.Params(str(dataset), str(tmp_path / "model"), str(tmp_path / "tokens"), 32, **settings)


def test_a_dataset_of_conversations_is_tokenized_by_its_template(tmp_path, conversations) -> None:
    result = tokenize.run(params(tmp_path, conversations, PLAIN, train_on="assistant", layout="padded"), Context())
    assert result["documents"] == 60 and 0 < result["masked_tokens"] < result["tokens"]
    ids, _ = TokenShards(tmp_path / "tokens").rows([0])
    assert decoder_tokenizer().decode(ids[0].tolist()).startswith("<s><|user|>")
    shown = preview(talker(), TokenConfig(32, layout="padded", train_on="assistant"), str(conversations))
    assert [token for _, token, _ in shown["rows"][0]["tokens"]] == ids[0][: len(shown["rows"][0]["tokens"])].tolist()


def test_without_a_template_the_log_says_that_it_is_plain_text(tmp_path, conversations, capsys) -> None:
    tokenize.run(params(tmp_path, conversations, None), Context())
    assert "no chat template" in capsys.readouterr().out
    text = decoder_tokenizer().decode(TokenShards(tmp_path / "tokens").rows([0])[0][0].tolist())
    assert text.removeprefix("<s>").startswith(next(read_documents(conversations))[:20])


def test_a_template_that_was_asked_for_and_is_not_there_is_refused_by_its_field(tmp_path, conversations) -> None:
    with pytest.raises(InvalidInput, match="no chat template") as refused:
        tokenize.run(params(tmp_path, conversations, None, chat="template"), Context())
    assert refused.value.field == "chat"
