"""DeepSpeed still has the private names that we use; each test says what breaks without one."""

import inspect

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch.utils import cpp_extension

from pipeline.compat.deepspeed import own_values, recovery_script_deferred


def test_saving_calls_the_engines_own_method_for_its_script() -> None:
    # Otherwise a checkpoint writes a file within the step: an error there hangs the other ranks.
    source = inspect.getsource(DeepSpeedEngine)
    assert "self._copy_recovery_script(" in source
    assert list(inspect.signature(DeepSpeedEngine._copy_recovery_script).parameters) == [
        "self",
        "save_path",
    ]


def test_the_script_is_deferred_and_the_method_restored() -> None:
    class Engine:
        def __init__(self) -> None:
            self.written: list[str] = []

        def _copy_recovery_script(self, save_path: str) -> None:
            self.written.append(save_path)

    engine = Engine()
    with recovery_script_deferred(engine) as script:
        engine._copy_recovery_script("ignored")
    script("folder")
    engine._copy_recovery_script("after")
    assert engine.written == ["folder", "after"]


def test_the_shapes_in_memory_are_those_that_are_saved() -> None:
    # Otherwise a checkpoint of other ranks is cut at the wrong places when it is resharded.
    source = inspect.getsource(DeepSpeedEngine)
    assert "PARAM_SHAPES: self._get_zero_param_shapes()" in " ".join(source.split()) or (
        "param_shapes=self._get_zero_param_shapes()" in " ".join(source.split())
    )


def test_zero_3_holds_gradients_where_they_are_cleared() -> None:
    # Otherwise a weight without a gradient in a step is updated by that of an earlier one.
    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    assert "self.grad_partitions_flat_buffer" in source
    assert "self.fp32_partitioned_groups_flat" in source


def test_torch_compiles_in_the_folder_that_we_lock() -> None:
    # Otherwise a run that is killed while it compiles an op blocks all later ones.
    assert "_get_build_directory(name, verbose)" in inspect.getsource(cpp_extension.load)
    assert list(inspect.signature(cpp_extension._get_build_directory).parameters) == [
        "name",
        "verbose",
    ]


def test_what_exceeds_a_weight_is_not_its_value() -> None:
    # Three values on two ranks, and one value on two: the rest of the last partition is not set.
    nan = float("nan")
    cases = [(0, 3, [1.0, 2.0], 2), (1, 3, [3.0, nan], 1), (0, 1, [1.0], 1), (1, 1, [nan], 0)]
    for rank, whole, partition, held in cases:
        weight = torch.nn.Parameter(torch.empty(0))
        weight.ds_tensor = torch.tensor(partition)
        weight.ds_numel, weight.ds_zero_partition_rank = whole, rank
        assert own_values(weight).tolist() == partition[:held]
    assert own_values(torch.nn.Parameter(torch.ones(2))).tolist() == [1.0, 1.0]
