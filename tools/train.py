"""Train what a config describes: python tools/train.py configs/detection/mask-rcnn_svit_micro_digits.py"""
import argparse

import torch.distributed
from mmengine.config import DictAction
from mmengine.registry import RUNNERS

from vitzoo.mm import check_load_from, check_resumable, setup


def main():
    parser = argparse.ArgumentParser(description='Train what a config describes.')
    parser.add_argument('config')
    parser.add_argument('--backbone', metavar='MODEL',
                        help="any of timm's and ours, or a file of configs/_base_/backbones, instead of the config's own")
    parser.add_argument('--work-dir', help='for logs and checkpoints; default work_dirs/CONFIG')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT', help='go on from it, or from the latest in work-dir')
    parser.add_argument('--seed', type=int)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='such as train_cfg.max_iters=100')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    args = parser.parse_args()

    try:
        cfg = setup(args.config, backbone=args.backbone, cfg_options=args.cfg_options, work_dir=args.work_dir, launcher=args.launcher,
                    seed=args.seed)
        if args.resume:
            cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
        if args.resume not in (None, 'auto'):
            check_resumable(args.resume)
        check_load_from(cfg)
    except ValueError as e:
        parser.exit(2, f'{parser.prog}: {e}\n')
    RUNNERS.build(cfg).train()  # `runner_type`, by default mmengine's Runner
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
