"""What SAELens calls what we have: architectures and sites. Needs nothing but Python: pages read it too."""

from typing import Any

from jobs.ml.site_names import head_of, module_of, module_site

VERSION = "6.54.12"  # readers take a file without one for an older, flat format
HUGGING_FACE = "AutoModelForCausalLM"  # the class by which SAELens reads a transformers model without TransformerLens
# (architecture, transcodes, with a skip connection) → the name in cfg.json
KINDS = {
    **{(name, False, False): name for name in ("standard", "gated", "topk", "abstopk", "jumprelu", "crosscoder")},
    ("standard", True, False): "transcoder",
    ("standard", True, True): "skip_transcoder",
    ("jumprelu", True, False): "jumprelu_transcoder",
    ("jumprelu", True, True): "jumprelu_skip_transcoder",
    ("topk", True, False): "topk_transcoder",
    ("topk", True, True): "topk_skip_transcoder",
}


def hook_of(site: str) -> dict[str, Any]:
    """How SAELens finds the same tensor: by TransformerLens' name of it, or by the module that puts it out in the
    transformers model. It has no name for what goes into a module: there ours stands.
    """
    module, head = module_of(site), head_of(site)
    if module and module[1] == "output":
        return {"hook_name": module[0], "hook_head_index": None, "model_class_name": HUGGING_FACE}
    name, index = head or (site, None)
    if not module:
        name = name.replace(".hook_z", ".attn.hook_z")
    return {"hook_name": name, "hook_head_index": index}


def site_name(metadata: dict[str, Any], side: str) -> str:
    hook: str = metadata[f"hook_name{side}"]
    if metadata.get("model_class_name") == HUGGING_FACE:
        return module_site(hook, "output")
    name, head = hook.replace(".attn.hook_z", ".hook_z"), metadata.get(f"hook_head_index{side}")
    return name if head is None else f"{name}.{head}"
