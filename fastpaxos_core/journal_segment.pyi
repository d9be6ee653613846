from typing_extensions import disjoint_base

@disjoint_base
class SegmentFile:
    @property
    def name(self) -> str: ...
