"""What an HDF5 file holds, checked by its headers before anything of it is read.

HDF5 follows links and external storage into other files of the machine, and a header of a few bytes may speak of
any number of them.
"""

from pathlib import Path
from typing import Any, BinaryIO

from tfopt._base.limits import MAX_RATIO, SPARE_BYTES
from tfopt.errors import ModelFileError


def check_hdf5(file: Path | BinaryIO, size: int, path: Path) -> int:
    """Checks links, storage and sizes of every dataset.

    Args:
        file: the HDF5 file, or an open one.
        size: its bytes.
        path: what to call it in a message.

    Returns:
        Bytes that the datasets take when they are read.

    Raises:
        ModelFileError: a link into another file or to another name, external or virtual storage, or a dataset
            that says to be larger than what the file holds of it.
        OSError: HDF5 cannot read it.
    """
    import h5py

    stored: list[int] = []

    # What a visitor returns ends the visit. It must not raise: h5py answers that with a SystemError.
    def trouble_with_link(name: str, link: Any) -> str | None:
        if isinstance(link, h5py.HardLink):
            return None
        return f"{path} points elsewhere ({name} to {getattr(link, 'filename', link.path)})"

    def trouble_with(name: str, item: Any) -> str | None:
        return _trouble(item, size, stored, where=f"{path} ({name})") if isinstance(item, h5py.Dataset) else None

    with h5py.File(file, "r") as handle:
        trouble = handle.visititems_links(trouble_with_link) or handle.visititems(trouble_with)
    if trouble is not None:
        raise ModelFileError(f"{trouble}: such a file is not loaded")
    return sum(stored)


def _trouble(dataset: Any, size: int, stored: list[int], where: str) -> str | None:
    if dataset.external or dataset.is_virtual:
        return f"{where} keeps its values in other files"
    says, holds = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    # Compression needs chunks; what was never written has no storage and reads as zeros.
    most = holds * MAX_RATIO if dataset.chunks else max(holds, min(says, SPARE_BYTES))
    if holds > size or says > most:
        return f"{where} says to have {says:,} bytes and holds {holds:,}"
    stored.append(says)
    return None
