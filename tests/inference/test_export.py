"""An export holds the bits of its run, for nobody else to read; what was altered, or is another's,
is refused."""

import json
import os
import shutil
import stat
import sys

import numpy as np
import pytest

from research.errors import BadInput, Damaged, StorageError, UnsafeFile
from research.inference import export
from research.inference.load import open_run
from research.io import encryption, files
from research.params import leaves_by_path
from research.runs import stored_state
from research.runs.directory import RunDirectory
from research.runs.table import read_row
from research.training.loop import train_run
from research.training.make_run import make_run

pytest.importorskip("safetensors")
pytest.importorskip("model_signing")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

pytestmark = pytest.mark.usefixtures("barely_optimized")

KEY, OTHER = bytes(range(32)), bytes(32)
SECRETS = {"WANDB_API_KEY": "wandb-0123456789abcdef", "HF_TOKEN": "hf_aSecretOfTheHub"}


def pair(folder, name):
    """The files of a private key and its public one, as openssl makes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    kind, none = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.touch(0o600)
    private.write_bytes(key.private_bytes(pem, kind, none))
    public.write_bytes(key.public_key().public_bytes(pem, form))
    return str(private), str(public)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of a language model with a tokenizer and averaged parameters, of steps 4, 8 and 12."""
    workdir = tmp_path_factory.mktemp("export")
    words = workdir / "words.json"
    words.write_text(json.dumps(TOKENIZER))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("ISOFLOP_CACHE", str(workdir / "cache"))
        changes = {"data.tokenizer": str(words), "optim.ema": 0.9, "eval.every": 4}
        made = make_run(tiny({**changes, "save.every": 4, "save.keep": 3}))
        with RunDirectory(workdir, made.id) as directory:
            train_run(made, directory)
    return directory.path


LETTERS = [chr(i) for i in range(97, 123)] + [" ", "</s>"]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor")),
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(LETTERS)}, "merges": []},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: pair(folder, name) for name in ("ours", "theirs")}


@pytest.fixture(scope="module")
def exports(run, keys, tmp_path_factory):
    """Name -> (an export, the arguments that read it)."""
    folder, made = tmp_path_factory.mktemp("exports"), export.from_run(str(run))
    private, public = keys["ours"]
    plain = export.write(made, folder / "plain")
    signed = export.write(made, folder / "signed", sign=private)
    shut = export.write(made, folder / "sealed", KEY)
    both = export.write(made, folder / "both", KEY, private)
    return {
        "plain": (plain, {}),
        "signed": (signed, {"verify": public}),
        "sealed": (shut, {"key": KEY}),
        "both": (both, {"key": KEY, "verify": public}),
    }


KINDS = ("plain", "signed", "sealed", "both")


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_holds_the_bits_of_its_run(exports, run, kind):
    path, how = exports[kind]
    step, place = stored_state.latest_intact(run)
    average, newest = (
        leaves_by_path(stored_state.read_arrays(place, part)) for part in ("average", "params")
    )
    source = export.open_export(path, **how)
    found = leaves_by_path(source.params)
    assert found.keys() == average.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, average[name], strict=True)
    assert any((found[name] != newest[name]).any() for name in found)  # the twin
    opened = open_run(run)
    assert (source.model, source.tokenizer, source.step) == (opened.model, opened.tokenizer, step)
    assert source.tokenizer == json.dumps(TOKENIZER)


def test_another_step_is_another_export(run, exports, tmp_path):
    made = export.read(export.write(export.from_run(str(run), 4), tmp_path / "e"))
    newest = export.read(exports["plain"][0])
    assert (made.about["step"], newest.about["step"]) == (4, 12)
    assert any((made.leaves[k] != newest.leaves[k]).any() for k in made.leaves)
    assert made.about["loss"] != newest.about["loss"]
    with pytest.raises(BadInput, match="of step 5"):
        export.from_run(str(run), 5)


def test_the_manifest_says_what_it_is(exports, run):
    about, result = export.read(exports["plain"][0]).about, read_row(run)
    names = ("loss", "loss_unit", "params", "data_digest", "versions", "commit", "code", "name")
    for name in names:
        assert about[name] == result[name]
    assert about["config"] == files.read_json(run / "config.json")
    assert about["weights"] == "average"
    assert about["tokenizer_digest"] == files.digest(json.dumps(TOKENIZER).encode())


def test_other_programs_can_read_it(exports):
    from safetensors.numpy import load_file

    leaves = load_file(exports["plain"][0] / export.WEIGHTS)
    assert leaves.keys() == export.read(exports["plain"][0]).leaves.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_for_its_owner_alone_whatever_the_umask(exports, run, keys, kind, tmp_path):
    old = os.umask(0)
    try:
        made = export.from_run(str(run))
        sign = keys["ours"][0] if "verify" in exports[kind][1] else None
        path = export.write(made, tmp_path / "e", exports[kind][1].get("key"), sign)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()}
    assert set(modes.values()) == {0o600}
    assert modes.keys() == {p.name for p in exports[kind][0].iterdir()}


def flipped(raw, at, bit=0):
    out = bytearray(raw)
    out[at] ^= 1 << bit
    return bytes(out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_in_any_region_of_any_file_is_rejected(exports, kind, tmp_path):
    path, how = exports[kind]
    copy, rng = shutil.copytree(path, tmp_path / "e"), np.random.default_rng(0)
    for file in sorted(copy.iterdir()):
        raw = file.read_bytes()
        # The header of each, then places all over it.
        for at in {0, 7, 20, 40, 60, len(raw) - 1, *rng.integers(len(raw), size=12).tolist()}:
            changed = flipped(raw, at, int(rng.integers(8)))
            if file.name == export.SIGNATURE and same_signature(raw, changed):
                continue
            file.write_bytes(changed)
            with pytest.raises((Damaged, BadInput)):
                export.read(copy, **how)
        file.write_bytes(raw)
    export.read(copy, **how)  # and as it was, it is read


def same_signature(one, other):
    """Whether a bundle says the same in other words: blanks, and the unused bits of base64."""
    import base64

    def told(raw):
        found = json.loads(raw)
        envelope = found["dsseEnvelope"]
        parts = [envelope["payload"], *(s.pop("sig") for s in envelope["signatures"])]
        envelope["payload"] = ""
        return found, [base64.b64decode(part) for part in parts]

    try:
        return told(one) == told(other)
    except (ValueError, KeyError, AttributeError, TypeError):
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_short_continued_missing_or_added_is_rejected(exports, kind, tmp_path):
    path, how = exports[kind]
    copy = shutil.copytree(path, tmp_path / "e")
    for file in sorted(copy.iterdir()):
        raw = file.read_bytes()
        for changed in (raw[:-1], raw[: len(raw) // 2], b"", raw + b"\0", raw + raw):
            file.write_bytes(changed)
            with pytest.raises((Damaged, BadInput)):
                export.read(copy, **how)
        file.unlink()
        with pytest.raises((Damaged, BadInput)):
            export.read(copy, **how)
        file.write_bytes(raw)
    for name in ("more", ".gitignore", "model.safetensors.part"):
        (copy / name).write_text("")
        with pytest.raises(Damaged, match=rf"{name}|altered"):
            export.read(copy, **how)
        (copy / name).unlink()
    export.read(copy, **how)


def rewritten(path):
    """An export whose weights another has changed, and the digests with them."""
    made = export.read(path)
    leaves = {k: x + 1 for k, x in made.leaves.items()}
    shutil.rmtree(path)
    return export.write(export.Export(made.about, leaves, made.tokenizer), path)


def test_digests_do_not_stop_who_rewrites_them_and_a_signature_does(exports, keys, tmp_path):
    plain = rewritten(shutil.copytree(exports["plain"][0], tmp_path / "plain"))
    export.read(plain)  # docs/export.md says so
    path, how = exports["signed"]
    copy = shutil.copytree(path, tmp_path / "signed")
    signature = (copy / export.SIGNATURE).read_bytes()
    rewritten(copy)
    with pytest.raises(Damaged, match="is not signed"):
        export.read(copy, **how)
    (copy / export.SIGNATURE).write_bytes(signature)
    with pytest.raises(Damaged, match=r"altered, or not signed by the key of .*ours\.pub"):
        export.read(copy, **how)
    with pytest.raises(Damaged, match=r"altered, or not signed by the key of .*theirs\.pub"):
        export.read(path, verify=keys["theirs"][1])
    moved = shutil.move(shutil.copytree(path, tmp_path / "copy"), tmp_path / "moved")
    export.read(moved, **how)  # its place is no matter


def test_another_key_and_no_key_are_reported(exports, monkeypatch):
    monkeypatch.delenv(encryption.VARIABLE, raising=False)
    path, _ = exports["sealed"]
    with pytest.raises(Damaged, match="cut short, or this is not its key"):
        export.read(path, OTHER)
    with pytest.raises(
        BadInput, match=f"no key: give --key_file=FILE, or set {encryption.VARIABLE}"
    ):
        export.read(path)
    monkeypatch.setenv(encryption.VARIABLE, KEY.hex())
    assert export.read(path).about["step"] == 12


def test_the_weights_are_nowhere_in_an_encrypted_export(exports):
    made = export.read(exports["plain"][0])
    raw = b"".join(p.read_bytes() for p in exports["sealed"][0].iterdir())
    leaf = max(made.leaves.values(), key=lambda x: x.size)
    assert leaf.tobytes()[:32] in (exports["plain"][0] / export.WEIGHTS).read_bytes()
    for secret in (leaf.tobytes()[:32], b"transformer", b'"vocab"'):
        assert secret not in raw


def test_two_encryptions_of_one_file_have_nothing_in_common():
    one, two = (b"".join(encryption.encrypt(b"x" * 100, KEY, "a")) for _ in range(2))
    head = len(encryption.MAGIC)
    assert one[head:][: encryption.NONCE] != two[head:][: encryption.NONCE]
    assert one[-116:] != two[-116:]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, (1 << 20) + 5])
def test_an_encrypted_file_is_bound_to_its_name_its_key_and_its_end(size, tmp_path):
    content = np.random.default_rng(size).bytes(size)
    raw, path = b"".join(encryption.encrypt(content, KEY, "a")), tmp_path / "s"
    nonce_at, text_at = len(encryption.MAGIC), len(encryption.MAGIC) + encryption.NONCE
    path.write_bytes(raw)
    assert encryption.decrypt(path, KEY, "a", size) == content
    assert AESGCM(KEY).decrypt(raw[nonce_at:text_at], raw[text_at:], b"a") == content
    if size:
        with pytest.raises(UnsafeFile, match="larger than"):
            encryption.decrypt(path, KEY, "a", size - 1)
    for key, name in ((KEY, "b"), (OTHER, "a")):
        with pytest.raises(Damaged, match="cannot be decrypted"):
            encryption.decrypt(path, key, name, size)
    other = b"".join(encryption.encrypt(content, KEY, "a"))
    changed = {
        "continued": raw + b"\0",
        "twice": raw + raw[text_at:],
        "cut at its end": raw[:-1],
        "cut at its start": raw[:text_at] + raw[text_at + 1 :],
        "exchanged": raw[: -encryption.TAG] + other[-encryption.TAG :],
        "cut in its nonce": raw[: text_at - 1],
        "empty": b"",
    }
    for at in {0, nonce_at, text_at, len(raw) - encryption.TAG - 1, len(raw) - 1}:
        changed[f"byte {at}"] = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    for damaged in changed.values():
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match=r"cannot be decrypted|cut short"):
            encryption.decrypt(path, KEY, "a", 1 << 30)


def test_a_content_that_is_too_long_for_one_message_is_rejected(monkeypatch):
    monkeypatch.setattr(encryption, "MAX_BYTES", 9)
    assert b"".join(encryption.encrypt(bytes(9), KEY, "a"))
    with pytest.raises(BadInput, match="a: 10 bytes; AES-GCM encrypts at most 9"):
        list(encryption.encrypt(bytes(10), KEY, "a"))


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"short", 0o600, "expected a key of 32 bytes"),
        (b"g" * 64, 0o600, "or of 64 hexadecimal digits"),
        (KEY, 0o644, "others may read it; chmod 600"),
    ],
)
def test_a_bad_key_is_rejected_and_not_told(content, mode, words, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(BadInput, match=words) as error:
        encryption.load_key(str(path))
    assert content.decode("latin-1") not in str(error.value)


def test_keys_are_read_from_a_file_or_a_variable(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.touch(0o600)
    for content in (KEY, KEY.hex().encode() + b"\n"):
        path.write_bytes(content)
        assert encryption.load_key(str(path)) == KEY
    monkeypatch.setenv(encryption.VARIABLE, OTHER.hex())
    assert encryption.load_key(None) == OTHER
    assert encryption.load_key(str(path)) == KEY
    with pytest.raises(BadInput, match="No such file"):
        encryption.load_key(str(tmp_path / "none"))


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "pipe", "large"])
def test_a_signing_key_of_another_kind_is_reported(kind, run, exports, tmp_path):
    private, public = tmp_path / "private", tmp_path / "public"
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    if kind in ("ed25519", "rsa"):
        made = {
            "ed25519": ed25519.Ed25519PrivateKey.generate,
            "rsa": lambda: rsa.generate_private_key(65537, 2048),
        }[kind]()
        how = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private.write_bytes(made.private_bytes(pem, *how))
        public.write_bytes(made.public_key().public_bytes(pem, form))
    for path in (private, public):
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "large":
            path.write_bytes(b"-" * (1 << 17))
        path.chmod(0o600)
    made = export.from_run(str(run))
    with pytest.raises(BadInput, match="private"):
        export.write(made, tmp_path / "out", sign=str(private))
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="public"):
        export.read(exports["signed"][0], verify=str(public))


def saying(source, folder, **changes):
    """An export whose manifest says something else, by somebody who knows how digests are made."""
    shutil.copytree(source, folder)
    about = json.loads((folder / "manifest.json").read_text())
    for name, value in changes.items():
        about[name] = value
        if value is None:
            del about[name]
    (folder / "manifest.json").write_text(files.indented(files.digested(about)))
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("loss", "abc"), ("loss", None), ("name", None), ("weights", None), ("run", 5)),
        *(("step", True), ("model", [])),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_rejected(name, value, exports, tmp_path):
    odd = saying(exports["plain"][0], tmp_path / "odd", **{name: value})
    with pytest.raises(BadInput, match=f"no {name}, or no sound one"):
        export.read(odd)
    assert export.read(saying(exports["plain"][0], tmp_path / "same", loss=1.5)), "the twin"


def test_what_a_terminal_would_obey_is_not_printed(exports, tmp_path, capsys, monkeypatch):
    from experiments import export as command

    odd = saying(exports["plain"][0], tmp_path / "odd", name="\x1b]0;owned\x07")
    assert command.main([f"--check={odd}"]) == 0
    said = capsys.readouterr().out
    assert "owned" in said
    assert "\x1b" not in said
    from experiments.generate import sanitize_for_terminal

    text = "a\x1b[2J\tb\n\x00\u202e \u200d é\u00a0"
    assert sanitize_for_terminal(text) == text, "a file gets what the model wrote"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert sanitize_for_terminal(text) == "a [2J\tb\n   \u200d é\u00a0"


def test_a_context_that_no_memory_holds_is_rejected(exports, tmp_path):
    from experiments import generate

    about = json.loads((exports["plain"][0] / "manifest.json").read_text())
    odd = saying(exports["plain"][0], tmp_path / "odd", model=about["model"] | {"context": 10**9})
    with pytest.raises(BadInput, match=r"1,000,000,000 tokens takes .* GB; this machine"):
        generate.main([f"--export={odd}", "--prompt=the"])


def test_nothing_half_written_stays(run, keys, exports, tmp_path, monkeypatch):
    made = export.from_run(str(run))
    with pytest.raises(BadInput, match="is there already"):
        export.write(made, exports["plain"][0])
    public = shutil.copy(keys["ours"][1], tmp_path / "k.pub")
    os.chmod(public, 0o600)
    with pytest.raises(BadInput, match="expected a private key"):
        export.write(made, tmp_path / "e", sign=public)
    os.chmod(keys["theirs"][0], 0o644)
    with pytest.raises(UnsafeFile, match="others may read it"):
        export.write(made, tmp_path / "e", sign=keys["theirs"][0])
    os.chmod(keys["theirs"][0], 0o600)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        export.write(made, tmp_path / "e", KEY)
    assert not [p for p in tmp_path.iterdir() if "e" in p.name and p.suffix != ".pub"]


def test_no_secret_of_the_environment_is_in_it(exports):
    for path, _ in exports.values():
        raw = b"".join(p.read_bytes() for p in path.iterdir())
        assert not [name for name, value in SECRETS.items() if value.encode() in raw]
        assert KEY not in raw
        assert KEY.hex().encode() not in raw


@pytest.mark.parametrize("package", ["safetensors", "model_signing", "cryptography"])
def test_a_missing_package_is_reported_with_its_remedy(run, keys, package, tmp_path, monkeypatch):
    made = export.from_run(str(run))
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=r"pip install -e '.*\[export\]'"):
        export.write(made, tmp_path / "e", KEY, keys["ours"][0])
    assert not list(tmp_path.iterdir())


def test_the_commands(run, keys, tmp_path, capsys):
    from experiments import export as command
    from experiments import generate

    out, key = tmp_path / "out", tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(KEY)
    flags = (f"--sign={keys['ours'][0]}", "--encrypt", f"--key_file={key}")
    assert command.main([f"--run={run}", f"--out={out}", *flags]) == 0
    line = f"lm_transformer {run.name}, step 12 (averaged), loss "
    assert capsys.readouterr().out.startswith(line)
    how = (f"--verify={keys['ours'][1]}", f"--key_file={key}")
    assert command.main([f"--check={out}", *how]) == 0
    assert f"{out}: as it was written" in capsys.readouterr().out
    with pytest.raises(Damaged, match="not signed by"):
        command.main([f"--check={out}", f"--verify={keys['theirs'][1]}", how[1]])
    again = tmp_path / "again"
    assert command.main([f"--export={out}", f"--out={again}", *how]) == 0
    whole = export.write(export.from_run(str(run)), tmp_path / "whole")
    for file in whole.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    capsys.readouterr()
    texts = []
    for where in ([f"--export={out}", *how], [f"--runs={run}"]):
        generate.main([*where, "--prompt=the ", "--tokens=12"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("the ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "expected one of --run=DIR"),
        (("--run=a", "--export=b", "--out=c"), "expected one of --run=DIR"),
        (("--check=a", "--out=c"), "expected one of --run=DIR"),
        (("--check=a", "--step=0"), "--step: of no use with --check"),
        (("--check=a", "--sign=x", "--encrypt"), "--sign: of no use .*\n--encrypt: of no use"),
        (("--run=a", "--out=c", "--verify=x"), "--verify: of no use with --run"),
        (("--run=a", "--out=c", "--key_file=k"), "--key_file: .* expected --encrypt too"),
        (("--check=a", "--verify="), "--verify: is empty"),
        (("--run=a", "--out="), "--out: is empty"),
        (("--run=a", "--out=c", "--encrypt"), "no key: give --key_file=FILE"),
    ],
)
def test_bad_flags_are_reported(args, words, monkeypatch):
    from experiments import export as command

    monkeypatch.delenv(encryption.VARIABLE, raising=False)
    with pytest.raises(BadInput, match=words):
        command.main(args)
