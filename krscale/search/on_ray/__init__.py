"""The studies on Ray Tune: searcher, scheduler, trials, and the number of concurrent trials."""
