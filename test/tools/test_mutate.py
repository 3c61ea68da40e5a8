"""mutate.py: every text of its table stands just once in its file, and what it says of a mutant is
true. `make mutate` tries all."""

import collections

import pytest

import mutate

SAMPLE = {  # one of each C file, and a part of the name of the test that sees it
    "slope[j] = s + x * e": "gelu",
    "double angle = t * pow": "rope",
    "split = tokens - tokens / 10": "windows",
}


def test_texts_apply():
    """Enough of them, all different, for every source and every header."""
    found = mutate.mutants()  # exits where one does not
    sources = [
        path for pattern in ("*.[ch]", "*.cu", "lib/*.h") for path in mutate.ROOT.glob(pattern)
    ]
    assert {*mutate.WIDER} == {str(path.relative_to(mutate.ROOT)) for path in sources}
    count = collections.Counter(m.file for m in found)
    assert min(count[file] for file in mutate.WIDER) >= 10 and len(found) >= 300
    assert len({(m.file, m.text) for m in found}) == len(found)
    assert all(m.text != (mutate.ROOT / m.file).read_text() for m in found)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return mutate.copy_tree(tmp_path_factory.mktemp("mutate") / "tree")


def sample(text):
    mutant = next(m for m in mutate.mutants() if m.what.startswith(text))
    return mutant._replace(tests=(f"{mutant.tests[0].split()[0]} -k {SAMPLE[text]}",))


@pytest.mark.parametrize("text", SAMPLE)
def test_caught(text, tree, monkeypatch):
    monkeypatch.setenv("CFLAGS", "-O0")
    verdict, by, _ = mutate.judge(sample(text), tree)
    assert verdict == "caught" and SAMPLE[text] in by, (verdict, by)


def test_not_caught(tree, monkeypatch):
    """The file as it is survives, and one that does not compile is an error; the tree is left as it
    was."""
    monkeypatch.setenv("CFLAGS", "-O0")
    mutant = sample("slope[j] = s + x * e")
    untouched = (mutate.ROOT / mutant.file).read_text()
    assert mutate.judge(mutant._replace(text=untouched), tree)[0] == "survived"
    assert mutate.judge(mutant._replace(text="oops\n" + untouched), tree)[0] == "error"
    assert (tree / mutant.file).read_text() == untouched
