from typing import Self

import numpy as np
import numpy.typing as npt

class SlotWindow:
    slot_capacity: int
    batch_capacity: int
    batch_count: int
    memory_begin: int
    slot_end_max: int
    block_bytes: int
    def __new__(cls, slot_capacity: int, batch_capacity: int) -> Self: ...
    @property
    def accepted_ballots(self) -> npt.NDArray[np.uint64]: ...
    @property
    def batch_references(self) -> npt.NDArray[np.uint32]: ...
    @property
    def vote_masks(self) -> npt.NDArray[np.uint32]: ...
    @property
    def status(self) -> npt.NDArray[np.uint8]: ...
    def batches(self) -> list[tuple[int, int, int, int, int]]: ...
