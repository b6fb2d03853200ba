"""The teacher's knowledge on disk: written once, memory-mapped by every trial, with checksums."""

from typing import TYPE_CHECKING

from krscale.lazy import lazily

if TYPE_CHECKING:
    from krscale.store.building import (
        Report,
        make_shard,
        plan_of_build,
        prepare_store,
        write_shards,
    )
    from krscale.store.checking import Check, check_store
    from krscale.store.finding import find_store
    from krscale.store.layout import WHERE_BITS, FeatureLayout, WhereLayout
    from krscale.store.manifest import StoreCheckError, StorePlan, broken_shards
    from krscale.store.reading import FeatureStore, KnowledgeStore, MappedStore
    from krscale.store.shard import ShardBytes, ShardId, count_shards, keep_shard
    from krscale.store.spec import StoreSpec
else:
    __getattr__ = lazily(
        __name__,
        {
            "building": ["Report", "plan_of_build", "make_shard", "prepare_store", "write_shards"],
            "checking": ["Check", "check_store"],
            "finding": ["find_store"],
            "layout": ["WHERE_BITS", "FeatureLayout", "WhereLayout"],
            "manifest": ["StoreCheckError", "StorePlan", "broken_shards"],
            "reading": ["FeatureStore", "KnowledgeStore", "MappedStore"],
            "shard": ["ShardBytes", "ShardId", "count_shards", "keep_shard"],
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
    "ShardBytes",
    "ShardId",
    "StoreCheckError",
    "StorePlan",
    "StoreSpec",
    "WhereLayout",
    "broken_shards",
    "check_store",
    "count_shards",
    "find_store",
    "keep_shard",
    "make_shard",
    "plan_of_build",
    "prepare_store",
    "write_shards",
]
