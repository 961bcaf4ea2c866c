from __future__ import annotations

from pathlib import Path

import itk
import monai.transforms as mt
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch

from shared.transforms import LoadVolumed, RestoreLabelMapd

KEYS = ["image", "label"]
PREPROCESSING = [
    LoadVolumed(KEYS, label_key="label"),
    mt.Orientationd(KEYS, axcodes="RAS", labels=None),
    mt.Spacingd(KEYS, pixdim=(1.5, 1.5, 2.0), mode=("bilinear", "nearest")),
    mt.ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True),
    mt.CropForegroundd(KEYS, source_key="image"),
]


def make_case(folder: Path, codes: str, suffix: str) -> tuple[Path, Path, np.ndarray]:
    """A body in air with two touching organs of unequal size, in the orientation `codes`; axes of unequal size."""
    x, y, z = np.meshgrid(np.arange(60), np.arange(50), np.arange(33), indexing="ij")
    image = np.where(((x - 28) / 24) ** 2 + ((y - 27) / 18) ** 2 + ((z - 14) / 12) ** 2 < 1, 40, -1000)
    label = np.zeros(image.shape, np.uint8)
    label[12:27, 16:36, 8:21] = 1
    label[27:40, 20:36, 8:18] = 2
    affine = np.diag([1.0, 0.9, 2.2, 1])
    affine[:3, 3] = [-30, -20, 5]
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    affine = affine @ nib.orientations.inv_ornt_aff(turn, image.shape)
    image, label = (nib.orientations.apply_orientation(a, turn) for a in (image.astype(np.int16), label))
    paths = [folder / f"ct{suffix}", folder / f"label{suffix}"]
    for path, data in zip(paths, (image, label), strict=True):
        if ".nii" in suffix:
            nib.save(nib.Nifti1Image(data, affine), path)
            continue
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        picture = itk.image_from_array(np.ascontiguousarray(data.T))
        picture.SetSpacing(spacing)
        picture.SetDirection(lps[:3, :3] / spacing)
        picture.SetOrigin(lps[:3, 3])
        itk.imwrite(picture, str(path))
    return *paths, affine


@pytest.mark.parametrize(
    ("codes", "suffix"), [("RAS", ".nii.gz"), ("LPS", ".nii"), ("PIR", ".nii"), ("LPS", ".nrrd"), ("SAL", ".mha")]
)
def test_label_map_returns_to_its_own_grid(tmp_path: Path, codes: str, suffix: str) -> None:
    """Through the whole preprocessing, collation and back: right voxels, right affine, whatever the orientation."""
    image, label, affine = make_case(tmp_path, codes, suffix)
    loader = DataLoader(Dataset([{"image": image, "label": label}], mt.Compose(PREPROCESSING)), batch_size=1)
    d = decollate_batch(next(iter(loader)))[0]
    truth = LoadVolumed("label")({"label": label})["label"]
    assert d["image"].shape[1:] != truth.shape[1:]
    ids = d["label"][0].as_tensor().long()
    d["pred"] = MetaTensor(9 * torch.nn.functional.one_hot(ids, 3).movedim(-1, 0).float())
    result = RestoreLabelMapd()(d)["pred"]
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.uint8
    assert result.shape == truth.shape
    np.testing.assert_allclose(result.affine, affine, atol=1e-5)
    # a nearest-neighbour label at 1.5 × 1.5 × 2 mm is off by less than a voxel at the surfaces, nowhere else
    wrong = (result != truth)[0].numpy()
    assert wrong.mean() < 0.02
    inner = np.ones_like(wrong)
    for axis in range(3):
        for shift in (-2, -1, 1, 2):
            inner &= np.roll(truth[0].numpy(), shift, axis) == truth[0].numpy()
    assert not wrong[inner].any()


def test_labels_pass_through_and_logits_may_stay_on_their_grid() -> None:
    meta = {"original_affine": np.diag([2.0, 1, 1, 1]), "spatial_shape": np.array([3, 4, 5])}
    image = MetaTensor(torch.zeros(1, 6, 4, 5), affine=torch.eye(4), meta=meta)
    labels = torch.arange(60, dtype=torch.uint8).view(1, 3, 4, 5)
    result = RestoreLabelMapd()({"image": image, "pred": labels})["pred"]
    assert torch.equal(result.as_tensor(), labels)
    assert torch.equal(result.affine, torch.from_numpy(meta["original_affine"]))
    logits = torch.randn(7, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    for kept in (image, image.as_tensor()):
        stays = RestoreLabelMapd(native=False)({"image": kept, "pred": logits})["pred"]
        assert torch.equal(stays, logits.argmax(0, keepdim=True).byte())
        assert torch.equal(RestoreLabelMapd(native=False)({"image": kept, "pred": stays})["pred"], stays)
    for wrong in (labels[:, :2], labels.expand(2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"'pred' has labels of shape .* and one channel"):
            RestoreLabelMapd()({"image": image, "pred": wrong})


def test_prediction_on_another_grid_is_refused(tmp_path: Path) -> None:
    image, label, _ = make_case(tmp_path, "RAS", ".nii")
    d = mt.Compose(PREPROCESSING)({"image": image, "label": label})
    with pytest.raises(ValueError, match=r"'pred' has logits of shape \(3, 9, 9, 9\), expected the grid"):
        RestoreLabelMapd()({**d, "pred": torch.zeros(3, 9, 9, 9)})
