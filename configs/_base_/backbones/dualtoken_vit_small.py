# DualToken-ViT-S, a reconstruction without published weights: this trains from scratch, or set init_cfg to your own. Drop path is our
# choice. The map of stride 4 is made of that of stride 8.
channels = [32, 64, 128, 256]
detection = segmentation = dict(model_name='dualtoken_vit_small', drop_path_rate=0.1)
