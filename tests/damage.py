"""Ways in which a file gets damaged, each fixed by a number."""

import contextlib
import faulthandler
import pathlib
import random

from data_pipelines.errors import UserError

# Seconds after which a case counts as hung: all stacks are printed and the tests end.
PATIENCE = 120


def flip(content: bytes, chance: random.Random) -> bytes:
    """One bit changed."""
    place = chance.randrange(len(content))
    changed = content[place] ^ (1 << chance.randrange(8))
    return content[:place] + bytes([changed]) + content[place + 1 :]


def cut(content: bytes, chance: random.Random) -> bytes:
    """The end is missing; perhaps everything."""
    return content[: chance.randrange(len(content)) * chance.randrange(4) // 3]


def blank(content: bytes, chance: random.Random) -> bytes:
    """Up to 64 bytes are zero, as after a power cut."""
    first = chance.randrange(len(content))
    end = min(len(content), first + chance.randint(1, 64))
    return content[:first] + bytes(end - first) + content[end:]


def scramble(content: bytes, chance: random.Random) -> bytes:
    """Up to 16 other bytes."""
    first = chance.randrange(len(content))
    end = min(len(content), first + chance.randint(1, 16))
    return content[:first] + chance.randbytes(end - first) + content[end:]


def lose(content: bytes, chance: random.Random) -> None:
    """No file."""
    return None


DAMAGES = (flip, cut, blank, scramble, lose)


def damage(path: pathlib.Path, number: int) -> str:
    """Damages a file; the number decides how. Returns what was done, for messages of failures."""
    chance, kind = random.Random(number), DAMAGES[number % len(DAMAGES)]
    before = path.read_bytes()
    content = before
    while content == before:
        content = kind(before, chance)
    path.unlink()  # it may be a link to the file of the whole run
    if content is not None:
        path.write_bytes(content)
    return f"case {number}: {kind.__name__} in {path}"


@contextlib.contextmanager
def sentence_or_nothing(what: str, found: list[str]):
    """A mistake is one sentence, which comes into `found`; another exception fails with `what`."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    try:
        yield
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error), what
        found.append(str(error))
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
