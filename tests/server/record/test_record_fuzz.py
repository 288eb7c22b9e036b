"""A damaged record, whatever the damage: a `RecordError` in one line, or the data that its files really hold.

By hand: `python tests/server/record/test_record_fuzz.py INPUTS SEED` prints what became of the inputs.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open

from metaleak.server import Record, RecordError, RecordWriter

MIB = 2**20
SECONDS = 5  # that one input may take
HEADROOM = 64 * MIB  # of address space above what Python and its libraries have
RAW_VALUES = [
    *("-1", "0", "-0", "1", "3", "2147483648", "9007199254740993", "4611686018427387904", "9223372036854775808"),
    *("18446744073709551616", "9" * 19, "9" * 5000, "1.0", "1.5", "1e400", "NaN", "-Infinity", "true", "null", '""'),
    *(
        "[]",
        "{}",
        "[[]]",
        "[1]",
        "[2,3]",
        "[0,0]",
        "[-1,4]",
        "[24,0]",
        "[0,9999999999]",
        "[1152921504606846976,0,16]",
    ),
    *("[" * 40 + "]" * 40, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" + "1," * 70 + "1]"),
    *('"\\ud800"', '"\\u0000"', '"\\n"', '"💥"', '"../../secret"', '"/etc/passwd"', '"sent/../../format.json"'),
    *('"sent/000009-0000.safetensors"', '"sent/٣٣٣٣٣٣-0000.safetensors"', '"replies/000001-0000.safetensors"'),
    *('"F64"', '"F32"', '"F16"', '"BF16"', '"F8_E4M3"', '"BOOL"', '"I64"', '"C64"', '"1"', '"2"', '"02"', '"-1"'),
    *(
        '"1,1"',
        '"1,2"',
        '"4,7"',
        '"7,4"',
        '"1,2,3"',
        '"1,"',
        '"٣"',
        '"1_0"',
        '"nan"',
        '"1e999"',
        '"9999999999999999999"',
    ),
    *(
        '"' + "9," * 2000 + '9"',
        '"' + "x" * 5000 + '"',
        '"' + "9" * 5000 + '"',
        '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
        '"{}"',
        '"[4,7]"',
        *(
            json.dumps('{"a":' + value + "}")
            for value in ("NaN", "[]", "[1,2]", "[[1],{}]", "null", "9" * 21, "[" * 3000)
        ),
    ),
]
LENGTHS = [0, 1, 7, 8, 2**16, 2**20, 2**20 + 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def write_record(path):
    generator = np.random.default_rng(5)
    writer = RecordWriter(path)
    for round in (1, 2):
        sent = writer.sent(round, {"w": generator.normal(size=(3, 2)), "b": np.arange(3, dtype="f4")})
        for learners in ([4, 7], [1]) if round == 1 else ([2, 9, 3], [4]):
            arrays = {
                "w": generator.normal(size=(len(learners), 3, 2)).astype("f4"),
                "b": generator.normal(size=(len(learners), 3)).astype("f2"),
                "steps": generator.integers(0, 9, len(learners)),
                "none": np.zeros((len(learners), 0), "?"),
            }
            stated = {"num-examples": learners, "loss": [0.25 * learner for learner in learners]}
            config = {"server-round": round, "rate": 1e-3, "rates": [0.5, float("nan")], "sampling": "even"}
            writer.reply(round, learners, f"node-{learners[0]}", sent, arrays, config=config, metrics=stated)
    writer.flush()


class Naive:
    """A reader that believes what the files say: the fuzzer must find what is wrong with it."""

    def __init__(self, path):
        self.path = path
        if json.loads((path / "format.json").read_text())["version"] != 3:
            raise RecordError(f"{path}: another version")
        self.rounds = sorted({int(file.name[:6]) for file in (path / "replies").glob("*.safetensors")})

    @property
    def entries(self):
        return [SimpleNamespace(learner=n) for round in self.rounds for told, _ in self._replies(round) for n in told]

    def sent(self, round):
        first = min((self.path / "replies").glob(f"{round:06d}-*"))
        return self._load(self.path / self._load(first)[0]["sent"])[1]

    def received(self, round):
        replies = self._replies(round)
        learners = np.concatenate([told for told, _ in replies])
        joint = {name: np.concatenate([arrays[name] for _, arrays in replies]) for name in replies[0][1]}
        return sorted(learners.tolist()), {name: value[np.argsort(learners)] for name, value in joint.items()}

    def _replies(self, round):
        files = sorted((self.path / "replies").glob(f"{round:06d}-*"))
        return [([int(n) for n in told["learners"].split(",")], arrays) for told, arrays in map(self._load, files)]

    def _load(self, file):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        tree = json.loads(content[8 : 8 + length])
        metadata, kinds = (
            tree.pop("__metadata__", {}),
            {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "BOOL": "?"},
        )
        return metadata, {
            name: np.frombuffer(content[8 + length :][slice(*told["data_offsets"])], kinds[told["dtype"]]).reshape(
                told["shape"]
            )
            for name, told in tree.items()
        }


class Damage:
    """Damages a record in a way that the random generator chooses, and repairs it again."""

    def __init__(self, path):
        self.path = path
        write_record(path)
        shutil.copytree(path, path.parent / "outside")
        self.whole = {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
        self.targets = [name for name in self.whole if not name.startswith("index")]

    def inflict(self, generator):
        """Damage the record; return what was done, and whether whole folders were replaced."""
        if generator.random() < 0.02:
            return self._replaced(generator, str(generator.choice(["replies", "sent", "index"]))), True
        done = []
        for _ in range(generator.choice([1, 1, 1, 2, 3])):
            name = str(generator.choice(self.targets))
            if generator.random() < 0.06:
                done.append(self._replaced(generator, name))
            elif (self.path / name).is_file() and not (self.path / name).is_symlink():
                ways = [flipped, changed, cut, longer, patched, spliced, other_length, in_header, in_body, edited]
                way = ways[min(generator.integers(len(ways) + 2), len(ways) - 1)]  # edited is the richest
                others = [self.whole[other] for other in self.targets]
                (self.path / name).write_bytes(way(generator, (self.path / name).read_bytes(), others))
                done.append(f"{way.__name__} {name}")
        return "; ".join(done), False

    def repair(self, thoroughly):
        if thoroughly:
            remove(self.path)
        for name, content in self.whole.items():
            file = self.path / name
            plain = file.is_file() and not file.is_symlink()
            if not plain or file.read_bytes() != content:
                if not plain:
                    remove(file)
                    file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)

    def _replaced(self, generator, name):
        place = self.path / name
        ways = [
            "missing",
            "folder",
            "empty",
            "pipe",
            "link out",
            "link in",
            "loop",
            "dangling",
            "socket",
            "twin",
            "zero",
        ]
        way = str(generator.choice(ways))
        twin = self.path / str(generator.choice(self.targets))
        content = twin.read_bytes() if twin.is_file() else b""
        remove(place)
        if way == "folder":
            place.mkdir()
        elif way == "empty":
            place.write_bytes(b"")
        elif way == "pipe":
            os.mkfifo(place)
        elif way == "link out":
            place.symlink_to(self.path.parent / "outside" / name)
        elif way == "link in":
            place.symlink_to(twin)
        elif way == "loop":
            place.symlink_to(place)
        elif way == "dangling":
            place.symlink_to("nowhere")
        elif way == "socket":
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(os.path.relpath(place))
        elif way == "twin":
            place.write_bytes(content)
        elif way == "zero":
            with open(place, "wb") as file:
                file.truncate(generator.integers(1, 10**6))
        return f"{way} {name}"


def remove(place):
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def flipped(generator, content, others):
    damaged = bytearray(content)
    for place in generator.integers(0, max(1, 8 * len(content)), generator.integers(1, 9)) if content else ():
        damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def changed(generator, content, others):
    damaged = bytearray(content)
    for place in generator.integers(0, len(content), generator.integers(1, 6)) if content else ():
        damaged[place] = generator.choice([0, 0xFF, 0x80, *b'"{}[]:,0-9\\n', generator.integers(256)])
    return bytes(damaged)


def cut(generator, content, others):
    return content[: generator.integers(0, len(content) + 1)]


def longer(generator, content, others):
    return content + generator.bytes(generator.choice([1, 4, 8, 100, 5000]))


def patched(generator, content, others):
    start, end = sorted(generator.integers(0, len(content) + 1, 2))
    again = generator.choice([0, 0, 2, 3])
    return content[:start] + content[start:end][:500] * again + content[end:]


def spliced(generator, content, others):
    other = others[generator.integers(len(others))]
    return content[: generator.integers(0, len(content) + 1)] + other[generator.integers(0, len(other) + 1) :]


def other_length(generator, content, others):
    length = int.from_bytes(content[:8], "little")
    choices = [*LENGTHS, length - 8, length - 1, length + 1, length + 8, len(content) - 8, len(content) - 7]
    return (choices[generator.integers(len(choices))] % 2**64).to_bytes(8, "little") + content[8:]


def in_header(generator, content, others):
    header, body = parts(content)
    return joined([flipped, changed, patched, cut][generator.integers(4)](generator, header, others), body)


def in_body(generator, content, others):
    header, body = parts(content)
    return content if body is None else joined(header, flipped(generator, body, others))


def edited(generator, content, others):
    """Change a JSON value, a key, the order of things or the encoding; the header's length stays right."""
    header, body = parts(content)
    try:
        tree = json.loads(header)
        text = json.dumps(tree)
    except (ValueError, RecursionError):
        return content
    for _ in range(generator.choice([1, 1, 2])):
        raw = RAW_VALUES[generator.integers(len(RAW_VALUES))]
        way = generator.integers(8)
        if way < 5:
            holder, key = place_in(generator, tree)
            if holder is not None:
                kept, holder[key] = holder[key], "@@"
                text = json.dumps(tree, ensure_ascii=False).replace('"@@"', raw)
                holder[key] = kept
        elif way == 5 and isinstance(tree, dict) and tree:
            key = list(tree)[generator.integers(len(tree))]
            value = json.dumps(tree[key]) if generator.random() < 0.5 else raw
            text = text.replace("{", "{" + f"{json.dumps(key)}: {value}, ", 1)
        elif way == 6:
            text = text.replace(
                "{", '{"' + str(generator.choice(["x", "\\ud800", "", "__metadata__"])) + f'": {raw}, ', 1
            )
        else:
            encodings = ["utf-16", "utf-32", "utf-8-sig", "latin-1"]
            return joined(text.encode(encodings[generator.integers(4)], "replace"), body)
    return joined(text.encode("utf-8", "replace"), body)


def place_in(generator, tree):
    holder, key = None, None
    while isinstance(tree, dict | list) and tree and (holder is None or generator.random() < 0.8):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        holder, key = tree, keys[generator.integers(len(keys))]
        tree = tree[key]
    return holder, key


def parts(content):
    if content.startswith(b"{"):
        return content, None
    length = min(int.from_bytes(content[:8], "little"), len(content))
    return content[8 : 8 + length], content[8 + length :]


def joined(header, body):
    return header if body is None else len(header).to_bytes(8, "little") + header + body


def read_everything(kind, path):
    """Return what a reader gives for each question, data or the exception."""

    def asked(question):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            return question()
        except Exception as error:  # noqa: BLE001 (to be judged)
            # Without the frames, which hold the file's content until Python looks for cycles.
            error.__traceback__ = error.__context__ = None
            return error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    record = asked(lambda: kind(path))
    if isinstance(record, Exception):
        return {"open": record}
    answers = {"entries": asked(lambda: record.entries), "rounds": asked(lambda: record.rounds)}
    for round in (1, 2):
        answers["sent", round] = asked(lambda round=round: record.sent(round))
        answers["received", round] = asked(lambda round=round: record.received(round))
        if hasattr(record, "learners"):
            answers["learners", round] = asked(lambda round=round: record.learners(round))
            answers["config", round] = asked(lambda round=round: record.config(round))
            answers["metrics", round] = asked(lambda round=round: record.metrics(round))
    return answers


def by_library(path, round, at_most=None):
    """Return what safetensors' own reader finds: per reply its metadata and arrays."""
    found = []
    for file in sorted((path / "replies").glob(f"{round:06d}-*.safetensors"))[:at_most]:
        if not file.is_file():
            raise ValueError("no plain file")
        with safe_open(file, "numpy") as opened:
            found.append((opened.metadata(), tensors(opened)))
    return found


def tensors(opened):
    """Return the tensors of a file that safetensors has opened; older versions cannot be asked for all at once."""
    return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)


def same(left, right):
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape, left[name].tobytes())
        == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name in left
    )


def faults(path, answers):
    """Yield what is wrong with a reader's answers."""
    for question, answer in answers.items():
        if isinstance(answer, Exception):
            if type(answer) is not RecordError:
                yield f"{type(answer).__name__}"
            elif "\n" in str(answer) or str(path) not in str(answer):
                yield "an error that is not one line with the file's name"
            elif "MemoryError" in str(answer) or "allocate" in str(answer):
                yield "more memory than the files have"
            continue
        try:
            if question[0] == "received":
                served = {name: (value.dtype, value.shape[1:]) for name, value in answer[1].items()}
                alike, most = [], Counter()
                for told, arrays in by_library(path, question[1]):
                    kind = {name: (value.dtype, value.shape[1:]) for name, value in arrays.items()}
                    learners = [int(one) for one in told["learners"].split(",")]
                    most[str(sorted(kind.items()))] += len(learners)
                    alike += [(learners, arrays)] if kind == served else []
                learners = np.concatenate([who for who, _ in alike])
                joint = {name: np.concatenate([arrays[name] for _, arrays in alike]) for name in served}
                good = np.logical_and.reduce(
                    [np.isfinite(value).reshape(len(learners), -1).all(axis=1) for value in joint.values()]
                )
                order = [row for row in np.argsort(learners) if good[row]]
                right = most[str(sorted(served.items()))] == max(most.values())
                right &= len(set(learners.tolist())) == len(learners) and answer[0] == learners[order].tolist()
                right &= same(answer[1], {name: value[order] for name, value in joint.items()})
            elif question[0] == "learners":
                served = answers["received", question[1]]
                right = isinstance(served, Exception) or served[0] == answer
            elif question[0] == "sent":
                with safe_open(path / by_library(path, question[1], 1)[0][0]["sent"], "numpy") as opened:
                    right = same(answer, tensors(opened))
            elif question[0] == "config":
                stated = [json.loads(told.get("config", "{}")) for told, _ in by_library(path, question[1])]
                agreed = [
                    name for name in stated[0] if all(repr(one.get(name)) == repr(stated[0][name]) for one in stated)
                ]
                right = repr(answer) == repr({name: stated[0][name] for name in agreed})
            elif question[0] == "metrics":
                right = repr(answer) == repr(
                    {
                        int(learner): {
                            name: column[row] for name, column in json.loads(told.get("metrics", "{}")).items()
                        }
                        for told, _ in by_library(path, question[1])
                        for row, learner in enumerate(told["learners"].split(","))
                    }
                )
            elif question == "entries":
                told = [one for round in answers["rounds"] for one, _ in by_library(path, round)]
                right = [entry.learner for entry in answer] == [
                    int(n) for one in told for n in one["learners"].split(",")
                ]
            else:
                right = True
        except Exception as error:  # noqa: BLE001 (the library, on a file that we took)
            yield f"data out of a file that safetensors refuses ({type(error).__name__}: {str(error)[:80]})"
        else:
            if not right:
                yield "wrong data"


def fuzz(kind, damage, inputs, seed):
    """Return how many records could be read in part or not at all, the faults, and the most memory that one took."""
    record = damage.path
    counts, found, peak = Counter(), [], (0.0, 0, "")
    for number in range(inputs):
        what, thorough = damage.inflict(np.random.default_rng([seed, number]))
        size = sum(f.stat().st_size for f in record.rglob("*") if f.is_file() and not f.is_symlink())
        measured = number % max(10, inputs // 1000) == 0  # tracemalloc loses some 7 kB each time
        if measured:
            tracemalloc.start()
        answers = read_everything(kind, record)
        if measured:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            peak = max(peak, (most / size, most, f"{number}: {what}"))
        wrong = list(faults(record, answers))
        found += [(number, what, fault) for fault in wrong]
        refused = [isinstance(answer, Exception) for answer in answers.values()]
        counts["refused" if all(refused) else "read in part" if any(refused) else "read"] += 1
        damage.repair(thorough)
    return {"counts": counts, "faults": found, "memory": peak}


def hanging(*_):
    raise TimeoutError("a hang")


def in_own_process(inputs, seed, timeout, reader="record"):
    """Fuzz in a process with little memory to spare, so that neither a crash nor a flood of memory can be missed."""
    command = [sys.executable, __file__, str(inputs), str(seed), reader]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"the reading process ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def judge(told, inputs):
    assert told["faults"] == []
    assert sum(told["counts"].values()) == inputs
    assert told["counts"]["read in part"] > inputs / 2, "damage in one round must leave the other"
    assert min(told["counts"]["read"], told["counts"]["refused"]) > inputs / 50, (
        "and the rest must not be of one kind"
    )
    factor, most, recipe = told["memory"]
    assert most < MIB, recipe
    assert factor < 20, recipe


@pytest.mark.parametrize("inputs", [700, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_record_gives_one_line_or_its_real_data(inputs):
    judge(in_own_process(inputs, seed=1, timeout=280), inputs)


def test_the_fuzzer_finds_the_faults_of_a_naive_reader():
    found = {fault for _, _, fault in in_own_process(400, seed=1, timeout=120, reader="naive")["faults"]}
    named = {"JSONDecodeError", "UnicodeDecodeError", "RecursionError", "KeyError", "ValueError", "TimeoutError"}
    assert named <= found
    assert any(fault.startswith("data out of a file that safetensors refuses") for fault in found)


WORST = {
    "lists": b'{"a":[' + b"[]," * (MIB // 3 - 10) + b"[]]}",
    "objects": b'{"a":[' + b'{"":0},' * (MIB // 7 - 10) + b"{}]}",
    "keys": b"{" + b",".join(b'"%x":0' % i for i in range(MIB // 10)) + b"}",
    "wide text": b'{"a":"' + b"a" * (MIB - 20) + "💥".encode() + b'"}',
    "depth": b'{"a":' * (MIB // 5),
    "tensors": b"{"
    + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(MIB // 64))
    + b"}",
    "too long": b'{"a":"' + b"a" * 20 * MIB + b'"}',
}


def most_memory(question):
    tracemalloc.start()
    try:
        return question(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", WORST)
def test_no_header_takes_more_than_32_mib(tmp_path, kind):
    write_record(tmp_path)
    (tmp_path / "replies" / "000001-0001.safetensors").write_bytes(joined(WORST[kind], b""))

    def ask():
        with pytest.raises(RecordError, match="000001-0001"):
            Record(tmp_path).received(1)

    assert most_memory(ask)[1] < 32 * MIB


def test_reading_a_round_takes_its_result_and_one_tensor_of_a_reply(tmp_path):
    writer = RecordWriter(tmp_path)
    sent = writer.sent(1, {"w": np.zeros(1)})
    for learner in range(16):
        writer.reply(1, [learner], "node", sent, {"w": np.zeros((1, MIB // 8)), "v": np.zeros((1, MIB // 8))})
    (_, stacked), most = most_memory(lambda: Record(tmp_path).received(1))
    assert sum(value.nbytes for value in stacked.values()) == 32 * MIB
    assert most < 33.5 * MIB


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_damaged_records_give_one_line_or_their_real_data():
    judge(in_own_process(100_000, seed=2, timeout=3500), 100_000)


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, hanging)
    inputs, seed, reader = *map(int, sys.argv[1:3]), Naive if sys.argv[3:] == ["naive"] else Record
    SECONDS = 0.1 if reader is Naive else SECONDS
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as temporary:
        os.chdir(temporary)  # a socket's path must be short
        damage = Damage(Path(temporary) / "record")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, used + HEADROOM))
        print(json.dumps(fuzz(reader, damage, inputs, seed)))
