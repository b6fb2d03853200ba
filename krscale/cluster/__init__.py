"""Many workers: joining or starting Ray, one training over Ray Train, shards of a store."""
