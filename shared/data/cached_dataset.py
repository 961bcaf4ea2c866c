"""Preprocessing that is done once, ahead of training, and kept on disk or in memory."""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, RandomizableTrait, Transform
from monai.utils import convert_to_tensor
from tqdm import tqdm

from ..utils import DataError, atomic_path, data_error_message, fault_list, is_disk_full, progress, writable_folder
from .sources import files_beside

CACHES = ("disk", "memory", "none")


def cached_dataset(
    data: Sequence[Mapping[str, Any]],
    transform: Callable | Sequence[Callable],
    cache: str = "disk",
    cache_dir: str | os.PathLike = "cache",
    num_workers: int = 2,
) -> Dataset:
    """A data set whose deterministic preprocessing is done once, ahead of training, and kept.

    All cases are read, checked and preprocessed before the first step, with a progress bar, so that a bad file shows
    within minutes and not in the middle of an epoch; the bad cases are listed, the first 50 of very many.

    Args:
        data: one dict a case, with file paths.
        transform: transforms; those before the first random one are cached.
        cache: `"disk"` keeps one file a case in `cache_dir`, found again by later runs while the case's files (path,
            size, time of change) and the deterministic transforms are the same; memory use does not grow with the
            number of cases. `"memory"` keeps all cases in memory. `"none"` preprocesses at each access.
        cache_dir: folder of the cache on disk.
        num_workers: threads that fill the cache.

    Raises:
        ValueError: for another `cache`.
        DataError: when cases cannot be used; the message lists them.
    """
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
    compose = transform if isinstance(transform, Compose) else Compose(transform)
    if cache == "none":
        return Dataset(data, compose)
    if cache == "memory":
        return _MemoryCacheDataset(data, compose, num_workers=num_workers, copy_cache=False)
    folder = writable_folder(cache_dir)
    dataset = _DiskCacheDataset(data, compose, folder, hash_func=_hash_case, hash_transform=pickle_hashing)
    # Each rank of a distributed run fills its share first; after the barrier all of them are there.
    rank, ranks = idist.get_rank(), idist.get_world_size()
    _for_all_cases(dataset.cached_file, data[rank::ranks], num_workers)
    idist.barrier()
    return dataset


def prepared_cases(dataset: Dataset, look: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    """What `look` makes of each case as it is before the first random transform.

    Of a data set with a cache the cases come from there; of one without, they are preprocessed for it.

    Args:
        dataset: as `cached_dataset` gives it, or MONAI's `CacheDataset` that holds all cases, `PersistentDataset` or
            `Dataset`.
        look: must not change what it is given.

    Raises:
        DataError: when cases cannot be used; the message lists them.
    """
    if isinstance(dataset, CacheDataset):
        return [look(case) for case in dataset._cache]
    if isinstance(dataset, PersistentDataset):
        return [look(dataset._cachecheck(item)) for item in dataset.data]
    compose = dataset.transform if isinstance(dataset.transform, Compose) else Compose(dataset.transform)
    first = compose.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))
    return _for_all_cases(lambda item: look(compose(copy.deepcopy(item), end=first)), dataset.data, 2)


class _MemoryCacheDataset(CacheDataset):
    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        return _for_all_cases(self._load_cache_item, indices or range(self.cache_num), self.num_workers or 1)


class _DiskCacheDataset(PersistentDataset):
    """MONAI's data set, with cache files that are never left cut short, and read by memory mapping.

    A random crop then reads the pages of the volume that it needs, not the whole of it. The state of a case's files is
    looked at once a run: of a DICOM series they are hundreds.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.files: dict[bytes, Path] = {}

    def cached_file(self, item: Mapping[str, Any]) -> Path:
        case = pickle_hashing(dict(item))
        if case not in self.files:
            self.files[case] = self.cache_dir / f"{self.hash_func(item).decode()}{self.transform_hash}.pt"
        file = self.files[case]
        if not file.is_file():
            content = self._pre_transform(copy.deepcopy(item))
            with atomic_path(file) as temporary:
                torch.save(convert_to_tensor(content, convert_numeric=False, track_meta=False), temporary)
        return file

    def _cachecheck(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return torch.load(self.cached_file(item), weights_only=True, mmap=True)


def _hash_case(item: Mapping[str, Any]) -> bytes:
    """A hash of the case and of the state of its files, of a series all: what was replaced is preprocessed again."""
    values = {key: value for key, value in item.items() if isinstance(value, str) and os.path.exists(value)}
    beside = [str(file) for key in ("image", "label") if key in values for file in files_beside(Path(values[key]))]
    files = [*values.values(), *beside]
    stats = []
    for file in files:
        with suppress(FileNotFoundError):  # something else that lay beside them for a moment
            state = os.stat(file)
            stats.append((file, state.st_size, state.st_mtime_ns))
    return pickle_hashing([dict(item), stats])


def _for_all_cases(function: Callable, arguments: Sequence[Any], num_workers: int) -> list[Any]:
    """Call `function` on all arguments in threads; when some fail on bad data, name all of these cases at once."""
    done = itertools.count(1)

    def attempt(argument: Any) -> Any:
        began = time.monotonic()
        try:
            result = function(argument)
        except Exception as e:
            message = data_error_message(e)
            if message is None or is_disk_full(e):
                raise
            result = DataError(message)
        say(next(done), done=True, began=began)
        return result

    def say(count: int, **how: Any) -> None:
        progress.move("case", (0, count == len(arguments)), f"preprocessing, after {count} of {len(arguments)}", **how)

    say(0)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        bar = tqdm(pool.map(attempt, arguments), total=len(arguments), desc="preprocessing cases", unit="case")
        results = list(bar)
    say(len(arguments), waits=True)
    errors = [result for result in results if isinstance(result, DataError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        faults = fault_list([str(error) for error in errors])
        raise DataError(f"{len(errors)} of {len(arguments)} cases cannot be used:{faults}")
    return results
