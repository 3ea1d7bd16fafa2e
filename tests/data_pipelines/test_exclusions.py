"""Withdrawn recordings and speakers: never drawn, another fingerprint, the same shards."""

import pytest

from data_pipelines.errors import UserError
from data_pipelines.exclusions import read_exclusions
from data_pipelines.index import read_index
from tests.data_pipelines import noise


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return noise.write_noise(tmp_path_factory.mktemp("shards"), "noise", 60)


def records(mixture) -> set[str]:
    """Ids of all records that can be drawn."""
    part = mixture.parts[0]
    return {part.reader.labels(int(number)).id for number in part.rows.records}


def test_what_is_listed_is_not_drawn(shards, tmp_path):
    path = tmp_path / "withdrawn.txt"
    path.write_text("# asked for in May\n\nnoise/1\nnoise/8\nspeaker:noise speaker 3\n")
    before, after = noise.opened(shards), noise.opened(shards, exclude=read_exclusions(path))
    # The split is that of `write_noise`.
    wanted = {f"noise/{i}" for i in range(60) if i % 5 and i % 6 != 3} - {"noise/1", "noise/8"}
    assert records(after) <= wanted < records(before) | wanted
    assert before.fingerprint != after.fingerprint
    # Those that are short may be left over at the end of a speaker's.
    assert len(wanted - records(after)) <= 6


def test_the_order_of_a_list_does_not_matter(shards, tmp_path):
    found = []
    for lines in ("noise/1\nnoise/2\n", "noise/2\nnoise/1\nnoise/2\n", "noise/2\n"):
        (tmp_path / "list.txt").write_text(lines)
        listed = read_exclusions(tmp_path / "list.txt")
        found.append(noise.opened(shards, exclude=listed).fingerprint)
    assert found[0] == found[1] != found[2]


def test_what_is_not_there_is_a_slip_unless_it_may_be(shards, tmp_path):
    (tmp_path / "list.txt").write_text("noise/1\nnoise/999\nspeaker:nobody\n")
    listed = read_exclusions(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"noise/999 is not in .* \(nor can 1 more\)"):
        noise.opened(shards, exclude=listed)
    (tmp_path / "list.txt").write_text("noise/1\n")
    one = read_exclusions(tmp_path / "list.txt")
    passed = noise.opened(shards, exclude=listed, must_hold=False)
    assert passed.fingerprint == noise.opened(shards, exclude=one).fingerprint


def test_an_id_may_begin_as_a_comment_does(tmp_path):
    (tmp_path / "list.txt").write_text("#take 1.wav\n# a comment\n#\n a.wav\n")
    assert read_exclusions(tmp_path / "list.txt").ids == ("#take 1.wav", "a.wav")


def test_nobody_is_left(shards, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(read_index(shards).column("id")))
    with pytest.raises(UserError, match="no train row in .* without what is excluded"):
        noise.opened(shards, exclude=read_exclusions(tmp_path / "list.txt"))


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe\x00\xd8"])
def test_a_list_that_is_none(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    for path in (tmp_path / "list.txt", tmp_path / "missing.txt", tmp_path):
        with pytest.raises(UserError, match="the list of exclusions .*: (name|write) "):
            read_exclusions(path)


def test_a_speaker_without_a_name_is_not_everybody_unknown(tmp_path):
    (tmp_path / "list.txt").write_text("noise/1\n\nspeaker: \n")
    with pytest.raises(UserError, match="list.txt, line 3 names no speaker"):
        read_exclusions(tmp_path / "list.txt")
