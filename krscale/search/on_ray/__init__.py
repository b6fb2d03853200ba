"""The studies on Ray Tune: searcher, scheduler, trials, and how many run at once."""
