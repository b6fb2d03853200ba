"""The teacher's knowledge on disk: written once, memory-mapped by every trial, verifiable."""

from krscale.store.building import prepare_store, write_shards
from krscale.store.checking import Check, check_store
from krscale.store.reading import KnowledgeStore

__all__ = ["Check", "KnowledgeStore", "check_store", "prepare_store", "write_shards"]
