"""Adapters for engines: each makes a class of the engine's own abstract one, which is given or imported when it is
asked for, so that this package imports no engine.

    epistle.engines.megatron.use(token_dispatcher)
    epistle.engines.vllm.manager_class(), epistle.engines.vllm.prepare_finalize_class()
    epistle.engines.sglang.dispatcher_class()
    epistle.engines.trtllm.communication_class()
"""
