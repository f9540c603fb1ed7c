import torch

torch.set_num_threads(1)  # the models are too small to share out, and tests run beside each other
