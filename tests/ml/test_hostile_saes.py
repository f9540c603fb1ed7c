"""Files of SAEs that were made to do harm, or to break what reads them: each is refused in words."""

import errno
import io
import re
import tarfile
import zipfile
from functools import partial

import numpy as np
import pytest
import torch

from jobs.context import Context
from jobs.kinds import import_sae
from jobs.ml import formats
from jobs.ml.errors import CorruptData, Unusable, WithHint
from jobs.ml.formats import headers, tensors
from jobs.ml.formats.look import look_path
from tests.ml import foreign
from tests.ml.foreign import D, M, changed, refused


@pytest.mark.parametrize(
    ("made", "values", "said"),
    [
        ("saelens-topk", {"d_in": 10**4200}, "d_in is '1000"),
        ("sparsify", {"num_latents": 10**4200}, "num_latents is '1000"),
        ("sparsify", {"num_latents": 0, "d_in": 2**40, "expansion_factor": 2**40}, "d_in is 1,099,511,627,776, not 1"),
        ("llama_scope", {"jump_relu_threshold": 10**4200}, "jump_relu_threshold is '1000"),
        ("saelens-flat", {"normalize_activations": "a" * 10**6}, "its inputs are normalised when it runs (aaa"),
    ],
)
def test_numbers_and_texts_without_end_are_refused_in_a_short_message(tmp_path, made, values, said) -> None:
    foreign.MADE[made](tmp_path)
    message = refused(changed(tmp_path, **values))
    assert said in message and len(message) < 500


def test_what_a_stranger_wrote_turns_no_terminal_and_no_line(tmp_path) -> None:
    assert str(WithHint("a\x1b[31m\nb", "c\u202ed")) == "a\ufffd[31m b" and WithHint("", "c\u202ed").hint == "c\ufffdd"
    assert len(str(WithHint("x" * 10**6))) == 2000
    words = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f4bb Fu\u00dfball\u00adfeld"
    assert str(WithHint(words)) == words, "what is within words stays"
    foreign.saelens(tmp_path)
    changed(tmp_path, metadata={"sae_lens_version": "6.1.0", "hook_name": "a\x1b[31m", "model_name": "b\u202e"})
    facts = formats.recognise(tmp_path)
    assert (facts.reads, facts.model_name) == (("a\ufffd[31m",), "b\ufffd")


@pytest.mark.parametrize("name", ["\0x/", "a" * 300 + "/", "/".join("a" * 200 for _ in range(9)) + "/"])
def test_names_in_an_archive_that_no_file_can_have_are_refused(tmp_path, name) -> None:
    with zipfile.ZipFile(tmp_path / "sae.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}cfg.json"), "{}")
    with pytest.raises(Unusable, match="a name that no file can have"):
        look_path(tmp_path / "sae.zip")


@pytest.mark.parametrize("which", ["cfg.json", "sae_weights.safetensors"])
def test_an_archive_whose_bytes_were_changed_is_refused(tmp_path, which) -> None:
    foreign.saelens(tmp_path / "sae")
    with zipfile.ZipFile(tmp_path / "sae.zip", "w") as archive:
        for path in (tmp_path / "sae").iterdir():
            archive.write(path, path.name)
    last = (tmp_path / "sae" / which).read_bytes()[-9:]
    (tmp_path / "sae.zip").write_bytes((tmp_path / "sae.zip").read_bytes().replace(last, b"123456789"))
    if which == "cfg.json":
        with pytest.raises(CorruptData, match="sae.zip is damaged or cut off"):
            look_path(tmp_path / "sae.zip")
    params = import_sae.Params(str(tmp_path / "sae.zip"), str(tmp_path / "made/sae"))
    with pytest.raises(CorruptData, match="sae.zip is damaged or cut off"):
        import_sae.run(params, Context(1, 1, import_sae.STAGES))


@pytest.mark.parametrize(("at", "value"), [(6, 215), (9, 8)])  # for a later zip; names in UTF-8, which they are not
def test_a_zip_archive_with_an_odd_table_of_contents_is_refused(tmp_path, at, value) -> None:
    path = tmp_path / "sae.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name.json", b"")
    raw = bytearray(path.read_bytes().replace(b"name", b"\xff\xff\xff\xff"))
    raw[raw.index(b"PK\x01\x02") + at] = value
    path.write_bytes(raw)
    for name, made in (("params.npz", "gemma_scope"), ("ae.pt", "dictionary_learning")):
        getattr(foreign, made)(tmp_path / made)
        (tmp_path / made / name).write_bytes(raw)
        assert name in refused(tmp_path / made)
    with pytest.raises(CorruptData, match="sae.zip is damaged or cut off"):
        look_path(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_plain_file_of_an_archive_is_refused(tmp_path, kind) -> None:
    member = tarfile.TarInfo("cfg.json")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "sae.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(Unusable, match=r"sae.tar holds cfg.json, (a (symbolic )?link|which is no plain file)"):
        look_path(tmp_path / "sae.tar")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"descr": "<f4", "fortran_order": False, "shape": (True, D * M)}, "should hold (True, 480) numbers"),
        ({"descr": "<f4", "fortran_order": False, "shape": (-1, M)}, "should hold (-1, 40) numbers"),
        ({"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**40)}, "numbers, but has"),
        ("(" * 3000, "has a header that cannot be read"),
        ("__import__('os').abort()", "has a header that cannot be read"),
    ],
)
def test_an_npz_whose_arrays_lie_about_themselves_is_refused(tmp_path, header, said) -> None:
    text = f"{header}\n".encode()
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("w_enc.npy", b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(4 * D * M))
    assert said in refused(tmp_path)


def test_an_npz_that_ends_within_an_array_is_refused(tmp_path) -> None:
    foreign.gemma_scope(tmp_path)
    with np.load(tmp_path / "params.npz") as arrays:
        known = dict(arrays)
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        for name, array in known.items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", file.getvalue()[: -8 if name == "b_dec" else None])
    assert "params.npz cannot be read" in refused(tmp_path)


class Failing(io.RawIOBase):
    """A file on a disk that breaks."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_what_the_machine_cannot_read_is_not_told_as_damage(tmp_path, monkeypatch) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        headers.npy_header(Failing(), 100, "w_enc in params.npz")
    for read in (headers.npz_headers, partial(tensors.check_archive, wanted={})):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere")
    for made, checks in (("gemma_scope", "npz_headers"), ("dictionary_learning", "check_archive")):
        folder = tmp_path / made
        getattr(foreign, made)(folder)
        monkeypatch.setattr(tensors, checks, and_gone(getattr(tensors, checks)))
        with pytest.raises(FileNotFoundError):
            formats.read(folder)


def and_gone(check):
    """The check, after which the file is no longer there."""

    def checked(path, *rest):
        found = check(path, *rest)
        path.unlink()
        return found

    return checked


def test_an_npz_with_a_password_is_refused(tmp_path) -> None:
    foreign.gemma_scope(tmp_path)
    raw = bytearray((tmp_path / "params.npz").read_bytes())
    for entry in re.finditer(b"PK\x01\x02", bytes(raw)):
        raw[entry.start() + 8] |= 1
    (tmp_path / "params.npz").write_bytes(raw)
    assert "is encrypted, password required" in refused(tmp_path, Unusable)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (lambda: {1: torch.zeros(2)}, "holds a checkpoint of a trainer"),
        (lambda: {"b_dec": torch.zeros(D, device="meta")}, "b_dec is no dense tensor"),
        (lambda: {"b_dec": torch.zeros(D).to_sparse()}, "b_dec is no dense tensor"),
        (lambda: {"b_dec": torch.nested.nested_tensor([torch.zeros(D)])}, "b_dec is no dense tensor"),
        (lambda: {"encoder.weight": torch.zeros(1).expand(2**40, D)}, "has the shape [1099511627776, 12]"),
    ],
)
def test_a_state_dict_of_other_things_than_dense_tensors_is_refused(tmp_path, odd, said) -> None:
    foreign.dictionary_learning(tmp_path)
    torch.save(torch.load(tmp_path / "ae.pt") | odd(), tmp_path / "ae.pt")
    assert said in refused(tmp_path)
