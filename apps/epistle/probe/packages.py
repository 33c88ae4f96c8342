"""How each package is called: one class for each. A class makes its buffers when it is created; that is collective.

`per_expert`: a row arrives once for every expert of this rank that it goes to, not once for the rank.
`weighted`: combine multiplies by the routing weights; otherwise it sums the rows of all ranks as they are.
"""

import importlib


class Untried(Exception):
    """A level that this probe cannot try, with the reason; no failure of the package."""


def need(module, name):
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name}")
    return getattr(module, name)


class BlockPackage:
    """A package that gives every expert a block of rows, of which counts say how many are there, and whose combine
    multiplies by the weights. `dispatch` returns (blocks, counts, ...)."""

    per_expert = True
    weighted = True

    def received_rows(self, state):
        blocks, counts = state[:2]
        return self.world.torch.cat([blocks[expert][:count] for expert, count in enumerate(counts.tolist())])


class DeepEp:
    modules = ("deep_ep",)
    names = ("Buffer",)
    per_expert = False
    weighted = False

    def __init__(self, world, module):
        buffer = module.Buffer
        row_bytes = world.hidden * 2
        configs = [buffer.get_dispatch_config(world.size), buffer.get_combine_config(world.size)]
        sizes = [config.get_nvl_buffer_size_hint(row_bytes, world.size) for config in configs]
        self.world = world
        self.buffer = buffer(world.group, max(sizes), 0, explicitly_destroy=True)

    def dispatch(self, rows, ids, weights):
        per_rank, per_node, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(ids, self.world.num_experts)
        received, _, _, _, handle, _ = self.buffer.dispatch(
            rows,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=ids,
            topk_weights=weights,
        )
        return received, handle

    def received_rows(self, state):
        return state[0]

    def combine(self, state, ids, weights):
        return self.buffer.combine(state[0], state[1])[0]

    def close(self):
        self.buffer.destroy()


class Uccl(DeepEp):
    """UCCL is used through its wrapper, which takes the name deep_ep."""

    modules = ("uccl.ep",)
    names = ()

    def __init__(self, world, module):
        try:
            wrapper = importlib.import_module("deep_ep")
        except ImportError as error:
            raise Untried(f"uccl.ep is there without its wrapper named deep_ep ({error})") from error
        if not hasattr(wrapper, "initialize_uccl"):
            raise Untried("the package named deep_ep is not UCCL's wrapper: it has no initialize_uccl")
        super().__init__(world, wrapper)


class DeepEpLowLatency(BlockPackage):
    modules = ("deep_ep",)
    names = ("Buffer",)

    def __init__(self, world, module):
        self.world = world
        num_bytes = module.Buffer.get_low_latency_rdma_size_hint(
            world.max_tokens, world.hidden, world.size, world.num_experts
        )
        self.buffer = module.Buffer(
            world.group,
            0,
            num_bytes,
            low_latency_mode=True,
            num_qps_per_rank=max(1, world.num_local_experts),
            explicitly_destroy=True,
        )

    def dispatch(self, rows, ids, weights):
        received, counts, handle, _, _ = self.buffer.low_latency_dispatch(
            rows, ids, self.world.max_tokens, self.world.num_experts, use_fp8=False
        )
        return received, counts, handle

    def combine(self, state, ids, weights):
        return self.buffer.low_latency_combine(state[0], ids, weights, state[2])[0]

    def close(self):
        self.buffer.destroy()


class DeepEpElastic:
    modules = ("deep_ep",)
    names = ("ElasticBuffer",)
    per_expert = False
    weighted = False

    def __init__(self, world, module):
        self.world = world
        self.buffer = module.ElasticBuffer(
            world.group,
            num_max_tokens_per_rank=world.max_tokens,
            hidden=world.hidden,
            num_topk=world.top_k,
            explicitly_destroy=True,
        )

    def dispatch(self, rows, ids, weights):
        received, _, _, handle, _ = self.buffer.dispatch(
            rows,
            topk_idx=ids,
            topk_weights=weights,
            num_experts=self.world.num_experts,
            num_max_tokens_per_rank=self.world.max_tokens,
            do_cpu_sync=True,
        )
        return received, handle

    def received_rows(self, state):
        return state[0]

    def combine(self, state, ids, weights):
        return self.buffer.combine(state[0], state[1])[0]

    def close(self):
        self.buffer.destroy()


class HybridEp:
    modules = ("deep_ep",)
    names = ("HybridEPBuffer",)
    per_expert = False
    weighted = False

    def __init__(self, world, module):
        self.world = world
        self.buffer = module.HybridEPBuffer(
            group=world.group,
            hidden_dim=world.hidden,
            max_num_of_tokens_per_rank=world.max_tokens,
            num_local_experts=world.num_local_experts,
        )

    def dispatch(self, rows, ids, weights):
        received, probs, _, handle = self.buffer.dispatch(
            hidden=rows, topk_idx=ids, topk_weights=weights, num_of_experts=self.world.num_experts
        )
        return received, probs, handle

    def received_rows(self, state):
        return state[0]

    def combine(self, state, ids, weights):
        return self.buffer.combine(hidden=state[0], probs=state[1], handle=state[2])[0]

    def close(self):
        pass


class NcclEp:
    """nccl-extensions, in the algorithm and layout that subclasses name: `layout`, `group_config`, `make_outputs` and
    `bind`, which makes descriptors."""

    modules = ("nccl.ep", "transformer_engine.pytorch.ep")
    names = ()
    infos_with_handle = False  # where the counts are told: with the routing, or by dispatch

    def __init__(self, world, module):
        if module.__name__ != "nccl.ep":
            raise Untried("NCCL EP is only there inside of Transformer Engine; install nccl-extensions to try it alone")
        self.world = world
        self.ep = module
        interop = importlib.import_module("nccl.ep.interop.torch")
        self.comm = interop.get_nccl_comm_from_group(world.group)
        self.group = module.Group.create(
            self.comm,
            module.GroupConfig(
                num_experts=world.num_experts,
                max_dispatch_tokens_per_rank=world.max_tokens,
                max_token_bytes=world.hidden * 2,
                **self.group_config(),
            ),
        )
        self.make_outputs()
        self.out = self.empty((world.num_tokens, world.hidden), world.torch.bfloat16)
        self.handle = None
        self.bound = None  # what the descriptors were made of

    def empty(self, shape, dtype):
        return self.world.torch.empty(shape, dtype=dtype, device=self.world.device)

    def _route(self, rows, ids, weights):
        """Descriptors are made once: their making would be timed, and no engine makes them anew for each layer."""
        is_new = self.bound is None or self.bound[0] is not rows
        if is_new:
            if self.handle is not None:
                self.handle.destroy()
            self.bound = (rows, ids, weights)
            self.ids = self.ep.Tensor(ids)
            self.bind(rows, weights)
        told = {"stream": self.world.stream(), **({"layout_info": self.infos} if self.infos_with_handle else {})}
        if is_new:
            self.handle = self.group.create_handle(self.layout(), self.ids, **told)
        else:
            self.handle.update(self.ids, **told)

    def dispatch(self, rows, ids, weights):
        self._route(rows, ids, weights)
        with_dispatch = {} if self.infos_with_handle else {"layout_info": self.infos}
        self.handle.dispatch(self.dispatch_in, self.dispatch_out, stream=self.world.stream(), **with_dispatch)
        return self.received, self.counts

    def combine(self, state, ids, weights):
        self.handle.combine(self.combine_in, self.combine_out, stream=self.world.stream())
        return self.out

    def close(self):
        if self.handle is not None:
            self.handle.destroy()
        self.group.destroy()


class NcclEpLowLatency(BlockPackage, NcclEp):
    """Its algorithm for few tokens: blocks of rows for every expert, weights applied by combine."""

    def layout(self):
        return self.ep.Layout.EXPERT_MAJOR

    def group_config(self):
        return {"algorithm": self.ep.Algorithm.LOW_LATENCY}

    def make_outputs(self):
        world, torch = self.world, self.world.torch
        blocks = (world.num_local_experts, world.size * world.max_tokens, world.hidden)
        self.received = self.empty(blocks, torch.bfloat16)
        self.counts = self.empty((world.num_local_experts,), torch.int32).zero_()

    def bind(self, rows, weights):
        ep = self.ep
        self.infos = ep.LayoutInfo(expert_counters=ep.Tensor(self.counts))
        self.dispatch_in = ep.DispatchInputs(tokens=ep.Tensor(rows))
        self.dispatch_out = ep.DispatchOutputs(tokens=ep.Tensor(self.received))
        self.combine_in = ep.CombineInputs(tokens=ep.Tensor(self.received))
        self.combine_out = ep.CombineOutputs(tokens=ep.Tensor(self.out), topk_weights=ep.Tensor(weights))


class NcclEpHighThroughput(NcclEp):
    """Its other algorithm: each row once for a rank, one after another, and sums without weights."""

    per_expert = False
    weighted = False
    infos_with_handle = True

    def layout(self):
        return self.ep.Layout.FLAT

    def _num_slots(self):
        return self.world.size * self.world.max_tokens

    def group_config(self):
        return {
            "algorithm": self.ep.Algorithm.HIGH_THROUGHPUT,
            "max_recv_tokens_per_rank": self._num_slots(),
            "num_topk": self.world.top_k,
        }

    def make_outputs(self):
        world, torch = self.world, self.world.torch
        per_slot = (self._num_slots(), world.top_k)
        self.received = self.empty((self._num_slots(), world.hidden), torch.bfloat16)
        self.received_weights = self.empty(per_slot, torch.float32)
        self.received_ids = self.empty(per_slot, torch.int64)
        self.counts = self.empty((1,), torch.int32).zero_()

    def bind(self, rows, weights):
        ep = self.ep
        self.infos = ep.LayoutInfo(recv_total_counter=ep.Tensor(self.counts))
        self.dispatch_in = ep.DispatchInputs(tokens=ep.Tensor(rows), topk_weights=ep.Tensor(weights))
        self.dispatch_out = ep.DispatchOutputs(
            tokens=ep.Tensor(self.received),
            topk_weights=ep.Tensor(self.received_weights),
            topk_idx=ep.Tensor(self.received_ids),
        )
        self.combine_in = ep.CombineInputs(tokens=ep.Tensor(self.received))
        self.combine_out = ep.CombineOutputs(tokens=ep.Tensor(self.out))

    def received_rows(self, state):
        return state[0][: state[1].tolist()[0]]


class FlashInferOneSided:
    modules = ("flashinfer.comm.trtllm_moe_alltoall",)
    names = ("MoeAlltoAll",)
    per_expert = False
    weighted = False
    NO_EXPERT = -1

    def __init__(self, world, module):
        comm = importlib.import_module("flashinfer.comm")
        mnnvl = importlib.import_module("flashinfer.comm.mnnvl")
        mapping = need(comm, "Mapping")(
            world_size=world.size, rank=world.rank, gpus_per_node=world.size, tp_size=world.size
        )
        config = need(mnnvl, "MnnvlConfig")(comm_backend=need(mnnvl, "TorchDistBackend")())
        self.world = world
        self.exchange = module.MoeAlltoAll(
            mapping,
            world.max_tokens,
            world.top_k,
            world.num_experts,
            hidden_size=world.hidden,
            mnnvl_config=config,
        )

    def dispatch(self, rows, ids, weights):
        ids = ids.to(self.world.torch.int32)
        return self.exchange.dispatch(
            ids,
            [rows, ids],
            self.world.max_tokens,
            invalid_token_expert_id=self.NO_EXPERT,
            expert_id_payload_index=1,
        )

    def received_rows(self, state):
        rows, ids = state
        return rows[(ids != self.NO_EXPERT).any(-1)]

    def combine(self, state, ids, weights):
        return self.exchange.combine(state[0], self.world.max_tokens)

    def close(self):
        pass


class Mori:
    modules = ("mori.ops",)
    names = ("EpDispatchCombineConfig", "EpDispatchCombineOp")
    per_expert = False
    weighted = False

    def __init__(self, world, module):
        torch = world.torch
        torch._C._distributed_c10d._register_process_group("default", world.group)
        importlib.import_module("mori.shmem").shmem_torch_process_group_init("default")
        self.world = world
        self.op = module.EpDispatchCombineOp(
            module.EpDispatchCombineConfig(
                data_type=torch.bfloat16,
                rank=world.rank,
                world_size=world.size,
                hidden_dim=world.hidden,
                scale_dim=0,
                scale_type_size=1,
                max_token_type_size=4,
                max_num_inp_token_per_rank=world.max_tokens,
                num_experts_per_rank=world.num_local_experts,
                num_experts_per_token=world.top_k,
                gpu_per_node=world.size,
            )
        )

    def dispatch(self, rows, ids, weights):
        received, _, _, received_ids, total = self.op.dispatch(rows, weights, None, ids.to(self.world.torch.int32))
        return received, received_ids, total

    def received_rows(self, state):
        return state[0][: int(state[2].reshape(-1)[0])]

    def combine(self, state, ids, weights):
        sums = self.op.combine(state[0], None, state[1])
        return (sums[0] if isinstance(sums, tuple) else sums)[: self.world.num_tokens]

    def close(self):
        pass


class Nixl(BlockPackage):
    modules = ("nixl_ep",)
    names = ("Buffer",)

    def __init__(self, world, module):
        raise Untried("its ranks are added one by one by an engine that runs NIXL's agents")


PACKAGES = {
    "deepep": DeepEp,
    "deepep-low-latency": DeepEpLowLatency,
    "deepep-v2": DeepEpElastic,
    "hybridep": HybridEp,
    "ncclep": NcclEpLowLatency,
    "ncclep-high-throughput": NcclEpHighThroughput,
    "flashinfer": FlashInferOneSided,
    "mori": Mori,
    "nixl": Nixl,
    "uccl": Uccl,
}


def import_package(package):
    """The first of its modules that there is. Raises with the reasons of all."""
    errors = []
    for name in package.modules:
        try:
            module = importlib.import_module(name)
            for attribute in package.names:
                need(module, attribute)
            return module
        except Exception as error:  # whatever a package does when it is imported
            errors.append(f"{type(error).__name__}: {error}")
    raise ImportError("; ".join(errors))
