import torch


def get_nccl_comm_from_group(group=None):
    assert group == torch.distributed.group.WORLD
    return "a communicator"
