from __future__ import annotations

import logging
import warnings
from typing import Any

from monai.transforms import LoadImaged

# What MONAI's reader by way of NVIDIA's decoders says wherever pydicom is there and these are not.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


class OwnLoadImaged(LoadImaged):
    """A `LoadImaged` with readers of our own, by which programs find a bundle's loader.

    MONAI's makes all readers that it knows, and the one by way of NVIDIA's decoders warns that these are not there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
            super().__init__(*args, **kwargs)
