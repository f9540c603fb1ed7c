"""The parts of a transformer block, found by structure: which module is its attention, which its MLP, which norm is
where.

The list of blocks is the ModuleList as long as the config has layers.
"""

from typing import Any

from torch import nn

from jobs.ml.errors import WithHint

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "Wo")
MLP = ("mlp", "ffn", "feed_forward", "block_sparse_moe")
ATTENTION_POST_NORM = ("post_self_attn_layernorm", "post_attention_layernorm")
MLP_POST_NORM = ("post_feedforward_layernorm", "post_mlp_layernorm")
# The last projection of the MLP, where the block has no MLP module that ends with it:
# OPT keeps it in the block; in BERT, Bloom and MPT the module that holds it also adds the residual.
MLP_PROJECTION = ("fc2", "output.dense", "mlp.dense_4h_to_h", "ffn.down_proj")
LAST_OF_MLP = ("down_proj", "c_proj", "fc2", "fc_out", "lin2", "w2", "Wo")
# The norm that reads the stream to which the attention has been added.
SECOND_NORM = ("pre_feedforward_layernorm", "ln_2", "norm_2", "mlp_norm", "attention.output.LayerNorm", "sa_layer_norm")
PARALLEL = ("use_parallel_residual", "parallel_attn")  # flags of blocks whose attention and MLP read the same stream


class UnsupportedModel(WithHint):
    pass


def text_config(model: Any) -> Any:
    return model.config.get_text_config()


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the list of the transformer blocks. Raises UnsupportedModel."""
    n_layers = getattr(text_config(model), "num_hidden_layers", None)
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        if any(first(block, ATTENTION) for block in module):
            return path, module
    raise UnsupportedModel(
        f"{type(model).__name__} has no list of {n_layers} attention blocks, so no site is called blocks.N.",
        "Name a module of it instead, as in module:<path> or module:<path>:input.",
    )


def first(module: nn.Module, names: tuple[str, ...]) -> str:
    """The first of the dotted names below the module, else ""."""
    return next((name for name in names if has(module, name)), "")


def has(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def attention_projection(block: nn.Module) -> str:
    """The last module below the attention that is called like an output projection."""
    attention = first(block, ATTENTION)
    if not attention:  # a Mamba or linear-attention block of a hybrid model
        return ""
    below = [path for path, _ in block.get_submodule(attention).named_modules()]
    found = [path for path in below if path.split(".")[-1] in PROJECTION]
    return f"{attention}.{found[-1]}" if found else ""


def post_norm(block: nn.Module, names: tuple[str, ...]) -> str:
    """The norm between a sublayer and the residual stream (Gemma 2 and 3, OLMo 2, GLM 4).

    Llama's `post_attention_layernorm` is the norm *before* the MLP; it is one after the attention only in
    blocks that have one after the MLP too.
    """
    return first(block, names) if first(block, MLP_POST_NORM) else ""


def mlp_output(block: nn.Module) -> str:
    return post_norm(block, MLP_POST_NORM) or first(block, MLP_PROJECTION) or first(block, MLP)


def mlp_projection(block: nn.Module) -> str:
    """The last projection of an MLP; "" where experts share the work."""
    inside = tuple(f"{name}.{last}" for name in MLP for last in LAST_OF_MLP)
    return first(block, MLP_PROJECTION + inside)


def middle(block: nn.Module) -> str:
    """The module that reads the stream between attention and MLP; "" where both read what enters the block."""
    if any(getattr(owner, flag, False) for owner in (block, getattr(block, "config", None)) for flag in PARALLEL):
        return ""
    before = getattr(block, "do_layer_norm_before", None)  # OPT has one size whose norms come after the sum
    if before is not None:
        return "final_layer_norm" if before else "self_attn_layer_norm"
    if found := first(block, SECOND_NORM):
        return found
    if first(block, MLP_POST_NORM) and not has(block, "post_self_attn_layernorm"):
        return first(block, MLP)  # OLMo 2 and 3 have no norm before the MLP
    return first(block, ("post_attention_layernorm",))


def in_features(projection: Any) -> int:
    """Also of GPT-2's Conv1D, whose weight is [in, out]."""
    return int(getattr(projection, "in_features", None) or projection.weight.shape[0])


def embedding(model: Any) -> tuple[str, int] | None:
    """The path and width of what the token ids are looked up in, with Bloom's norm right after it."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    path = next((path for path, module in model.named_modules() if module is table), "")
    normed = path.replace("word_embeddings", "word_embeddings_layernorm")
    if not path or not hasattr(table, "embedding_dim"):
        return None
    return (normed if has(model, normed) else path), table.embedding_dim
