"""A pruned epoch on an installed wheel: run it outside the checkout."""

import pathlib

import torch

import stprune

assert (pathlib.Path(stprune.__file__).parent / "_C.so").is_file(), "the wheel has no compiled library"
assert (pathlib.Path(stprune.__file__).parent / "study/templates/report.html.j2").is_file(), "the wheel has no template"
assert "site-packages" in stprune.__file__, stprune.__file__
assert stprune.library_status()["_C"].loaded, stprune.library_status()

series = torch.rand(200, 5, 1)
windows = stprune.IndexedDataset(stprune.WindowDataset(series, history=12, horizon=12))
sampler = stprune.PruningSampler(windows, num_epochs=4, keep_ratio=0.5)
criterion = stprune.PrunedLoss(sampler)
loader = torch.utils.data.DataLoader(windows, batch_size=16, sampler=sampler)
scale = torch.ones(1, requires_grad=True)
for epoch in range(4):
    sampler.set_epoch(epoch)
    for index, (x, y) in loader:
        criterion(x * scale, y, index).backward()
    print(epoch, len(sampler), float(scale.grad))
