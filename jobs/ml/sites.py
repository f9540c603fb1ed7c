"""Named places in the forward pass of a transformers model, read and edited exactly there.

Names are TransformerLens', so an SAE trained here means the same elsewhere:

  hook_embed                 what the token ids are looked up as, before positions are added
  blocks.N.hook_resid_pre    the residual stream that enters block N
  blocks.N.hook_z            the mixed values of all heads, before the attention's output projection
  blocks.N.hook_attn_out     what the attention adds to the residual stream (after a post-norm, where there is one)
  blocks.N.hook_resid_mid    the residual stream between attention and MLP, where one comes after the other
  blocks.N.mlp.hook_post     the hidden activations of the MLP, before its last projection
  blocks.N.hook_mlp_out      what the MLP adds to the residual stream (after a post-norm, where there is one)
  blocks.N.hook_resid_post   the residual stream that leaves block N

hook_z is flat here, [B, T, heads * d_head]; blocks.N.hook_z.H is its head H. TransformerLens calls it attn.hook_z,
[B, T, heads, d_head]. In BERT, hook_resid_post has gone through the block's last norm.
Any other module is named by its path (see site_names.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from jobs.ml.blocks import (
    ATTENTION_POST_NORM,
    UnsupportedModel,
    attention_projection,
    embedding,
    find_blocks,
    has,
    in_features,
    middle,
    mlp_output,
    mlp_projection,
    post_norm,
    text_config,
)
from jobs.ml.errors import WithHint
from jobs.ml.site_names import EMBED, Side, head_of, module_of, module_site, suggestion

RESIDUAL = (EMBED, "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out")
PROBE = (2, 3)  # sequences, tokens: what a module is run on to see what comes by


class UnknownSite(WithHint):
    pass


@dataclass(frozen=True)
class Site:
    """A tensor [B, T, width]: `width` numbers from `start` on of the first input or output of the module at `path`."""

    name: str
    width: int
    path: str
    side: Side
    start: int = 0

    @property
    def residual(self) -> bool:
        """Does the tensor live in the basis of the residual stream?"""
        return self.name.endswith(RESIDUAL)

    def of(self, whole: Tensor) -> Tensor:
        """The site's part of what comes by at the module, without a copy."""
        return whole[..., self.start : self.start + self.width]


def list_sites(model: nn.Module) -> list[Site]:
    """In the order of the forward pass; single heads and other modules have names too, but are not listed."""
    found = embedding(model)
    sites = [Site(EMBED, found[1], found[0], "output")] if found else []
    with suppress(UnsupportedModel):
        path, blocks = find_blocks(model)
        width = text_config(model).hidden_size
        for n, block in enumerate(blocks):
            sites += sites_of_block(block, f"{path}.{n}", n, width)
    return sites


def sites_of_block(block: nn.Module, path: str, n: int, d_model: int) -> Iterator[Site]:
    def site(kind: str, child: str, side: Side = "output", width: int = d_model) -> Site:
        return Site(f"blocks.{n}.{kind}", width, f"{path}.{child}".rstrip("."), side)

    projection, hidden, mlp = attention_projection(block), mlp_projection(block), mlp_output(block)
    # Granite multiplies what it adds by a constant outside of its modules: none of them puts out what is added.
    plain = getattr(block, "residual_multiplier", 1.0) == 1.0
    yield site("hook_resid_pre", "", "input")
    if projection:
        yield site("hook_z", projection, "input", in_features(block.get_submodule(projection)))
    if projection and plain:
        yield site("hook_attn_out", post_norm(block, ATTENTION_POST_NORM) or projection)
    if between := middle(block) if projection else "":
        yield site("hook_resid_mid", between, "input")
    if hidden:
        yield site("mlp.hook_post", hidden, "input", in_features(block.get_submodule(hidden)))
    if mlp and plain:
        yield site("hook_mlp_out", mlp)
    yield site("hook_resid_post", "")


def resolve(model: nn.Module, name: str, width: int | None = None) -> Site:
    """Raises UnknownSite: there is none of this name (then it says which there are), or its width is not the wanted
    one."""
    site = find_module(model, *named) if (named := module_of(name)) else find_hook(model, name)
    if width not in (None, site.width):
        raise UnknownSite(f"{name} has {site.width} dimensions, but the SAE reads {width}.")
    return site


def find_hook(model: nn.Module, name: str) -> Site:
    sites = {site.name: site for site in list_sites(model)}
    if name in sites:
        return sites[name]
    whole, head = head_of(name) or ("", 0)
    n_heads = text_config(model).num_attention_heads if whole in sites else 0
    if head < n_heads and sites[whole].width % n_heads == 0:
        site, width = sites[whole], sites[whole].width // n_heads
        return Site(name, width, site.path, site.side, head * width)
    heads = f" {whole} has heads 0 to {n_heads - 1}." if n_heads else ""
    raise UnknownSite(
        f"{name!r} is no site of this model. {what_there_is(model, list(sites))}{heads}".strip(),
        suggestion(name, sites) or "Any module has a name too: module:<path> or module:<path>:input.",
    )


def what_there_is(model: nn.Module, names: list[str]) -> str:
    kinds = list(dict.fromkeys(name.split(".", 2)[2] for name in names if name != EMBED))
    if not kinds:
        try:
            find_blocks(model)
        except UnsupportedModel as error:
            return str(error)
    last = text_config(model).num_hidden_layers - 1
    also = f"{EMBED} and " if EMBED in names else ""
    return f"It has {also}blocks.N.<site>, N from 0 to {last}: {', '.join(kinds)}."


def find_module(model: nn.Module, path: str, side: Side) -> Site:
    """The width is seen in a forward pass over a few tokens, and so is whether there is one tensor to be had."""
    name = module_site(path, side)
    if not has(model, path):
        paths = [module_site(known, side) for known, _ in model.named_modules() if known]
        raise UnknownSite(f"{type(model).__name__} has no module {path!r}.", suggestion(name, paths))
    seen: list[Any] = []

    def keep(tensor: Any) -> Any:
        seen.append(tensor)
        return tensor

    with torch.no_grad(), hooked(model, Site(name, 0, path, side), keep):
        model(input_ids=torch.zeros(PROBE, dtype=torch.long, device=next(model.parameters()).device))
    if len(seen) != 1:
        raise UnknownSite(f"{name} comes by {len(seen)} times in a forward pass: a site is one tensor.")
    shape = list(seen[0].shape) if isinstance(seen[0], Tensor) else type(seen[0]).__name__
    if shape[:-1] not in ([*PROBE], [PROBE[0] * PROBE[1]]):
        raise UnknownSite(f"{name} is {shape} for {PROBE[0]} sequences of {PROBE[1]} tokens: a site is [2, 3, width].")
    return Site(name, int(shape[-1]), path, side)


class _Complete(Exception):
    """Leaves the forward pass when every tensor that was asked for has come by."""


# The sites into whose tensors a later module of the model writes: these alone are copied when many are captured.
OVERWRITTEN: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def capture(model: nn.Module, site: Site | str, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The site's tensor [B, T, width] for input_ids [B, T]; nothing after the site is computed."""
    [tensor] = capture_all(model, [site], input_ids, attention_mask).values()
    return tensor


def capture_all(
    model: nn.Module, sites: Sequence[Site | str], input_ids: Tensor, attention_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Name → tensor [B, T, width] of every site, from one forward pass that ends at the last of them.

    Raises UnknownSite where the pass does not come by one of them.
    """
    return capture_in_pass(model, sites, input_ids, attention_mask, to_end=False)[0]


@torch.no_grad()
def capture_in_pass(
    model: nn.Module,
    sites: Sequence[Site | str],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    to_end: bool = True,
) -> tuple[dict[str, Tensor], Any]:
    """The same, and what the model puts out: None where the pass does not go on to its end."""
    wanted = {site.name: site for site in (resolve(model, s) if isinstance(s, str) else s for s in sites)}
    copied = OVERWRITTEN.setdefault(model, set())
    found: dict[str, Tensor] = {}
    versions: dict[str, int] = {}
    output: Any = None

    def keep(site: Site, whole: Tensor) -> Tensor:
        if site.name not in found:
            tensor = site.of(whole.clone() if site.name in copied else whole)
            found[site.name] = tensor.view(*input_ids.shape, site.width)
            versions[site.name] = tensor._version
        if len(found) == len(wanted) and not to_end:
            raise _Complete
        return whole

    with ExitStack() as hooks:
        for site in wanted.values():
            hooks.enter_context(hooked(model, site, partial(keep, site)))
        with suppress(_Complete):
            output = model(input_ids=input_ids, attention_mask=attention_mask)
    if missed := wanted.keys() - found.keys():
        raise UnknownSite(f"the forward pass of {type(model).__name__} did not come by {', '.join(sorted(missed))}")
    if changed := {name for name, tensor in found.items() if tensor._version != versions[name]}:
        copied |= changed
        return capture_in_pass(model, list(wanted.values()), input_ids, attention_mask, to_end=to_end)
    return {name: found[name] for name in wanted}, output


@contextmanager
def replaced(model: nn.Module, site: Site | str, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it is open, every forward pass goes on with edit(tensor) in place of the site's tensor [B, T,
    width].

    (OPT flattens B and T before its MLP: there the tensor is [B*T, width].)
    """
    place = resolve(model, site) if isinstance(site, str) else site
    # The stream runs past the norm that reads it in the middle of a block, as the same tensor: it is written into.
    passes_by = place.name.endswith("hook_resid_mid")

    def edit_part(whole: Tensor) -> Tensor:
        if whole.shape[-1] == place.width and not passes_by:
            return edit(whole)
        new = whole if passes_by else whole.clone()
        place.of(new).copy_(edit(place.of(whole)))
        return new

    with hooked(model, place, edit_part):
        yield


@contextmanager
def hooked(model: nn.Module, site: Site, edit: Callable[[Any], Any]) -> Iterator[None]:
    """While it is open, edit(tensor) takes the place of the whole tensor that the site is, or is a part of."""
    module = model.get_submodule(site.path)
    if site.side == "input":
        handle = module.register_forward_pre_hook(edit_input(edit), with_kwargs=True)
    else:
        handle = module.register_forward_hook(edit_output(edit))
    try:
        yield
    finally:
        handle.remove()


def edit_input(edit: Callable[[Any], Any]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: edit(kwargs[name])}

    return hook


def edit_output(edit: Callable[[Any], Any]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, dict):  # the outputs of whole models and stacks
            output[next(iter(output))] = edit(next(iter(output.values())))
            return output
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook
