"""Placements for engines, and loads that engines have recorded."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import pathlib
import pickle
import typing
import zipfile

import numpy as np
import pytest

from epistle import balance, balance_recordings, loads

# The example of EPLB's documentation.
WEIGHT = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
DOCUMENTED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def balancedness(slots: typing.Any, weight: typing.Any, num_ranks: int) -> float:
    """The least over the layers, under an even split."""
    least = 1.0
    for layer, experts in enumerate(np.asarray(slots)):
        counts = np.bincount(experts, minlength=weight.shape[1])
        rank_loads = (weight[layer] / counts)[experts].reshape(num_ranks, -1).sum(axis=1)
        least = min(least, rank_loads.mean() / rank_loads.max())
    return float(least)


def zipf(num_layers: int, num_experts: int, seed: int = 1) -> typing.Any:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(1e6 / np.arange(1, num_experts + 1)) for _ in range(num_layers)])


def test_the_published_algorithm_gives_its_documented_example() -> None:
    slots, slots_of, counts = balance.rebalance_experts(WEIGHT, 16, 4, 2, 8, algorithm="eplb")
    assert slots.tolist() == DOCUMENTED
    assert slots.dtype == slots_of.dtype == counts.dtype == np.int64
    assert counts.sum(axis=1).tolist() == [16, 16]


@pytest.mark.parametrize("shape", [(58, 256, 288, 8, 4, 32), (3, 64, 80, 1, 1, 8), (2, 12, 16, 4, 2, 8)])
def test_the_maps_agree_and_the_balance_is_that_of_eplb_at_least(shape: tuple[int, ...]) -> None:
    num_layers, num_experts, num_slots, num_groups, num_nodes, num_ranks = shape
    weight = zipf(num_layers, num_experts)
    slots, slots_of, counts = balance.rebalance_experts(weight, num_slots, num_groups, num_nodes, num_ranks)
    assert slots.shape == (num_layers, num_slots)
    assert slots_of.shape == (num_layers, num_experts, counts.max())
    for layer in range(num_layers):
        assert counts[layer].tolist() == np.bincount(slots[layer], minlength=num_experts).tolist()
        assert counts[layer].min() >= 1
        for expert in range(num_experts):
            held = slots_of[layer, expert]
            assert sorted(held[held >= 0].tolist()) == np.flatnonzero(slots[layer] == expert).tolist()
            assert (held >= 0).sum() == counts[layer, expert]
    eplb, _, _ = balance.rebalance_experts(weight, num_slots, num_groups, num_nodes, num_ranks, algorithm="eplb")
    assert balancedness(slots, weight, num_ranks) >= balancedness(eplb, weight, num_ranks) - 1e-9


def test_numbers_need_not_divide() -> None:
    slots, _, counts = balance.rebalance_experts(zipf(1, 13), 17, 3, 2, 5)
    assert slots.shape == (1, 17)
    assert counts.min() >= 1


def test_no_load_at_all_is_all_alike() -> None:
    slots, _, _ = balance.rebalance_experts(np.zeros((1, 8)), 16, 1, 1, 4)
    assert sorted(np.bincount(slots[0]).tolist()) == [2] * 8


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[layers, experts\]"):
        balance.rebalance_experts(np.zeros(4), 4, 1, 1, 2)
    with pytest.raises(ValueError, match="negative or not finite"):
        balance.rebalance_experts(np.array([[1.0, -1.0]]), 2, 1, 1, 1)
    with pytest.raises(ValueError, match="expected 'epistle' or 'eplb'"):
        balance.rebalance_experts(np.ones((1, 2)), 2, 1, 1, 1, algorithm="best")
    with pytest.raises(Exception, match="3 slots for 4 experts"):
        balance.rebalance_experts(np.ones((1, 4)), 3, 1, 1, 1)


def test_sglang_gets_its_three_maps_of_all_samples() -> None:
    samples = np.stack([zipf(2, 16, seed) for seed in range(4)])
    slots, slots_of, counts = balance.rebalance_experts_sglang(samples, 24, 6, None, 1, algorithm="auto")
    assert slots.shape == (2, 24)
    assert slots_of.shape[:2] == counts.shape == (2, 16)
    assert balancedness(slots, samples.sum(axis=0), 4) > 0.95
    with pytest.raises(ValueError, match="whole number of ranks"):
        balance.rebalance_experts_sglang(samples, 24, 7, None, 1)


def test_vllm_gets_one_map_and_few_weights_move() -> None:
    weight = zipf(3, 64)
    first = balance.VllmPolicy.rebalance_experts(weight, 80, 1, 1, 8)
    again = balance.VllmPolicy.rebalance_experts(weight, 80, 1, 1, 8, first)
    assert (again == first).all()
    drifted = weight * np.exp(0.1 * np.random.default_rng(2).standard_normal(weight.shape))
    after = balance.VllmPolicy.rebalance_experts(drifted, 80, 1, 1, 8, first)
    assert balancedness(after, drifted, 8) >= balancedness(first, drifted, 8) - 1e-9
    scratch = balance.VllmPolicy.rebalance_experts(drifted, 80, 1, 1, 8)
    assert balancedness(after, drifted, 8) >= balancedness(scratch, drifted, 8) - 0.0051
    # A placement of another size is none to start from.
    assert balance.VllmPolicy.rebalance_experts(weight, 88, 1, 1, 8, first).shape == (3, 88)


def test_older_vllm_gets_three_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance.VllmPolicy, "returns_triple", True)
    slots, slots_of, counts = balance.VllmPolicy.rebalance_experts(zipf(1, 8), 8, 1, 1, 2)
    assert slots.shape == (1, 8)
    assert slots_of.shape == (1, 8, 1)
    assert counts.tolist() == [[1] * 8]


def test_vllm_with_a_context() -> None:
    @dataclasses.dataclass(frozen=True)
    class Topology:
        num_groups: int = 1
        num_nodes: int = 1
        num_ranks: int = 4

    @dataclasses.dataclass(frozen=True)
    class Context:
        load_window_cpu: typing.Any
        physical_to_logical_map_cpu: typing.Any
        topology: Topology = dataclasses.field(default_factory=Topology)
        num_replicas: int = 20
        cpu_group: object = None

    window = np.stack([zipf(2, 16, seed) for seed in (5, 5, 5)])
    now = np.tile(np.concatenate([np.arange(16), np.arange(4)]), (2, 1))
    state = balance.VllmPolicy.create_state(2)
    plan = balance.VllmPolicy.plan_rebalance(Context(window, now), state)
    slots = plan.physical_to_logical_map
    assert balancedness(slots, window.sum(axis=0), 4) > balancedness(now, window.sum(axis=0), 4)
    balance.VllmPolicy.on_layer_committed(state, plan, 1)
    assert state.committed_layers == {1}
    assert state.num_plans == 1
    with pytest.raises(ValueError, match="layer 2, expected 0 to 1"):
        balance.VllmPolicy.on_layer_committed(state, plan, 2)
    with pytest.raises(ValueError, match="loads of 2 layers, expected 3"):
        balance.VllmPolicy.plan_rebalance(Context(window, now), balance.VllmPolicy.create_state(3))


def test_torch_tensors_come_back_as_such() -> None:
    torch = pytest.importorskip("torch")
    slots, slots_of, counts = balance.rebalance_experts(torch.from_numpy(zipf(1, 8)), 12, 1, 1, 4)
    assert all(isinstance(value, torch.Tensor) and value.dtype == torch.int64 for value in (slots, slots_of, counts))


# ---- Recordings -----------------------------------------------------------------------------------------------------


class _FakeStorage:
    """Pickles as a storage of Torch's does."""

    def __init__(self, values: typing.Any, key: str) -> None:
        self.values = values
        self.key = key


class _Global:
    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name


class _Pickler(pickle._Pickler):  # type: ignore[misc,name-defined]  # the one in Python can be made to write any name
    dispatch: typing.ClassVar[dict[type, typing.Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, file: typing.BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: list[_FakeStorage] = []

    def save_named(self, value: _Global) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    dispatch[_Global] = save_named

    def save_array(self, array: typing.Any) -> None:
        storage = _FakeStorage(array.reshape(-1), str(len(self.storages)))
        self.storages.append(storage)
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self.save_named(_Global("torch._utils", "_rebuild_tensor_v2"))
        self.save((storage, 0, array.shape, strides, False, {}))
        self.write(pickle.REDUCE)

    dispatch[np.ndarray] = save_array

    def persistent_id(self, value: typing.Any) -> typing.Any:
        if not isinstance(value, _FakeStorage):
            return None
        names = {"f": "FloatStorage", "d": "DoubleStorage", "i": "IntStorage", "q": "LongStorage", "l": "LongStorage"}
        kind = _Global("torch", names[value.values.dtype.char])
        return ("storage", kind, value.key, "cpu", value.values.size)


def save_like_torch(path: pathlib.Path, value: object) -> str:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for storage in pickler.storages:
            archive.writestr(f"archive/data/{storage.key}", storage.values.tobytes())
    return str(path)


COUNTS = np.array([[[1, 2, 3], [4, 5, 6]], [[10, 0, 0], [0, 10, 0]]], dtype=np.int64)  # [samples, layers, experts]
TOTAL = [[11.0, 2.0, 3.0], [4.0, 15.0, 6.0]]


@pytest.mark.parametrize(
    "recorded",
    [
        {"rank": 0, "logical_count": COUNTS, "average_utilization_rate_over_window": None},
        {"logical_count": COUNTS.astype(np.float32)},
        COUNTS,
        {
            "records": [
                {"forward_pass_id": 1, "global_physical_count": COUNTS[0]},
                {"global_physical_count": COUNTS[1]},
            ],
            "last_physical_to_logical_map": np.tile(np.arange(3), (2, 1)),
        },
        {"expert_load_window": COUNTS, "physical_to_logical_map": np.tile(np.arange(3), (2, 1))},
        collections.OrderedDict(loads=COUNTS),
    ],
)
def test_loads_of_recorders(tmp_path: pathlib.Path, recorded: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = save_like_torch(tmp_path / "r.pt", recorded)
    assert balance_recordings.read_recording(name).tolist() == TOTAL
    assert loads.main([name, name, "--ranks", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == {"loads": (2 * np.array(TOTAL)).tolist(), "ranks": 2}


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float64", "float16", "bfloat16"])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path: pathlib.Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    counts = torch.from_numpy(COUNTS).to(getattr(torch, dtype))
    name = str(tmp_path / "r.pt")
    # A view whose storage is longer, and laid out otherwise.
    torch.save({"rank": 0, "logical_count": torch.cat([counts, counts]).transpose(1, 2)[:2].transpose(1, 2)}, name)
    assert balance_recordings.read_recording(name).tolist() == TOTAL


def test_slots_are_mapped_to_experts(tmp_path: pathlib.Path) -> None:
    physical = np.array([[5, 6, 7, 8]], dtype=np.int64)
    name = save_like_torch(
        tmp_path / "r.pt", {"expert_load_pass": physical, "physical_to_logical_map": np.array([[0, 1, 1, -1]])}
    )
    assert balance_recordings.read_recording(name).tolist() == [[5.0, 13.0]]


def test_recorded_ids_are_counted(tmp_path: pathlib.Path) -> None:
    ids = np.array([[[0, 1], [1, -1]], [[2, 2], [0, 1]]], dtype=np.int32)  # [layers, tokens, top_k]
    name = save_like_torch(tmp_path / "r.pt", {"records": [{"topk_ids_of_layer": ids}]})
    assert balance_recordings.read_recording(name).tolist() == [[1.0, 2.0, 0.0], [1.0, 1.0, 2.0]]
    name = save_like_torch(tmp_path / "s.pt", {"routed_experts": np.ascontiguousarray(ids.swapaxes(0, 1))})
    assert balance_recordings.read_recording(name, 4).tolist() == [[1.0, 2.0, 0.0, 0.0], [1.0, 1.0, 2.0, 0.0]]


def test_files_that_are_none_are_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pt").write_text("no zip")
    hostile = {"logical_count": _Global("os", "system")}
    names = [
        str(tmp_path / "absent.pt"),
        str(tmp_path / "text.pt"),
        save_like_torch(tmp_path / "other.pt", {"weights": 1}),
        save_like_torch(tmp_path / "hostile.pt", hostile),
    ]
    for name in names:
        assert loads.main([name]) == 3
        assert capsys.readouterr().err.startswith(f"error: cannot read the loads '{name}'")
