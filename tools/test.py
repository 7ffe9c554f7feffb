"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT"""
import argparse

import torch.distributed
from mmengine.config import DictAction
from mmengine.runner import Runner

from vitzoo.mm import check_load_from, setup


def main():
    parser = argparse.ArgumentParser(description='Evaluate a checkpoint on the test data of its config.')
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--backbone', metavar='MODEL',
                        help="any of timm's and ours, or a file of configs/_base_/backbones, instead of the config's own")
    parser.add_argument('--work-dir', help='for logs; default work_dirs/CONFIG')
    parser.add_argument('--seed', type=int)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='such as test_dataloader.batch_size=8')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    args = parser.parse_args()

    try:
        cfg = setup(args.config, backbone=args.backbone, cfg_options=args.cfg_options, work_dir=args.work_dir, launcher=args.launcher,
                    seed=args.seed)
        cfg.load_from = args.checkpoint
        check_load_from(cfg)
    except ValueError as e:
        parser.exit(2, f'{parser.prog}: {e}\n')
    Runner.from_cfg(cfg).test()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
