"""Named places in the forward pass of a transformers model, read and edited exactly there.

Names are TransformerLens', so an SAE trained here means the same elsewhere. For block N:

  blocks.N.hook_resid_pre   the residual stream that enters the block blocks.N.hook_z           the mixed
  values of all heads, before the attention's output projection blocks.N.hook_attn_out    what the attention
  adds to the residual stream (after a post-norm, where there is one) blocks.N.hook_mlp_out     what the MLP
  adds to the residual stream (likewise) blocks.N.hook_resid_post  the residual stream that leaves the block

Modules are found by structure: the list of blocks is the ModuleList as long as the config has layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jobs.ml.errors import WithHint

RESIDUAL = ("hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out")  # width d_model
ORDER = ("hook_resid_pre", "hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post")

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "Wo")
MLP = ("mlp", "ffn", "feed_forward", "block_sparse_moe")
ATTENTION_POST_NORM = ("post_attention_layernorm", "post_self_attn_layernorm")
MLP_POST_NORM = ("post_feedforward_layernorm", "post_mlp_layernorm")
# The last projection of the MLP, where the block has no MLP module that ends with it:
# OPT keeps it in the block; in BERT and Bloom the module that holds it also adds the residual.
MLP_PROJECTION = ("fc2", "output.dense", "mlp.dense_4h_to_h")


class UnknownSite(WithHint):
    pass


class UnsupportedModel(WithHint):
    pass


@dataclass(frozen=True)
class Site:
    """A tensor [B, T, width]: the first input or first output of the module at `path`."""

    name: str
    width: int
    path: str
    side: Literal["input", "output"]

    @property
    def residual(self) -> bool:
        """Does the tensor live in the basis of the residual stream?"""
        return self.name.endswith(RESIDUAL)


def list_sites(model: nn.Module) -> list[Site]:
    """In the order of the forward pass. Raises UnsupportedModel."""
    path, blocks = find_blocks(model)
    width = text_config(model).hidden_size
    return [site for n, block in enumerate(blocks) for site in sites_of_block(block, f"{path}.{n}", n, width)]


def resolve(model: nn.Module, name: str, width: int | None = None) -> Site:
    """Raises UnknownSite, which names the sites that the model has, or a width that is not the wanted one."""
    sites = {site.name: site for site in list_sites(model)}
    if name not in sites:
        last = text_config(model).num_hidden_layers - 1
        kinds = sorted({site.split(".")[-1] for site in sites}, key=ORDER.index)
        raise UnknownSite(
            f"{name!r} is no site of this model. It has blocks.N.<site>, N from 0 to {last}: {', '.join(kinds)}."
        )
    if width not in (None, sites[name].width):
        raise UnknownSite(f"{name} has {sites[name].width} dimensions, but the SAE reads {width}.")
    return sites[name]


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
        f"{type(model).__name__} has no list of {n_layers} attention blocks: "
        "miStudio reads decoders and encoders that are built as a stack of such blocks."
    )


def sites_of_block(block: nn.Module, path: str, n: int, d_model: int) -> Iterator[Site]:
    def site(kind: str, child: str, side: Literal["input", "output"] = "output", width: int = d_model) -> Site:
        return Site(f"blocks.{n}.{kind}", width, f"{path}.{child}".rstrip("."), side)

    projection = attention_projection(block)
    # Granite multiplies what it adds by a constant outside of its modules: none of them puts out what is added.
    plain = getattr(block, "residual_multiplier", 1.0) == 1.0
    mlp = mlp_output(block)
    yield site("hook_resid_pre", "", "input")
    if projection:
        yield site("hook_z", projection, "input", in_features(block.get_submodule(projection)))
    if projection and plain:
        yield site("hook_attn_out", post_norm(block, ATTENTION_POST_NORM) or projection)
    if mlp and plain:
        yield site("hook_mlp_out", mlp)
    yield site("hook_resid_post", "")


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


def in_features(projection: Any) -> int:
    """Also of GPT-2's Conv1D, whose weight is [in, out]."""
    return int(getattr(projection, "in_features", None) or projection.weight.shape[0])


class _Complete(Exception):
    """Leaves the forward pass when every tensor that was asked for has come by."""


def capture(model: nn.Module, site: Site | str, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The site's tensor [B, T, width] for input_ids [B, T]; nothing after the site is computed."""
    [tensor] = capture_all(model, [site], input_ids, attention_mask).values()
    return tensor


@torch.no_grad()
def capture_all(
    model: nn.Module, sites: Sequence[Site | str], input_ids: Tensor, attention_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Name → tensor [B, T, width] of every site, from one forward pass that ends at the last of them.

    Raises UnknownSite where the pass does not come by one of them.
    """
    wanted = [resolve(model, site) if isinstance(site, str) else site for site in sites]
    found: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> Tensor:
        found[name] = tensor.view(*input_ids.shape, -1)
        if len(found) == len(wanted):
            raise _Complete
        return tensor

    with ExitStack() as hooks:
        for site in wanted:
            hooks.enter_context(replaced(model, site, partial(keep, site.name)))
        with suppress(_Complete):
            model(input_ids=input_ids, attention_mask=attention_mask)
    if missed := [site.name for site in wanted if site.name not in found]:
        raise UnknownSite(f"the forward pass of {type(model).__name__} did not come by {', '.join(missed)}")
    return {site.name: found[site.name] for site in wanted}


@contextmanager
def replaced(model: nn.Module, site: Site | str, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it is open, every forward pass goes on with edit(tensor) in place of the site's tensor [B, T,
    width].

    (OPT flattens B and T before its MLP: there the tensor is [B*T, width].)
    """
    if isinstance(site, str):
        site = resolve(model, site)
    module = model.get_submodule(site.path)
    if site.side == "input":
        handle = module.register_forward_pre_hook(edit_input(edit), with_kwargs=True)
    else:
        handle = module.register_forward_hook(edit_output(edit))
    try:
        yield
    finally:
        handle.remove()


def edit_input(edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: edit(kwargs[name])}

    return hook


def edit_output(edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook
