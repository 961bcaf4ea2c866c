"""A pretended CUDA device, for processes of their own: it changes torch itself.

    run("-c", script, python=sys.executable, env=os.environ | {"PRETENDED_CUDA": library})   # of `build`

    import pretended_cuda                    # in the script, before torch
    waits = pretended_cuda.start()
    x = torch.ones(2, device="cuda")         # says cuda:0, and holds its values in the main memory
    x.numpy(), x + torch.ones(2)             # refused, as on a GPU
    x.sum().item(), waits                    # [("item", "myfile.py:12")]: the host has waited here

Tensors go through torch's own CUDA autocast, GradScaler and fused optimizers; a convolution or norm in half precision
is worked out in float32 and rounded, as tensor cores do. A file that such a tensor is saved in says cuda:0, and cannot
be read where there is no GPU. What it does not show: CUDA's own rounding, its memory, races, NCCL. A copy to
the device counts as a wait, unless it is non_blocking and small or from a loader that pins its batches.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if "PRETENDED_CUDA" in os.environ:  # before torch is there, which asks for CUDA's hooks once
    assert "torch" not in sys.modules
    ctypes.CDLL(os.environ["PRETENDED_CUDA"], mode=ctypes.RTLD_GLOBAL)

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

ATEN = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)
NO_NUMPY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
# Worked out in float32 where CUDA has kernels for half precision; of norms the first result alone is in half precision.
PRODUCTS = {"convolution", "convolution_backward", "mm", "bmm", "addmm", "baddbmm"}
NORMS = {f"native_{kind}_norm{back}" for kind in ("batch", "layer", "group") for back in ("", "_backward")}
SOFTMAX = {"_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data"}
# Their second operand may be on the other device; the host waits for all others in WAITS.
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
WAITS = {"_local_scalar_dense": "item", "nonzero": "nonzero", "masked_select": "masked_select", "equal": "equal"}
WAITS |= {"_unique2": "unique", "unique_dim": "unique", "unique_consecutive": "unique"}

STAGED = 1 << 16  # bytes; CUDA copies as many aside and goes on, and waits with more that are not pinned

waits: list[tuple[str, str]] = []
saved: dict[int, Tensor] = {}  # storages that files have been told to be on the GPU; kept, so that no other is there


def missing() -> str | None:
    """Why the device cannot be built here, or None."""
    if torch.version.cuda or torch.version.hip:
        return "torch is built for GPUs: a pretended one would meet the real one's code"
    return None if shutil.which("g++") else "there is no g++"


def build(folder: Path) -> Path:
    """The library, made in some seconds. Raises `CalledProcessError` where torch's headers are not those it expects."""
    library, source = folder / "libpretended_cuda.so", Path(__file__).with_suffix(".cpp")
    root = Path(torch.__file__).parent
    flags = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
    links = [f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library), *links], check=True, capture_output=True, text=True)
    return library


class Pretended(Tensor):
    """Of the main memory's `host`."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, host: Tensor, requires_grad: bool = False) -> Pretended:
        return _wrapper(cls, host, requires_grad=requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        _wait("tolist")
        return self.host.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(NO_NUMPY)

    __array__ = numpy

    def as_subclass(self, cls: type) -> Tensor:
        if "MetaTensor" in [base.__name__ for base in cls.__mro__]:
            return _meta_class()(self.host)
        return self if isinstance(self, Pretended) else Pretended(self.host)

    def __repr__(self, **kwargs: Any) -> str:
        return f"{type(self).__name__}({self.host!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        host = self.host.detach()
        saved[host.untyped_storage().data_ptr()] = host
        return host.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Pretended:
        copy = Pretended(self.host.clone(), self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        return copy


def _meta_class(made: list[type] = []) -> type:  # noqa: B006 - made once, where MONAI is there by then
    """A `MetaTensor` on the device."""
    if made:
        return made[0]
    from monai.data import MetaTensor

    class PretendedMeta(MetaTensor):
        def __new__(cls, host: Tensor, *args: Any, **kwargs: Any) -> PretendedMeta:
            return _wrapper(cls, host if type(host) is Tensor else host.host)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(self, **kwargs)

        def cpu(self, *args: Any, **kwargs: Any) -> MetaTensor:
            _wait("copy to the host")
            host = MetaTensor(self.host.detach().clone())
            host.__dict__.update({key: value for key, value in vars(self).items() if key != "host"})
            return host

        def to(self, *args: Any, **kwargs: Any) -> Tensor:
            wanted = [*args[:1], kwargs.get("device")]
            return self.cpu() if "cpu" in map(str, wanted) else super().to(*args, **kwargs)

        def copy_meta_from(self, *args: Any, **kwargs: Any) -> PretendedMeta:
            host = self.host
            super().copy_meta_from(*args, **kwargs)
            self.host = host
            return self

        __torch_dispatch__ = Pretended.__dict__["__torch_dispatch__"]
        tolist, numpy, __array__ = Pretended.tolist, Pretended.numpy, Pretended.numpy
        as_subclass, __repr__ = Pretended.as_subclass, Pretended.__repr__

    made.append(PretendedMeta)
    return PretendedMeta


def _wrapper(cls: type, host: Tensor, **options: Any) -> Any:
    layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
    tensor = Tensor._make_wrapper_subclass(cls, host.size(), device=CUDA, **layout, **options)
    tensor.host = host
    return tensor


def _is_pretended(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "host")


def _wait(kind: str) -> None:
    """Log it with the file and line that are nearest and none of torch's wrappers."""
    frame = sys._getframe(1)
    while frame and any(
        part in frame.f_code.co_filename for part in (__file__, "torch/utils/", "torch/_", "meta_tensor")
    ):
        frame = frame.f_back
    file = frame.f_code.co_filename if frame else "?"
    waits.append((kind, f"{file.rpartition('site-packages/')[2]}:{frame.f_lineno if frame else 0}"))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator, checked and logged, on the tensors of the main memory."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    own = [tensor for tensor in tensors if _is_pretended(tensor)]
    hosts = [tensor for tensor in tensors if not _is_pretended(tensor)]
    name, device = func.overloadpacket.__name__, kwargs.get("device")
    on_cuda = bool(own) if device is None else torch.device(device).type == "cuda"
    if own and (
        (name not in COPIES | INDEXING and any(tensor.ndim for tensor in hosts))
        or (name in INDEXING and not _is_pretended(args[0]))
    ):
        raise RuntimeError(f"Expected all tensors to be on the same device, found cuda:0 and cpu, in {func}.")
    if name == "copy_":
        on_cuda = _is_pretended(args[0])
    _log(name, args, kwargs, own, on_cuda)
    known = {id(tensor.host): tensor for tensor in own}  # what is worked on in place stays the same object
    args, kwargs = tree_map(lambda x: x.host if _is_pretended(x) else x, (args, kwargs))
    kwargs |= {"device": CPU} if device is not None else {}
    kwargs |= {"pin_memory": False} if kwargs.get("pin_memory") else {}
    with _disable_current_modes():
        result = _compute(func, name, args, kwargs) if own else func(*args, **kwargs)
    on_cuda = on_cuda and name != "_local_scalar_dense"

    def wrap(value: Any) -> Any:
        return known.get(id(value), Pretended(value) if on_cuda else value) if isinstance(value, Tensor) else value

    return tree_map(wrap, result)


def _mark_pinned(tensor: Tensor) -> Tensor:
    tensor.pinned = True  # which a worker process's would lose
    return tensor


def _log(name: str, args: Any, kwargs: dict[str, Any], own: list[Tensor], on_cuda: bool) -> None:
    if name in COPIES:
        source = args[1] if name == "copy_" else args[0]
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        blocking |= on_cuda and source.nbytes > STAGED and not getattr(source, "pinned", False)
        if _is_pretended(source) != on_cuda and (blocking or not on_cuda):
            _wait("copy to the device" if on_cuda else "copy to the host")
    elif own and name in WAITS:
        _wait(WAITS[name])
    elif own and name in INDEXING and (name == "index" or args[2].numel() > 1):  # one value needs no index
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        for _ in masks:
            _wait("index by a mask")


def _compute(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    low = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dtype in HALF]
    if name in SOFTMAX and "backward" in name:
        return func(args[0].float(), args[1].float(), args[2], torch.float32).to(args[3])
    if name in SOFTMAX:
        return func(args[0].float(), args[1], False).to(torch.float32 if args[2] else args[0].dtype)
    if not low or name not in PRODUCTS | NORMS:
        return func(*args, **kwargs)
    args, kwargs = tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.dtype in HALF else t, (args, kwargs))
    result = func(*args, **kwargs)
    if name in NORMS:
        return tuple(t.to(low[0]) if i == 0 and t is not None else t for i, t in enumerate(result))
    return tree_map(lambda t: t.to(low[0]) if isinstance(t, Tensor) else t, result)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def start() -> list[tuple[str, str]]:
    """Give this process the device, for the rest of its life; returns the log of the host's waits: kind and place."""
    torch.autograd.set_multithreading_enabled(False)
    properties = SimpleNamespace(major=9, minor=0, total_memory=141 << 30, name="pretended")
    answers = {"_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "set_device": None}
    answers |= {"synchronize": None, "empty_cache": None, "is_current_stream_capturing": False}
    answers |= {"get_device_properties": properties, "get_device_capability": (9, 0), "is_bf16_supported": True}
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    loader_init, tag = torch.utils.data.DataLoader.__init__, torch.serialization.location_tag

    def init(self: Any, *args: Any, pin_memory: bool = False, **kwargs: Any) -> None:
        loader_init(self, *args, **kwargs)  # there is no driver that could pin
        if pin_memory:
            collate = self.collate_fn
            self.collate_fn = lambda items: tree_map_only(Tensor, _mark_pinned, collate(items))

    torch.utils.data.DataLoader.__init__ = init
    torch.serialization.location_tag = lambda storage: "cuda:0" if storage.data_ptr() in saved else tag(storage)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)
    _Mode().__enter__()
    return waits
