"""Methods of others, implemented from their papers on this package's statistics and surgery, to be measured against."""
