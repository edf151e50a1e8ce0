"""What a trainer adds for the identity loss: two lines around its own. A stand-in model and random pictures are
trained for a few steps, so that the file runs by itself:

    python examples/python/train_step.py VAE DETECTOR RECOGNISER

With `vae.safetensors`, `detector.onnx` and `recogniser.safetensors` of examples/demo_assets it prints lines like these. The
numbers are random, and a sample whose t is above `t_max` is not counted:

    step 0: mse 2.207, face 0.0540, similarity 0.460, counted 2
    step 1: mse 2.181, face 0.0567, similarity 0.433, counted 2
    step 2: mse 2.220, face 0.0408, similarity 0.592, counted 1
"""

import sys

import torch

import facegrad

vae, detector, recogniser = sys.argv[1:4]
face = facegrad.FaceIdentityLoss(
    {"face_loss_weight": 0.1, "face_align_mode": "kps", "landmarks": "reference", "t_max": 0.8, "clamp": "straight_through"},
    vae=vae, detector=detector, recogniser=recogniser, device="cuda" if torch.cuda.is_available() else "cpu",
)  # fmt: skip

pictures = torch.load(sys.argv[4]) if len(sys.argv) > 4 else torch.rand(2, 3, 128, 128)  # [B,3,H,W], RGB in [0, 1]
x0 = torch.randn(2, face.vae.channels, 16, 16)  # the pictures' latents
model = torch.nn.Conv2d(x0.shape[1], x0.shape[1], 3, padding=1)  # the diffusion model
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(3):
    t = torch.sigmoid(torch.randn(len(x0)))  # flow matching
    noise = torch.randn_like(x0)
    x_t = torch.lerp(x0, noise, t.view(-1, 1, 1, 1))
    prediction = model(x_t)
    mse = torch.nn.functional.mse_loss(prediction, noise - x0)

    loss, report = face(x_t=x_t, prediction=prediction, t=t, references=pictures, data_types=["person"] * len(x0), step=step)
    (mse + loss).backward()

    optimiser.step()
    optimiser.zero_grad()
    print(f"step {step}: mse {mse.item():.3f}, face {loss.item():.4f}, similarity {report.similarity:.3f}, counted {report.counted}")
