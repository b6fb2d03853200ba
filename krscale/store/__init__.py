"""The teacher's knowledge on disk: written once, memory-mapped by every trial, verifiable."""

from typing import TYPE_CHECKING

from krscale.lazy import lazily

if TYPE_CHECKING:
    from krscale.store.building import Report, prepare_store, write_shards
    from krscale.store.checking import Check, check_store
    from krscale.store.finding import find_store
    from krscale.store.layout import WHERE_BITS, FeatureLayout, WhereLayout
    from krscale.store.manifest import StoreCheckError, broken_shards
    from krscale.store.reading import FeatureStore, KnowledgeStore, MappedStore
    from krscale.store.shard import ShardId, count_shards
    from krscale.store.spec import StoreSpec
else:
    __getattr__ = lazily(
        __name__,
        {
            "building": ["Report", "prepare_store", "write_shards"],
            "checking": ["Check", "check_store"],
            "finding": ["find_store"],
            "layout": ["WHERE_BITS", "FeatureLayout", "WhereLayout"],
            "manifest": ["StoreCheckError", "broken_shards"],
            "reading": ["FeatureStore", "KnowledgeStore", "MappedStore"],
            "shard": ["ShardId", "count_shards"],
            "spec": ["StoreSpec"],
        },
    )

__all__ = [
    "WHERE_BITS",
    "Check",
    "FeatureLayout",
    "FeatureStore",
    "KnowledgeStore",
    "MappedStore",
    "Report",
    "ShardId",
    "StoreCheckError",
    "StoreSpec",
    "WhereLayout",
    "broken_shards",
    "check_store",
    "count_shards",
    "find_store",
    "prepare_store",
    "write_shards",
]
