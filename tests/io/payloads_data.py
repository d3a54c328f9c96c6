"""The payloads that are data sets, tables and tokenizers; see payloads.py."""

import functools
import gzip
import io
import json
import os
import shutil
import struct
import zipfile
import zlib

import numpy as np
from payloads import GOOD, LONG, PAYLOADS, Evil, deep, evil, good, payload

from research.io import files

# Tables.


@good("table")
def _(place):
    return place.write("t.csv", "params,tokens,loss\n1,2,3\n")


@good("rows")
def _(place):
    lines = "\n".join(f"{i},{i * i % 7},{i % 3}" for i in range(40))
    return place.write("t.csv", f"a,b,target\n{lines}\n")


def both(name):
    """A payload for the two that read tables: fits and data sets."""

    def add(function):
        PAYLOADS[f"{name}, fitted"] = ("table", function)
        PAYLOADS[f"{name}, trained on"] = ("rows", function)
        return function

    return add


def parquet(path, columns, rows, **options):
    import pyarrow
    import pyarrow.parquet

    part = pyarrow.table(columns)
    with pyarrow.parquet.ParquetWriter(path, part.schema, compression="zstd", **options) as writer:
        for _ in range(rows // part.num_rows):
            writer.write_table(part)
    return path


@both("a parquet file of lists")
def _(place):
    import pyarrow

    lists = pyarrow.ListArray.from_arrays(np.arange(9) << 18, np.ones(8 << 18, np.int8))
    columns = {"params": lists, "target": [1] * 8}
    return parquet(place.folder / "t.parquet", columns, 8)


@payload("table", "a table in JSON, very deep")
def _(place):
    return place.write("t.json", deep())


@payload("table", "lines of JSON that are very deep")
def _(place):
    return place.write("t.jsonl", f'{{"params": {deep(60_000)}}}\n' * 2)


@payload("table", "a table whose numbers are long")
def _(place):
    return place.write("t.json", json.dumps([{"params": LONG, "tokens": 2, "loss": 3}]))


@payload("table", "a table without an end in its quotes")
def _(place):
    return place.write("t.csv", 'params,tokens,loss\n1,2,"3' + "x" * (1 << 22))


@both("a parquet file with a torn footer")
def _(place):
    path = parquet(place.folder / "t.parquet", {"params": [1.0] * 8}, 8)
    raw = path.read_bytes()
    path.write_bytes(raw[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
    return path


@both("a parquet file that is a pickle")
def _(place):
    return place.write("t.parquet", evil(place))


@both("a table that is a pickle")
def _(place):
    return place.write("t.pkl", evil(place))


@both("a table that is a pipe")
def _(place):
    return place.pipe("t.csv")


@both("a table of infinities")
def _(place):
    return place.write("t.csv", "params,tokens,loss,target\n" + "inf,nan,1e999,-inf\n" * 2)


# Text and ids.


@good("text")
def _(place):
    return place.write("t.txt", "\n".join(f"line {i} of some text" for i in range(8000)))


@payload("text", "a text that is a pipe")
def _(place):
    return place.pipe("t.txt")


@payload("text", "a text without an end")
def _(place):
    return place.endless("t.txt")


@payload("text", "lines of JSON that are deep")
def _(place):
    return place.write("t.jsonl", (deep(10_000) + "\n") * 3)


@payload("text", "lines of JSON with 5,000 digits")
def _(place):
    return place.write("t.jsonl", '{"text": ' + LONG + "}\n")


@payload("text", "ids that are a pipe")
def _(place):
    return place.pipe("t.bin")


@payload("text", "ids that are a pickle")
def _(place):
    return place.write("t.bin", evil(place))


# Tokenizers.


@good("tokenizer")
def _(place):
    return place.write("tokenizer.json", json.dumps(tokenizer()))


def tokenizer(**changes):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "</s>": 3}, "merges": ["a b"]}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer",
                          "post_processor", "decoder"))  # fmt: skip
    return {"version": "1.0", "added_tokens": [], **rest, "model": model, **changes}


def words(name, change):
    @payload("tokenizer", name)
    def _(place):
        made = change(place)
        return place.write("tokenizer.json", json.dumps(made) if isinstance(made, dict) else made)


words("a tokenizer with ids of billions", lambda _: tokenizer(
    model={"type": "BPE", "vocab": {"a": 4_000_000_000, "</s>": 1}, "merges": []}
))  # fmt: skip
words("a tokenizer that pads to a billion", lambda _: tokenizer(padding={
    "strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None,
    "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
}, model={"type": "BPE", "vocab": {"a": 0, "</s>": 1}, "merges": []}))  # fmt: skip
words("a tokenizer that is deep", lambda _: '{"model": ' + deep() + "}")
words("a tokenizer that is a pickle", evil)
words("a tokenizer of another kind", lambda _: tokenizer(model={"type": "os.system"}))


@payload("tokenizer", "a tokenizer on a pipe")
def _(place):
    return place.pipe("tokenizer.json")


# Exports.


def exported(place, **how):
    from research.inference import export

    return export.write(export.from_run(str(place.run)), place.folder / "export", **how)


@good("exported")
def _(place):
    return exported(place)


def told(name, change):
    """An export whose maker has changed a file, and the manifest with it."""

    @payload("exported", name)
    def _(place):
        folder = exported(place)
        about = json.loads((folder / "manifest.json").read_text())
        change(place, folder, about)
        weights = (folder / "model.safetensors").read_bytes()
        about["files"].setdefault("model.safetensors", [])[:] = [
            len(weights),
            files.digest(weights),
        ]
        (folder / "manifest.json").write_text(files.indented(files.digested(about)))
        return folder


def weights(content):
    return lambda place, folder, _: (folder / "model.safetensors").write_bytes(content(place))


told("weights that are a pickle", weights(evil))
told("weights whose header is of exabytes", weights(lambda _: struct.pack("<Q", 1 << 62) + b"{}"))
told(
    "weights whose header is deep", weights(lambda _: struct.pack("<Q", 400_000) + deep().encode())
)
CLAIMED = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
told("weights that claim 4 TB", weights(
    lambda _: struct.pack("<Q", len(CLAIMED)) + CLAIMED.encode()
))  # fmt: skip
told("a manifest that names a file outside", lambda place, _, about: about["files"].update(
    {"../../outside/secret": [1, "x"]}
))  # fmt: skip
told("a manifest of a model of code", lambda place, _, about: about.update(
    model={"name": "os.system", "__class__": "x"}
))  # fmt: skip
told("a manifest of leaves within leaves", lambda place, _, about: about["leaves"].update(
    {"a": [[1], "float32"], "a/b": [[1], "float32"]}
))  # fmt: skip
told("a pickle beside the weights", lambda place, folder, _: (folder / "x.pkl").write_bytes(
    evil(place)
))  # fmt: skip


@payload("exported", "weights that are a link")
def _(place):
    folder = exported(place)
    shutil.move(folder / "model.safetensors", place.outside / "weights")
    (folder / "model.safetensors").symlink_to(place.outside / "weights")
    return folder


@payload("exported", "weights that are a pipe")
def _(place):
    folder = exported(place)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    return folder


@payload("exported", "a sealed export of garbage")
def _(place):
    folder = exported(place, key=bytes(32))
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:60] + b"\0" * 1000)
    return folder


# Folders of Hugging Face transformers.


@good("theirs")
def _(place):
    from research.inference import export

    return export.write_hf(export.from_run(str(place.run)), place.folder / "hf")


def changed(name, change):
    @payload("theirs", name)
    def _(place):
        folder = GOOD["theirs"](place)
        change(place, folder)
        return folder


def claiming(**said):
    """A config.json that says so."""

    def change(_, folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | said))

    return change


def other(name, content):
    return lambda place, folder: (folder / name).write_bytes(content(place))


def named_outside(place, folder):
    (place.outside / "x.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    where = {"weight_map": {"a": f"../../outside/{place.outside.name}/x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(where))


def led_outside(place, folder):
    shutil.move(folder / "model.safetensors", place.outside / "weights")
    (folder / "model.safetensors").symlink_to(place.outside / "weights")


def piped(_, folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def pickled(place, folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(evil(place))


changed("their weights are a pickle", other("model.safetensors", evil))
changed("their weights are a pickle by its name", pickled)
changed("their weights are a pipe", piped)
changed("their weights are a link", led_outside)
changed("their parts are elsewhere", named_outside)
changed("their config is deep", other("config.json", lambda _: deep().encode()))
changed("their config is of code", claiming(auto_map={"AutoModel": "evil.py"}, model_type="evil"))
changed("their config has a billion blocks", claiming(num_hidden_layers=10**9))
changed("their config has wide blocks", claiming(hidden_size=2**60, intermediate_size=-1))
changed("their config has lists for numbers", claiming(num_attention_heads=[1], vocab_size={}))
changed("their tokenizer is a pickle", other("tokenizer.json", evil))


# Images.


@good("images")
def _(place):
    for label in "ab":
        for i in range(24):
            place.write(f"set/{label}/{i}.png", png(4, 4, i + 100 * (label == "b")))
    return place.folder / "set"


def png(width, height, gray=0, rows=None):
    """A PNG whose header says what it likes."""

    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (bytes([0]) + bytes([gray]) * min(width, 64)) * min(height, 64) if rows is None else rows
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def changed(opener, name, change):
    """A good folder of one folder for every class, with that of class a changed."""

    @payload(opener, name)
    def _(place):
        folder = GOOD[opener](place)
        change(place, folder / "a")
        return folder


image, class_folder = (functools.partial(changed, opener) for opener in ("images", "classes"))


image("an image of four billion pixels", lambda _, a: (a / "0.png").write_bytes(png(65535, 65535)))
image("an image that is a link", lambda place, a: (
    (place.outside / "image.png").write_bytes(png(4, 4, 77)),
    (a / "x.png").symlink_to(place.outside / "image.png"),
))  # fmt: skip
image("a class that is a link", lambda place, a: (
    shutil.copytree(a, place.outside / "c"), (a.parent / "c").symlink_to(place.outside / "c")
))  # fmt: skip
image("an image that is a pipe", lambda _, a: os.mkfifo(a / "x.png"))
image("an image that is a pickle", lambda place, a: (a / "x.png").write_bytes(evil(place)))
image("an image that is an SVG", lambda _, a: (a / "x.svg").write_text("<svg onload='x()'/>"))
image("an image that is PostScript", lambda _, a: (a / "x.png").write_text("%!PS-Adobe-3.0 EPSF\n"))


def npy(header, body=b""):
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def archive(name, members):
    @payload("images", name)
    def _(place):
        path = place.folder / "set.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for member, content in members(place).items():
                made.writestr(member, content)
        return path


def saved(array):
    raw = io.BytesIO()
    np.save(raw, array, allow_pickle=True)
    return raw.getvalue()


archive("an array of objects", lambda place: {
    "x.npy": saved(np.array([Evil(place.outside / "canary")], object)), "y.npy": saved(np.arange(1))
})  # fmt: skip
archive("an array with code for a header", lambda _: dict.fromkeys(
    ("x.npy", "y.npy"), npy("__import__('os').system('touch canary')")
))  # fmt: skip
archive("an array by a path", lambda _: {"../../outside/canary.npy": saved(np.arange(3))})


@payload("images", "digits that claim four billion")
def _(place):
    place.write("train-labels-idx1-ubyte", struct.pack(">2I", 0x801, 10) + bytes(10))
    head = struct.pack(">4I", 0x803, 0xFFFFFFFF, 28, 28)
    return place.write("train-images-idx3-ubyte", head)


@payload("images", "digits that unpack without an end")
def _(place):
    head = struct.pack(">4I", 0x803, 10, 28, 28)
    labels = struct.pack(">2I", 0x801, 10) + bytes(10)
    place.write("train-labels-idx1-ubyte.gz", gzip.compress(labels))
    return place.write("train-images-idx3-ubyte.gz", gzip.compress(head + bytes(64 << 20)))


# Folders with a folder of texts for every class.


@good("classes")
def _(place):
    for label in "ab":
        for i in range(60):
            place.write(f"set/{label}/{i}.txt", f"document {i} of class {label}, written out")
    return place.folder / "set"


class_folder("a text that is a link", lambda place, a: (
    (a / "x.txt").symlink_to(place.outside / "secret")
))  # fmt: skip
class_folder("a text that is a pipe", lambda _, a: os.mkfifo(a / "x.txt"))
class_folder("a text that has no end", lambda _, a: (a / "x.txt").symlink_to("/dev/zero"))
class_folder("a text that is a pickle", lambda place, a: (a / "x.txt").write_bytes(evil(place)))


# Folders like the sets of the hub.


@good("folder")
def _(place):
    lines = "\n".join(json.dumps({"text": f"document {i} of the set"}) for i in range(400))
    return place.write("set/train.jsonl", lines).parent


def readme(name, text):
    @payload("folder", name)
    def _(place):
        folder = GOOD["folder"](place)
        (place.outside / "secret.jsonl").write_text('{"text": "the secret"}\n' * 400)
        place.write("set/README.md", f"---\n{text.format(outside=place.outside)}\n---\n")
        return folder


readme("a set whose data are outside", "configs:\n- config_name: default\n  data_files: "
       "../../outside/secret.jsonl")  # fmt: skip
readme("a set whose data are an absolute path", "configs:\n- config_name: default\n  data_files: "
       "{outside}/secret.jsonl")  # fmt: skip
readme("a set whose data are an address", "configs:\n- config_name: default\n  data_files: "
       "http://127.0.0.1:9/secret.jsonl")  # fmt: skip
readme("a set with code in its README", "dataset_info: !!python/object/apply:os.system ['true']")


@payload("folder", "a set with a link")
def _(place):
    folder = GOOD["folder"](place)
    (folder / "more.jsonl").symlink_to(place.outside / "secret")
    return folder


@payload("folder", "a set whose README is a link")
def _(place):
    folder = GOOD["folder"](place)
    (folder / "README.md").symlink_to(place.outside / "secret")
    return folder


@payload("folder", "a set with a script")
def _(place):
    canary = str(place.outside / "canary")
    return place.write("set/set.py", f"open({canary!r}, 'w').close()").parent


@payload("folder", "a set of pickles")
def _(place):
    return place.write("set/train.pkl", evil(place)).parent
