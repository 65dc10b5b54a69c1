"""Programs of fixed sizes, exported where there is no GPU: the kernels are in them."""

import jax.export
import pytest

from aot.devices import compiled
from recjax.export.artifact import ArtifactError, load
from recjax.export.stablehlo import export_run
from recjax.zoo import din
from recjax.zoo.features import Field, Schema, Table
from reranking import CONFIG, JUDGES, evaluators_of, generator_of
from runs import fresh, saved

SCHEMA = Schema(
    tables=(Table(name="item", rows=100, dim=32),),
    fields=(Field(name="item", role="candidate"), Field(name="item", role="history")),
)
CALL = {"cuda": "triton_kernel_call", "tpu": "tpu_custom_call"}


def program_of(folder):
    return jax.export.deserialize(bytearray((folder / "apply.program").read_bytes()))


@pytest.mark.parametrize("platform", CALL)
def test_the_kernels_of_din(tmp_path, platform):
    config = din.Config(schema=SCHEMA, normalize="softmax")
    run = saved(tmp_path / "run", "din", config, fresh(din, config), history=200)
    sizes = dict(requests=4, candidates=16, platforms=[platform])
    export_run(run, tmp_path / "out", **sizes)
    program = program_of(tmp_path / "out")
    assert program.platforms == (platform,)
    assert CALL[platform] in program.mlir_module()
    if platform == "cuda":
        inputs = program.in_tree.unflatten(program.in_avals)[0]
        assert CALL[platform] in compiled(platform, program.call, *inputs).as_text()
        with pytest.raises(ArtifactError, match="was made for cuda; this process has cpu"):
            load(tmp_path / "out")
    # Any number of requests: a kernel cannot know it, and plain JAX stands in.
    export_run(run, tmp_path / "any", platforms=[platform])
    assert CALL[platform] not in program_of(tmp_path / "any").mlir_module()


def test_the_kernel_of_last(tmp_path):
    generator = saved(tmp_path / "generator", "generator", CONFIG, generator_of().variables)
    judge = saved(tmp_path / "judge", "evaluator", JUDGES, evaluators_of().variables[0])
    sizes = dict(requests=4, candidates=20, platforms=["cuda"])
    export_run(generator, tmp_path / "out", evaluators=[judge], **sizes)
    program = program_of(tmp_path / "out")
    inputs = program.in_tree.unflatten(program.in_avals)[0]
    assert program.mlir_module().count(CALL["cuda"]) >= 2  # The greedy slate, and the others.
    assert CALL["cuda"] in compiled("cuda", program.call, *inputs).as_text()
