"""Tables that can't be fitted get a sentence."""

import pyarrow
import pytest

from tests.scaling.tables import table, write
from uniwav_jax.errors import UserError
from uniwav_jax.scaling import results


def changed(column: str, row: int, value):
    """The table with another value in one place."""
    whole = table()
    values = whole[column].to_pylist()
    values[row] = value
    return whole.set_column(whole.column_names.index(column), column, pyarrow.array(values))


def test_a_folder_and_a_file_are_read_alike(tmp_path):
    path = write(tmp_path, table())
    found = results.read(str(tmp_path))
    assert found.run_ids == results.read(str(path)).run_ids
    assert found.losses == ("encoder_loss", "decoder_loss")
    assert len(found) == 36


def test_any_table_with_one_loss_will_do():
    whole = table().select(["run_id", "parameters", "frames", "flops", "loss"])
    assert results.of_table(whole, "t").losses == ("loss",)


@pytest.mark.parametrize(
    "content, options, said",
    [
        (table().drop_columns(["flops"]), {}, r"t lacks the column\(s\) flops"),
        (table(), {"losses": ("wer_loss",)}, "t has no column wer_loss"),
        (table(), {"leave_out": ("x",)}, "--leave-out x: t has no such run"),
        (changed("encoder_loss", 3, float("nan")), {}, "encoder_loss of run-03 is nan"),
        (changed("encoder_loss", 3, None), {}, "encoder_loss of run-03 is nan"),
        (changed("frames", 5, 0), {}, "frames of run-05 is 0.0"),
        (changed("decoder_loss", 35, 1.9), {}, "run-35 has diverged"),
        (table().slice(0, 0), {}, "t has no finished run"),
        (
            table(validation_fingerprint=["a"] * 35 + ["b"]),
            {},
            "validation_fingerprint differs between the runs",
        ),
        (
            table(encoder_loss=["much"] * 36),
            {},
            "the column encoder_loss holds no numbers",
        ),
    ],
)
def test_faulty_tables(content, options, said):
    with pytest.raises(UserError, match=said):
        results.of_table(content, "t", **options)


def test_what_is_left_out_is_said():
    found = results.of_table(changed("decoder_loss", 35, 1.9), "t", leave_out=("run-35",))
    assert len(found) == 35 and "run-35" in found.remarks[0]
    states = ["done"] * 35 + ["failed"]
    found = results.of_table(table(state=states), "t")
    assert len(found) == 35 and "Not finished" in found.remarks[0]
    # 1e8 frames of 2e7 that are unique.
    assert any("More than 4 passes" in remark for remark in found.remarks)


def test_no_parquet(tmp_path):
    with pytest.raises(UserError, match="--results .*nothing: no"):
        results.read(str(tmp_path / "nothing"))
    (tmp_path / "results.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(UserError, match="is no Parquet file"):
        results.read(str(tmp_path))
